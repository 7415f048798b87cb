"""Orders, ties and what is left at each step."""

import math
from fractions import Fraction

import numpy as np
import pytest

from xattn.errors import InputError, UnknownNameError
from xattn.evaluation import Bounds, Case
from xattn.evaluation.measures.deletion import steps
from xattn.evaluation.measures.eraser import counts


@pytest.fixture
def case(toy, encoded, played):
    def make(scores, seed=0, **others):
        game = played(toy(lambda seen: 0.5), encoded(list(range(10, 10 + len(scores)))))
        return Case(game, np.array(scores, dtype=float), (seed,), **others)

    return make


def test_what_relevant_means(case):
    item = case([0.1, 0.4, -0.5, 0.0])
    assert item.order().tolist() == [1, 0, 3, 2]
    assert item.order("absolute").tolist() == [2, 1, 0, 3]
    assert item.order("positive")[:2].tolist() == [1, 0]
    assert item.reverse().tolist() == [2, 3, 0, 1]
    with pytest.raises(UnknownNameError, match="unknown ordering: got 'size'"):
        item.order("size")


def test_what_is_left(case):
    item = case([0.1, 0.4, -0.5])
    assert item.without([0, 1, 3]).astype(int).tolist() == [[1, 1, 1], [1, 0, 1], [0, 0, 0]]
    assert item.only([3, 1, 0]).astype(int).tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]


def test_the_oracle_has_orders_of_its_own(case):
    orders = Bounds(np.array([2, 0, 1]), np.array([0, 1, 2]))
    item = case([3, 2, 1], own=orders)
    assert item.order().tolist() == [2, 0, 1]
    assert item.reverse().tolist() == [0, 1, 2]


def test_ties_fall_at_random_and_reproducibly(case):
    draws = [case([1.0] * 4 + [0.0, 0.0], seed).order().tolist() for seed in range(200)]
    again = [case([1.0] * 4 + [0.0, 0.0], seed).order().tolist() for seed in range(200)]
    assert draws == again
    assert all(set(draw[:4]) == {0, 1, 2, 3} for draw in draws)
    assert np.bincount([draw[0] for draw in draws], minlength=6)[:4].min() > 25  # 50 expected


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
    assert counts(n, "eraser").tolist() == expected


def test_fractions_that_there_are_not():
    with pytest.raises(InputError, match="fractions: got 'all', expected eraser or grid"):
        counts(3, "all")
