"""`Comparison`: what `compare` found out, how to sum it up, and how to keep it."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from xattn.errors import InputError, UnknownNameError
from xattn.evaluation.faithfulness import METRICS
from xattn.evaluation.statistics import Interval, interval, paired_difference
from xattn.files import whole
from xattn.types import Attribution, Floats

GRID = np.linspace(0.0, 1.0, 11)
"""Shares of removed tokens at which curves of different texts are put side by side."""
CELL = ["method", "operator", "metric"]
FRAMES = ("scores", "curves", "cost", "examples")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods by texts: scores, curves, costs and explanations, with what led to them."""

    scores: pd.DataFrame
    """One row for each example, method, operator, metric: value. The yardsticks ``random`` and
    ``oracle`` are among the methods."""
    curves: pd.DataFrame
    """One row for each example, method, operator, order (``morf`` or ``lerf``) and fraction on an
    even grid 0, 0.1 ... 1: score, the probability of the explained class by interpolation."""
    cost: pd.DataFrame
    """One row for each example and method, without the oracle: seconds, forward_passes,
    backward_passes, and gap (completeness; nan for methods that promise none)."""
    attributions: list[Attribution]
    """Text by text, for each text in the order of the methods; named as in `scores`."""
    examples: pd.DataFrame
    """One row for each example: id, text, pair, label, prediction, probability, kind."""
    provenance: dict[str, Any]
    """What was run on what, with which parameters and versions; plain values."""

    def __repr__(self) -> str:
        names = ", ".join(self.scores["method"].unique())
        return f"Comparison({len(self.examples)} texts: {names})"

    @property
    def seed(self) -> int:
        """The seed of the run; the bootstrap uses it too."""
        return int(self.provenance["seed"])

    def _cells(self) -> Iterator[tuple[tuple[str, str, str], Floats]]:
        """Yield (method, operator, metric) and values ``[example]``, in order of appearance."""
        for key, group in self.scores.groupby(CELL, sort=False):
            method, operator, metric = map(str, key)
            values = group.sort_values("example")["value"].to_numpy(dtype=np.float64)
            yield (method, operator, metric), values

    @cached_property
    def _summary(self) -> pd.DataFrame:
        rows = [(*key, *interval(values, self.seed)) for key, values in self._cells()]
        return pd.DataFrame(rows, columns=[*CELL, *Interval._fields])

    def summary(self) -> pd.DataFrame:
        """Return method, operator, metric, mean, low, high (95 % bootstrap over texts) and n."""
        return self._summary.copy()

    @cached_property
    def _versus_random(self) -> pd.DataFrame:
        cells = dict(self._cells())
        rows = []
        for (method, operator, metric), values in cells.items():
            if method == "random":
                continue
            difference = paired_difference(values, cells["random", operator, metric], self.seed)
            higher = METRICS[metric].higher_is_better
            beats = difference.low > 0 if higher else difference.high < 0
            rows.append((method, operator, metric, *difference, bool(beats)))
        return pd.DataFrame(rows, columns=[*CELL, *Interval._fields, "beats_random"])

    def versus_random(self) -> pd.DataFrame:
        """Return how each method differs from random on the same texts.

        Columns: method, operator, metric; mean, low, high of the paired difference, method minus
        random, with its 95 % interval; n; and beats_random: whether the whole interval lies on the
        good side of 0, which for `sufficiency` and `aopc_lerf` is below.
        """
        return self._versus_random.copy()

    def leaderboard(self, operator: str, metric: str) -> pd.DataFrame:
        """Return the summary of one operator and metric, the best method first.

        Raises
        ------
        UnknownNameError
            For an operator or metric that was not measured.
        """
        for kind, name in (("operator", operator), ("metric", metric)):
            if name not in (known := self.scores[kind].unique()):
                raise UnknownNameError(kind, name, known)
        rows = self._summary[
            (self._summary["operator"] == operator) & (self._summary["metric"] == metric)
        ]
        upwards = not METRICS[metric].higher_is_better
        return rows.sort_values("mean", ascending=upwards, kind="stable", ignore_index=True)

    # ------------------------------------------------------------------ files

    def save(self, directory: str | Path, extra: Mapping[str, str] | None = None) -> None:
        """Write everything into a folder, which is created: all files or none.

        ``scores``, ``curves``, ``cost``, ``examples`` and ``attributions`` are Parquet tables;
        ``summary.json`` holds `summary`, `versus_random` and `provenance`. Files of an earlier
        comparison are replaced.

        Parameters
        ----------
        directory : str or Path
        extra : mapping of str to str, optional
            Further files by name, with their text: a report, for example.

        Raises
        ------
        InputError
            If the folder cannot be written.
        """
        directory = Path(directory)
        summary = {
            "summary": _records(self._summary),
            "versus_random": _records(self._versus_random),
            "provenance": self.provenance,
        }
        text = json.dumps(summary, indent=2, default=str, allow_nan=False)
        table = pa.Table.from_pylist([_packed(a) for a in self.attributions])
        # The stack unwinds from behind, so summary.json gets its name last.
        writers: dict[str, Callable[[Path], object]] = {
            "summary.json": partial(_write, text),
            "attributions.parquet": lambda path: pq.write_table(table, path),
            **{f"{name}.parquet": getattr(self, name).to_parquet for name in FRAMES},
            **{name: partial(_write, more) for name, more in (extra or {}).items()},
        }
        with ExitStack() as stack:  # names appear only when every file is complete
            for name, write in writers.items():
                write(stack.enter_context(whole(directory / name)))


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def load(directory: str | Path) -> Comparison:
    """Read a comparison that was saved.

    Raises
    ------
    InputError
        If the folder does not hold one, or a file is damaged.
    """
    directory = Path(directory)
    try:
        frames = {name: pd.read_parquet(directory / f"{name}.parquet") for name in FRAMES}
        packed = pq.read_table(directory / "attributions.parquet").to_pylist()
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        return Comparison(
            **frames,
            attributions=[_unpacked(row) for row in packed],
            provenance=summary["provenance"],
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(
            f"{directory} does not hold a comparison that can be read",
            got=f"{type(error).__name__}: {error}",
            expected="what Comparison.save or xattn compare --out wrote",
        ) from error


def _records(frame: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return rows as plain values; JSON knows no nan, so it becomes None."""
    return [
        {key: None if isinstance(v, float) and np.isnan(v) else v for key, v in row.items()}
        for row in frame.to_dict(orient="records")
    ]


def _packed(attribution: Attribution) -> dict[str, Any]:
    # parameters differ from method to method, which a table's columns cannot
    values = attribution.to_dict()
    return {**values, "parameters": json.dumps(values["parameters"], default=str)}


def _unpacked(row: dict[str, Any]) -> Attribution:
    arrays = {name: np.array(row.pop(name), dtype=np.int64) for name in ("segments", "words")}
    return Attribution(
        **{
            **row,
            "tokens": tuple(row["tokens"]),
            "offsets": np.array(row["offsets"], dtype=np.int64).reshape(-1, 2),
            "segments": arrays["segments"],
            "word_ids": arrays["words"],
            "scores": np.array(row["scores"], dtype=np.float32),
            "parameters": json.loads(row["parameters"]),
        }
    )
