"""Induction heads, found by sequences that repeat themselves.

Olsson et al. 2022, In-context Learning and Induction Heads: a head that, at a token that came
before, looks at what came after it then. Random tokens come twice; where the second copy is read,
such a head looks at the place behind the first copy's token (prefix matching). Whether anything
rests on these heads is another question: they are cut, and others in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InputError, ModelError
from xattn.evaluation.statistics import Interval, interval, paired_difference
from xattn.finding import Dot, Dots, Finding, Heatmap
from xattn.model import AblateHeads, Model
from xattn.model.reduction import Reduction, total
from xattn.model.trace import Request
from xattn.types import Aim, Batch, Encoding, Floats, Ints

FOUND = 0.4
"""Prefix-matching share from which on a head is called an induction head."""
Head = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Induction:
    """Which heads match prefixes, and what the repetition is told by."""

    model: str
    length: int
    """Tokens that are repeated."""
    prefix: Floats
    """``[sequence, layer, head]``: share of attention in the second copy that goes to the token
    behind the same token in the first. By chance about 1 / (1.5 · length)."""
    previous: Floats
    """``[sequence, layer, head]``: share that goes to the token before; an induction head needs one
    that does so below it."""
    told: Floats
    """``[sequence]``: probability of the right token in the second copy."""
    blind: Floats
    """``[sequence]``: the same in the first, where nothing can tell it."""
    cut: Floats | None
    """``[sequence]``: in the second copy without the induction heads; None if there are none."""
    others: Floats | None
    """``[draw, sequence]``: the same without as many other heads of the same layers and those above
    (of all layers where these have too few), drawn at random; None where there are none."""

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """Layer and head of every induction head: prefix matching of `FOUND` or more."""
        mean = self.prefix.mean(0)
        return tuple((int(i), int(j)) for i, j in np.argwhere(mean >= FOUND))

    @property
    def lost(self) -> Interval | None:
        """How far the probability falls without the induction heads."""
        return None if self.cut is None else paired_difference(self.told, self.cut, seed=0)

    def finding(self) -> Finding:
        """Return what reports show of it."""
        told, blind = (interval(values, seed=0) for values in (self.told, self.blind))
        dots = [Dot("first copy", *blind[:3]), Dot("second copy", *told[:3])]
        says = (
            f"{self.model} gives the tokens of a random sequence of {self.length} a probability of "
            f"{blind.mean:.3f} when they come first and of {told.mean:.3f} when they come again. "
        )
        if self.cut is None:
            says += "No head looks at what came after the same token before."
        else:
            names = ", ".join(f"{layer}.{head}" for layer, head in self.heads)
            cut = interval(self.cut, seed=0)
            dots.append(Dot("second copy, induction heads cut", *cut[:3], "cut"))
            says += f"Induction heads (layer.head): {names}. Without them it is {cut.mean:.3f}"
            if self.others is not None:
                others = interval(self.others.mean(1), seed=0)
                dots.append(Dot("second copy, as many others cut", *others[:3], "cut"))
                says += (
                    f"; without as many others {others.mean:.3f} on average over "
                    f"{len(self.others)} draws, {np.median(self.others.mean(1)):.3f} in the median"
                )
            says += "."
        return Finding(
            "induction",
            "Induction heads",
            says,
            (
                self._map("Prefix matching", self.prefix),
                self._map("Attention to the previous token", self.previous),
                Dots("What rests on them", tuple(dots), x_label="probability of the right token"),
            ),
        )

    def _map(self, title: str, values: Floats) -> Heatmap:
        mean = values.mean(0)
        return Heatmap(
            title,
            tuple(str(i) for i in range(mean.shape[0])),
            tuple(str(i) for i in range(mean.shape[1])),
            tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in mean),
            unit="share",
            row_label="layer",
            column_label="head",
            low=0.0,
            high=1.0,
        )

    def _repr_html_(self) -> str:
        return self.finding()._repr_html_()


def induction(
    model: Model, length: int = 12, count: int = 32, *, draws: int = 10, seed: int = 0
) -> Induction:
    """Look for induction heads.

    Parameters
    ----------
    model : Model
        A decoder that generates.
    length : int
        Tokens that are repeated, 3 or more.
    count : int
        Sequences, 2 or more.
    draws : int
        How often other heads are cut for comparison.
    seed : int
        Of sequences and draws.

    Raises
    ------
    ModelError
        For a model that reads other than from left to right.
    InputError
        If there is no room for the sequence twice, or a number is too small.
    """
    if model.task.name != "generate" or model.paired:
        raise ModelError(
            "induction is looked for in decoders that continue a text",
            got=f"task {model.task.name}",
            remedy="load a causal language model with --task generate",
        )
    room = model.limit or 10**9
    if length < 3 or count < 2 or draws < 1 or 2 * length + 1 > room:
        raise InputError(
            "the sequences to be repeated",
            got=f"length {length}, count {count}, draws {draws}",
            expected=f"length 3 to {(room - 1) // 2}, count 2 or more, draws 1 or more",
        )
    batch = _repeated(model, length, count, seed)
    prefix, previous = _looks(model, batch, length)
    told, blind = _probabilities(model, batch, length)
    layout = [int(n) for n in model.layout().heads.values()]
    every = [(layer, head) for layer, heads in enumerate(layout) for head in range(heads)]
    chosen = [(int(i), int(j)) for i, j in np.argwhere(prefix.mean(0) >= FOUND)]
    cut: Floats | None = None
    others: Floats | None = None
    if chosen:
        cut = _without(model, batch, length, chosen)
        lowest = min(layer for layer, _ in chosen)
        # heads below hand the induction heads what they match: to cut these is to cut them, too
        beside = [h for h in every if h not in chosen and h[0] >= lowest]
        rest = beside if len(beside) >= len(chosen) else [h for h in every if h not in chosen]
        if len(rest) >= len(chosen):
            draw = np.random.default_rng(seed)
            drawn = [draw.permutation(len(rest))[: len(chosen)] for _ in range(draws)]
            others = np.stack(
                [_without(model, batch, length, [rest[i] for i in some]) for some in drawn]
            )
    return Induction(model.name, length, prefix, previous, told, blind, cut, others)


def _repeated(model: Model, length: int, count: int, seed: int) -> Batch:
    """Return random sequences of ordinary tokens that come twice, behind the start token."""
    special = set(model.tokenizer.all_special_ids)
    ordinary = np.array([i for i in range(len(model.tokenizer)) if i not in special])
    if len(ordinary) < length:
        raise InputError(
            "tokens to draw from", got=str(len(ordinary)), expected=f"{length} or more"
        )
    draw = np.random.default_rng(seed)
    [start] = model.encode(["a"])
    lead = start.row["input_ids"][start.special][:1]
    encodings = []
    for _ in range(count):
        half = draw.choice(ordinary, size=length, replace=False)
        ids: Ints = np.concatenate([lead, half, half]).astype(np.int64)
        size, plain = len(ids), np.arange(len(ids)) >= len(lead)
        encodings.append(
            Encoding(
                text=str(ids.tolist()),
                pair=None,
                row={"input_ids": ids, "attention_mask": np.ones_like(ids)},
                tokens=tuple(map(str, model.tokenizer.convert_ids_to_tokens(ids.tolist()))),
                special=~plain,
                offsets=np.zeros((size, 2), dtype=np.int64),
                words=np.where(plain, np.arange(size), -1),
                segments=np.where(plain, 0, -1),
            )
        )
    return model.batch(encodings)


def _looks(model: Model, batch: Batch, length: int) -> tuple[Floats, Floats]:
    """Return prefix matching and attention to the previous token, ``[sequence, layer, head]``."""
    last = batch.shape[1]
    first = last - length

    def each(maps: Tensor, rows: slice) -> Tensor:
        query = torch.arange(rows.start, rows.start + maps.shape[2], device=maps.device)
        second = query >= first
        behind, before = query - length + 1, (query - 1).clamp(min=0)
        index = torch.stack([behind.clamp(min=0), before], -1)
        found = maps.float().gather(3, index.expand(*maps.shape[:2], -1, -1))
        return (found * second[:, None]).sum(2) / length

    kept = Reduction(each, total)
    aims = [Aim((0,), (0,), "", "", None)] * len(batch)
    trace = model.record(batch, model.target_of(aims), Request((kept,), readout=False))
    parts = [part.double().cpu().numpy() for part in trace.kept[kept]]
    heads = max(part.shape[1] for part in parts)
    table = np.full((len(batch), len(parts), heads, 2), np.nan)
    for layer, part in enumerate(parts):
        table[:, layer, : part.shape[1]] = part
    return table[..., 0], table[..., 1]


def _probabilities(model: Model, batch: Batch, length: int) -> tuple[Floats, Floats]:
    """Return the mean probability of the right token in the second copy and in the first.

    The first token of each copy is left out: nothing tells that the copy begins.
    """
    last = batch.shape[1]
    logits = model.logits(batch.inputs).log_softmax(-1)
    ids = batch.inputs["input_ids"]
    right = logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0].exp().double().cpu().numpy()
    second = right[:, last - length : last - 1]
    first = right[:, last - 2 * length : last - length - 1]
    return second.mean(1), first.mean(1)


def _without(model: Model, batch: Batch, length: int, heads: list[Head]) -> Floats:
    chosen: dict[int, list[int]] = {}
    for layer, head in heads:
        chosen.setdefault(layer, []).append(head)
    with model.edit(AblateHeads(heads=chosen)):
        return _probabilities(model, batch, length)[0]
