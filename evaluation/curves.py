"""From scores to removal orders, from orders to what is kept at each step.

*Most relevant first* (MoRF) removes tokens in descending order of score; *least relevant first*
(LeRF) is the same order from behind. Special tokens are never removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xattn.types import Bools, Floats, Ints

STEPS = 10
"""Steps of a curve; shorter texts lose one token a step."""
ERASER_PERCENT = np.array([1, 5, 10, 20, 50])
"""Shares of the tokens in ERASER's AOPC (DeYoung et al. 2020, section 4.1), in per cent."""


def order(scores: Floats, removable: Ints, seed: int | Sequence[int]) -> Ints:
    """Return the removable positions, the most relevant first.

    Parameters
    ----------
    scores : array
        ``[token]``.
    removable : array
        ``[n]``: positions that may be removed.
    seed : int or sequence of int
        Decides among equal scores, so that a tie does not favour the start of the text.

    Examples
    --------
    >>> order(np.array([0.0, 0.1, 0.9, 0.5, 0.0]), np.array([1, 2, 3]), seed=0)
    array([2, 3, 1])
    """
    shuffled = np.random.default_rng(seed).permutation(removable)
    return shuffled[np.argsort(-scores[shuffled], kind="stable")]


def steps(n: int) -> Ints:
    """Return how many of `n` tokens are gone at each point of a curve, from 0 to `n`.

    Every number for up to `STEPS` tokens, else `STEPS` steps as even as whole tokens allow.

    Examples
    --------
    >>> steps(3)
    array([0, 1, 2, 3])
    >>> steps(25)
    array([ 0,  2,  5,  8, 10, 12, 15, 18, 20, 22, 25])
    """
    points = min(n, STEPS) + 1
    return np.rint(np.linspace(0, n, points)).astype(np.int64)


def eraser_counts(n: int) -> Ints:
    """Return ``ceil(fraction · n)`` for ERASER's fractions, in whole numbers to be exact.

    Examples
    --------
    >>> eraser_counts(30)
    array([ 1,  2,  3,  6, 15])
    """
    return -(-ERASER_PERCENT * n // 100)


def kept(length: int, removal: Ints, counts: Ints) -> Bools:
    """Return which tokens are still there after the first removals.

    Parameters
    ----------
    length : int
        Tokens of the text, special ones included.
    removal : array
        ``[n]``: positions in the order in which they are removed.
    counts : array
        ``[input]``: how many are gone.

    Returns
    -------
    array
        ``[input, token]`` bool.

    Examples
    --------
    >>> kept(4, np.array([2, 1]), np.array([0, 1])).astype(int)
    array([[1, 1, 1, 1],
           [1, 1, 0, 1]])
    """
    turn = np.full(length, len(removal), dtype=np.int64)
    turn[removal] = np.arange(len(removal))
    result: Bools = turn >= counts[:, None]
    return result
