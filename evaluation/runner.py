"""`compare`: explain every text by every method, remove units, and measure what happens.

Texts are worked on in blocks. In each, all methods explain, a search finds the best and the worst
order, and all perturbed inputs of all methods, metrics and operators are gathered and scored
together, each one once.
"""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from xattn.data import Dataset
from xattn.errors import InputError, ModelError
from xattn.evaluation.block import NOTHING, Block, Findings, Known, measure
from xattn.evaluation.comparison import Comparison, assembled
from xattn.evaluation.design import PLAUSIBLE, Design
from xattn.evaluation.store import Store, code
from xattn.explanations import ALL, explain, parameters, refusals
from xattn.model import Model
from xattn.model.operators import get_operator
from xattn.model.scorer import Scorer
from xattn.types import Encoding, Quantity, Unit

BLOCK, CHARACTERS = 64, 32_000
"""Most texts and most characters of a block."""
LIBRARIES = ("xattn", "torch", "transformers", "numpy", "scipy", "pandas")

Progress = Callable[[int, int], None]
Loader = Callable[[], Model]
"""Loads the model in another process; must be picklable, for example a `functools.partial`."""


def blocks(dataset: Dataset) -> list[Block]:
    """Split a data set into blocks; where they end depends on the texts alone."""
    found, start, size = [], 0, 0
    whole = Block(0, dataset.texts, dataset.pairs, dataset.rationales)
    for i, text in enumerate(dataset.texts):
        if i > start and (i - start == BLOCK or size + len(text) > CHARACTERS):
            found.append(whole[start:i])
            start, size = i, 0
        size += len(text)
    return [*found, whole[start:]] if len(whole) else found


def compare(
    model: Model,
    dataset: Dataset,
    methods: Sequence[str] | None = None,
    operators: Sequence[str] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    unit: Unit = "token",
    quantity: Quantity = "probability",
    label: str | int | None = None,
    at: str | int | None = None,
    seed: int = 0,
    truncate: bool = False,
    beam: int = 3,
    directory: str | Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    loader: Loader | None = None,
    progress: Progress | None = None,
    command: str = "",
    scorer: Scorer | None = None,
) -> Comparison:
    """Measure how faithful methods are on a data set.

    Parameters
    ----------
    model : Model
    dataset : Dataset
    methods : sequence of str, optional
        Names, or names with options (``"rollout:residual=0.3"``); ``all``, the default, stands for
        every registered one that takes the model and the longest text. ``random`` and ``oracle``,
        the yardsticks, are always added.
    operators : sequence of str, optional
        What removing a unit means; see `xattn.evaluation.OPERATORS`. By default ``delete`` and
        ``mask``, or ``attention-mask`` where the tokenizer has no mask token.
    metrics : sequence of str, optional
        Names, or names with options (``"abpc:ordering=absolute"``); see `xattn.evaluation.metrics`.
        By default `DEFAULT_METRICS`, and those of plausibility where the data set has rationales.
    unit : {"token", "word", "sentence"}
        What is removed at a time.
    quantity : {"probability", "logit", "log_probability"}
        What is watched as units go.
    label : str or int, optional
        The class that is explained and scored; by default each text's predicted one.
    at : str or int, optional
        Where the prediction is read, as in `explain`. A text that is asked at several places is
        an example for each.
    seed : int
        Of the random method, of ties, of what metrics draw, and of the bootstrap.
    truncate : bool
        Cut texts that are too long instead of refusing them.
    beam : int
        Beginnings that the search for the best and the worst order of removal keeps.
    directory : str or Path, optional
        Where finished parts are kept as the run goes.
    resume : bool
        Go on with the run in `directory`; what is there already is not computed again. Methods,
        operators and metrics may be more than they were.
    jobs : int
        Processes that share the work; more than one needs a `loader`.
    loader : callable, optional
    progress : callable, optional
        Called with the number of texts done and the number of all.
    command : str
        The command line, for the record.
    scorer : Scorer, optional
        One of `model`, to see what it is asked.

    Returns
    -------
    Comparison
        With what went wrong in `Comparison.failures`: a text that fails does not stop the others.

    Raises
    ------
    UnknownNameError
        For an unknown method, metric, operator or class.
    InputError
        For no operator, no text, another run in `directory`, or if all texts fail.
    ModelError
        If the model predicts numbers, or cannot serve a method.

    Examples
    --------
    >>> import xattn
    >>> from xattn.data import load_dataset
    >>> result = compare(xattn.load(), load_dataset(limit=3), ["rollout"], ["delete"])
    >>> result.leaderboard("delete", "abpc")["method"].tolist()[0]
    'oracle'
    """
    start, date = time.perf_counter(), datetime.now(UTC)
    if model.link == "identity" and quantity != "logit":
        raise ModelError(
            f"{model.name} predicts numbers",
            got=f"quantity {quantity}",
            expected="logit: the number itself",
        )
    if operators is None:
        masks = model.tokenizer is None or model.tokenizer.mask_token_id is not None
        operators = ("delete", "mask" if masks else "attention-mask")
    if metrics is None and dataset.rationales is not None:
        metrics = (*Design.of([], None, operators).metrics, *PLAUSIBLE)
    number = None if label is None else model.label_id(label)
    design = Design.of(
        methods,
        metrics,
        operators,
        unit=unit,
        quantity=quantity,
        label=number,
        at=at,
        seed=seed,
        truncate=truncate,
        beam=beam,
    )
    if not dataset.texts:
        raise InputError("no text is given", expected="a data set of one or more")
    shortest, longest = _extremes(model, dataset, truncate)
    built = list(design.built_methods().values())
    refused = {}
    if methods is None or ALL in methods:
        refused = refusals(model, [longest], built, label=number, at=at)
    else:  # what does not even serve the shortest text would fail on all
        explain(model, [shortest], built, label=number, at=at)
    design = design.without([m.name for m in refused])
    for operator in design.operators:  # a tokenizer without a mask token is better found out now
        get_operator(operator)(model, longest.row, longest.special[None])
    identity = _identity(model, dataset, design)
    store = None if directory is None else Store(Path(directory), identity, resume=resume)
    if jobs > 1 and loader is None:
        raise InputError("jobs", got=str(jobs), expected="1, or a loader of the model beside")
    work = _Work(model, dataset, design, store, scorer)
    found = work.run(jobs, loader, progress)
    if store is not None:
        found = store.findings()
    _any_result(found)
    provenance = {
        **identity,
        "design": {**design.fixed(), "metrics": list(design.metrics)},
        "seed": seed,
        "label": None if number is None else model.class_name(number),
        "methods": {
            name: {"name": m.name, **parameters(m)} for name, m in design.built_methods().items()
        },
        "operators": list(design.operators),
        "inputs": {"asked": found.asked, "run": found.run},
        "refused": {method.name: why for method, why in refused.items()},
        "date": date.isoformat(timespec="seconds"),
        "command": command,
        "jobs": jobs,
        "seconds": {"total": time.perf_counter() - start, **found.seconds},
    }
    return assembled(found, dataset, design, model.labels, provenance)


