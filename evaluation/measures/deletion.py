"""Deletion and insertion curves, and the areas at them (Samek et al. 2017).

A deletion curve is the target ``y`` as units go, by the share ``t`` that is gone. Areas are by
trapezoids over the shares of `steps`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xattn.evaluation.case import Case, Ordering, gone
from xattn.evaluation.metric import register
from xattn.model.game import Plan
from xattn.types import Curve, Ints

SAMEK = "Samek et al. 2017, Evaluating the Visualization of What a Deep Neural Network Has Learned"
RISE = "Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation of Black-box Models"
NORMALISED = (
    "Edin et al. 2025, Normalized AOPC: Fixing Misleading Faithfulness Metrics for Feature "
    "Attribution Explainability (ACL)"
)
STEPS = 10
"""Steps of a curve; shorter texts lose one unit a step."""


def steps(n: int) -> Ints:
    """Return how many of `n` units are gone at each point of a curve, from 0 to `n`.

    Every number for up to `STEPS` units, else `STEPS` steps as even as whole units allow.

    Examples
    --------
    >>> steps(3)
    array([0, 1, 2, 3])
    >>> steps(25)
    array([ 0,  2,  5,  8, 10, 12, 15, 18, 20, 22, 25])
    """
    return np.rint(np.linspace(0, n, max(1, min(n, STEPS)) + 1)).astype(np.int64)


def along(order: Ints) -> Plan[Curve]:
    """Return the deletion curve of units that go in an order, ``[player]``."""
    counts = steps(len(order))
    shares = counts / counts[-1] if counts[-1] else np.array([0.0, 1.0])
    return Curve(shares, (yield gone(order, counts)))


def morf(case: Case, ordering: Ordering = "signed") -> Plan[Curve]:
    """Return the deletion curve, most relevant units first."""
    return along(case.order(ordering))


def lerf(case: Case, ordering: Ordering = "signed") -> Plan[Curve]:
    """Return the deletion curve, least relevant units first: read backwards, that of insertion."""
    return along(case.reverse(ordering))


@register(
    "aopc_morf",
    label="AOPC MoRF",
    higher_is_better=True,
    bounds=(-1.0, 1.0),
    unit="probability",
    citation=SAMEK,
    meaning="average fall of confidence while words go, the most important first",
    needs={"removal"},
)
@dataclass(frozen=True)
class AopcMorf:
    """``y(x) − ∫₀¹ y(x without the most relevant share t) dt`` (Samek et al. 2017, equation 12)."""

    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the area over the curve, in the unit of y."""
        curve = yield from morf(case, self.ordering)
        return float(curve.score[0] - curve.area)


@register(
    "aopc_lerf",
    label="AOPC LeRF",
    higher_is_better=False,
    bounds=(-1.0, 1.0),
    unit="probability",
    citation=SAMEK,
    meaning="average fall of confidence while words go, the least important first",
    needs={"removal"},
)
@dataclass(frozen=True)
class AopcLerf:
    """As `AopcMorf`, with the order from behind."""

    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the area over the curve, in the unit of y."""
        curve = yield from lerf(case, self.ordering)
        return float(curve.score[0] - curve.area)


@register(
    "abpc",
    label="ABPC",
    higher_is_better=True,
    bounds=(-1.0, 1.0),
    unit="probability",
    citation=SAMEK,
    meaning="how far the two orders of removal lie apart: 0 means no better than chance",
    needs={"removal"},
)
@dataclass(frozen=True)
class Abpc:
    """``∫₀¹ [ y_LeRF(t) − y_MoRF(t) ] dt``; the name is of Achtibat et al. 2024 (AttnLRP)."""

    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the area between the curves, in the unit of y."""
        first = yield from morf(case, self.ordering)
        last = yield from lerf(case, self.ordering)
        return last.area - first.area


@register(
    "deletion",
    label="Deletion",
    higher_is_better=False,
    bounds=(0.0, 1.0),
    unit="probability",
    citation=RISE,
    meaning="average confidence while words go, the most important first",
    needs={"removal"},
)
@dataclass(frozen=True)
class Deletion:
    """``∫₀¹ y(x without the most relevant share t) dt`` (Petsiuk et al. 2018, section 4.1)."""

    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the area under the curve, in the unit of y."""
        return (yield from morf(case, self.ordering)).area


@register(
    "insertion",
    label="Insertion",
    higher_is_better=True,
    bounds=(0.0, 1.0),
    unit="probability",
    citation=RISE,
    meaning="average confidence while words come back into an empty text, the most important first",
    needs={"removal"},
)
@dataclass(frozen=True)
class Insertion:
    """``∫₀¹ y(only the most relevant share t) dt`` (Petsiuk et al. 2018, section 4.1)."""

    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the area under the curve, in the unit of y."""
        return (yield from lerf(case, self.ordering)).area


@register(
    "normalised_aopc",
    label="Normalised AOPC",
    higher_is_better=True,
    bounds=(0.0, 1.0),
    unit="share of what is possible",
    citation=NORMALISED,
    meaning="AOPC between the worst (0) and the best (1) that any order reaches on this very text",
    needs={"removal", "bounds"},
)
@dataclass(frozen=True)
class NormalisedAopc:
    """``(AOPC − lower) / (upper − lower)`` (Edin et al. 2025, equation 3), for each text.

    The bounds are exact up to 10 units. Beyond they are what a beam search found, which a method
    can miss by a little to either side. Nan where all orders are alike.
    """

    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the share."""
        assert case.bounds is not None
        own = yield from morf(case, self.ordering)
        best = yield from along(case.bounds.least)
        worst = yield from along(case.bounds.most)
        room = worst.area - best.area
        return float((worst.area - own.area) / room) if room >= 1e-9 else float("nan")
