"""What scores look like by themselves: how concentrated they are, whether they sum up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xattn.evaluation.case import Case
from xattn.evaluation.metric import register


@register(
    "entropy",
    label="Entropy",
    higher_is_better=None,
    bounds=(0.0, 1.0),
    unit="share of the largest",
    citation="Bhatt et al. 2020, Evaluating and Aggregating Feature-based Model Explanations",
    meaning="how evenly scores are spread over the words: 1 says all alike, 0 a single word",
)
@dataclass(frozen=True)
class Entropy:
    """``−Σ p log p / log n`` of ``p = |score| / Σ |score|`` (Bhatt et al. 2020, definition 3).

    Nan with fewer than two units, or scores that are all 0.
    """

    def __call__(self, case: Case) -> float:
        """Return the entropy as a share of the largest possible one."""
        size = np.abs(case.scores)
        if len(size) < 2 or size.sum() == 0:
            return float("nan")
        p = size[size > 0] / size.sum()
        return float(-(p * np.log(p)).sum() / np.log(len(size)))


@register(
    "gini",
    label="Gini",
    higher_is_better=None,
    bounds=(0.0, 1.0),
    unit="Gini index",
    citation="Chalasani et al. 2020, Concise Explanations of Neural Networks using Adversarial "
    "Training (ICML)",
    meaning="how unevenly scores are spread over the words: 0 says all alike, 1 a single word",
)
@dataclass(frozen=True)
class Gini:
    """``1 − 2 Σ_k (|s|_(k) / Σ|s|) (n − k + ½) / n``, ascending (Chalasani et al. 2020, section 2).

    At most ``1 − 1/n``. Nan without units, or with scores that are all 0.
    """

    def __call__(self, case: Case) -> float:
        """Return the index."""
        size = np.sort(np.abs(case.scores))
        n = len(size)
        if not n or size.sum() == 0:
            return float("nan")
        weights = (n - np.arange(1, n + 1) + 0.5) / n
        return float(1 - 2 * (size / size.sum() * weights).sum())


@register(
    "completeness_gap",
    label="Completeness gap",
    higher_is_better=False,
    bounds=(0.0, np.inf),
    unit="share of the difference",
    citation="Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks (ICML)",
    meaning="how far the sum of the scores is from the change that it must explain",
    needs={"completeness"},
)
@dataclass(frozen=True)
class CompletenessGap:
    """``|Σ scores − Δy| / |Δy|``, for methods that promise completeness; nan for others."""

    def __call__(self, case: Case) -> float:
        """Return the gap."""
        return float("nan") if case.gap is None else abs(case.gap)
