"""Comprehensiveness and sufficiency (DeYoung et al. 2020, ERASER, section 4.1 and equations 1, 2).

Let ``y(x)`` be the target on the text, ``x∖k`` the text without its ``k`` most relevant units and
``x_k`` the text of only these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xattn.errors import InputError
from xattn.evaluation.case import Case, Ordering
from xattn.evaluation.metric import register
from xattn.model.game import Plan
from xattn.types import Ints

ERASER = "DeYoung et al. 2020, ERASER: A Benchmark to Evaluate Rationalized NLP Models (ACL)"
PERCENT = {"eraser": np.array([1, 5, 10, 20, 50]), "grid": np.arange(10, 101, 10)}
"""Shares of the units, in per cent: ERASER's, or an even grid."""
Fractions = Literal["eraser", "grid"]


def counts(n: int, fractions: Fractions) -> Ints:
    """Return ``ceil(fraction · n)``, in whole numbers to be exact.

    Examples
    --------
    >>> counts(30, "eraser")
    array([ 1,  2,  3,  6, 15])
    """
    if fractions not in PERCENT:
        raise InputError("fractions", got=repr(fractions), expected="eraser or grid")
    return -(-PERCENT[fractions] * n // 100)


@register(
    "comprehensiveness",
    label="Comprehensiveness",
    higher_is_better=True,
    bounds=(-1.0, 1.0),
    unit="probability",
    citation=ERASER,
    meaning="how much the model's confidence falls when the words that matter most are taken away",
    needs={"removal"},
)
@dataclass(frozen=True)
class Comprehensiveness:
    """``mean_f [ y(x) − y(x∖⌈f·n⌉) ]`` over fractions f.

    Attributes
    ----------
    fractions : {"eraser", "grid"}
        1, 5, 10, 20 and 50 %, or 10, 20 ... 100 %.
    ordering : {"signed", "absolute", "positive"}
    """

    fractions: Fractions = "eraser"
    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the mean loss, in the unit of y."""
        removed = np.concatenate([[0], counts(len(case), self.fractions)])
        y = yield case.without(removed, self.ordering)
        return float((y[0] - y[1:]).mean())


@register(
    "sufficiency",
    label="Sufficiency",
    higher_is_better=False,
    bounds=(-1.0, 1.0),
    unit="probability",
    citation=ERASER,
    meaning="how much confidence is missing when only the words that matter most are left",
    needs={"removal"},
)
@dataclass(frozen=True)
class Sufficiency:
    """``mean_f [ y(x) − y(x_⌈f·n⌉) ]`` over fractions f; fields as in comprehensiveness."""

    fractions: Fractions = "eraser"
    ordering: Ordering = "signed"

    def __call__(self, case: Case) -> Plan[float]:
        """Return the mean loss, in the unit of y."""
        left = np.concatenate([[len(case)], counts(len(case), self.fractions)])
        y = yield case.only(left, self.ordering)
        return float((y[0] - y[1:]).mean())
