"""The order of removal that lets the target fall fastest, or keeps it up longest, by trying.

Up to `EXHAUSTIVE` players every coalition is tried, and the best way through them is found exactly:
the best way from a coalition on does not depend on how it was reached (dynamic programming over
subsets). Beyond that a beam search keeps the best beginnings (Edin et al. 2025, Normalized AOPC:
Fixing Misleading Faithfulness Metrics for Feature Attribution Explainability, section 4), once from
the whole text downwards and once from the empty one upwards, which sees what the other is blind to:
words that only count together, or where one does for another.
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
    """The players that moved first."""

    moved: tuple[int, ...]
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
    full, nothing = sign * (yield np.array([[True], [False]]).repeat(players, axis=1))
    sizes = np.diff(counts)
    down = yield from beam_search(players, sizes, sign, beam, removing=True)
    up = yield from beam_search(players, sizes[::-1], sign, beam, removing=False)
    best = down.moved if down.total + full <= up.total + nothing else up.moved[::-1]
    return np.array(best, dtype=np.int64)


def beam_search(
    players: int, sizes: Ints, sign: float, beam: int, *, removing: bool
) -> Plan[Beginning]:
    """Return the best order that a beam search finds from one end.

    Parameters
    ----------
    players : int
    sizes : int array
        How many players move at each step.
    sign : float
        1 to keep the sum of targets low, −1 to keep it high.
    beam : int
    removing : bool
        Whether players leave the whole text, or enter the empty one.
    """
    beginnings = [Beginning((), 0.0)]
    for size in sizes.tolist():
        tried = [(start, np.setdiff1d(np.arange(players), start.moved)) for start in beginnings]
        values = yield np.concatenate(
            [_moved(players, start.moved, left[:, None], removing) for start, left in tried]
        )
        parts = np.split(sign * values, np.cumsum([len(left) for _, left in tried])[:-1])
        blocks: list[tuple[Beginning, Ints]] = []
        reached: Floats = np.empty(0)
        for (start, left), part in zip(tried, parts, strict=True):
            ranked = np.argsort(part, kind="stable")
            blocks += [(start, left[places]) for places in _blocks(ranked, size, beam)]
            reached = np.append(reached, part[ranked[:beam]])
        if size > 1:
            reached = sign * (
                yield np.concatenate(
                    [_moved(players, s.moved, b[None], removing) for s, b in blocks]
                )
            )
        beginnings = _kept(
            [
                Beginning((*start.moved, *block.tolist()), start.total + float(value))
                for (start, block), value in zip(blocks, reached, strict=True)
            ],
            beam,
        )
    return beginnings[0]


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


def _moved(players: int, moved: tuple[int, ...], more: Ints, removing: bool) -> Bools:
    """Return the coalitions after some players have moved and, each, one row of `more`."""
    gone = np.zeros((len(more), players), dtype=np.bool_)
    gone[:, list(moved)] = True
    gone[np.arange(len(more))[:, None], more] = True
    return ~gone if removing else gone


def _blocks(ranked: Ints, size: int, beam: int) -> list[Ints]:
    """Return who moves next: those that are best alone, or all of these but the last."""
    others = [np.append(ranked[: size - 1], ranked[i]) for i in range(size, len(ranked))]
    return [ranked[:size], *others][:beam]


def _kept(longer: list[Beginning], beam: int) -> list[Beginning]:
    """Return the best beginnings; the same players in another order are no other state."""
    longer.sort(key=lambda beginning: beginning.total)
    states: dict[frozenset[int], Beginning] = {}
    for beginning in longer:
        states.setdefault(frozenset(beginning.moved), beginning)
    return list(states.values())[:beam]
