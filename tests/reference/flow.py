"""Maximum flow as a linear program, straight from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linprog

Array = np.ndarray[Any, Any]


def max_flow(layers: Array, source: Array, sink: int) -> float:
    """Return the maximum flow from the source to (0, sink).

    Variables are the flows on all edges; what reaches the sink is maximised; what enters any other
    node leaves it.
    """
    depth, count, _ = layers.shape
    edges = [(None, (depth, i), source[i]) for i in range(count)]
    for level in range(depth, 0, -1):
        edges += [
            ((level, i), (level - 1, j), layers[level - 1, i, j])
            for i in range(count)
            for j in range(count)
        ]
    cost = [-1.0 if head == (0, sink) else 0.0 for _, head, _ in edges]
    balance = []
    for level in range(1, depth + 1):
        for i in range(count):
            node = (level, i)
            balance.append([float(h == node) - float(t == node) for t, h, _ in edges])
    result = linprog(
        cost,
        A_eq=np.array(balance),
        b_eq=np.zeros(len(balance)),
        bounds=[(0, capacity) for _, _, capacity in edges],
        method="highs",
    )
    assert result.success, result.message
    return float(-result.fun)
