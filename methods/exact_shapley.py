"""Shapley values, exactly, by every coalition of a few units."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Complete
from xattn.methods.occlusion import Removal, check_operator
from xattn.model import Model
from xattn.model.game import games, scattered, worth
from xattn.model.scorer import Scorer
from xattn.registry import register
from xattn.types import Batch, Bools, Floats, Target

LARGEST = 12
"""Units of a text; one more doubles the passes."""


def all_coalitions(players: int) -> Bools:
    """Return every coalition ``[2ⁿ, player]``; coalition number c holds the set bits of c."""
    return (np.arange(2**players)[:, None] >> np.arange(players) & 1).astype(bool)


def shapley_values(values: Floats, players: int) -> Floats:
    """Return the Shapley values ``[player]`` of a game given by `all_coalitions`.

    ``φ_i = Σ_S |S|! (n − |S| − 1)! / n! · (v(S ∪ i) − v(S))`` over the coalitions without i.
    """
    coalitions = all_coalitions(players)
    size = coalitions.sum(1)
    found = np.zeros(players)
    for player in range(players):
        without = np.flatnonzero(~coalitions[:, player])
        weight = 1 / (players * np.array([comb(players - 1, s) for s in size[without]]))
        found[player] = weight @ (values[without + 2**player] - values[without])
    return found


@register(
    "exact_shapley",
    signed=True,
    total="difference",
    citation="Shapley 1953, A Value for n-Person Games; Lundberg & Lee 2017",
    units=LARGEST,
)
@dataclass(frozen=True)
class ExactShapley(Complete):
    """Shapley values of the units, by every one of the ``2ⁿ`` coalitions.

    ``φ_i = Σ_S |S|! (n − |S| − 1)! / n! · (y(S ∪ i) − y(S))``: what unit i adds, averaged over all
    orders in which the text could be put together. Scores are signed,
    in the target's unit, and sum to ``y(x) − y(∅)``, the target without any unit. A text of more
    than 12 units is refused: each one doubles the passes.

    Attributes
    ----------
    operator : {"auto", "delete", "mask", "pad", "unknown", "attention-mask", ...}
        As in `occlusion`.
    """

    operator: Removal = "auto"

    def __post_init__(self) -> None:
        check_operator("exact_shapley", self.operator)

    def attribute(self, model: Model, batch: Batch, target: Target) -> tuple[Tensor, Tensor]:
        """Return scores ``[batch, token]`` and ``y(x) − y(∅)``, ``[batch]``."""
        played = games(model, batch, target, self.operator)
        for game in played:
            if len(game) > LARGEST:
                raise InputError(
                    f"exact_shapley of {game.encoding.text[:40]!r}",
                    got=f"{len(game)} units, {2 ** len(game):.0e} coalitions",
                    expected=f"at most {LARGEST} units",
                    remedy="take larger units (--unit word or sentence), or kernel_shap",
                )
        values = worth(Scorer(model), played, [all_coalitions(len(game)) for game in played])
        found = [shapley_values(v, len(game)) for v, game in zip(values, played, strict=True)]
        return scattered(batch, played, found), totals(values, target)


def totals(values: list[Floats], target: Target) -> Tensor:
    """Return the last value minus the first of each game, ``[batch]``."""
    return target.label.new_tensor([v[-1] - v[0] for v in values], dtype=torch.float32)
