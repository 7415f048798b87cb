"""Beginnings that inputs share, run once: for causal models, by their caches of keys and values.

In a causal model nothing that follows changes what a token is. Inputs that differ in what was
removed share their beginnings, so the inputs of a group are cut into stretches, and a stretch
behind one and the same beginning goes through the network once, however many inputs go on from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from xattn.errors import XattnWarning
from xattn.model.adapter import Model
from xattn.model.attach import same
from xattn.model.entrances import BLANKS
from xattn.types import Ints, Row, Target

STRETCHES = 4
"""Into how many stretches inputs are cut."""
GROUP = 4
"""Inputs that are cut together, in batches of the usual size."""
WORTH = 0.8
"""Share of the tokens up to which the caches are worth their trouble."""
LARGE = 5_000_000
"""Parameters from which on what is saved is more than what sorting and copying takes."""
HELD = 2**26
"""Logits that are held together."""
TRIED = 4
"""Inputs on which a network is tried."""

Caches = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, ``[input, head, token, size]``."""


@dataclass
class Stretch:
    """The same places of several inputs, each beginning once."""

    start: int
    tokens: list[Ints] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Which of the stretch before each goes on from."""
    numbers: dict[bytes, int] = field(default_factory=dict)
    """By the bytes of everything up to its end."""
    nodes: dict[int, int] = field(default_factory=dict)
    """Of each input that reaches here, which it is."""
    ends: list[int] = field(default_factory=list)
    """The inputs that end here."""


def stretches(rows: Sequence[Ints]) -> list[Stretch]:
    """Cut inputs into stretches.

    Parameters
    ----------
    rows : sequence of int arrays
        ``[token]`` each, one or more.

    Examples
    --------
    >>> cut = stretches([np.arange(8), np.array([0, 1, 2, 3, 9, 9, 9, 9])])
    >>> [len(stretch.tokens) for stretch in cut]
    [1, 1, 2, 2]
    """
    size = max(1, -(-max(map(len, rows)) // STRETCHES))
    found: list[Stretch] = []
    before = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, max(map(len, rows)), size):
        stretch = Stretch(start)
        for i, row in enumerate(rows):
            if len(row) <= start:
                continue
            key = row[: start + size].tobytes()
            if key not in stretch.numbers:
                stretch.numbers[key] = len(stretch.tokens)
                stretch.tokens.append(row[start : start + size])
                stretch.parents.append(int(before[i]))
            before[i] = stretch.nodes[i] = stretch.numbers[key]
            if len(row) <= start + size:
                stretch.ends.append(i)
        found.append(stretch)
    return found


class Prefixes:
    """Runs models that read from left to right with their beginnings shared.

    Parameters
    ----------
    model : Model
    least : int
        Networks with fewer parameters are not served.

    Attributes
    ----------
    tokens, run : int
        Tokens of the inputs so far, and those that went through the network.
    """

    def __init__(self, model: Model, least: int = LARGE) -> None:
        self.model = model
        self.tokens = self.run = 0
        large = model.caches and sum(p.numel() for p in model.network.parameters()) >= least
        self._serves: bool | None = None if large else False

    def logits(self, rows: Sequence[Row]) -> Tensor | None:
        """Return ``[input, class]``, or None where caches do not serve or are not worth it.

        The first time, what comes out is compared with what the network says without caches.
        """
        cut = self._cut(rows, len(self.model.labels))
        if cut is None:
            return None
        if self._serves is None:
            some = [rows[i] for i in cut[0][0][:TRIED]]
            plain = self.model.logits(self.model.collate(some)).cpu()
            parts = stretches([row["input_ids"] for row in some])
            self._serves = self._agrees(plain, lambda: self._run(parts, len(some))[:, 0])
        if not self._serves:
            return None
        found = torch.empty(len(rows), len(self.model.labels))
        for group, parts in cut:
            found[group] = self._run(parts, len(group))[:, 0]
        return found

    def values(self, rows: Sequence[Row], target: Target) -> Tensor | None:
        """Return the target of each input, ``[input]``, as `logits` does."""
        if target.position is None or self._serves is False:
            return None
        places = target.position.view(len(rows), -1).cpu().numpy()
        cut = self._cut(rows, places.shape[1] * self.model.network.config.vocab_size)
        if cut is None:
            return None
        if self._serves is None:
            some = cut[0][0][:TRIED]
            inputs = self.model.collate([rows[i] for i in some])
            plain = self.model.score(inputs, target[_index(some, target.label.device)]).cpu()
            parts = stretches([rows[i]["input_ids"] for i in some])
            self._serves = self._agrees(
                plain, lambda: self._asked(parts, places[some], target, some)
            )
        if not self._serves:
            return None
        found = torch.empty(len(rows))
        for group, parts in cut:
            found[group] = self._asked(parts, places[group], target, group)
        return found

    def _agrees(self, plain: Tensor, cached: Callable[[], Tensor]) -> bool:
        """Return whether a network takes the caches and says with them what it says without."""
        try:
            return same(cached(), plain, self.model.dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each network has its own complaint; without caches it goes on
            warnings.warn(
                f"{self.model.name} runs every input whole, since it takes no cache: {error}",
                XattnWarning,
                stacklevel=2,
            )
            return False

    def _asked(
        self, parts: Sequence[Stretch], places: Ints, target: Target, group: Sequence[int]
    ) -> Tensor:
        """Return the targets of a group, ``[input]``."""
        logits = self._run(parts, len(group), places)
        own = target[_index(group, target.label.device)].to("cpu")
        assert own.position is not None
        now = torch.arange(places.shape[1]).expand(len(group), -1).reshape(own.position.shape)
        return replace(own, position=now)(logits)

    def _cut(self, rows: Sequence[Row], size: int) -> list[tuple[list[int], list[Stretch]]] | None:
        """Return groups of inputs with their stretches, or None if it is not worth it.

        Parameters
        ----------
        rows : sequence of Row
        size : int
            Logits of one input.
        """
        if self._serves is False or not self._fit(rows):
            return None
        ids = [row["input_ids"] for row in rows]
        order = sorted(range(len(ids)), key=lambda i: ids[i].tobytes())
        together = min(GROUP * self.model.budget // max(map(len, ids)), HELD // size)
        together = max(TRIED, together)
        groups = [order[i : i + together] for i in range(0, len(order), together)]
        cut = [stretches([ids[i] for i in group]) for group in groups]
        all_tokens = sum(map(len, ids))
        needed = sum(len(tokens) for group in cut for part in group for tokens in part.tokens)
        if needed > WORTH * all_tokens:
            return None
        self.tokens, self.run = self.tokens + all_tokens, self.run + needed
        return list(zip(groups, cut, strict=True))

    def _fit(self, rows: Sequence[Row]) -> bool:
        """Whether inputs are nothing but ids, all of them seen, none of them padding."""
        model = self.model
        read = {*model.input_names, *BLANKS}
        pads = [] if model.pad_id is None else [model.pad_id]
        if (
            model.task.name not in ("classify", "generate")
            or model.edited
            or "attention_mask" not in model.input_names
        ):
            return False
        return all(
            read.intersection(row) <= {"input_ids", "attention_mask"}
            and row.get("attention_mask", np.ones(1)).all()
            and not np.isin(row["input_ids"], pads).any()
            for row in rows
        )

    def _run(self, parts: Sequence[Stretch], count: int, places: Ints | None = None) -> Tensor:
        """Return the logits ``[input, place, class]`` at some places, or of each whole input."""
        model, before = self.model, self.model.passes.forward
        found: Tensor | None = None
        caches: Caches = []
        for number, part in enumerate(parts):
            follows = parts[number + 1] if number + 1 < len(parts) else None
            wanted = [] if follows is None else follows.parents
            kept = sorted(set(wanted))
            if places is None:
                inputs = np.array(part.ends, dtype=np.int64)
                keep, offsets = None, np.zeros_like(inputs)
                at = offsets
            else:
                end = np.inf if follows is None else follows.start
                inputs, at = np.nonzero((places >= part.start) & (places < end))
                keep, offsets = np.unique(places[inputs, at] - part.start, return_inverse=True)
            size = max(1, model.budget // (part.start + max(map(len, part.tokens))))
            logits, grown = [], []
            for first in range(0, len(part.tokens), size):
                chosen = range(first, min(first + size, len(part.tokens)))
                own, cache = self._pass(part, chosen, caches, keep)
                logits.append(own)
                on = _index([i - first for i in kept if i in chosen], model.device)
                if len(on):  # what goes on is as wide as the stretch
                    grown.append([(k[on], v[on]) for k, v in cache])
            table = torch.cat(logits)
            if found is None:
                width = 1 if places is None else places.shape[1]
                found = torch.empty(count, width, table.shape[-1])
            nodes = [part.nodes[i] for i in inputs.tolist()]
            found[inputs, at] = table[nodes, offsets]
            caches = [
                (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
                for layer in zip(*grown, strict=True)
            ]
            if follows is not None:
                where = {node: i for i, node in enumerate(kept)}
                follows.parents[:] = [where[node] for node in wanted]
        model.passes.forward = before + count  # an input is a pass, in however many stretches
        assert found is not None
        return found

    def _pass(
        self, part: Stretch, chosen: range, caches: Caches, keep: Ints | None
    ) -> tuple[Tensor, Caches]:
        """Run some stretches behind what they go on from.

        Returns
        -------
        logits : Tensor
            ``[stretch, place, class]`` at the places to keep, in the stretch; those behind its end
            mean nothing. Without any, what the network says of the whole.
        caches : list
        """
        model = self.model
        rows = [
            {"input_ids": part.tokens[i], "attention_mask": np.ones_like(part.tokens[i])}
            for i in chosen
        ]
        inputs = dict(model.collate(rows))
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = torch.cat([mask.new_ones(len(mask), part.start), mask], dim=1)
        cache, parents = DynamicCache(), _index([part.parents[i] for i in chosen], model.device)
        for layer, (keys, values) in enumerate(caches):
            cache.update(keys[parents], values[parents], layer)
        at = keep
        if at is not None:  # of a stretch where nothing is read, any place
            at = np.zeros(1, dtype=np.int64) if not len(at) else at.clip(max=mask.shape[1] - 1)
        with torch.no_grad(), model.borrowed(inputs):
            kept = None if at is None else _index(at, model.device)
            logits = model.forward(inputs, kept, cache).cpu()
        if logits.ndim == 2:
            logits = logits[:, None]
        return logits, [(layer.keys, layer.values) for layer in cache.layers]


def _index(places: Sequence[int] | Ints, device: torch.device) -> Tensor:
    return torch.as_tensor(places, dtype=torch.long, device=device)
