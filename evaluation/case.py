"""`Case`: one explanation of one text, and one way of removing its units, for metrics to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

from xattn.errors import UnknownNameError
from xattn.model.game import Game
from xattn.types import Bools, Floats, Ints

Ordering = Literal["signed", "absolute", "positive"]
"""What makes a unit relevant: a high score; a high absolute value; a high score above 0, where what
speaks against the target counts as nothing."""


class Bounds(NamedTuple):
    """How far removal orders can go: what a search found."""

    least: Ints
    """``[player]``: the order under which the target falls fastest."""
    most: Ints
    """``[player]``: the order that keeps the target up."""


@dataclass(frozen=True, eq=False)
class Case:
    """One explanation of one text, and one way of removing its units."""

    game: Game
    """The text with its target; its players are the units that can be removed."""
    scores: Floats
    """``[player]``: the sum of each unit's tokens; for the oracle, ranks."""
    seed: tuple[int, ...] = (0,)
    """Decides among equal scores, and what is drawn. The same for all methods on a text."""
    bounds: Bounds | None = None
    rationale: Bools | None = None
    """``[player]``: what a person found decisive; None if nobody said."""
    gap: float | None = None
    """What scores sum to minus what they must, as a share of the latter; None without an axiom."""
    elsewhere: tuple[Floats, ...] = ()
    """``[player]`` each: scores under the other circumstances that a metric asks for."""
    own: Bounds | None = None
    """The orders themselves, where they are not made from scores: the oracle's."""

    def __len__(self) -> int:
        """Return how many units can be removed."""
        return len(self.game)

    def relevance(self, ordering: Ordering = "signed") -> Floats:
        """Return what units are ordered by, ``[player]``."""
        if ordering not in get_args(Ordering):
            raise UnknownNameError("ordering", str(ordering), get_args(Ordering))
        if ordering == "absolute":
            return np.abs(self.scores)
        return np.maximum(self.scores, 0) if ordering == "positive" else self.scores

    def order(self, ordering: Ordering = "signed") -> Ints:
        """Return the players, the most relevant first (MoRF)."""
        if self.own is not None:
            return self.own.least
        if ordering not in self._orders:
            self._orders[ordering] = self._ranked(self.relevance(ordering))
        return self._orders[ordering]

    def reverse(self, ordering: Ordering = "signed") -> Ints:
        """Return the players, the least relevant first (LeRF)."""
        return self.own.most if self.own is not None else self.order(ordering)[::-1]

    @cached_property
    def _orders(self) -> dict[Ordering, Ints]:
        return {}

    def _ranked(self, values: Floats) -> Ints:
        # a tie must not favour the start of the text
        shuffled = np.random.default_rng(self.seed).permutation(len(values))
        return shuffled[np.argsort(-values[shuffled], kind="stable")]

    def without(self, counts: Sequence[int] | Ints, ordering: Ordering = "signed") -> Bools:
        """Return the coalitions that lack the most relevant players, ``[count, player]``."""
        return gone(self.order(ordering), np.asarray(counts))

    def only(self, counts: Sequence[int] | Ints, ordering: Ordering = "signed") -> Bools:
        """Return the coalitions of only the most relevant players, ``[count, player]``."""
        return gone(self.reverse(ordering), len(self) - np.asarray(counts))

    @cached_property
    def draw(self) -> np.random.Generator:
        """Random numbers, the same for all methods on a text."""
        return np.random.default_rng((*self.seed, 1))


def gone(order: Ints, counts: Ints) -> Bools:
    """Return who is left after the first removals, ``[count, player]``.

    Parameters
    ----------
    order : array
        ``[player]``: who goes first, second ...
    counts : array
        How many are gone.

    Examples
    --------
    >>> gone(np.array([2, 0, 1]), np.array([0, 1])).astype(int)
    array([[1, 1, 1],
           [1, 1, 0]])
    """
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = np.arange(len(order))
    left: Bools = turn >= counts[:, None]
    return left
