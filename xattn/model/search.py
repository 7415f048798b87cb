"""The order of removal that lets the target fall fastest, or keeps it up longest, by trying.

Up to `EXHAUSTIVE` players every coalition is tried, and the best way through them is found exactly:
the best way from a coalition on does not depend on how it was reached (dynamic programming over
subsets). Beyond that a beam search keeps the best beginnings (Edin et al. 2025, Normalized AOPC:
Fixing Misleading Faithfulness Metrics for Feature Attribution Explainability, section 4).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from xattn.model.game import Plan
from xattn.types import Bools, Floats, Ints

EXHAUSTIVE = 10
"""Players up to which all ``2^n`` coalitions are tried."""
Order = Literal["morf", "lerf"]


class Beginning(NamedTuple):
    """The first players of an order."""

    removed: tuple[int, ...]
    total: float
    """The sum of the target after each step so far, with its sign turned for LeRF."""


def search(players: int, counts: Ints, order: Order, beam: int) -> Plan[Ints]:
    """Return the order of players whose targets after `counts` removals sum to least, or to most.

    Parameters
    ----------
    players : int
    counts : int array
        How many players are gone at each step, from 0 to all, increasing.
    order : {"morf", "lerf"}
        Least (most relevant first) or most (least relevant first).
    beam : int
        How many beginnings a beam search keeps; 1 is a greedy search.

    Yields
    ------
    Bools
        Coalitions ``[coalition, player]``; wants their worths.
    """
    sign = 1.0 if order == "morf" else -1.0
    if not players:
        return np.empty(0, dtype=np.int64)
    if players <= EXHAUSTIVE and len(counts) == players + 1:
        everything = (np.arange(2**players)[:, None] >> np.arange(players)) & 1 == 1
        worths = yield everything
        return _best_way(sign * worths, players)
    beginnings = [Beginning((), 0.0)]
    for size in np.diff(counts).tolist():
        tried = [(start, np.setdiff1d(np.arange(players), start.removed)) for start in beginnings]
        values = yield np.concatenate(
            [_without(players, start.removed, left[:, None]) for start, left in tried]
        )
        parts = np.split(sign * values, np.cumsum([len(left) for _, left in tried])[:-1])
        blocks = [
            (start, block)
            for (start, left), part in zip(tried, parts, strict=True)
            for block in _blocks(left, part, size, beam)
        ]
        if size > 1:
            reached = sign * (
                yield np.concatenate([_without(players, s.removed, b[None]) for s, b in blocks])
            )
        else:
            where = [left.tolist() for _, left in tried]
            owner = {id(start): i for i, (start, _) in enumerate(tried)}
            reached = np.array(
                [parts[owner[id(s)]][where[owner[id(s)]].index(int(b[0]))] for s, b in blocks]
            )
        beginnings = _kept(
            [
                Beginning((*start.removed, *block.tolist()), start.total + float(value))
                for (start, block), value in zip(blocks, reached, strict=True)
            ],
            beam,
        )
    return np.array(beginnings[0].removed, dtype=np.int64)


def _best_way(worths: Floats, players: int) -> Ints:
    """Return the order of removal with the least sum of worths, given those of all subsets."""
    total, first = worths.copy(), np.zeros(2**players, dtype=np.int64)
    sizes = np.bitwise_count(np.arange(2**players))
    for size in range(1, players + 1):
        masks = np.flatnonzero(sizes == size)
        smaller = masks[:, None] & ~(1 << np.arange(players))
        costs = np.where(smaller == masks[:, None], np.inf, total[smaller])
        first[masks] = costs.argmin(axis=1)
        total[masks] += costs.min(axis=1)
    order, mask = [], 2**players - 1
    while mask:
        order.append(int(first[mask]))
        mask &= ~(1 << order[-1])
    return np.array(order, dtype=np.int64)


def _without(players: int, removed: tuple[int, ...], more: Ints) -> Bools:
    """Return coalitions without what was removed and, each, one row of `more`."""
    keep = np.ones((len(more), players), dtype=np.bool_)
    keep[:, list(removed)] = False
    keep[np.arange(len(more))[:, None], more] = False
    return keep


def _blocks(left: Ints, values: Floats, size: int, beam: int) -> list[Ints]:
    """Return the next players to remove: those that are best alone, or all but one of these."""
    ranked = left[np.argsort(values, kind="stable")]
    found = [ranked[:size]]
    found += [np.append(ranked[: size - 1], ranked[i]) for i in range(size, len(ranked))]
    return found[:beam]


def _kept(longer: list[Beginning], beam: int) -> list[Beginning]:
    """Return the best beginnings; the same players in another order are no other state."""
    longer.sort(key=lambda beginning: beginning.total)
    states: dict[frozenset[int], Beginning] = {}
    for beginning in longer:
        states.setdefault(frozenset(beginning.removed), beginning)
    return list(states.values())[:beam]
