"""A detector of answers that do not rest on their source, from how heads look back at it.

Logistic regression on lookback ratios, one feature a head (Chuang et al. 2024, Lookback Lens),
trained with the user's own labels; and a score without labels, the mean of all heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xattn import files
from xattn.analysis.lookback import Kind, Lookback, Span, lookbacks, placed
from xattn.data import load_dataset
from xattn.errors import InputError, UnknownNameError
from xattn.evaluation.statistics import Interval
from xattn.model import Model
from xattn.model.provenance import fingerprint
from xattn.types import Bools, Encoding, Floats, Ints

YES, NO = ("yes", "true", "1"), ("no", "false", "0")
FEWEST = 2
"""Sources of each kind that cross-validation needs."""


@dataclass(frozen=True)
class Labelled:
    """An answer of which a person said what rests on the source."""

    source: str
    answer: str
    ungrounded: tuple[Span, ...]
    """Characters of the answer that do not rest on the source; all of it, none, or parts."""
    question: str = ""

    def __post_init__(self) -> None:
        for start, end in self.ungrounded:
            if not 0 <= start < end <= len(self.answer):
                raise InputError(
                    "a span that is not grounded lies outside the answer",
                    got=f"characters {start} to {end}",
                    expected=f"a part of the {len(self.answer)} characters of {self.answer!r}",
                )


def read_labels(path: str | Path) -> list[Labelled]:
    """Read labelled answers.

    Parameters
    ----------
    path : str or Path
        A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file with the columns ``source`` and
        ``answer``, if need be ``question``, and one of two: ``grounded`` (yes or no), or
        ``ungrounded``: which characters of the answer are not, as ``12-19;30-40``, a list of
        ``[start, end]``, or the passages themselves; empty where all is.

    Raises
    ------
    InputError
        For a file, a row or a label that cannot be used.
    """
    read = partial(load_dataset, path, text_column="answer", pair_column="source")
    try:
        rows = read(label_column="grounded")
    except UnknownNameError:
        rows = read(rationale_column="ungrounded")
    try:
        questions = load_dataset(path, text_column="question").texts
    except UnknownNameError:  # there need not be any
        questions = ("",) * len(rows)
    spans = rows.rationales
    if rows.labels is not None:
        spans = tuple(
            () if _said(label, number) else ((0, len(answer)),)
            for number, (label, answer) in enumerate(zip(rows.labels, rows.texts, strict=True), 1)
        )
    return [
        Labelled(source, answer, where, question)
        for source, answer, where, question in zip(
            rows.pairs or (), rows.texts, spans or (), questions, strict=True
        )
    ]


def _said(label: str | int, row: int) -> bool:
    word = str(label).strip().lower()
    if word not in YES + NO:
        raise InputError(f"grounded in row {row}", got=repr(label), expected="yes or no")
    return word in YES


@dataclass(frozen=True, eq=False)
class Detector:
    """Says how likely it is that some tokens of an answer do not rest on its source."""

    weights: Floats
    """``[layer · head]``: of the standardised lookback ratios; above 0 speaks for ungrounded."""
    bias: float
    centre: Floats
    """``[layer · head]``: mean of each ratio among the labelled answers."""
    scale: Floats
    """``[layer · head]``: standard deviation of each."""
    kind: Kind
    model: str
    """What the model is called whose heads these are."""
    fingerprint: str
    """SHA-256 of its weights."""
    examples: int
    """Answers, or parts of answers, that it was trained on."""
    ungrounded: int
    """How many of these do not rest on their source."""
    auroc: Interval
    """Of examples that it had not seen, by cross-validation over sources."""

    def probability(self, lookback: Lookback, tokens: Sequence[int] | None = None) -> float:
        """Return the probability that some tokens (all by default) are not grounded, 0..1."""
        features = lookback.features(tokens, self.kind)
        if features.shape != self.weights.shape:
            raise InputError(
                "the detector is of another model",
                got=f"{len(features)} heads",
                expected=f"{len(self.weights)}, those of {self.model}",
            )
        z = float(self.weights @ ((features - self.centre) / self.scale)) + self.bias
        return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))

    def save(self, path: Path) -> None:
        """Write the detector as JSON: numbers and nothing that could be run."""
        kept = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in asdict(self).items()
        }
        files.write_text(path, json.dumps({**kept, "auroc": self.auroc._asdict()}, indent=1))

    @classmethod
    def load(cls, path: Path, model: Model) -> Detector:
        """Read a detector that `save` wrote, for the model that it was trained for.

        Raises
        ------
        InputError
            If the file holds none, or one of another model.
        """
        try:
            given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            arrays = {name: np.array(given[name]) for name in ("weights", "centre", "scale")}
            detector = cls(**{**given, **arrays, "auroc": Interval(**given["auroc"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} holds no detector",
                got=f"{type(error).__name__}: {error}",
                remedy="train one: xattn grounding --train LABELS --save FILE",
            ) from None
        if detector.fingerprint != fingerprint(model.network):
            raise InputError(
                "the detector was trained for other weights",
                got=f"{model.name}",
                expected=f"{detector.model}, with weights {detector.fingerprint[:12]}",
                remedy="train one for this model: its heads are others",
            )
        return detector


@dataclass(frozen=True, eq=False)
class Examples:
    """Features and labels: what a detector learns from."""

    features: Floats
    """``[example, layer · head]``"""
    ungrounded: Bools
    """``[example]``"""
    sources: Ints
    """``[example]``: which source each is about; those of one source stay together."""


def examples(
    model: Model, rows: Sequence[Labelled], kind: Kind = "mean", *, chat: bool = False
) -> Examples:
    """Return lookback features of labelled answers, read as if the model had written them.

    An answer of which only parts are grounded gives an example for each part.

    Parameters
    ----------
    model : Model
        That generates.
    rows : sequence of Labelled
    kind : {"mean", "mass"}
        See `Lookback.ratio`.
    chat : bool
        Put the prompts into the model's chat template.

    Raises
    ------
    InputError
        For a row that cannot be read, by its number.
    """
    encodings = []
    for number, row in enumerate(rows, 1):
        try:
            encodings.append(placed(model, row.question, row.source, row.answer, chat=chat))
        except InputError as error:
            raise InputError(f"row {number}: {error}") from None
    found = lookbacks(model, encodings)
    features: list[Floats] = []
    labels: list[bool] = []
    sources: list[int] = []
    numbers: dict[str, int] = {}
    for row, encoding, lookback in zip(rows, encodings, found, strict=True):
        for tokens, ungrounded in _parts(row, encoding):
            features.append(lookback.features(tokens, kind))
            labels.append(ungrounded)
            sources.append(numbers.setdefault(row.source, len(numbers)))
    return Examples(np.stack(features), np.array(labels), np.array(sources, dtype=np.int64))


def _parts(row: Labelled, encoding: Encoding) -> list[tuple[list[int], bool]]:
    """Return runs of tokens of an answer that have one label."""
    written = encoding.segments == 1
    offsets = encoding.offsets[written]
    lead = _blanks(encoding.pair or "") - _blanks(row.answer)
    flags = np.zeros(len(offsets), dtype=bool)
    for start, end in row.ungrounded:
        flags |= (offsets[:, 0] < end + lead) & (offsets[:, 1] > start + lead)
    borders = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(flags)]
    return [(list(range(start, end)), bool(flags[start])) for start, end in pairwise(borders)]


def _blanks(text: str) -> int:
    return len(text) - len(text.lstrip())


def train(
    model: Model,
    rows: Sequence[Labelled],
    kind: Kind = "mean",
    *,
    folds: int = 5,
    seed: int = 0,
    chat: bool = False,
) -> Detector:
    """Train a detector, and find out by cross-validation how good it is.

    Parameters
    ----------
    model : Model
        That generates.
    rows : sequence of Labelled
        At least two sources with grounded answers and two with others.
    kind, chat
        As in `examples`.
    folds : int
        Parts of cross-validation, 2 or more; answers about one source are in one part.
    seed : int
        Of these parts.

    Raises
    ------
    InputError
        If there are too few labels of a kind.
    """
    if not rows:
        raise InputError("no answer is labelled", expected="some that are grounded, some not")
    if folds < FEWEST:
        raise InputError("folds of cross-validation", got=str(folds), expected="2 or more")
    made = examples(model, rows, kind, chat=chat)
    scores = out_of_fold(made, folds, seed)
    pipeline = _pipeline().fit(made.features, made.ungrounded)
    scaler, regression = pipeline[0], pipeline[1]
    return Detector(
        weights=regression.coef_[0],
        bias=float(regression.intercept_[0]),
        centre=scaler.mean_,
        scale=scaler.scale_,
        kind=kind,
        model=model.name,
        fingerprint=fingerprint(model.network),
        examples=len(made.ungrounded),
        ungrounded=int(made.ungrounded.sum()),
        auroc=auroc(made.ungrounded, scores),
    )


def _pipeline() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def out_of_fold(made: Examples, folds: int = 5, seed: int = 0) -> Floats:
    """Return what detectors say of examples about sources that they were not trained on.

    Parameters
    ----------
    made : Examples
    folds, seed : int
        As in `train`.

    Returns
    -------
    array
        ``[example]``: log-odds of being ungrounded.
    """
    kinds = [len(set(made.sources[made.ungrounded == label].tolist())) for label in (True, False)]
    if min(kinds) < FEWEST:
        raise InputError(
            "too few labels to train a detector",
            got=f"{kinds[1]} sources with grounded answers, {kinds[0]} with others",
            expected=f"{FEWEST} or more of each",
        )
    parts = StratifiedGroupKFold(min(folds, *kinds), shuffle=True, random_state=seed)
    scores: Floats = cross_val_predict(
        _pipeline(), made.features, made.ungrounded,
        groups=made.sources, cv=parts, method="decision_function",
    )  # fmt: skip
    return scores


def unsupervised(lookback: Lookback, tokens: Sequence[int] | None = None) -> float:
    """Return a score that needs no labels: 1 minus the mean lookback ratio, 0..1.

    The mean over all heads and the tokens asked for (all by default). High where the model looks at
    its own words rather than at the source.
    """
    return 1 - float(lookback.features(tokens).mean())


def auroc(positive: Bools, scores: Floats, confidence: float = 0.95) -> Interval:
    """Return the area under the ROC curve with its interval.

    The interval is Newcombe's method 5 (2006, Confidence intervals for an effect size measure based
    on the Mann-Whitney statistic, part 2): a score interval, which has a width even where the two
    kinds are told apart without a fault. Examples count as independent.

    Parameters
    ----------
    positive : array
        ``[example]`` bool; some are, some are not.
    scores : array
        ``[example]``: the higher, the more positive; ties count half.
    confidence : float
        In (0, 1).

    Examples
    --------
    >>> auroc(np.array([True, True, False, False]), np.array([4.0, 2.0, 3.0, 1.0])).mean
    0.75
    """
    area = float(roc_auc_score(positive, scores))
    ones, others = int(np.sum(positive)), int(np.sum(~np.asarray(positive)))
    z, mean = float(norm.ppf((1 + confidence) / 2)), (ones + others) / 2 - 1

    def excess(true: float) -> float:
        """Return by how much an area misses the true one, beyond what chance allows."""
        spread = 1 + mean * (1 - true) / (2 - true) + mean * true / (1 + true)
        return (true - area) ** 2 - z**2 * true * (1 - true) * spread / (ones * others)

    near = 1e-9  # the area itself is a root where it is 0 or 1
    low = brentq(excess, 0, area - near) if area > near else 0.0
    high = brentq(excess, area + near, 1) if area < 1 - near else 1.0
    return Interval(area, float(low), float(high), ones + others)
