"""The cooperative game of a text: its units are the players, the target is what they are worth.

A coalition is a part of the text: the units that stay, while an operator removes the others. Every
coalition of every text goes through one scorer, so that what is asked twice is computed once and
texts share batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from xattn.model.adapter import Model
from xattn.model.operators import Operator, emptied, get_operator, usual
from xattn.model.scorer import Scorer
from xattn.types import Batch, Bools, Encoding, Floats, Ints, Row, Target

CHUNK = 2**25
"""Bytes of inputs that are held together."""


@dataclass(frozen=True, eq=False)
class Game:
    """One text, one target, and the units that may go."""

    model: Model
    encoding: Encoding
    target: Target
    """Of this text alone."""
    operator: Operator
    players: tuple[Ints, ...]
    """The token positions of each unit."""
    head: int
    """Of how many tokens at the start of the last stream one must stay to be read from."""

    @property
    def size(self) -> int:
        """Bytes of one input."""
        return sum(values.nbytes for values in self.encoding.row.values())

    def __len__(self) -> int:
        return len(self.players)

    def inputs(self, coalitions: Bools) -> tuple[list[Row], Target]:
        """Return the text of each coalition ``[coalition, player]``, and the target in it."""
        keep = np.ones((len(coalitions), len(self.encoding)), dtype=np.bool_)
        for player, members in enumerate(self.players):
            keep[:, members] = coalitions[:, player, None]
        last = self.encoding.streams == self.encoding.streams[-1]
        bare: Bools = ~np.any(keep[:, last][:, : self.head], axis=1)
        bare &= self.operator.physical
        keep[bare, int(last.argmax())] = True
        rows = self.operator(self.model, self.encoding.row, keep)
        rows = [
            emptied(self.model, row) if none else row for row, none in zip(rows, bare, strict=True)
        ]
        target = self.target[torch.zeros(len(rows), dtype=torch.long)]
        if target.position is None or not self.operator.physical:
            return rows, target
        read = keep[:, last]
        moved = torch.from_numpy(np.stack([self.operator.shift(kept) for kept in read]))

        def shifted(places: Tensor | None) -> Tensor | None:
            if places is None:
                return None
            found = moved.to(places.device).gather(1, places.view(len(rows), -1))
            return found.view(places.shape)

        if self.model.task.name == "answer":  # whose classes are the tokens
            label, against = shifted(target.label), shifted(target.against)
            assert label is not None
            return rows, replace(target, label=label, against=against)
        return rows, replace(target, position=shifted(target.position))

    def spread(self, values: Floats) -> Floats:
        """Return a value ``[player]`` shared out evenly among the player's tokens, ``[token]``."""
        scores = np.zeros(len(self.encoding))
        for members, value in zip(self.players, values, strict=True):
            scores[members] = value / len(members)
        return scores


def games(model: Model, batch: Batch, target: Target, operator: str = "auto") -> list[Game]:
    """Return the game of each text of a batch.

    Special tokens do not play; nor what stands behind the last token that a continuation is
    predicted from, which has no part in it; nor, where removing leaves no place behind, tokens
    whose own output is the target (a tagged word).

    Parameters
    ----------
    model : Model
    batch : Batch
    target : Target
    operator : str
        What removing means: a name in `OPERATORS`, or ``auto``; see `operators.usual`.
    """
    chosen = usual(model) if operator == "auto" else get_operator(operator)
    found = []
    for i, encoding in enumerate(batch.encodings):
        own = target[torch.tensor([i], device=target.label.device)]
        places, start = _places(own), int((encoding.streams < encoding.streams[-1]).sum())
        stays, head = encoding.special.copy(), len(encoding) - start
        if model.task.name == "generate":
            head = int(places.min()) + 1
            stays[start + int(places.max()) + 1 :] = True
        elif len(places) and chosen.physical:
            where = own.label.flatten().cpu().numpy() if model.task.name == "answer" else places
            stays[start + where] = True
        numbers = np.unique(encoding.units)
        members = [np.flatnonzero(encoding.units == number) for number in numbers]
        players = tuple(unit for unit in members if not stays[unit].any())
        found.append(Game(model, encoding, own, chosen, players, head))
    return found


def _places(own: Target) -> Ints:
    """Return the places that the target of one text is read at; empty for whole inputs."""
    if own.position is None:
        return np.empty(0, dtype=np.int64)
    real = own.position if own.weight is None else own.position[own.weight > 0]
    places: Ints = real.flatten().cpu().numpy()
    return places


def worth(scorer: Scorer, played: Sequence[Game], coalitions: Sequence[Bools]) -> list[Floats]:
    """Return what the target is worth in each game's coalitions, a float array a game.

    Parameters
    ----------
    scorer : Scorer
    played : sequence of Game
    coalitions : sequence of bool arrays
        ``[coalition, player]`` of each game.
    """
    results: list[Floats] = [np.empty(len(own)) for own in coalitions]
    waiting: list[tuple[int, slice]] = []
    held = 0
    for number, own in enumerate(coalitions):
        size = played[number].size
        together = max(1, CHUNK // size)
        for first in range(0, len(own), together):
            part = slice(first, min(first + together, len(own)))
            waiting.append((number, part))
            held += (part.stop - part.start) * size
            if held >= CHUNK:
                _settle(scorer, played, coalitions, waiting, results)
                waiting, held = [], 0
    _settle(scorer, played, coalitions, waiting, results)
    return results


def _settle(
    scorer: Scorer,
    played: Sequence[Game],
    coalitions: Sequence[Bools],
    waiting: Sequence[tuple[int, slice]],
    results: list[Floats],
) -> None:
    """Compute the parts that wait, together."""
    rows: list[Row] = []
    targets: list[Target] = []
    for number, part in waiting:
        new, target = played[number].inputs(coalitions[number][part])
        rows += new
        targets.append(target)
    if not rows:
        return
    values = scorer.values(rows, _joined(targets))
    ends = np.cumsum([part.stop - part.start for _, part in waiting])
    for (number, part), found in zip(waiting, np.split(values, ends[:-1]), strict=True):
        results[number][part] = found


def _joined(targets: Sequence[Target]) -> Target:
    """Return the targets of several inputs one after the other."""

    def join(parts: Sequence[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.cat(present) if present else None

    label = join([t.label for t in targets])
    assert label is not None
    return Target(
        label,
        join([t.against for t in targets]),
        targets[0].quantity,
        join([t.position for t in targets]),
        join([t.weight for t in targets]),
        targets[0].link,
    )


def scattered(batch: Batch, played: Sequence[Game], values: Sequence[Floats]) -> Tensor:
    """Return the players' values as scores of tokens, ``[batch, token]``."""
    scores = torch.zeros(batch.shape)
    for i, (game, own) in enumerate(zip(played, values, strict=True)):
        scores[i, torch.from_numpy(batch.columns(i))] = torch.from_numpy(game.spread(own)).float()
    return scores.to(next(iter(batch.inputs.values())).device)
