"""Faithfulness metrics: what the model's score does when tokens go.

Let ``y(x)`` be the probability of the explained class on the text ``x``, ``x∖k`` the text without
its ``k`` most relevant tokens and ``x_k`` the text of only these (special tokens stay in both).
Each metric is a function of the scores that were measured on one example; all are differences of
probabilities, hence in [−1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xattn.types import Curve, Floats

SAMEK = "Samek et al. 2017, Evaluating the Visualization of What a Deep Neural Network Has Learned"
ERASER = "DeYoung et al. 2020, ERASER: A Benchmark to Evaluate Rationalized NLP Models"


@dataclass(frozen=True, eq=False)
class Measurement:
    """The scores of one text as its tokens go, for one order and one operator."""

    morf: Curve
    """Most relevant tokens removed first."""
    lerf: Curve
    """Least relevant tokens removed first."""
    without_top: Floats
    """``[fraction]``: ``y(x∖k)`` for ERASER's fractions, probability."""
    only_top: Floats
    """``[fraction]``: ``y(x_k)`` for ERASER's fractions, probability."""

    @property
    def full(self) -> float:
        """The score of the untouched text."""
        return float(self.morf.score[0])


def comprehensiveness(m: Measurement) -> float:
    """Mean loss when the most relevant tokens go; higher is better.

    ``mean_f [ y(x) − y(x∖⌈f·n⌉) ]`` over the fractions f = 1, 5, 10, 20, 50 %: ERASER's AOPC of
    comprehensiveness (DeYoung et al. 2020, equation 1 and section 4.1). Probability, −1..1.
    """
    return float((m.full - m.without_top).mean())


def sufficiency(m: Measurement) -> float:
    """Mean loss when only the most relevant tokens stay; lower is better.

    ``mean_f [ y(x) − y(x_⌈f·n⌉) ]`` over the fractions f = 1, 5, 10, 20, 50 %: ERASER's AOPC of
    sufficiency (DeYoung et al. 2020, equation 2 and section 4.1). Probability, −1..1.
    """
    return float((m.full - m.only_top).mean())


def aopc_morf(m: Measurement) -> float:
    """Area over the curve, most relevant tokens first; higher is better.

    ``y(x) − ∫₀¹ y(x without the most relevant share t) dt`` by trapezoids (Samek et al. 2017,
    equation 12, with an even grid of shares for the sum over steps). Probability, −1..1.
    """
    return float(m.full - m.morf.area)


def aopc_lerf(m: Measurement) -> float:
    """Area over the curve, least relevant tokens first; lower is better.

    As `aopc_morf`, with the order from behind (Samek et al. 2017). Probability, −1..1.
    """
    return float(m.full - m.lerf.area)


def abpc(m: Measurement) -> float:
    """Area between the two curves; higher is better, and 0 for an order without information.

    ``∫₀¹ [ y_LeRF(t) − y_MoRF(t) ] dt`` by trapezoids (Samek et al. 2017, section III; the name
    is of Achtibat et al. 2024). Probability, −1..1.
    """
    return m.lerf.area - m.morf.area


@dataclass(frozen=True)
class Metric:
    """A metric and how to read it."""

    function: Callable[[Measurement], float]
    higher_is_better: bool
    bounds: tuple[float, float]
    citation: str
    meaning: str
    """One line for a reader who has never heard of the metric."""

    def __call__(self, measurement: Measurement) -> float:
        """Return the metric of one example."""
        return self.function(measurement)


METRICS = {
    "comprehensiveness": Metric(
        comprehensiveness,
        True,
        (-1.0, 1.0),
        ERASER,
        "how much the model's confidence falls when the words that matter most are taken away",
    ),
    "sufficiency": Metric(
        sufficiency,
        False,
        (-1.0, 1.0),
        ERASER,
        "how much confidence is missing when only the words that matter most are left",
    ),
    "aopc_morf": Metric(
        aopc_morf,
        True,
        (-1.0, 1.0),
        SAMEK,
        "average fall of confidence while words go, the most important first",
    ),
    "aopc_lerf": Metric(
        aopc_lerf,
        False,
        (-1.0, 1.0),
        SAMEK,
        "average fall of confidence while words go, the least important first",
    ),
    "abpc": Metric(
        abpc,
        True,
        (-1.0, 1.0),
        SAMEK,
        "how far the two orders of removal lie apart: 0 means no better than chance",
    ),
}
"""All metrics by name."""
