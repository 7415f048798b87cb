"""Beginnings that inputs share, run once: for causal models, by their caches of keys and values.

In a causal model nothing that follows changes what a token is. Inputs that differ in what was
removed share their beginnings, so the inputs of a group are cut into stretches, and a stretch
behind one and the same beginning goes through the network once, however many inputs go on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from xattn.model.adapter import Model
from xattn.model.attach import same
from xattn.model.entrances import BLANKS
from xattn.types import Ints, Row

STRETCHES = 4
"""Into how many stretches inputs are cut."""
GROUP = 4
"""Inputs that are cut together, in batches of the usual size."""
WORTH = 0.8
"""Share of the tokens up to which the caches are worth their trouble."""
LARGE = 5_000_000
"""Parameters from which on what is saved is more than what sorting and copying takes."""
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
    ends: dict[int, int] = field(default_factory=dict)
    """Of each input that ends here, which it is."""


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
            before[i] = stretch.numbers[key]
            if len(row) <= start + size:
                stretch.ends[i] = int(before[i])
        found.append(stretch)
    return found


class Prefixes:
    """Runs classifiers that read from left to right with their beginnings shared.

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
        small = sum(parameter.numel() for parameter in model.network.parameters()) < least
        self._serves: bool | None = False if small else None

    def logits(self, rows: Sequence[Row]) -> Tensor | None:
        """Return ``[input, class]``, or None where caches do not serve or are not worth it.

        The first time, what comes out is compared with what the network says without caches.
        """
        if self._serves is False or not self._fit(rows):
            return None
        ids = [row["input_ids"] for row in rows]
        order = sorted(range(len(ids)), key=lambda i: ids[i].tobytes())
        together = max(1, GROUP * self.model.budget // max(map(len, ids)))
        groups = [order[i : i + together] for i in range(0, len(order), together)]
        cut = [stretches([ids[i] for i in group]) for group in groups]
        all_tokens = sum(map(len, ids))
        needed = sum(len(tokens) for group in cut for part in group for tokens in part.tokens)
        if needed > WORTH * all_tokens:
            return None
        if self._serves is None:
            self._serves = self._tried([rows[i] for i in order[:TRIED]])
            if not self._serves:
                return None
        found = torch.empty(len(rows), len(self.model.labels))
        for group, parts in zip(groups, cut, strict=True):
            found[group] = self._run(parts, len(group))
        self.tokens, self.run = self.tokens + all_tokens, self.run + needed
        return found

    def _fit(self, rows: Sequence[Row]) -> bool:
        """Whether inputs are nothing but ids, all of them seen, none of them padding."""
        model = self.model
        read = {*model.input_names, *BLANKS}
        pads = [] if model.pad_id is None else [model.pad_id]
        if (
            model.task.name != "classify"
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

    def _tried(self, rows: Sequence[Row]) -> bool:
        """Whether the network says the same with caches as without."""
        if not self.model.caches:
            return False
        plain = self.model.logits(self.model.collate(rows)).cpu()
        cached = self._run(stretches([row["input_ids"] for row in rows]), len(rows))
        return same(cached, plain, self.model.dtype)

    def _run(self, parts: Sequence[Stretch], count: int) -> Tensor:
        model, found = self.model, torch.empty(count, len(self.model.labels))
        caches: Caches = []
        for number, part in enumerate(parts):
            wanted = parts[number + 1].parents if number + 1 < len(parts) else []
            kept = sorted(set(wanted))
            width = max(map(len, part.tokens))
            size = max(1, model.budget // (part.start + width))
            logits, grown = [], []
            for first in range(0, len(part.tokens), size):
                chosen = range(first, min(first + size, len(part.tokens)))
                own, cache = self._pass(part, chosen, caches)
                logits.append(own)
                on = _index([i - first for i in kept if i in chosen], model.device)
                if len(on):  # what goes on is as wide as the stretch
                    grown.append([(k[on], v[on]) for k, v in cache])
            table = torch.cat(logits)
            for row, node in part.ends.items():
                found[row] = table[node]
            caches = [
                (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
                for layer in zip(*grown, strict=True)
            ]
            places = {node: i for i, node in enumerate(kept)}
            if number + 1 < len(parts):
                parts[number + 1].parents[:] = [places[node] for node in wanted]
        model.passes.forward += count
        return found

    def _pass(self, part: Stretch, chosen: range, caches: Caches) -> tuple[Tensor, Caches]:
        """Run some stretches behind what they go on from; return logits and their caches."""
        model = self.model
        rows = [
            {"input_ids": part.tokens[i], "attention_mask": np.ones_like(part.tokens[i])}
            for i in chosen
        ]
        inputs = model.collate(rows)
        mask = inputs["attention_mask"]
        whole = torch.cat([mask.new_ones(len(mask), part.start), mask], dim=1)
        cache = DynamicCache()
        parents = _index([part.parents[i] for i in chosen], model.device)
        for layer, (keys, values) in enumerate(caches):
            cache.update(keys[parents], values[parents], layer)
        with torch.no_grad(), model.borrowed(inputs):
            output = model.network(
                input_ids=inputs["input_ids"],
                attention_mask=whole,
                past_key_values=cache,
                use_cache=True,
            )
            logits = model.task.logits(output, None, inputs).float().cpu()
        return logits, [(layer.keys, layer.values) for layer in cache.layers]


def _index(places: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(places, dtype=torch.long, device=device)
