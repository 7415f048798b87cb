"""Maximum flow as a linear program, straight from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, linprog, minimize

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


def central_flow(layers: Array, source: Array, barrier: float) -> Array:
    """Return what reaches each token in ``max Σ flow + μ Σ [log f + log(c − f)]``.

    Solved over the flows of all edges by a general solver. All capacities are above 0, rows and
    source sum to 1: half of what rollout sends is where it starts.
    """
    depth, count, _ = layers.shape
    edges = [(None, (depth, i), source[i], source[i] / 2) for i in range(count)]
    mass = source / 2
    for level in range(depth, 0, -1):
        sent = mass[:, None] * layers[level - 1]
        edges += [
            ((level, i), (level - 1, j), layers[level - 1, i, j], sent[i, j])
            for i in range(count)
            for j in range(count)
        ]
        mass = sent.sum(0)
    capacity, start = np.array([c for *_, c, _ in edges]), np.array([f for *_, f in edges])
    balance = np.array([
        [float(head == (level, i)) - float(tail == (level, i)) for tail, head, *_ in edges]
        for level in range(1, depth + 1)
        for i in range(count)
    ])  # fmt: skip
    last = np.array([float(head[0] == 0) for _, head, *_ in edges])

    def loss(f: Array) -> float:
        if (f <= 0).any() or (f >= capacity).any():
            return 1e10  # outside of the barrier
        return float(-last @ f - barrier * (np.log(f) + np.log(capacity - f)).sum())

    def slope(f: Array) -> Array:
        return -last - barrier * (1 / f - 1 / (capacity - f))

    def curve(f: Array) -> Array:
        return np.diag(barrier * (1 / f**2 + 1 / (capacity - f) ** 2))

    found = minimize(
        loss, start, jac=slope, hess=curve, method="trust-constr",
        constraints=LinearConstraint(balance, 0, 0), options={"gtol": 1e-9, "xtol": 1e-12},
    )  # fmt: skip
    return np.array(
        [
            sum(f for f, (_, head, *_) in zip(found.x, edges, strict=True) if head == (0, j))
            for j in range(count)
        ]
    )
