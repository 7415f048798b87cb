"""The oracle: the order of removal itself, searched for instead of guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from xattn.errors import InputError
from xattn.methods.occlusion import Removal, check_operator
from xattn.model import Model
from xattn.model.game import games, scattered, worth
from xattn.model.scorer import Scorer
from xattn.registry import register
from xattn.types import Batch, Floats, Target


class Path(NamedTuple):
    """The beginning of an order of removal."""

    removed: tuple[int, ...]
    area: float
    """The sum of the target after each removal so far."""


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

    At each step every unit that is left is removed by itself from every order that is kept, and the
    `beam` orders are kept whose sum of targets so far is least (a beam of 1 is a
    greedy search). Scores are ranks, from the number of units for the first that goes down to 1:
    unsigned, without unit. It is a yardstick of deletion curves and no explanation: it looks at
    nothing but what it is measured by. It costs about ``beam · n² / 2`` forward passes.

    Attributes
    ----------
    order : {"morf", "lerf"}
        Most relevant first, or least relevant first: the order then keeps the target up, and who
        goes first gets the lowest rank.
    beam : int
    operator : {"auto", "delete", "mask", "pad", "unknown", "attention-mask"}
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
        played, scorer = games(model, batch, target, self.operator), Scorer(model)
        beams = [[Path((), 0.0)] for _ in played]
        for step in range(max((len(game) for game in played), default=0)):
            tried = [
                [(path, player) for path in beam for player in range(len(game))
                 if player not in path.removed] if step < len(game) else []
                for game, beam in zip(played, beams, strict=True)
            ]  # fmt: skip
            asked = [
                np.array(
                    [~np.isin(np.arange(len(game)), (*p.removed, player)) for p, player in own]
                ).reshape(-1, len(game))
                for game, own in zip(played, tried, strict=True)
            ]
            for i, values in enumerate(worth(scorer, played, asked)):
                if tried[i]:
                    beams[i] = self._best(tried[i], values)
        ranks = [self._ranks(beam[0].removed) for beam in beams]
        return scattered(batch, played, ranks)

    def _best(self, tried: list[tuple[Path, int]], values: Floats) -> list[Path]:
        """Return the orders to go on with; the same units in another order are no other state."""
        longer = [
            Path((*path.removed, player), path.area + float(value))
            for (path, player), value in zip(tried, values, strict=True)
        ]
        longer.sort(key=lambda path: path.area if self.order == "morf" else -path.area)
        states: dict[frozenset[int], Path] = {}
        for path in longer:
            states.setdefault(frozenset(path.removed), path)
        return list(states.values())[: self.beam]

    def _ranks(self, removed: tuple[int, ...]) -> Floats:
        count = len(removed)
        ranks = np.empty(count)
        ranks[list(removed)] = np.arange(count, 0, -1)
        return ranks if self.order == "morf" else count + 1 - ranks
