"""What single units do: leave-one-out, monotonicity, the flip of the decision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from xattn.evaluation.case import Case, Ordering
from xattn.evaluation.metric import register
from xattn.model.game import Plan


@register(
    "leave_one_out",
    label="Leave-one-out τ",
    higher_is_better=True,
    bounds=(-1.0, 1.0),
    unit="rank correlation",
    citation="Jain & Wallace 2019, Attention is not Explanation (NAACL)",
    meaning="whether the order of the scores is that of what each word does when it alone is taken "
    "away",
    needs={"removal"},
)
@dataclass(frozen=True)
class LeaveOneOut:
    """Kendall's τ_b of the scores and ``y(x) − y(x∖i)`` (Jain & Wallace 2019, section 4.1).

    Nan if either has no order: one unit, or all values alike.
    """

    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the correlation."""
        n = len(case)
        y = yield np.concatenate([np.ones((1, n), dtype=bool), ~np.eye(n, dtype=bool)])
        scores, effects = case.relevance(self.ordering), y[0] - y[1:]
        if n < 2 or np.ptp(scores) == 0 or np.ptp(effects) == 0:
            return float("nan")
        if self.ordering == "absolute":
            effects = np.abs(effects)
        return float(kendalltau(scores, effects).statistic)


@register(
    "monotonicity",
    label="Monotonicity",
    higher_is_better=True,
    bounds=(0.0, 1.0),
    unit="share of steps",
    citation="Luss et al. 2019, Generating Contrastive Explanations with Monotonic Attribute "
    "Functions",
    meaning="how often confidence rises when the next more important word comes back",
    needs={"removal"},
)
@dataclass(frozen=True)
class Monotonicity:
    """Share of steps at which ``y`` does not fall while units come back, least relevant first.

    Luss et al. 2019 ask whether all steps are so; the share says how far a method is from it.
    """

    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the share; nan without units."""
        y = yield case.without(np.arange(len(case), -1, -1), self.ordering)
        return float((np.diff(y) >= 0).mean()) if len(case) else float("nan")


@register(
    "flip",
    label="Decision flip",
    higher_is_better=False,
    bounds=(0.0, 1.0),
    unit="share of units",
    citation="Serrano & Smith 2019, Is Attention Interpretable? (ACL)",
    meaning="the smallest share of the words, most important first, that has to go until the model "
    "decides otherwise",
    needs={"removal"},
    quantity="lead",
)
@dataclass(frozen=True)
class Flip:
    """Smallest share of the most relevant units whose removal changes the decision.

    Serrano & Smith 2019, section 4.3. 1 where nothing changes it; nan where the explained class is
    not what the model decides for in the first place.
    """

    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the share."""
        lead = yield case.without(np.arange(len(case) + 1), self.ordering)
        if not len(case) or lead[0] <= 0:
            return float("nan")
        flipped = np.flatnonzero(lead < 0)
        return float(flipped[0] / len(case)) if len(flipped) else 1.0
