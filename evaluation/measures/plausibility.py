"""Whether explanations look like what people find decisive, or find evidence that is known.

Plausible is not faithful: a model may well have used something else.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.metrics import average_precision_score

from xattn.errors import InputError
from xattn.evaluation.case import Case, Ordering
from xattn.evaluation.measures.eraser import ERASER
from xattn.evaluation.metric import register
from xattn.types import Bools

POINTING = "Zhang et al. 2018, Top-down Neural Attention by Excitation Backprop (IJCV)"
MASS = (
    "Arras et al. 2022, CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural "
    "Network Explanations"
)


class Evidence:
    """What these metrics share: without evidence they are not defined."""

    def __call__(self, case: Case) -> float:
        """Return the value; nan where nobody said what is decisive, or all or nothing is."""
        marked = case.rationale
        if marked is None or marked.all() or not marked.any():
            return float("nan")
        return float(self.judged(case, marked))

    @abstractmethod
    def judged(self, case: Case, marked: Bools) -> float:
        """Return the value, given which units are decisive, ``[player]``."""


def _top(case: Case, count: int, ordering: Ordering) -> Bools:
    chosen = np.zeros(len(case), dtype=bool)
    chosen[case.order(ordering)[:count]] = True
    return chosen


@register(
    "auprc",
    label="AUPRC",
    higher_is_better=True,
    bounds=(0.0, 1.0),
    unit="average precision",
    citation=ERASER,
    meaning="how well the scores tell the words that people marked from the others",
    needs={"rationale"},
)
@dataclass(frozen=True)
class Auprc(Evidence):
    """Area under the precision-recall curve of the scores as a detector of marked units."""

    ordering: Ordering = "signed"

    def judged(self, case: Case, marked: Bools) -> float:
        """Return the area."""
        return float(average_precision_score(marked, case.relevance(self.ordering)))


@register(
    "token_f1",
    label="Token F1",
    higher_is_better=True,
    bounds=(0.0, 1.0),
    unit="F1",
    citation=ERASER,
    meaning="how many of the words with the highest scores people marked, and the other way round",
    needs={"rationale"},
)
@dataclass(frozen=True)
class TokenF1(Evidence):
    """F1 of the top units against the marked ones; as many are taken as are marked.

    Precision, recall and F1 are then one number, and no threshold differs between methods.
    """

    ordering: Ordering = "signed"

    def judged(self, case: Case, marked: Bools) -> float:
        """Return the share."""
        return float(marked[_top(case, int(marked.sum()), self.ordering)].mean())


@register(
    "iou_f1",
    label="IOU F1",
    higher_is_better=True,
    bounds=(0.0, 1.0),
    unit="F1",
    citation=ERASER,
    meaning="how many marked passages the highest scores cover, by at least half",
    needs={"rationale"},
)
@dataclass(frozen=True)
class IouF1(Evidence):
    """F1 of passages (runs of units): one is found if intersection over union is over one half.

    DeYoung et al. 2020, section 4.2; as many units are taken as are marked.
    """

    threshold: float = 0.5
    ordering: Ordering = "signed"

    def judged(self, case: Case, marked: Bools) -> float:
        """Return F1."""
        truth = runs(marked)
        found = runs(_top(case, int(marked.sum()), self.ordering))
        hits = [any(_overlap(a, b) >= self.threshold for b in truth) for a in found]
        caught = [any(_overlap(a, b) >= self.threshold for a in found) for b in truth]
        precision, recall = float(np.mean(hits)), float(np.mean(caught))
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def runs(chosen: Bools) -> list[frozenset[int]]:
    """Return the runs of neighbours that are chosen.

    Examples
    --------
    >>> [sorted(run) for run in runs(np.array([True, True, False, True]))]
    [[0, 1], [3]]
    """
    places = np.flatnonzero(chosen)
    parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [frozenset(part.tolist()) for part in parts if len(part)]


def _overlap(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)


@register(
    "pointing",
    label="Pointing game",
    higher_is_better=True,
    bounds=(0.0, 1.0),
    unit="share of texts",
    citation=POINTING,
    meaning="how often the highest score stands on the evidence",
    needs={"rationale"},
)
@dataclass(frozen=True)
class Pointing(Evidence):
    """1 if the unit with the highest score is marked, else 0."""

    ordering: Ordering = "signed"

    def judged(self, case: Case, marked: Bools) -> float:
        """Return 0 or 1."""
        return float(marked[case.order(self.ordering)[0]])


@register(
    "evidence_mass",
    label="Mass on evidence",
    higher_is_better=True,
    bounds=(0.0, 1.0),
    unit="share of the scores",
    citation=MASS,
    meaning="how much of all relevance lies on the evidence",
    needs={"rationale"},
)
@dataclass(frozen=True)
class EvidenceMass(Evidence):
    """Share of the positive (or absolute) scores that marked units have (Arras et al. 2022, eq. 8).

    Nan where no score is above 0.
    """

    ordering: Literal["positive", "absolute"] = "positive"

    def judged(self, case: Case, marked: Bools) -> float:
        """Return the share."""
        relevance = case.relevance(self.ordering)
        if relevance.sum() <= 0:
            return float("nan")
        return float(relevance[marked].sum() / relevance.sum())


@register(
    "recall_at_k",
    label="Recall at k",
    higher_is_better=True,
    bounds=(0.0, 1.0),
    unit="share of the evidence",
    citation=MASS,
    meaning="how much of the evidence is among the highest scores",
    needs={"rationale"},
)
@dataclass(frozen=True)
class RecallAtK(Evidence):
    """Share of the marked units among the `k` with the highest scores."""

    k: int = 5
    ordering: Ordering = "signed"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError("k of recall_at_k", got=repr(self.k), expected="1 or more")

    def judged(self, case: Case, marked: Bools) -> float:
        """Return the share."""
        return float((marked & _top(case, self.k, self.ordering)).sum() / marked.sum())