@dataclass(eq=False)
class _Work:
    """All blocks of a data set."""

    model: Model
    dataset: Dataset
    design: Design
    store: Store | None
    scorer: Scorer | None

    def run(self, jobs: int, loader: Loader | None, progress: Progress | None) -> Findings:
        """Measure what is missing; return what is not kept in a store."""
        total, todo = len(self.dataset), list(self._todo())
        rest = total - sum({part.first: len(part) for part, _, _ in todo}.values())
        left = {part.first: sum(p.first == part.first for p, _, _ in todo) for part, _, _ in todo}
        everything = Findings()
        results = (
            self._here(todo) if jobs == 1 or loader is None else _elsewhere(todo, jobs, loader)
        )
        for (part, design, _), found in results:
            if self.store is None:
                everything.add(found)
            else:
                self.store.write(part, design, found)
            left[part.first] -= 1
            if not left[part.first]:
                rest += len(part)
                if progress is not None:
                    progress(rest, total)
        return everything

    def _todo(self) -> Iterator[Task]:
        for part in blocks(self.dataset):
            if self.store is None:
                yield part, self.design, NOTHING
                continue
            for design in self.store.missing(part, self.design):
                yield part, design, self.store.known(part)

    def _here(self, todo: Sequence[Task]) -> Iterator[tuple[Task, Findings]]:
        for task in todo:
            part, design, known = task
            yield task, measure(self.model, part, design, known, self.scorer)


Task = tuple[Block, Design, Known]
_loaded: list[Model] = []
"""The model of a process that works for another one."""


def _begin(loader: Loader, threads: int) -> None:
    torch.set_num_threads(threads)
    _loaded[:] = [loader()]


def _measured(task: Task) -> Findings:
    part, design, known = task
    return measure(_loaded[0], part, design, known)


def _elsewhere(todo: Sequence[Task], jobs: int, loader: Loader) -> Iterator[tuple[Task, Findings]]:
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), _begin, (loader, threads)
    ) as pool:
        futures = {pool.submit(_measured, task): task for task in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _extremes(model: Model, dataset: Dataset, truncate: bool) -> tuple[Encoding, Encoding]:
    """Return the shortest and the longest text that can be encoded, to try methods on."""
    pairs = dataset.pairs or [""] * len(dataset)
    order = sorted(range(len(dataset)), key=lambda i: len(dataset.texts[i]) + len(pairs[i]))

    def first(places: Sequence[int]) -> Encoding:
        refused: InputError | None = None
        for i in places:
            pair = None if dataset.pairs is None else [pairs[i]]
            try:
                return model.encode([dataset.texts[i]], pair, truncate=truncate)[0]
            except InputError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    return first(order), first(order[::-1])


def _any_result(found: Findings) -> None:
    """Raise if nothing came of a run."""
    if not found.examples:
        raise InputError(
            "every text failed", got=found.failures[0][2] if found.failures else "no text"
        )


def _identity(model: Model, dataset: Dataset, design: Design) -> dict[str, Any]:
    """Return what all parts of a run have in common, as plain values."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {
        **model.provenance(),
        "versions": {"python": platform.python_version(), **libraries},
        "code": code(),
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint, "n": len(dataset)},
        "design": dict(design.fixed()),
    }
