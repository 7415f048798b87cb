"""The oracle: the order of removal itself, searched for instead of guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from xattn.errors import InputError
from xattn.methods.occlusion import Removal, check_operator
from xattn.model import Model
from xattn.model.game import Worths, games, scattered
from xattn.model.scorer import Scorer
from xattn.model.search import search
from xattn.registry import register
from xattn.types import Batch, Floats, Ints, Target


@register(
    "oracle",
    signed=False,
    total="free",
    citation="Edin et al. 2025, Normalized AOPC: Fixing Misleading Faithfulness Metrics for "
    "Feature Attribution Explainability (ACL)",
)
@dataclass(frozen=True)
class Oracle:
    """The order in which units have to go for the target to fall fastest, found by a search.

    Up to 10 units it is exact: every part of the text is tried. Beyond, at each step every unit
    that is left is removed by itself from every order that is kept, and the `beam` orders are kept
    whose sum of targets so far is least (a beam of 1 is a greedy search). Scores are ranks, from
    the number of units for the first that goes down to 1: unsigned, without unit. It is a yardstick
    of deletion curves and no explanation: it looks at nothing but what it is measured by. It costs
    up to ``2^n`` or about ``beam · n² / 2`` forward passes.

    Attributes
    ----------
    order : {"morf", "lerf"}
        Most relevant first, or least relevant first: the order then keeps the target up, and who
        goes first gets the lowest rank.
    beam : int
    operator : {"auto", "delete", "mask", "pad", "unknown", "attention-mask", ...}
        As in `occlusion`.
    """

    order: Literal["morf", "lerf"] = "morf"
    beam: int = 1
    operator: Removal = "auto"

    def __post_init__(self) -> None:
        check_operator("oracle", self.operator)
        if self.order not in ("morf", "lerf"):
            raise InputError("order of oracle", got=repr(self.order), expected="morf or lerf")
        if not (isinstance(self.beam, int) and self.beam >= 1):
            raise InputError("beam of oracle", got=repr(self.beam), expected="1 or more")

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        played = games(model, batch, target, self.operator)
        orders = Worths(Scorer(model)).play(
            [
                (game, search(len(game), np.arange(len(game) + 1), self.order, self.beam))
                for game in played
            ]
        )
        return scattered(batch, played, [self._ranks(order) for order in orders])

    def _ranks(self, removed: Ints) -> Floats:
        count = len(removed)
        ranks = np.empty(count)
        ranks[removed] = np.arange(count, 0, -1)
        return ranks if self.order == "morf" else count + 1 - ranks
