"""`Study`: a whole comparison as a file, from the model to the seed.

A study is written into every run's folder, and reproduces it::

    model: ./my-model
    data: reviews.csv
    methods: [cp_lrp, integrated_gradients, attention]
    operators: [delete, mask]
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from xattn import files
from xattn.data import Dataset, load_dataset
from xattn.errors import InputError, UnknownNameError
from xattn.evaluation.comparison import Comparison
from xattn.evaluation.design import YARDSTICKS
from xattn.evaluation.runner import Progress, compare
from xattn.evaluation.store import STUDY
from xattn.model import Model, load
from xattn.types import Quantity, Unit


@dataclass(frozen=True)
class Study:
    """What is compared, on what, and how; see `load`, `load_dataset` and `compare` for the fields.

    Examples
    --------
    >>> Study(methods=("rollout",), operators=("delete",), limit=2).run()
    Comparison(2 texts: rollout, random, oracle)
    """

    model: str | None = None
    task: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    revision: str | None = None
    memory: float | None = None
    data: str | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    rationale_column: str | None = None
    limit: int | None = None
    methods: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    operators: tuple[str, ...] | None = None
    unit: Unit = "token"
    quantity: Quantity = "probability"
    label: str | int | None = None
    at: str | int | None = None
    seed: int = 0
    truncate: bool = False
    beam: int = 3

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """Read a ``.yaml``, ``.yml`` or ``.toml`` file.

        Raises
        ------
        InputError
            If the file cannot be read, or a value is of another kind.
        UnknownNameError
            For a field that there is not.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
        except (OSError, UnicodeError, yaml.YAMLError, tomllib.TOMLDecodeError) as error:
            raise InputError(
                f"{path} cannot be read", got=" ".join(str(error).split()), expected="YAML or TOML"
            ) from error
        if not isinstance(values, dict):
            raise InputError(f"{path}", got=type(values).__name__, expected="fields with values")
        hints = get_type_hints(cls)
        for name, value in values.items():
            if name not in hints:
                raise UnknownNameError(f"field of {path}", str(name), hints)
            values[name] = _of_kind(f"{name} in {path}", value, hints[name])
        return cls(**values)

    def text(self) -> str:
        """Return the study as YAML; files that it names get their whole path."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.rooted()).items()
            if value is not None
        }
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def rooted(self) -> Study:
        """Return the same study with whole paths, so that it can be run from another folder."""
        return replace(self, model=_rooted(self.model), data=_rooted(self.data))

    def load_model(self) -> Model:
        """Load the model."""
        return load(
            self.model,
            task=self.task,
            device=self.device,
            dtype=self.dtype,
            revision=self.revision,
            memory=self.memory,
        )

    def load_dataset(self) -> Dataset:
        """Load the texts."""
        return load_dataset(
            self.data,
            text_column=self.text_column,
            pair_column=self.pair_column,
            label_column=self.label_column,
            rationale_column=self.rationale_column,
            limit=self.limit,
        )

    def adding(self, methods: Sequence[str] = (), metrics: Sequence[str] = ()) -> Study:
        """Return the same study with more methods or metrics."""

        def more(old: tuple[str, ...] | None, new: Sequence[str]) -> tuple[str, ...] | None:
            return old if old is None else tuple(dict.fromkeys((*old, *new)))

        return replace(
            self, methods=more(self.methods, methods), metrics=more(self.metrics, metrics)
        )

    def run(
        self,
        directory: str | Path | None = None,
        *,
        resume: bool = False,
        jobs: int = 1,
        progress: Progress | None = None,
        command: str = "",
    ) -> Comparison:
        """Load everything and compare.

        Parameters
        ----------
        directory, resume, jobs, progress, command
            As in `compare`. The study is kept in the directory, in the end with the methods,
            metrics and operators that it came down to.
        """
        result = compare(
            self.load_model(),
            self.load_dataset(),
            self.methods,
            self.operators,
            metrics=self.metrics,
            unit=self.unit,
            quantity=self.quantity,
            label=self.label,
            at=self.at,
            seed=self.seed,
            truncate=self.truncate,
            beam=self.beam,
            directory=directory,
            resume=resume,
            jobs=jobs,
            loader=self.load_model if jobs > 1 else None,
            progress=progress,
            command=command,
            study=self.text(),
        )
        if directory is not None:
            known = result.provenance
            told = replace(
                self,
                methods=tuple(name for name in known["methods"] if name not in YARDSTICKS),
                metrics=tuple(known["design"]["metrics"]),
                operators=tuple(known["operators"]),
            )
            files.write_text(Path(directory) / STUDY, told.text())
        return result


def _rooted(name: str | None) -> str | None:
    """Return the whole path of what exists here; anything else is a name on the Hub."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def _of_kind(name: str, value: Any, hint: Any) -> Any:
    """Return a value as its field has it."""
    allowed = get_args(hint) or (hint,)
    if isinstance(value, list) and any(str(kind).startswith("tuple") for kind in allowed):
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    elif value in (None, ""):
        if type(None) in allowed:
            return None
    elif isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        return float(value)
    elif any(value == kind or type(value) is kind for kind in allowed):
        return value
    kinds = [getattr(kind, "__name__", str(kind)) for kind in allowed if kind is not type(None)]
    raise InputError(name, got=repr(value), expected=" or ".join(kinds).replace("tuple", "a list"))
