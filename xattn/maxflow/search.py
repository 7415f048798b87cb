"""Dinic's algorithm (1970) on dense layers.

Distances are counted back from the sink, so that the search ends when it meets the source, and a
level whose positions are all seen is not looked at again: on dense maps few of the edges are read.
Only the positions ``first`` to ``last − 1`` take part. Flow is held beside the capacities, by rows
in `used` and by columns in `back`, so that both directions are read in the order of memory; what
was written is set back to zero, and nothing is copied for the next sink.
"""

from __future__ import annotations

import numpy as np

from xattn.maxflow.compiled import EXACT, TINY, Array, Bools, Places, compiled

REMEMBERED = 8
"""Written edges that are remembered, as a multiple of the nodes; after more, all are reset."""


@compiled
def _measure(
    left: Array, need: Array, layers: Array, columns: Array, used: Array, back: Array,
    first: int, last: int, distance: Places, met: Bools, queue: Places,
) -> int:  # fmt: skip
    """Return the source's distance from the sink, 0 if there is no way, and write all smaller ones.

    Level l is row l − 1 of `distance`, which is 0 where the sink cannot be reached, and of `met`
    ``[level, distance]``, whether a level has positions at a distance.
    """
    depth, count = layers.shape[0], layers.shape[1]
    unseen = np.full(depth, last - first)
    distance[:, first:last] = 0
    met[:] = False
    head, tail = 0, 0
    for k in range(first, last):
        if need[k] > TINY:
            distance[0, k] = 1
            queue[tail] = k
            tail += 1
    unseen[0] -= tail
    met[0, 1] = True
    while head < tail:
        level, position = queue[head] // count, queue[head] % count
        head += 1
        here: int = distance[level, position] + 1
        if level == depth - 1:
            if left[position] > TINY:
                return here
        elif unseen[level + 1] > 0:  # who could send down to here
            above = distance[level + 1]
            for k in range(first, last):
                if (
                    above[k] == 0
                    and columns[level + 1, position, k] - back[level + 1, position, k] > TINY
                ):
                    above[k] = here
                    queue[tail] = (level + 1) * count + k
                    tail += 1
                    unseen[level + 1] -= 1
                    met[level + 1, here] = True
        if level > 0 and unseen[level - 1] > 0:  # whose flow from here could be taken back
            below = distance[level - 1]
            for k in range(first, last):
                if below[k] == 0 and used[level, position, k] > TINY:
                    below[k] = here
                    queue[tail] = (level - 1) * count + k
                    tail += 1
                    unseen[level - 1] -= 1
                    met[level - 1, here] = True
    return 0


@compiled
def search(
    source: Array, layers: Array, columns: Array, sink: int, first: int, last: int, bound: float,
    used: Array, back: Array,
) -> float:  # fmt: skip
    """Return the maximum flow to (0, sink).

    Parameters
    ----------
    source, layers, columns, sink
        As in `xattn.maxflow`; `columns` are the layers transposed.
    first, last : int
        The positions that flow can pass.
    bound : float
        An upper bound of the flow, at which the search ends.
    used, back : float array
        Scratch like `layers`; zero before and after.

    Notes
    -----
    Arcs down are numbered by the position that they lead to, arcs up, which take flow back, by
    theirs + token. The next arc is looked for in place, since a kernel of its own takes as long to
    call as to run.
    """
    depth, count = layers.shape[0], layers.shape[1]
    left, need = source.copy(), columns[0, sink].copy()
    nodes = depth * count
    distance = np.zeros((depth, count), np.int32)
    arc = np.empty((depth, count), np.int32)
    met = np.empty((depth, nodes + 2), np.bool_)
    queue, path = np.empty(nodes, np.int32), np.empty(nodes + 1, np.int32)
    room = np.empty(nodes + 1)  # the least on the path so far
    written = np.empty(REMEMBERED * nodes, np.int64)
    marks = 0
    value = 0.0
    while value < bound - EXACT:
        away = _measure(
            left, need, layers, columns, used, back, first, last, distance, met, queue
        )  # fmt: skip
        if away == 0:
            break
        arc[:] = 0
        start = first
        while start < last and value < bound - EXACT:
            if distance[depth - 1, start] != away - 1 or left[start] <= TINY:
                start += 1
                continue
            length = 1
            path[0], room[0] = (depth - 1) * count + start, left[start]
            while length > 0:
                level, position = path[length - 1] // count, path[length - 1] % count
                goal = distance[level, position] - 1
                if goal > 0:
                    moved = False
                    at = arc[level, position]
                    if at < count:
                        if level > 0 and met[level - 1, goal]:
                            nearer = distance[level - 1]
                            for k in range(max(at, first), last):
                                if nearer[k] == goal:
                                    wide = layers[level, position, k] - used[level, position, k]
                                    if wide > TINY:
                                        path[length] = (level - 1) * count + k
                                        room[length] = min(room[length - 1], wide)
                                        arc[level, position] = k
                                        moved = True
                                        break
                        if not moved:
                            at = count
                    if not moved and at < 2 * count:
                        if level < depth - 1 and met[level + 1, goal]:
                            nearer = distance[level + 1]
                            for k in range(max(at - count, first), last):
                                if nearer[k] == goal:
                                    wide = back[level + 1, position, k]
                                    if wide > TINY:
                                        path[length] = (level + 1) * count + k
                                        room[length] = min(room[length - 1], wide)
                                        arc[level, position] = count + k
                                        moved = True
                                        break
                        if not moved:
                            arc[level, position] = 2 * count
                    if moved:
                        length += 1
                    else:  # a dead end
                        distance[level, position] = -1
                        length -= 1
                    continue
                push = min(room[length - 1], need[position])
                left[start] -= push
                need[position] -= push
                value += push
                keep = length if left[start] > TINY else 0  # what of the path can be used again
                room[0] -= push
                for i in range(1, length):
                    room[i] -= push
                    above, j = path[i - 1] // count, path[i - 1] % count
                    below, k = path[i] // count, path[i] % count
                    if below < above:
                        if used[above, j, k] == 0.0:
                            if marks < len(written):
                                written[marks] = (above * count + j) * count + k
                            marks += 1
                        used[above, j, k] += push
                        back[above, k, j] = used[above, j, k]
                        rest = layers[above, j, k] - used[above, j, k]
                    else:
                        rest = used[below, k, j] - push
                        used[below, k, j] = back[below, j, k] = rest
                    if rest <= TINY:
                        keep = min(keep, i)
                if need[position] <= TINY:
                    distance[level, position] = -1
                    keep = min(keep, length - 1)
                length = keep
    if marks <= len(written):
        for mark in written[:marks]:
            level, j, k = mark // count // count, mark // count % count, mark % count
            used[level, j, k] = back[level, k, j] = 0.0
    else:
        used[:] = 0.0
        back[:] = 0.0
    return value
