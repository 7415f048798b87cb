"""What the statistics say, in sentences that a reader can act on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from xattn.evaluation import Comparison
from xattn.evaluation.design import LEADING
from xattn.evaluation.significance import LEVEL, Pair
from xattn.report.answer import texts
from xattn.report.measures import ALIKE, APART
from xattn.report.ranking import Place

SHOWN = 3
"""Pairs that are named."""


def notes(comparison: Comparison, operator: str, places: list[Place]) -> list[str]:
    """Return sentences about what these texts can and cannot tell."""
    return list(_notes(comparison, operator, places))


def _notes(comparison: Comparison, operator: str, places: list[Place]) -> Iterator[str]:
    pairs = comparison.pairs(operator, LEADING)
    real = [place.method for place in places if not place.yardstick]
    by_pair = {frozenset((pair.first, pair.second)): pair for pair in pairs}
    count = texts(len(comparison.examples))
    chance = [m for m in real if not _apart(by_pair.get(frozenset((m, "random"))))]
    if chance:
        yield (
            f"With {count}, {_listed(chance)} and random scores cannot be told apart "
            "(Wilcoxon’s test with Holm’s correction, 5 % level)."
        )
    neighbours = [by_pair.get(frozenset(two)) for two in pairwise(real)]
    close = [pair for pair in neighbours if pair is not None and not _apart(pair)]
    for pair in close[:SHOWN]:
        yield (
            f"With {count}, {pair.first} and {pair.second} cannot be told apart. "
            + _more(pair, len(comparison.examples))
        )
    best = _share(comparison, operator, real[:1])
    if best:
        yield best
    w = comparison.concordance(LEADING)
    if not math.isnan(w):
        said = "does not matter much" if w >= ALIKE else "matters a little"
        said = "decides the ranking" if w < APART else said
        yield f"How words are removed {said}: Kendall’s W of the rankings is {w:.2f} (1: the same)."
    lost = comparison.failures
    if len(lost):
        first = lost.iloc[0]
        under = f" under {first['method']}" if first["method"] else ""
        yield (
            f"{texts(int(lost['id'].nunique()))} failed and is missing from all means it would "
            f"belong to; the first is {first['id']}{under}: {first['error']}"
        )


def _apart(pair: Pair | None) -> bool:
    return pair is not None and pair.adjusted < LEVEL


def _more(pair: Pair, count: int) -> str:
    """Say how many texts would show a difference, if it is real."""
    if math.isnan(pair.needed):
        return "Their orders are the same on every text."
    if math.isinf(pair.needed) or pair.needed > 1e6:
        return "No data set will: choose by cost."
    if pair.needed <= count:
        return "A test of these two alone might; among so many pairs it does not count as proof."
    return f"If the difference is real, about {pair.needed:,.0f} texts would show it."


def _share(comparison: Comparison, operator: str, best: list[str]) -> str:
    name = "normalised_aopc"
    if not best or name not in set(comparison.scores["metric"]):
        return ""
    share = comparison.table(operator, name)[best[0]].mean()
    if math.isnan(share):
        return ""
    return (
        f"{best[0]} reaches {share:.0%} of the way from the worst to the best order of removal "
        "that a search found; no method can do much better than 100 % on this model."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
