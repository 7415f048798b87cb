"""Metrics over drawn coalitions: infidelity, soft comprehensiveness and soft sufficiency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xattn.errors import InputError
from xattn.evaluation.case import Case, Ordering
from xattn.evaluation.metric import register
from xattn.model.game import Plan
from xattn.types import Floats

ZHAO = (
    "Zhao & Aletras 2023, Incorporating Attribution Importance for Improving Faithfulness Metrics "
    "(ACL)"
)


def at_least_two(name: str, value: int) -> None:
    """Raise `InputError` for fewer than two samples."""
    if not (isinstance(value, int) and value >= 2):
        raise InputError(f"samples of {name}", got=repr(value), expected="2 or more")


@register(
    "infidelity",
    label="Infidelity",
    higher_is_better=False,
    bounds=(0.0, np.inf),
    unit="squared probability",
    citation="Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations (NeurIPS)",
    meaning="how wrong the sum of the scores of words that go is about what their going does",
    needs={"removal"},
)
@dataclass(frozen=True)
class Infidelity:
    """``E_S [ (β · Σ_{i in S} score_i − (y(x) − y(x∖S)))² ]`` (Yeh et al. 2019, definition 2.1).

    The perturbation is the removal of units, each with probability one half. Scores are in units of
    their own; ``β`` is the factor that serves them best (their section 2.2), or 1.

    Attributes
    ----------
    samples : int
    scaled : bool
        Whether scores are scaled by β.
    """

    samples: int = 32
    scaled: bool = True

    def __post_init__(self) -> None:
        at_least_two("infidelity", self.samples)

    def __call__(self, case: Case) -> Plan[float]:
        """Return the mean squared error, in the squared unit of y."""
        keep = case.draw.random((self.samples, len(case))) < 0.5
        y = yield np.concatenate([np.ones((1, len(case)), dtype=bool), keep])
        predicted, changes = (~keep) @ case.scores, y[0] - y[1:]
        power = float((predicted**2).mean())
        factor = float((predicted * changes).mean()) / power if self.scaled and power > 0 else 1.0
        return float(((factor * predicted - changes) ** 2).mean())


def retention(importance: Floats, share: float) -> Floats:
    """Return probabilities to stay that rise with importance and have the mean `share`.

    ``p_i = min(1, c · (importance_i − least))``; the factor ``c`` is what makes all methods keep
    alike much.

    Parameters
    ----------
    importance : array
        ``[player]``, in [0, 1].
    share : float
        In (0, 1).

    Examples
    --------
    >>> retention(np.array([1.0, 0.5, 0.0]), 0.5).tolist()
    [1.0, 0.5, 0.0]
    """
    count = len(importance)
    if not count or np.ptp(importance) == 0:
        return np.full(count, share)
    lifted = importance - importance.min()
    order = np.argsort(-lifted, kind="stable")
    weights, wanted = lifted[order], share * count
    stays = np.zeros(count)
    for certain in range(count):  # so many are at 1, the rest in proportion
        rest = weights[certain:].sum()
        if rest <= 0:  # those of the least importance share what is left
            stays[order[certain:]] = (wanted - certain) / (count - certain)
            break
        parts = (wanted - certain) * (weights[certain:] / rest)
        if parts[0] <= 1:
            stays[order[certain:]] = parts
            break
        stays[order[certain]] = 1.0
    return stays


def _soft(
    case: Case, ordering: Ordering, samples: int, share: float, top_stays: bool
) -> Plan[float]:
    """Return ``y(x) − mean y`` of texts from which units go at random, by their relevance."""
    relevance = case.relevance(ordering)
    span = np.ptp(relevance) if len(relevance) else 0.0
    importance = (relevance - relevance.min()) / span if span > 0 else np.zeros(len(relevance))
    stays = retention(importance if top_stays else 1 - importance, share)
    # the same numbers for all methods: they differ by their probabilities alone
    keep = case.draw.random((samples, len(case))) < stays
    y = yield np.concatenate([np.ones((1, len(case)), dtype=bool), keep])
    return float(y[0] - y[1:].mean())


@register(
    "soft_comprehensiveness",
    label="Soft comprehensiveness",
    higher_is_better=True,
    bounds=(-1.0, 1.0),
    unit="probability",
    citation=ZHAO,
    meaning="how much confidence falls when words go at random, the important ones more often",
    needs={"removal"},
)
@dataclass(frozen=True)
class SoftComprehensiveness:
    """``y(x) − E y(x̃)``, units staying with probabilities that fall with their relevance.

    Zhao & Aletras 2023, equations 5 and 6, with two changes: all methods keep the same expected
    `share` of the units (otherwise those win whose scores are large on average), and whole units go
    instead of entries of their embeddings, so that every operator serves.

    Attributes
    ----------
    share : float
        Expected share of units that stay, in (0, 1).
    samples : int
    ordering : {"signed", "absolute", "positive"}
    """

    share: float = 0.5
    samples: int = 20
    ordering: Ordering = "signed"

    def __post_init__(self) -> None:
        at_least_two("soft_comprehensiveness", self.samples)
        _check_share("soft_comprehensiveness", self.share)

    def __call__(self, case: Case) -> Plan[float]:
        """Return the mean loss, in the unit of y."""
        return (yield from _soft(case, self.ordering, self.samples, self.share, top_stays=False))


@register(
    "soft_sufficiency",
    label="Soft sufficiency",
    higher_is_better=False,
    bounds=(-1.0, 1.0),
    unit="probability",
    citation=ZHAO,
    meaning="how much confidence is missing when words go at random, the unimportant ones more "
    "often",
    needs={"removal"},
)
@dataclass(frozen=True)
class SoftSufficiency:
    """``y(x) − E y(x̃)``, units staying with probabilities that rise with their relevance.

    As `SoftComprehensiveness`, the other way round (Zhao & Aletras 2023, equations 3 and 4).
    """

    share: float = 0.5
    samples: int = 20
    ordering: Ordering = "signed"

    def __post_init__(self) -> None:
        at_least_two("soft_sufficiency", self.samples)
        _check_share("soft_sufficiency", self.share)

    def __call__(self, case: Case) -> Plan[float]:
        """Return the mean loss, in the unit of y."""
        return (yield from _soft(case, self.ordering, self.samples, self.share, top_stays=True))


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise InputError(f"share of {name}", got=repr(share), expected="between 0 and 1")
