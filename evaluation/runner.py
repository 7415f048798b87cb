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
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from xattn.data import Dataset
from xattn.errors import InputError, ModelError
from xattn.evaluation.block import NOTHING, Block, Findings
from xattn.evaluation.comparison import Comparison, assembled
from xattn.evaluation.design import DEFAULT_METRICS, PLAUSIBLE, Design
from xattn.evaluation.measuring import measure
from xattn.evaluation.store import STUDY, Store, code
from xattn.explanations import ALL, explain, parameters, refusals
from xattn.model import Model
from xattn.model.operators import drawing_from, get_operator
from xattn.model.scorer import Scorer
from xattn.types import Encoding, Quantity, Unit

BLOCK, CHARACTERS = 64, 32_000
"""Most texts and most characters of a block."""
POOL = 64
"""Texts, evenly from the whole data set, from which removal by ``data`` draws tokens."""
LIBRARIES = ("xattn", "torch", "transformers", "numpy", "scipy", "pandas")

Progress = Callable[[int, int], None]
Loader = Callable[[], Model]
"""Loads the model in another process; must be picklable, for example a `functools.partial`."""


def blocks(dataset: Dataset) -> list[Block]:
    """Split a data set into blocks; where they end depends on the texts alone."""
    found, start, size = [], 0, 0
    whole = Block(0, dataset.texts, dataset.pairs, dataset.rationales, _pool(dataset))
    for i, text in enumerate(dataset.texts):
        if i > start and (i - start == BLOCK or size + len(text) > CHARACTERS):
            found.append(whole[start:i])
            start, size = i, 0
        size += len(text)
    return [*found, whole[start:]] if len(whole) else found


def _pool(dataset: Dataset) -> tuple[str, ...]:
    return dataset.texts[:: max(1, len(dataset) // POOL)][:POOL]


def default_operators(model: Model) -> tuple[str, ...]:
    """Return two ways of removing that suit a model."""
    if model.tokenizer is None:
        return "mask", "blur"
    return "delete", "attention-mask" if model.tokenizer.mask_token_id is None else "mask"


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
    study: str = "",
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
        ``mask``, or ``attention-mask`` where the tokenizer has no mask token; ``mask`` and ``blur``
        for patches of pictures.
    metrics : sequence of str, optional
        Names, or names with options (``"abpc:ordering=absolute"``); see `xattn.evaluation.metrics`.
        By default `DEFAULT_METRICS`, and those of plausibility where the data set has rationales.
    unit : {"token", "word", "sentence"}
        What is removed at a time.
    quantity : {"probability", "logit", "log_probability", "lead"}
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
    study : str
        The whole study as YAML, which is kept in `directory` from the beginning.
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
        If the model reads texts with pictures, predicts numbers of which a probability is asked,
        or cannot serve a method.

    Examples
    --------
    >>> import xattn
    >>> from xattn.data import load_dataset
    >>> result = compare(xattn.load(), load_dataset(limit=3), ["rollout"], ["delete"])
    >>> result.leaderboard("delete", "abpc")["method"].tolist()[0]
    'oracle'
    """
    start, date = time.perf_counter(), datetime.now(UTC)
    if model.task.name == "match":
        raise ModelError(
            "texts with pictures cannot be compared",
            got=f"{model.name}, a model for {model.task.name}",
            remedy="explain single ones with explain (xattn explain --picture)",
        )
    if model.link == "identity" and quantity != "logit":
        raise ModelError(
            f"{model.name} predicts numbers",
            got=f"quantity {quantity}",
            expected="logit: the number itself",
        )
    if not dataset.texts:
        raise InputError("no text is given", expected="a data set of one or more")
    if jobs > 1 and loader is None:
        raise InputError("jobs", got=str(jobs), expected="1, or a loader of the model beside")
    if operators is None:
        operators = default_operators(model)
    if metrics is None:
        metrics = (*DEFAULT_METRICS, *(PLAUSIBLE if dataset.rationales is not None else ()))
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
    every = methods is None or ALL in methods
    refused = _tried(model, dataset, design, every)
    design = design.without(list(refused))
    identity = _identity(model, dataset, design)
    texts = {STUDY: study} if study else {}
    store = (
        None if directory is None else Store(Path(directory), identity, resume=resume, texts=texts)
    )
    found = _run(model, dataset, design, store, scorer, jobs, loader, progress)
    if not found.examples:
        raise InputError("every text failed", got=found.failures[0][2])
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
        "refused": refused,
        "date": date.isoformat(timespec="seconds"),
        "command": command,
        "jobs": jobs,
        "seconds": {"total": time.perf_counter() - start, **found.seconds},
    }
    return assembled(found, dataset, design, model.labels, provenance)


Task = tuple[Block, list[Design]]
"""Texts, and what is still to be measured of them."""
Measured = list[tuple[Design, Findings]]


def _run(
    model: Model,
    dataset: Dataset,
    design: Design,
    store: Store | None,
    scorer: Scorer | None,
    jobs: int,
    loader: Loader | None,
    progress: Progress | None,
) -> Findings:
    """Measure what is not there yet; return everything."""
    everything, parts = Findings(), blocks(dataset)
    todo = [(part, [design] if store is None else store.missing(part, design)) for part in parts]
    todo = [task for task in todo if task[1]]
    done = len(dataset) - sum(len(part) for part, _ in todo)
    results = (
        ((task, _measured(model, task, store, scorer)) for task in todo)
        if loader is None or jobs == 1
        else _elsewhere(todo, store, jobs, loader)
    )
    for (part, _), measured in results:
        for own, found in measured:
            if store is None:
                everything.add(found)
            else:
                store.write(part, own, found)
        done += len(part)
        if progress is not None:
            progress(done, len(dataset))
    return everything if store is None else store.findings()


def _measured(
    model: Model, task: Task, store: Store | None, scorer: Scorer | None = None
) -> Measured:
    part, designs = task
    known = NOTHING if store is None else store.known(part)
    return [(design, measure(model, part, design, known, scorer)) for design in designs]


_loaded: list[tuple[Model, Store | None]] = []
"""What a process that works for another one has."""


def _begin(loader: Loader, store: Store | None, threads: int) -> None:
    torch.set_num_threads(threads)
    _loaded[:] = [(loader(), store)]


def _measured_here(task: Task) -> Measured:
    model, store = _loaded[0]
    return _measured(model, task, store)


def _elsewhere(
    todo: Sequence[Task], store: Store | None, jobs: int, loader: Loader
) -> Iterator[tuple[Task, Measured]]:
    threads = max(1, torch.get_num_threads() // jobs)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, _begin, (loader, store, threads)) as pool:
        futures = {pool.submit(_measured_here, task): task for task in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _tried(model: Model, dataset: Dataset, design: Design, every: bool) -> dict[str, str]:
    """Try methods and operators before hours of work; return the methods that are left out.

    Who asks for all methods gets those that take the longest text. What is named and does not even
    serve the shortest one is an error, as is a way of removing that the tokenizer has no token for.
    """
    shortest, longest = _extremes(model, dataset, design.truncate)
    built = design.built_methods()
    asked: dict[str, Any] = {"label": design.label, "at": design.at}
    refused = refusals(model, [longest], list(built.values()), **asked) if every else {}
    if not every:
        explain(model, [shortest], list(built.values()), **asked)
    for operator in design.operators:
        removal = drawing_from(get_operator(operator), model, _pool(dataset))
        removal(model, longest.row, longest.special[None])
    return {name: refused[method] for name, method in built.items() if method in refused}


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
