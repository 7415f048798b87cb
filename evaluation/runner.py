"""`compare`: explain every text by every method, remove tokens, and measure what happens.

Texts are worked on in chunks. In each chunk all methods explain, the oracle searches, and all
perturbed inputs of all methods and operators are gathered and scored together, each one once.
"""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from xattn.data import Dataset
from xattn.errors import InputError, ModelError
from xattn.evaluation import curves, oracle
from xattn.evaluation.comparison import GRID, Comparison
from xattn.evaluation.deletion import Deletion, measure
from xattn.evaluation.faithfulness import METRICS, Measurement
from xattn.explanations import ALL, expanded, explain, parameters, refusals
from xattn.model import Model
from xattn.model.operators import Operator, get_operators
from xattn.model.scorer import Scorer
from xattn.registry import Method, methods
from xattn.types import Attribution, Encoding, Ints

RANDOM, ORACLE = "random", "oracle"
CHUNK = 64
"""Texts of a chunk."""
CHUNK_SQUARES = 2**18
"""Largest sum of squared lengths of a chunk: a step of the oracle holds so many ids a search."""
LIBRARIES = ("xattn", "torch", "transformers", "numpy", "scipy", "pandas")

Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Run:
    """One comparison under way: what it works with and the records it collects."""

    scorer: Scorer
    built: Mapping[str, Method]
    operators: Sequence[Operator]
    label: int | None
    seed: int
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    attributions: list[Attribution] = field(default_factory=list)
    predictions: list[tuple[str, float]] = field(default_factory=list)
    scores: list[tuple[int, str, str, str, float]] = field(default_factory=list)
    curves: list[tuple[int, str, str, str, float, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def chunk(self, first: int, encodings: Sequence[Encoding]) -> None:
        """Do everything for texts `first`, `first` + 1 ..."""
        with self.stage("score"):
            labels = self._explained(encodings)
        with self.stage("explain"):
            orders = self._orders(first, encodings)
        with self.stage("oracle"):
            extremes = self._extremes(encodings, labels)
        keys = [
            (i, method, operator)
            for i in range(len(encodings))
            for method in (*self.built, ORACLE)
            for operator in self.operators
        ]
        deletions = []
        for i, method, operator in keys:
            if method == ORACLE:
                morf, lerf = extremes[i, operator.name]
            else:
                morf, lerf = orders[i, method], orders[i, method][::-1]
            deletions.append(Deletion(encodings[i], operator, labels[i], morf, lerf))
        with self.stage("score"):
            measurements = measure(self.scorer, deletions)
        for (i, method, operator), measured in zip(keys, measurements, strict=True):
            self._record(first + i, method, operator.name, measured)
        self.scorer.clear()

    def _explained(self, encodings: Sequence[Encoding]) -> list[int]:
        """Note the predictions; return the class that is explained of each text."""
        rows = [e.row for e in encodings]
        labels = self.scorer.logits(rows).argmax(-1).tolist()
        names = [self.scorer.model.labels[label] for label in labels]
        self.predictions += zip(names, self.scorer.scores(rows, labels).tolist(), strict=True)
        return labels if self.label is None else [self.label] * len(encodings)

    def _orders(self, first: int, encodings: Sequence[Encoding]) -> dict[tuple[int, str], Ints]:
        """Explain; return the MoRF order of each text and method."""
        model, built = self.scorer.model, list(self.built.values())
        explanations = explain(model, encodings, built, label=self.label)
        orders = {}
        for i, group in enumerate(explanations.by_text()):
            for name, attribution in zip(self.built, group, strict=True):
                # one seed a text, so that methods do not differ by how their ties fall
                seed = (self.seed, first + i)
                orders[i, name] = curves.order(attribution.scores, encodings[i].removable, seed)
                self.attributions.append(replace(attribution, method=name))
        return orders

    def _extremes(
        self, encodings: Sequence[Encoding], labels: Sequence[int]
    ) -> dict[tuple[int, str], tuple[Ints, Ints]]:
        """Return the oracle's MoRF and LeRF order of each text and operator."""
        keys = [(i, o) for i in range(len(encodings)) for o in self.operators]
        searches = [
            oracle.Search(encodings[i], operator, labels[i], lowest_first)
            for i, operator in keys
            for lowest_first in (True, False)
        ]
        found = oracle.run(self.scorer, searches)
        pairs = zip(found[::2], found[1::2], strict=True)
        return {(i, o.name): pair for (i, o), pair in zip(keys, pairs, strict=True)}

    def _record(self, example: int, method: str, operator: str, measured: Measurement) -> None:
        for name, metric in METRICS.items():
            self.scores.append((example, method, operator, name, metric(measured)))
        for direction, curve in (("morf", measured.morf), ("lerf", measured.lerf)):
            for fraction, score in zip(GRID.tolist(), curve.at(GRID).tolist(), strict=True):
                self.curves.append((example, method, operator, direction, fraction, score))


def chunks(encodings: Sequence[Encoding]) -> Iterator[range]:
    """Split texts into runs of at most `CHUNK` whose squared lengths stay under a bound.

    The oracle holds one input of ``n`` tokens for each of ``n`` tokens, so memory grows with the
    square; a text that is over the bound by itself gets a chunk of its own.
    """
    start = squares = 0
    for i, encoding in enumerate(encodings):
        square = len(encoding) ** 2
        if i > start and (i - start == CHUNK or squares + square > CHUNK_SQUARES):
            yield range(start, i)
            start, squares = i, 0
        squares += square
    yield range(start, len(encodings))


def compare(
    model: Model,
    dataset: Dataset,
    methods: Sequence[str] | None = None,
    operators: Sequence[str] | None = None,
    *,
    label: str | int | None = None,
    seed: int = 0,
    truncate: bool = False,
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
        What removing a token means; see `xattn.evaluation.OPERATORS`. By default ``delete`` and
        ``mask``, or ``attention-mask`` where the tokenizer has no mask token.
    label : str or int, optional
        The class that is explained and scored; by default each text's predicted one.
    seed : int
        Of the random method, of ties, and of the bootstrap.
    truncate : bool
        Cut texts that are too long instead of refusing them.
    progress : callable, optional
        Called with the number of texts done and the number of all.
    command : str
        The command line, for the record.
    scorer : Scorer, optional
        One of `model`, to see what it is asked.

    Returns
    -------
    Comparison

    Raises
    ------
    UnknownNameError
        For an unknown method, operator or class.
    InputError
        For a text that the model cannot read, or no operator.
    ModelError
        If the model cannot serve a method.

    Examples
    --------
    >>> import xattn
    >>> from xattn.data import load_dataset
    >>> result = compare(xattn.load(), load_dataset(limit=3), ["rollout"], ["delete"])
    >>> result.leaderboard("delete", "abpc")["method"].tolist()[0]
    'oracle'
    """
    start, date = time.perf_counter(), datetime.now(UTC)
    if model.task.name != "classify" or model.link == "identity":
        raise ModelError(
            "only classifiers of texts can be compared",
            got=f"{model.name}, a model for {model.task.name}"
            + (" that predicts numbers" if model.link == "identity" else ""),
            remedy="explain single texts with explain (xattn explain)",
        )
    built = _build(methods, seed)
    if operators is None:
        masks = model.tokenizer.mask_token_id is not None
        operators = ("delete", "mask" if masks else "attention-mask")
    chosen = get_operators(operators)
    if not chosen:
        raise InputError("no operator is named", expected="one or more, for example delete")
    scorer = Scorer(model) if scorer is None else scorer
    number = None if label is None else model.label_id(label)
    encodings = model.encode(dataset.texts, dataset.pairs, truncate=truncate)
    if not encodings:
        raise InputError("no text is given", expected="a data set of one or more")
    longest = [max(encodings, key=len)]
    every = methods is None or ALL in methods
    refused = refusals(model, longest, list(built.values()), label=number) if every else {}
    built = {name: method for name, method in built.items() if method not in refused}
    run = Run(scorer, built, chosen, number, seed)
    for operator in chosen:  # a tokenizer without a mask token is better found out now
        operator(model, encodings[0].row, encodings[0].special[None])
    for part in chunks(encodings):
        run.chunk(part.start, encodings[part.start : part.stop])
        if progress is not None:
            progress(part.stop, len(encodings))
    provenance = {
        **_circumstances(run, dataset),
        "refused": {method.name: why for method, why in refused.items()},
        "date": date.isoformat(timespec="seconds"),
        "command": command,
        "seconds": {"total": time.perf_counter() - start, **run.seconds},
    }
    return _result(run, dataset, provenance)


def _build(specs: Sequence[str] | None, seed: int) -> dict[str, Method]:
    """Return the methods by their display names, random among them."""
    names = dict.fromkeys(expanded([ALL] if specs is None else specs))
    names.pop(ORACLE, None)  # always there, and no method
    names[RANDOM] = None
    return {
        name: methods.build(f"{RANDOM}:seed={seed}" if name == RANDOM else name) for name in names
    }


def _circumstances(run: Run, dataset: Dataset) -> dict[str, Any]:
    """Return what the result depends on, as plain values."""
    model, libraries = run.scorer.model, {name: version(name) for name in LIBRARIES}
    return {
        **model.provenance(),
        "versions": {"python": platform.python_version(), **libraries},
        "seed": run.seed,
        "label": None if run.label is None else model.labels[run.label],
        "methods": {name: {"name": m.name, **parameters(m)} for name, m in run.built.items()},
        "operators": [operator.name for operator in run.operators],
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint, "n": len(dataset)},
        "inputs": {"asked": run.scorer.asked, "run": run.scorer.run},
    }


def _named(labels: Sequence[str | int] | None, classes: Sequence[str]) -> list[str] | None:
    """Return the labels as the model names its classes; None if they are of another kind.

    Data sets often number their classes. A label that is no class cannot be right or wrong.
    """
    if labels is None:
        return None
    numbers = {str(i): name for i, name in enumerate(classes)}
    for names in ({name: name for name in classes}, numbers):
        if all(str(label) in names for label in labels):
            return [names[str(label)] for label in labels]
    return None


def _result(run: Run, dataset: Dataset, provenance: dict[str, Any]) -> Comparison:
    count = len(dataset)
    nothing = [None] * count
    examples = pd.DataFrame(
        {
            "example": range(count),
            "id": dataset.ids,
            "text": dataset.texts,
            "pair": dataset.pairs or nothing,
            "label": _named(dataset.labels, run.scorer.model.labels) or nothing,
            "prediction": [name for name, _ in run.predictions],
            "probability": [probability for _, probability in run.predictions],
            "kind": dataset.kinds or nothing,
        }
    )
    cost = pd.DataFrame(
        {
            "example": [i // len(run.built) for i in range(len(run.attributions))],
            "method": [a.method for a in run.attributions],
            "seconds": [a.seconds for a in run.attributions],
            "forward_passes": [float(a.forward_passes) for a in run.attributions],
            "backward_passes": [float(a.backward_passes) for a in run.attributions],
            "gap": [np.nan if a.gap is None else a.gap for a in run.attributions],
        }
    )
    curve_names = ["example", "method", "operator", "order", "fraction", "score"]
    return Comparison(
        scores=pd.DataFrame(
            run.scores, columns=["example", "method", "operator", "metric", "value"]
        ),
        curves=pd.DataFrame(run.curves, columns=curve_names),
        cost=cost,
        attributions=run.attributions,
        examples=examples,
        provenance=provenance,
    )
