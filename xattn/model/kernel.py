"""Attention by runs of queries: outputs, reductions of maps and their gradients, never whole maps.

The forward pass computes the probabilities of a few queries at a time in one buffer, which stays
in the cache, mixes the values, hands the probabilities to the reductions and forgets them. The
backward pass computes them again (checkpointing inside the attention), so that methods that need
gradients of maps hold those of a few queries, too. Keys that no query of a run can see are never
computed.

The result is that of the plain formula ``softmax(cap(q kᵀ · scale) + mask) v``, where a blocked
score is the lowest finite number, as in transformers' eager attention: a query that sees no key at
all looks at all of them equally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from xattn.model.reduction import GradientReduction, Reduction
from xattn.types import Bools, Ints

RUN = 1 << 20
"""Scores that are computed together: 4 MB, the order of a processor's cache."""
FEWEST = 32
"""Queries in a run at least: thinner products run at the speed of memory."""


class Reach(NamedTuple):
    """Which keys each query sees, in all examples and heads together; each array ``[query]``."""

    first: Ints
    """The first key that any example or head sees."""
    last: Ints
    """One past the last key that any example or head sees."""
    open_first: Ints
    """From here on ..."""
    open_last: Ints
    """... to here the mask is zero everywhere: it need not be added."""

    def of(self, queries: slice) -> tuple[slice, slice]:
        """Return the keys that a run of queries sees, and those that its mask leaves alone."""
        keys = slice(int(self.first[queries].min()), int(self.last[queries].max()))
        start, stop = int(self.open_first[queries].max()), int(self.open_last[queries].min())
        return keys, slice(start, stop) if start < stop else slice(keys.stop, keys.stop)


