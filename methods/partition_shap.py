"""Partition SHAP: Owen values over sentences, words and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xattn import units
from xattn.errors import InputError
from xattn.kinds import Complete
from xattn.methods.occlusion import Removal, check_operator
from xattn.model import Model
from xattn.model.game import Game, games, scattered, worth
from xattn.model.scorer import Scorer
from xattn.registry import register
from xattn.types import Batch, Bools, Floats, Ints, Target

Tree = Any
"""A player's number, or a pair of trees."""


def halved(parts: list[Tree]) -> Tree:
    """Return a balanced binary tree over neighbouring parts."""
    if len(parts) == 1:
        return parts[0]
    middle = (len(parts) + 1) // 2
    return halved(parts[:middle]), halved(parts[middle:])


def hierarchy(game: Game) -> Tree:
    """Return a binary tree over the players: sentences over words over tokens.

    Each level is halved between neighbours until single parts are left.
    """
    numbers = [units.numbered(units.groups(game.encoding, u), len(game.encoding))
               for u in ("sentence", "word")]  # fmt: skip
    sentences: dict[int, dict[int, list[Tree]]] = {}
    for player, members in enumerate(game.players):
        sentence, word = (int(number[members[0]]) for number in numbers)
        sentences.setdefault(sentence, {}).setdefault(word, []).append(player)
    return halved(
        [halved([halved(part) for part in words.values()]) for words in sentences.values()]
    )


def members_of(tree: Tree) -> list[int]:
    """Return the players of a tree in order."""
    if isinstance(tree, int):
        return [tree]
    return [player for part in tree for player in members_of(part)]


@dataclass(frozen=True, eq=False)
class Share:
    """What a part of the text adds to a context, and how much that counts."""

    tree: Tree
    context: Bools
    """``[player]``: who is there before."""
    weight: float
    before: float
    """The worth of the context."""
    after: float
    """The worth of the context and the part."""


@register(
    "partition_shap",
    signed=True,
    total="difference",
    citation="Owen 1977, Values of Games with a Priori Unions; as the partition explainer of the "
    "SHAP library (Lundberg & Lee 2017)",
)
@dataclass(frozen=True)
class PartitionShap(Complete):
    """Owen values: Shapley values of coalitions that form sentence by sentence, word by word.

    The text is a binary tree, sentences over words over tokens, each level halved between
    neighbours. What a part adds is shared out between its two halves by their Shapley values, each
    half alone and beside the other, and so on downwards: ``φ_a = ½ (v(c ∪ a) − v(c)) + ½ (v(c ∪ a ∪
    b) − v(c ∪ b))``. Where the passes run out, the part with the most to share comes first, and
    what is left is spread evenly. Scores are signed, in the target's unit, and sum to
    ``y(x) − y(∅)``.

    Attributes
    ----------
    evaluations : int
        Coalitions at most. Owen values of n units are exact with about n² of them.
    operator : {"auto", "delete", "mask", "pad", "unknown", "attention-mask", ...}
        As in `occlusion`.
    """

    evaluations: int = 1024
    operator: Removal = "auto"

    def __post_init__(self) -> None:
        check_operator("partition_shap", self.operator)
        if not (isinstance(self.evaluations, int) and self.evaluations >= 2):
            raise InputError(
                "evaluations of partition_shap", got=repr(self.evaluations), expected="2 or more"
            )

    def attribute(self, model: Model, batch: Batch, target: Target) -> tuple[Tensor, Tensor]:
        """Return scores ``[batch, token]`` and ``y(x) − y(∅)``, ``[batch]``."""
        played, scorer = games(model, batch, target, self.operator), Scorer(model)
        ends = [np.array([[False] * len(game), [True] * len(game)]) for game in played]
        values = worth(scorer, played, ends)
        queues = [
            [Share(hierarchy(game), np.zeros(len(game), dtype=bool), 1.0, v[0], v[1])]
            if len(game)
            else []
            for game, v in zip(played, values, strict=True)
        ]
        found = [np.zeros(len(game)) for game in played]
        left = [self.evaluations - 2] * len(played)
        while any(queues):
            turns = [self._turn(queue, room) for queue, room in zip(queues, left, strict=True)]
            asked = [self._halves(turn, len(g)) for turn, g in zip(turns, played, strict=True)]
            answers = worth(scorer, played, asked)
            for i, turn in enumerate(turns):
                left[i] -= len(asked[i])
                kept = [share for share in queues[i] if share not in turn]
                queues[i] = self._settled(kept, found[i], final=not turn)
                queues[i] += self._split(turn, answers[i])
        total = torch.tensor(
            [v[1] - v[0] for v in values], dtype=torch.float32, device=target.label.device
        )
        return scattered(batch, played, found), total

    @staticmethod
    def _turn(queue: list[Share], room: int) -> list[Share]:
        """Return which parts are halved now: those with the most to share, as far as passes do."""
        inner = [share for share in queue if not isinstance(share.tree, int)]
        inner.sort(key=lambda share: -abs(share.weight * (share.after - share.before)))
        return inner[: room // 2]

    @staticmethod
    def _halves(turn: list[Share], players: int) -> Bools:
        """Return each context with the left half, and with the right half."""
        asked = np.zeros((2 * len(turn), players), dtype=bool)
        for i, share in enumerate(turn):
            for side in (0, 1):
                asked[2 * i + side] = share.context
                asked[2 * i + side, members_of(share.tree[side])] = True
        return asked

    @staticmethod
    def _split(turn: list[Share], answers: Floats) -> list[Share]:
        """Return what each half adds, alone and beside the other."""
        shares = []
        for i, share in enumerate(turn):
            alone = answers[2 * i], answers[2 * i + 1]
            for side in (0, 1):
                beside = share.context.copy()
                beside[members_of(share.tree[1 - side])] = True
                half, weight = share.tree[side], share.weight / 2
                shares.append(Share(half, share.context, weight, share.before, alone[side]))
                shares.append(Share(half, beside, weight, alone[1 - side], share.after))
        return shares

    @staticmethod
    def _settled(queue: list[Share], found: Floats, *, final: bool) -> list[Share]:
        """Credit single players, and at the end what was never halved; return what is left."""
        waiting = []
        for share in queue:
            members: Ints = np.array(members_of(share.tree))
            if len(members) > 1 and not final:
                waiting.append(share)
                continue
            found[members] += share.weight * (share.after - share.before) / len(members)
        return waiting
