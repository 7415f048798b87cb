"""The cooperative game of a text: its units are the players, the target is what they are worth.

A coalition is a part of the text: the units that stay, while an operator removes the others. What
is made of coalitions is a *plan*: a generator that yields coalitions, is sent what they are worth,
and returns what it found. `Worths` runs plans of many texts side by side. What is asked twice is
computed once, and texts share batches.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from xattn.model.adapter import Model
from xattn.model.operators import Operator, emptied, get_operator, usual
from xattn.model.scorer import Scorer
from xattn.types import Batch, Bools, Encoding, Floats, Ints, Row, Target

CHUNK = 2**25
"""Bytes of inputs that are held together."""
Result = TypeVar("Result")
Plan = Generator[Bools, Floats, Result]
"""Yields coalitions ``[coalition, player]`` and is sent their worths ``[coalition]``."""


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
        """Bytes of the inputs of one coalition."""
        return self.operator.draws * sum(values.nbytes for values in self.encoding.row.values())

    def __len__(self) -> int:
        return len(self.players)

    def inputs(self, coalitions: Bools) -> tuple[list[Row], Target]:
        """Return the texts of each coalition ``[coalition, player]``, and the target in them.

        As many as the operator draws for one, next to each other.
        """
        keep = np.ones((len(coalitions), len(self.encoding)), dtype=np.bool_)
        for player, members in enumerate(self.players):
            keep[:, members] = coalitions[:, player, None]
        last = self.encoding.streams == self.encoding.streams[-1]
        bare: Bools = ~np.any(keep[:, last][:, : self.head], axis=1)
        bare &= self.operator.physical
        keep[bare, int(last.argmax())] = True
        rows = self.operator(self.model, self.encoding.row, keep)
        for number in np.flatnonzero(bare):
            rows[number] = emptied(self.model, rows[number])
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


def games(
    model: Model, batch: Batch, target: Target, operator: str | Operator = "auto"
) -> list[Game]:
    """Return the game of each text of a batch.

    Special tokens do not play; nor what stands behind the last token that a continuation is
    predicted from, which has no part in it; nor, where removing leaves no place behind, tokens
    whose own output is the target (a tagged word).

    Parameters
    ----------
    model : Model
    batch : Batch
    target : Target
    operator : str or Operator
        What removing means: an operator or its name, or ``auto``; see `operators.usual`.
    """
    if isinstance(operator, Operator):
        chosen = operator
    else:
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
    """Compute the parts that wait, those with targets of one kind together."""
    kinds: dict[tuple[object, ...], list[tuple[int, slice]]] = {}
    for number, part in waiting:
        kinds.setdefault(_kind(played[number].target), []).append((number, part))
    for alike in kinds.values():
        rows: list[Row] = []
        targets: list[Target] = []
        for number, part in alike:
            new, target = played[number].inputs(coalitions[number][part])
            rows += new
            targets.append(target)
        values = scorer.values(rows, _joined(targets))
        counts = [(part.stop - part.start) * played[n].operator.draws for n, part in alike]
        ends = np.cumsum(counts)
        for (number, part), found in zip(alike, np.split(values, ends[:-1]), strict=True):
            results[number][part] = found.reshape(-1, played[number].operator.draws).mean(1)


def _kind(target: Target) -> tuple[object, ...]:
    """Return what targets must have in common to be one."""
    parts = (target.label, target.against, target.position, target.weight)
    return target.quantity, target.link, *(None if p is None else p.shape[1:] for p in parts)


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


class Worths:
    """What coalitions are worth: each is computed once, whoever asks.

    Parameters
    ----------
    scorer : Scorer

    Attributes
    ----------
    asked : int
        Coalitions that were asked for so far.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.asked = scorer, 0
        self._known: dict[Game, dict[bytes, float]] = {}

    def clear(self) -> None:
        """Forget everything, also what the scorer knows; counts stay."""
        self._known.clear()
        self.scorer.clear()

    def __call__(self, asked: Sequence[tuple[Game, Bools]]) -> list[Floats]:
        """Return the worths ``[coalition]`` of coalitions ``[coalition, player]`` of games."""
        keys = [[row.tobytes() for row in np.packbits(some, axis=1)] for _, some in asked]
        new: dict[Game, dict[bytes, Bools]] = {}
        for (game, some), names in zip(asked, keys, strict=True):
            self.asked += len(names)
            known, fresh = self._known.setdefault(game, {}), new.setdefault(game, {})
            for name, coalition in zip(names, some, strict=True):
                if name not in known:
                    fresh.setdefault(name, coalition)
        new = {game: fresh for game, fresh in new.items() if fresh}
        tables = [np.stack(list(fresh.values())) for fresh in new.values()]
        for game, found in zip(new, worth(self.scorer, list(new), tables), strict=True):
            self._known[game].update(zip(new[game], found.tolist(), strict=True))
        return [
            np.array([self._known[game][name] for name in names])
            for (game, _), names in zip(asked, keys, strict=True)
        ]

    def recall(self, game: Game, table: Mapping[bytes, float]) -> None:
        """Take over what was computed before: worths by the packed bits of their coalitions."""
        self._known.setdefault(game, {}).update(table)

    def table(self, game: Game) -> Mapping[bytes, float]:
        """Return everything that is known of a game, by the packed bits of coalitions."""
        return self._known.get(game, {})

    def play(self, plans: Sequence[tuple[Game, Plan[Result]]]) -> list[Result]:
        """Run plans side by side until each has found its result; return these."""
        results: dict[int, Result] = {}
        waiting: dict[int, Bools] = {}

        def proceed(number: int, worths: Any) -> None:
            try:
                waiting[number] = plans[number][1].send(worths)
            except StopIteration as end:
                results[number] = end.value

        for number in range(len(plans)):
            proceed(number, None)
        while waiting:
            numbers = list(waiting)
            found = self([(plans[number][0], waiting.pop(number)) for number in numbers])
            for number, worths in zip(numbers, found, strict=True):
                proceed(number, worths)
        return [results[number] for number in range(len(plans))]
