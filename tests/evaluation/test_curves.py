"""Orders and what is kept."""

import math
from fractions import Fraction

import numpy as np
import pytest

from xattn.evaluation.curves import eraser_counts, kept, order, steps


def test_order_is_descending_and_leaves_out_specials():
    scores = np.array([9.0, 0.1, 0.4, -0.3, 9.0])
    assert order(scores, np.array([1, 2, 3]), seed=0).tolist() == [2, 1, 3]


def test_ties_fall_at_random_and_reproducibly():
    scores = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    removable = np.arange(6)
    draws = [order(scores, removable, (3, example)).tolist() for example in range(200)]
    again = [order(scores, removable, (3, example)).tolist() for example in range(200)]
    assert draws == again
    assert all(set(draw[:4]) == {1, 2, 3, 4} for draw in draws)
    firsts = np.bincount([draw[0] for draw in draws], minlength=6)
    assert firsts[1:5].min() > 25  # 50 expected of each


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 25, 100, 509])
def test_steps_are_even_and_complete(n):
    grid = steps(n)
    assert grid[0] == 0
    assert grid[-1] == n
    assert len(grid) == min(n, 10) + 1
    gaps = np.diff(grid)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("n", range(1, 800, 7))
def test_eraser_counts_are_exact(n):
    expected = [math.ceil(Fraction(p, 100) * n) for p in (1, 5, 10, 20, 50)]
    assert eraser_counts(n).tolist() == expected


def test_kept():
    keep = kept(5, np.array([3, 1, 2]), np.array([0, 2, 3]))
    assert keep.astype(int).tolist() == [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1]]
