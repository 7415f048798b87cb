"""Maximum flows down a stack of attention maps, exact and fast.

Nodes are (level, position); an edge runs from (l, i) to (l − 1, j) with capacity ``layers[l − 1][i,
j]``, and from a source to every (L, i) with capacity ``source[i]``. Asked for is the maximum flow
from the source to each (0, j).

Three steps, each only where the one before leaves a gap:

1. An upper bound from simple cuts: around the source, and around the sink's own column ("stream")
   in the lowest layers.
2. A lower bound from a flow that is built in one sweep: all positions are streams that run straight
   down; from each, what the lowest layer cannot take from it hops over to the sink's stream, and
   what a stream cannot use at all is pushed along its row to streams that can. Every edge is used
   once, so that the flow is possible; where it reaches the upper bound both are the maximum.
3. Dinic's algorithm on the whole network; see `xattn.maxflow.search`.

In deep bidirectional stacks the first two nearly always meet: the flow then is the smaller of what
leaves the source and what the *first* layer sends to the token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xattn.maxflow.compiled import EXACT, TINY, Array, compiled
from xattn.maxflow.search import search
from xattn.types import Floats, Ints


@compiled
def _upper(source: Array, layers: Array, columns: Array, causal: bool, sink: int) -> float:
    """Return the least of the simple cuts."""
    depth = len(layers)
    first = sink if causal else 0
    best = 0.0
    for k in range(first, len(source)):
        best += source[k]
    before = 0.0
    for level in range(depth):
        column = columns[level, sink]
        whole = 0.0
        for k in range(first, len(column)):
            whole += column[k]
        best = min(best, before + whole)
        before += whole - column[sink]
        if before >= best:
            break
    return min(best, before + source[sink]) if before < best else best


@compiled
def _star(
    source: Array,
    layers: Array,
    columns: Array,
    causal: bool,
    sink: int,
    best: float,
    total: Array,
    narrow: Array,
    scratch: Array,
) -> float:
    """Return the value of a flow that is built in one sweep; at most the maximum.

    The sweep ends as soon as it is seen to reach the bound `best`. `total` ``[token]`` is what all
    layers but the lowest send to the sink's stream, `narrow` ``[layer, token]`` the least that a
    stream lets through from a layer on downwards; `scratch` is ``[4, token]``.
    """
    depth, count = len(layers), len(source)
    first = sink if causal else 0
    need = columns[0, sink]  # what the lowest layer takes from each stream
    mass, reach, gain, poor = scratch[0], scratch[1], scratch[2], scratch[3]
    for k in range(first, count):
        mass[k] = source[k]
        reach[k] = need[k] + total[k]  # what a stream can get rid of by itself
    for level in range(depth - 1, 0, -1):
        matrix, column = layers[level], columns[level, sink]
        direct, fits = 0.0, True
        hops, late = min(mass[sink], narrow[level, sink]), 0.0
        for k in range(first, count):
            if k != sink:
                direct += min(mass[k], need[k])
                spare = max(mass[k] - need[k], 0.0)
                hops += min(spare, reach[k] - need[k])
                late += min(spare, columns[1, sink, k])
                fits &= mass[k] <= narrow[level, k]
        # From here on straight down and over would do. What hops in the last layer but one comes
        # in below the narrow places of the sink's stream.
        if fits and direct + min(hops, need[sink], narrow[level, sink] + late) >= best - EXACT:
            return best
        # what the sink's stream can still bring down
        room = min(need[sink], narrow[level - 1, sink]) if level > 1 else need[sink]
        carried = min(mass[sink], matrix[sink, sink], room)
        wanted = 0.0
        for k in range(first, count):
            gain[k] = 0.0
            if k != sink:
                reach[k] -= column[k]
                wanted += min(column[k], max(mass[k] - need[k], 0.0))
        scale = min(1.0, (room - carried) / wanted) if wanted > 0.0 else 0.0
        lacking = 0.0
        for k in range(first, count):
            poor[k] = 0.0
            if k != sink:
                hop = scale * min(column[k], max(mass[k] - need[k], 0.0))
                mass[k] -= hop
                lack = need[k] - mass[k]
                if lack > TINY:
                    poor[k] = 1.0
                    lacking += lack
        hopped = min(scale * wanted, room - carried)
        richest = first
        for k in range(first, count):
            if mass[k] > mass[richest]:
                richest = k
        for turn in range(first - 1, count):  # the richest first: it often fills all the others
            if turn == richest:
                continue
            giver = richest if turn < first else turn
            keep = carried if giver == sink else min(need[giver], matrix[giver, giver])
            over = mass[giver] - keep
            if over <= TINY:
                continue
            row = matrix[giver]
            if lacking > TINY:  # first to those that have less than they can use below
                for k in range(first, count):
                    if poor[k] > 0.0 and k != giver:
                        move = min(row[k], need[k] - mass[k] - gain[k], over)
                        if move > 0.0:
                            gain[k] += move
                            over -= move
                            lacking -= move
                            if over <= TINY or lacking <= TINY:
                                break
            if giver != sink:  # a stream keeps what it can hop away later
                held = min(over, max(min(reach[giver], matrix[giver, giver]) - keep, 0.0))
                over -= held
                keep += held
            if over > TINY:  # then to those that can hop it away
                for k in range(first, count):
                    if poor[k] == 0.0 and k != giver and k != sink:
                        move = min(row[k], reach[k] - mass[k] - gain[k], over)
                        if move > 0.0:
                            gain[k] += move
                            over -= move
                            if over <= TINY:
                                break
            mass[giver] = keep if giver == sink else min(keep + over, matrix[giver, giver])
        mass[sink] = carried + hopped
        for k in range(first, count):
            if k != sink:
                mass[k] = min(mass[k], matrix[k, k]) + gain[k]
    value = 0.0
    for k in range(first, count):
        value += min(mass[k], need[k])
    return value


@compiled
def _bounded(
    sources: Array, layers: Array, columns: Array, causal: bool, sinks: Ints
) -> tuple[Array, Array]:
    """Return upper and lower bounds of the flows, ``[source, sink]`` each."""
    depth, count, _ = layers.shape
    above, below = np.zeros((len(sources), len(sinks))), np.zeros((len(sources), len(sinks)))
    scratch, total = np.empty((4, count)), np.zeros((count, count))
    narrow = np.full((depth, count), np.inf)
    for level in range(1, depth):
        total += columns[level]
        for k in range(count):
            narrow[level, k] = min(narrow[level - 1, k], layers[level, k, k])
    for number in range(len(sinks)):
        sink = sinks[number]
        for i in range(len(sources)):
            best = _upper(sources[i], layers, columns, causal, sink)
            if best > EXACT:
                above[i, number] = best
                below[i, number] = _star(
                    sources[i], layers, columns, causal, sink, best, total[sink], narrow, scratch
                )
    return above, below


def _flows(
    sources: Array, layers: Array, columns: Array, causal: bool, sinks: Ints, how: Ints
) -> Array:
    """Return ``[source, sink]``; `how` ``[3]`` counts what settled them: cuts, sweeps, Dinic."""
    above, found = _bounded(sources, layers, columns, causal, sinks)
    found = np.minimum(above, found)
    # of a single layer the sweep is the flow
    open_ = (found < above - EXACT) & (len(layers) > 1)
    how += [(above == 0).sum(), (~open_ & (above > 0)).sum(), open_.sum()]
    if not open_.any():
        return found
    # searches are called one by one: compiled into one kernel with the bounds they run slower
    used, back = np.zeros(layers.shape), np.zeros(layers.shape)
    first, last = 0, len(layers[0])
    for i, number in np.argwhere(open_):
        if causal:  # the way leads through the positions between sink and source only
            first, last = sinks[number], np.flatnonzero(sources[i])[-1] + 1
        found[i, number] = search(
            sources[i], layers, columns, sinks[number], first, last, above[i, number], used, back
        )
    return found


def max_flows(
    layers: Sequence[Floats] | Floats, source: Floats, sinks: Sequence[int] | None = None
) -> Array:
    """Return the maximum flow from a source to input tokens.

    Parameters
    ----------
    layers : float array or sequence of such
        ``[layer, token, token]``, first layer first: capacities, 0 or more, which need not sum to
        anything.
    source : float array
        ``[token]``: what each position of the top level may send in all, or ``[source, token]`` for
        several sources, each by itself.
    sinks : sequence of int, optional
        Which input tokens; all by default.

    Returns
    -------
    float array
        ``[token]`` or ``[source, token]``: exact to 1e-6 for capacities of the order of 1.

    Raises
    ------
    ValueError
        For negative or infinite capacities, or shapes that do not fit.

    Examples
    --------
    >>> max_flows([[[0.5, 0.5], [0.2, 0.8]]], [0.0, 1.0])
    array([0.2, 0.8])
    """
    return settled(layers, source, sinks)[0]


def settled(
    layers: Sequence[Floats] | Floats, source: Floats, sinks: Sequence[int] | None = None
) -> tuple[Array, dict[str, int]]:
    """Return `max_flows`, and how many of them were settled by which step.

    The steps are ``nothing`` (no way leads to the token), ``bounds`` and ``search``.
    """
    stack = np.ascontiguousarray(layers, dtype=np.float64)
    given = np.asarray(source, dtype=np.float64)
    sources = np.ascontiguousarray(np.atleast_2d(given))
    square = stack.ndim == 3 and stack.shape[1] == stack.shape[2]
    if not square or stack.shape[1] != sources.shape[-1]:
        raise ValueError(f"layers {stack.shape} and source {given.shape} do not fit")
    if any(not (part.min(initial=0) >= 0 and part.max(initial=0) < np.inf)  # nan is neither
           for part in (stack, sources)):  # fmt: skip
        raise ValueError("capacities must be finite and not negative")
    causal = not stack[:, 0, 1:].any() and not np.triu(stack, 1).any()
    wanted = np.arange(stack.shape[1]) if sinks is None else np.asarray(sinks, dtype=np.int64)
    how = np.zeros(3, dtype=np.int64)
    if not len(stack):
        return given[..., wanted].copy(), {}
    columns = np.ascontiguousarray(stack.transpose(0, 2, 1))
    # a source at one position sends along that row: one layer less
    rows = sources.argmax(1)
    alone = (sources > 0).sum(1) == 1
    alone &= sources.max(1) >= stack[-1, rows].sum(1) - EXACT
    alone &= len(stack) > 1
    found = np.full((len(sources), len(wanted)), np.nan)
    if not causal and alone.sum() >= 8:
        found[alone] = _through(stack, columns, rows[alone], wanted, how)
    open_ = np.isnan(found)
    for group, sent, top in (
        (alone, stack[-1, rows], len(stack) - 1),
        (~alone, sources, len(stack)),
    ):
        # rows that wait for the same sinks go together
        waiting = open_[group]
        for pattern in waiting[:1] if waiting.all() else np.unique(waiting, axis=0):
            here = group & (open_ == pattern).all(1)
            if pattern.any():
                part = _flows(sent[here], stack[:top], columns[:top], causal, wanted[pattern], how)
                found[np.ix_(here, pattern)] = part
    counts = dict(zip(("nothing", "bounds", "search"), how.tolist(), strict=True))
    return found.reshape(*given.shape[:-1], len(wanted)), counts


def _through(layers: Array, columns: Array, starts: Ints, sinks: Ints, how: Ints) -> Array:
    """Return flows from many positions that meet at a level in between; nan where that fails.

    If the mass of 1 of every position can be brought to one and the same distribution at a level,
    and what the first layer sends to a token can be gathered from it, then that is the token's
    flow from all of these positions: two certificates a position in place of one a pair.
    """
    depth, count, _ = layers.shape
    found = np.full((len(starts), len(sinks)), np.nan)
    bound = np.minimum(1.0, layers[0].sum(0))
    # who sends more or less than 1 has other bounds
    even = np.abs(layers[-1, starts].sum(1) - 1) <= EXACT
    for level in dict.fromkeys((depth // 2, depth // 3, 2 * depth // 3)):
        if not 2 <= level <= depth - 2:
            continue
        mean = np.full(count, 1 / count)
        for layer in layers[: level - 1 : -1]:
            mean = mean @ layer
        meeting = np.sqrt(mean)
        meeting /= meeting.sum()
        # upwards the roles of rows and columns change
        up, down = layers[level:][::-1], columns[level:][::-1]
        up, down = np.ascontiguousarray(down), np.ascontiguousarray(up)
        arrived = _certified(meeting, up, down, starts) >= 1 - EXACT
        gathered = _certified(meeting, layers[:level], columns[:level], sinks)
        passed = np.ix_(arrived & even, gathered >= bound[sinks] - EXACT)
        new = np.isnan(found[passed]).sum()
        found[passed] = np.broadcast_to(bound[sinks][passed[1]], found[passed].shape)
        how[1] += new
        if not np.isnan(found).any():
            break
    return found


@compiled
def _certified(source: Array, layers: Array, columns: Array, sinks: Ints) -> Array:
    """Return for each sink the value of a flow that is certainly possible."""
    depth, count, _ = layers.shape
    total = np.zeros((count, count))
    narrow = np.full((depth, count), np.inf)
    for level in range(1, depth):
        total += columns[level]
        for k in range(count):
            narrow[level, k] = min(narrow[level - 1, k], layers[level, k, k])
    scratch, found = np.empty((4, count)), np.zeros(len(sinks))
    for number in range(len(sinks)):
        sink = sinks[number]
        best = _upper(source, layers, columns, False, sink)
        found[number] = _star(
            source, layers, columns, False, sink, best, total[sink], narrow, scratch
        )
    return found


def depth_flows(layers: Sequence[Floats] | Floats, source: Floats) -> Array:
    """Return `max_flows` from a source at every level, ``[layer, token]`` (first layer first).

    Parameters
    ----------
    layers, source
        As in `max_flows`, of one source.
    """
    stack = np.asarray(layers, dtype=np.float64)
    return np.stack([max_flows(stack[:depth], source) for depth in range(1, len(stack) + 1)])
