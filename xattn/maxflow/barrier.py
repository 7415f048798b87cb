"""The one maximum flow that a log barrier singles out among all that serve a common sink.

What runs from a source to all tokens of level 0 together has many maxima that share it out
differently. The barrier takes ``max Σ flow + μ Σ_e [log f_e + log(c_e − f_e)]``, which has one
solution; for small μ it nears the analytic centre of the maxima.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from xattn.errors import ModelError
from xattn.maxflow.compiled import Array, Bools
from xattn.types import Floats

STEPS = 200
"""Newton steps at most, for each μ."""
BALANCE = 1e-10
"""Largest sum of squares of what nodes lose or gain, relative to μ; flows are then as exact."""
RIDGE = 1e-14
"""What is added to the diagonal of the second derivatives, brought to 1."""


def central_flow(layers: Sequence[Floats] | Floats, source: Floats, barrier: float) -> Array:
    """Return what the barrier's flow brings to each token, ``[token]``.

    The dual problem is solved by Newton's method: every node has a potential, 1 at the source and 0
    at the sink; an edge's flow follows from the difference of its ends in closed form; and where
    the potentials are right, no node loses or gains. μ is brought down in steps of 10.

    Parameters
    ----------
    layers, source
        As in `xattn.maxflow.max_flows`, of one source.
    barrier : float
        μ; what is lost of the maximum is at most 2 μ for every edge.

    Raises
    ------
    ModelError
        If Newton's method does not come to an end.
    """
    stack = np.ascontiguousarray(layers, dtype=np.float64)
    top = np.asarray(source, dtype=np.float64)
    alive = _on_a_way(stack, top)
    inner = alive[1:]
    if not inner.any() or not alive[0].any():
        return np.zeros(stack.shape[1])
    capacity = stack * alive[1:, :, None] * alive[:-1, None, :]
    entry = top * alive[-1]
    potential = np.zeros(alive.shape)
    potential[1:] = np.linspace(0, 1, len(stack) + 2)[1:-1, None]
    strength = max(barrier, 1.0)
    while True:
        flows = _solve(capacity, entry, potential, inner, strength)
        if strength <= barrier:
            return np.asarray(flows[0].sum(0))
        strength = max(strength / 10, barrier)


def _on_a_way(stack: Array, top: Array) -> Bools:
    """Return ``[level, token]``: whether a way from the source to level 0 leads through."""
    reached = np.empty((len(stack) + 1, len(top)), dtype=np.bool_)
    reached[-1] = top > 0
    for level in range(len(stack), 0, -1):
        reached[level - 1] = (stack[level - 1][reached[level]] > 0).any(0)
    for level in range(1, len(stack) + 1):
        reached[level] &= (stack[level - 1][:, reached[level - 1]] > 0).any(1)
    return reached


def _edge(difference: Array, capacity: Array, strength: float) -> tuple[Array, Array]:
    """Return the flow of ``max_f Δ f + μ log f + μ log(c − f)``, and its derivative by Δ."""
    used = capacity > 0
    wide = np.where(used, capacity, 1.0)
    root = np.sqrt((difference * wide) ** 2 + 4 * strength**2)
    # the lesser of f and c − f, in the form that does not cancel
    small = 2 * strength * wide / (np.abs(difference) * wide + 2 * strength + root)
    flow = np.where(difference > 0, wide - small, small)
    slope = 1 / (strength * (1 / small**2 + 1 / (wide - small) ** 2))
    return flow * used, slope * used


def _state(
    capacity: Array, entry: Array, potential: Array, strength: float
) -> tuple[Array, Array, Array, Array]:
    """Return flows, what leaves each node less what enters it, and the derivatives of flows."""
    flow, slope = _edge(potential[1:, :, None] - potential[:-1, None, :], capacity, strength)
    entering, give = _edge(1 - potential[-1], entry, strength)
    loss = flow.sum(2)
    loss[:-1] -= flow[1:].sum(1)
    loss[-1] -= entering
    return flow, loss, slope, give


def _direction(loss: Array, slope: Array, give: Array, inner: Bools) -> Array:
    """Return Newton's step ``[level, token]``: minus loss over the Laplacian of the slopes."""
    depth, count = loss.shape
    diagonal = slope.sum(2)
    diagonal[:-1] += slope[1:].sum(1)
    diagonal[-1] += give
    laplacian = np.zeros((depth, count, depth, count))
    for level in range(depth):
        laplacian[level, range(count), level, range(count)] = diagonal[level]
        if level:
            laplacian[level, :, level - 1] = -slope[level]
            laplacian[level - 1, :, level] = -slope[level].T
    keep = np.flatnonzero(inner)
    matrix = laplacian.reshape(depth * count, -1)[np.ix_(keep, keep)]
    # nodes that only the faintest edges reach are brought to the scale of the others
    scale = np.sqrt(matrix.diagonal())
    matrix /= scale[:, None] * scale
    matrix[np.diag_indices_from(matrix)] += RIDGE
    step = np.zeros(depth * count)
    step[keep] = cho_solve(cho_factor(matrix), -loss.ravel()[keep] / scale) / scale
    return step.reshape(depth, count)


def _solve(capacity: Array, entry: Array, potential: Array, inner: Bools, strength: float) -> Array:
    """Return the flows ``[layer, token, token]`` at one μ; moves the potentials in place."""
    for _ in range(STEPS):
        flow, loss, slope, give = _state(capacity, entry, potential, strength)
        step = _direction(loss, slope, give, inner)
        slip = -float((step * loss).sum())
        if slip <= BALANCE * strength:
            return flow
        # The dual is self-concordant: this size never fails, and larger ones that do not pass the
        # minimum on the line are better (Nesterov & Nemirovskii 1994).
        safe = 1 / (1 + np.sqrt(slip / strength))
        size = 1.0
        while size > safe:
            trial = potential.copy()
            trial[1:] += size * step
            ahead = _state(capacity, entry, trial, strength)[1]
            if (step * ahead).sum() <= slip / 10:
                break
            size /= 2
        potential[1:] += max(size, safe) * step
    raise ModelError(
        "the flow with a barrier was not found",
        got=f"no balance after {STEPS} steps at a barrier of {strength:.2g}",
        remedy="take a larger barrier",
    )