def reach(mask: Tensor) -> Reach:
    """Find which keys a mask ``[batch or 1, head or 1, query, key]`` leaves visible.

    A score counts as blocked only if the mask is the lowest number of its type (or False): its
    probability is exactly 0. Other large negative numbers are computed as they are.
    """
    count = mask.shape[-1]
    upward = torch.arange(1, count + 1, dtype=torch.int32, device=mask.device)
    found: list[Bools | Ints] = []
    for block in torch.split(mask.detach(), max(1, RUN // mask[:, :, 0].numel()), dim=2):
        seen = block if block.dtype == torch.bool else block > torch.finfo(block.dtype).min
        zero = block if block.dtype == torch.bool else block == 0
        last = (seen * upward).amax(-1)
        first = count - (seen * upward.flip(0)).amax(-1)
        blind = last == 0  # sees nothing, so looks at all keys equally
        first, last = first.masked_fill(blind, 0), last.masked_fill(blind, count)
        flat = (zero.sum(-1) == last - first).all(1).all(0)
        first, last = first.flatten(0, 1), last.flatten(0, 1)
        found.append(
            torch.stack(
                [
                    first.amin(0),
                    last.amax(0),
                    first.amax(0).where(flat, count),
                    last.amin(0).where(flat, 0),
                ]
            )
            .cpu()
            .numpy()
        )
    return Reach(*np.concatenate(found, axis=1))


# One mask serves all layers of a forward pass. Weak keys: nothing lives longer for being looked at.
_reaches: MutableMapping[Tensor, tuple[int, Reach]] = WeakTensorKeyDictionary()


def _remembered_reach(mask: Tensor) -> Reach:
    """Return `reach` of a mask, once for all layers that share it."""
    if mask.is_inference():  # has no version that tells whether it was written to
        return reach(mask)
    known = _reaches.get(mask)
    if known is None or known[0] != mask._version:
        known = (mask._version, reach(mask))
        _reaches[mask] = known
    return known[1]


@dataclass(frozen=True)
class _Form:
    """How scores become probabilities, without the tensors."""

    scale: float
    softcap: float | None
    causal: bool
    reach: Reach | None
    size: int
    """Scores in a run."""


class _Runs:
    """The probabilities of one attention, run after run."""

    def __init__(
        self, form: _Form, query: Tensor, key: Tensor, mask: Tensor | None, sinks: Tensor | None
    ) -> None:
        self.form, self.query, self.mask, self.sinks = form, query, mask, sinks
        self.batch, self.heads, self.queries, _ = query.shape
        self.key_heads, self.keys = key.shape[1], key.shape[2]
        self.key = key.flatten(0, 1).contiguous()
        """``[batch · key head, key, dim]``"""
        width = self.batch * self.heads * self.keys
        self.length = min(self.queries, max(FEWEST, form.size // max(1, width)))
        self.buffer = query.new_empty(width * self.length)

    def grouped(self, tensor: Tensor, queries: slice) -> Tensor:
        """Return a run of ``[batch, head, query, dim]``, query heads of one key head together.

        The result is ``[batch · key head, group · run, dim]``.
        """
        return tensor[:, :, queries].reshape(self.batch * self.key_heads, -1, tensor.shape[-1])

    def spread(self, tensor: Tensor) -> Tensor:
        """Undo `grouped`: return ``[batch, head, run, dim]``."""
        return tensor.view(self.batch, self.heads, -1, tensor.shape[-1])

    def __iter__(self) -> Iterator[tuple[slice, slice, slice]]:
        """Yield which queries, the keys they see, and those that the mask leaves alone."""
        for start in range(0, self.queries, self.length):
            run = slice(start, min(self.queries, start + self.length))
            if self.form.causal:
                keys, open_ = (
                    slice(0, min(run.stop, self.keys)),
                    slice(0, min(start + 1, self.keys)),
                )
            elif self.form.reach is not None:
                keys, open_ = self.form.reach.of(run)
            else:
                keys = open_ = slice(0, self.keys)
            yield run, keys, open_

    def blocked(self, run: slice, keys: slice) -> Tensor | None:
        """Return where a run of queries does not see keys, ``[..., run, keys]``; None: by sum."""
        if self.form.causal:
            ahead = torch.arange(keys.start, keys.stop, device=self.query.device)
            return ahead > torch.arange(run.start, run.stop, device=self.query.device)[:, None]
        if self.mask is not None and self.mask.dtype == torch.bool:
            return ~self.mask[:, :, run, keys]
        return None

    def scores(self, run: slice, keys: slice) -> Tensor:
        """Return scores before the mask, ``[batch, head, run, keys]``, in the buffer."""
        query = self.grouped(self.query, run)
        shape = (*query.shape[:2], keys.stop - keys.start)
        scores = self.buffer[: shape[0] * shape[1] * shape[2]].view(shape)
        torch.baddbmm(
            scores,
            query,
            self.key[:, keys].transpose(1, 2),
            beta=0,
            alpha=self.form.scale,
            out=scores,
        )
        if self.form.softcap is not None:
            scores.div_(self.form.softcap).tanh_().mul_(self.form.softcap)
        return self.spread(scores)

    def masked(self, scores: Tensor, run: slice, keys: slice, open_: slice) -> Tensor:
        """Block scores, or add the mask to them, where it is not zero."""
        if self.mask is None and not self.form.causal:
            return scores
        if self.mask is not None and torch.result_type(self.mask, scores) != scores.dtype:
            return scores + self.mask[:, :, run, keys]  # wider than the scores
        for side in (slice(keys.start, open_.start), slice(open_.stop, keys.stop)):
            if side.start == side.stop:
                continue
            part = scores[..., side.start - keys.start : side.stop - keys.start]
            blocked = self.blocked(run, side)
            if blocked is not None:
                part.masked_fill_(blocked, torch.finfo(part.dtype).min)
            elif self.mask is not None:
                part.add_(self.mask[:, :, run, side])
        return scores

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the softmax of masked scores, in float32 or wider, in place where it can be."""
        wide = torch.promote_types(scores.dtype, torch.float32)
        level = None if self.sinks is None else scores.to(wide).logsumexp(-1, keepdim=True)
        if scores.dtype == wide:
            torch.softmax(scores, -1, out=scores)
        else:
            scores = scores.softmax(-1, dtype=wide)
        if self.sinks is not None and level is not None:
            scores *= (level - self.sinks.to(wide)[:, None, None]).sigmoid()
        return scores

    def shown(self, maps: Tensor, keys: slice, run: slice, *, narrow: bool) -> Tensor:
        """Return maps of a run as reductions see them: with zeros where nothing was computed."""
        stop = keys.stop if narrow and run.stop < self.queries else self.keys
        ends = (keys.start, stop - keys.stop)
        return torch.nn.functional.pad(maps, ends) if any(ends) else maps


def _own(part: Tensor, maps: Tensor) -> Tensor:
    """Return what a reduction made of maps, free of the buffer that will be written again."""
    shared = part.untyped_storage().data_ptr() == maps.untyped_storage().data_ptr()
    return part.clone() if shared else part


class _Attention(torch.autograd.Function):
    """The attention of one site; keeps its inputs only and computes probabilities twice."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        sinks: Tensor | None,
        form: _Form,
        reductions: Sequence[Reduction],
        gradients: Sequence[tuple[GradientReduction, Callable[[Tensor], None]]],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(query, key, value, mask, sinks)
        ctx.form, ctx.gradients = form, gradients
        runs = _Runs(form, query, key, mask, sinks)
        values = value.flatten(0, 1).contiguous()
        # laid out as the projection that follows wants it
        output = query.new_empty(runs.batch, runs.queries, runs.heads, value.shape[-1])
        output = output.transpose(1, 2)
        parts: list[list[Tensor]] = [[] for _ in reductions]
        for run, keys, open_ in runs:
            maps = runs.probabilities(runs.masked(runs.scores(run, keys), run, keys, open_))
            maps = maps.to(query.dtype)
            flat = maps.view(runs.batch * runs.key_heads, -1, maps.shape[-1])
            output[:, :, run] = runs.spread(flat @ values[:, keys])
            for part, reduction in zip(parts, reductions, strict=True):
                shown = runs.shown(maps, keys, run, narrow=reduction.narrow)
                part.append(_own(reduction.each(shown, run), maps))
        reduced = []
        for reduction, part in zip(reductions, parts, strict=True):
            reduced.append(reduction.join(part))
            part.clear()
        ctx.mark_non_differentiable(*reduced)
        return output, *reduced

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        query, key, value, mask, sinks = ctx.saved_tensors
        form: _Form = ctx.form
        runs = _Runs(form, query, key, mask, sinks)
        values = value.flatten(0, 1).contiguous()
        d_query = torch.empty_like(query)
        d_key, d_value = torch.zeros_like(runs.key), torch.zeros_like(values)
        d_mask = torch.zeros_like(mask) if ctx.needs_input_grad[3] else None
        d_sinks = torch.zeros_like(sinks) if ctx.needs_input_grad[4] else None
        parts: list[list[Tensor]] = [[] for _ in ctx.gradients]
        for run, keys, open_ in runs:
            scores = runs.scores(run, keys)
            bend = None if form.softcap is None else 1 - (scores / form.softcap).square()
            wide = runs.probabilities(runs.masked(scores, run, keys, open_))
            maps = wide.to(query.dtype)
            flat = maps.view(runs.batch * runs.key_heads, -1, maps.shape[-1])
            d_flat = runs.grouped(d_output, run)
            d_maps = runs.spread(d_flat @ values[:, keys].transpose(1, 2))
            for part, (reduction, _) in zip(parts, ctx.gradients, strict=True):
                shown = runs.shown(maps, keys, run, narrow=reduction.narrow)
                # the derivative by a probability is not zero where the probability is
                by_maps = d_maps
                if shown.shape != d_maps.shape:
                    wider = values[:, : shown.shape[-1]]
                    by_maps = runs.spread(d_flat @ wider.transpose(1, 2))
                part.append(_own(reduction.each(shown, by_maps, run), maps))
            d_value[:, keys] += flat.transpose(1, 2) @ d_flat
            along = (wide * d_maps).sum(-1, keepdim=True)
            if d_sinks is not None:
                left = 1 - wide.sum(-1, keepdim=True)
                d_sinks -= (left * along).sum((0, 2, 3)).to(d_sinks.dtype)
            d_scores = (d_maps.to(wide.dtype) - along).mul_(wide)
            blocked = runs.blocked(run, keys)
            if blocked is not None:
                d_scores.masked_fill_(blocked, 0)
            if d_mask is not None:
                shape = (*mask.shape[:2], *d_scores.shape[2:])
                d_mask[:, :, run, keys] += d_scores.sum_to_size(shape).to(mask.dtype)
            if bend is not None:
                d_scores *= bend
            d_scores = (d_scores * form.scale).to(query.dtype).view(flat.shape)
            d_query[:, :, run] = runs.spread(d_scores @ runs.key[:, keys])
            d_key[:, keys] += d_scores.transpose(1, 2) @ runs.grouped(query, run)
        for part, (reduction, keep) in zip(parts, ctx.gradients, strict=True):
            keep(reduction.join(part))
            part.clear()
        return (
            d_query,
            d_key.view(key.shape),
            d_value.view(value.shape),
            d_mask,
            d_sinks,
            None,
            None,
            None,
        )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    reductions: Sequence[Reduction] = (),
    gradients: Sequence[tuple[GradientReduction, Callable[[Tensor], None]]] = (),
    size: int = RUN,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compute attention by runs of queries and reduce its maps on the way.

    Parameters
    ----------
    query : Tensor
        ``[batch, head, query, dim]``.
    key, value : Tensor
        ``[batch, key head, key, dim]``; query heads are a multiple of key heads, which are not
        repeated in memory. Keys and values may differ in ``dim``.
    mask : Tensor, optional
        ``[batch or 1, head or 1, query or 1, at least key]``, added to the scores, or bool with
        True for what is seen. Position biases may be part of it.
    causal : bool
        Each query sees the keys up to its own position. Not together with `mask`.
    scale : float, optional
        What products of queries and keys are multiplied by; ``dim ** -0.5`` by default.
    softcap : float, optional
        ``softcap · tanh(scores / softcap)`` before the mask.
    sinks : Tensor, optional
        ``[head]``: the score of a key without a value; rows then sum to less than 1.
    reductions : sequence of Reduction
        What is kept of the maps.
    gradients : sequence of (GradientReduction, callable)
        What is kept of maps and their gradients; the callable gets it in the backward pass.
    size : int
        Scores that are computed together.

    Returns
    -------
    output : Tensor
        ``[batch, head, query, dim]``, with a gradient if the inputs have one; its memory is laid
        out as ``[batch, query, head, dim]``.
    reduced : tuple of Tensor
        What each reduction left, without a gradient.

    Raises
    ------
    ValueError
        If `mask` and `causal` are both given.
    """
    if causal and mask is not None:
        raise ValueError("a mask says what is seen: give either a mask or causal")
    seen = None
    if mask is not None:
        queries, keys = query.shape[2], key.shape[2]
        if mask.shape[2:] != (queries, keys):
            mask = mask[..., :keys].expand(-1, -1, queries, -1)
        seen = _remembered_reach(mask)
    form = _Form(
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        causal=causal,
        reach=seen,
        size=size,
    )
    output, *reduced = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, mask, sinks, form, tuple(reductions), tuple(gradients)
    )
    return output, tuple(reduced)
