"""What is kept of attention maps: reductions, applied to runs of queries inside the attention.

A map ``[batch, head, query, key]`` grows with the square of the text. A reduction sees it in runs
of a few queries and keeps what a method needs, so that whole maps never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


def along_queries(parts: Sequence[Tensor]) -> Tensor:
    """Put runs ``[..., some queries, key]`` one under another; keys that are left out are 0."""
    if len(parts) == 1:
        return parts[0]
    if all(part.shape[-1] == parts[-1].shape[-1] for part in parts):
        return torch.cat(list(parts), dim=-2)
    queries = sum(part.shape[-2] for part in parts)
    whole = parts[-1].new_zeros(*parts[-1].shape[:-2], queries, parts[-1].shape[-1])
    first = 0
    for part in parts:
        last = first + part.shape[-2]
        whole[..., first:last, : part.shape[-1]] = part
        first = last
    return whole


def total(parts: Sequence[Tensor]) -> Tensor:
    """Add up runs ``[..., key]``; keys that are left out count 0."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[-1].clone()
    for part in parts[:-1]:
        whole[..., : part.shape[-1]] += part
    return whole


@dataclass(frozen=True)
class Reduction:
    """What is kept of the maps of one attention site, without a gradient.

    Examples
    --------
    The mass that each head puts on the first token:

    >>> Reduction(lambda maps, queries: maps[..., 0], lambda runs: torch.cat(list(runs), -1))
    Reduction(...)
    """

    each: Callable[[Tensor, slice], Tensor]
    """Takes probabilities ``[batch, head, some queries, key]`` and which queries they are of."""
    join: Callable[[Sequence[Tensor]], Tensor]
    """Puts together what `each` returned, in the order of queries."""
    narrow: bool = False
    """Whether `each` and `join` do with maps whose last keys are left out where no query of the
    run can see them (causal attention). The last run always has all keys."""


@dataclass(frozen=True)
class GradientReduction:
    """What is kept of maps and of the derivatives of the target by them; see `Reduction`."""

    each: Callable[[Tensor, Tensor, slice], Tensor]
    """Takes probabilities and their gradients, both ``[batch, head, some queries, key]``, and
    which queries they are of."""
    join: Callable[[Sequence[Tensor]], Tensor]
    narrow: bool = False


WHOLE = Reduction(lambda maps, queries: maps.clone(), along_queries, narrow=True)
"""Whole maps ``[batch, head, query, key]``."""

HEAD_MEAN = Reduction(lambda maps, queries: maps.float().mean(1), along_queries, narrow=True)
"""The mean of the heads, ``[batch, query, key]`` float32."""


def column_sums(weights: Tensor | None = None) -> Reduction:
    """Keep how much attention each key gets in all, ``[batch, head, key]`` float32.

    Parameters
    ----------
    weights : Tensor, optional
        ``[batch, query]``: what each query counts: 0 for padding; a readout gives the row, or mix
        of rows, that a prediction is read from. Every query counts 1 by default.
    """

    def each(maps: Tensor, queries: slice) -> Tensor:
        if weights is None:
            return maps.float().sum(2)
        some = weights[:, queries].to(maps.device, torch.float32)
        return torch.einsum("bq,bhqk->bhk", some, maps.float())

    return Reduction(each, total, narrow=True)


def rows(positions: Tensor) -> Reduction:
    """Keep the rows of some queries, ``[batch, head, row, key]``.

    Parameters
    ----------
    positions : Tensor
        ``[batch, row]``: which queries of each example.
    """

    def each(maps: Tensor, queries: slice) -> Tensor:
        here = positions.to(maps.device)
        inside = (here >= queries.start) & (here < queries.stop)
        index = (here - queries.start).clamp(0, maps.shape[2] - 1)[:, None, :, None]
        found = maps.gather(2, index.expand(-1, maps.shape[1], -1, maps.shape[3]))
        picked: Tensor = found * inside[:, None, :, None]
        return picked

    return Reduction(each, total, narrow=True)


def key_mass(marked: Tensor) -> Reduction:
    """Keep how much each query and head looks at marked keys, ``[batch, head, query]`` float32.

    With the context's tokens marked this is the numerator of the lookback ratio (Chuang et al.
    2024, Lookback Lens).

    Parameters
    ----------
    marked : Tensor
        ``[batch, key]``, bool or weights.
    """

    def each(maps: Tensor, queries: slice) -> Tensor:
        some = marked[:, : maps.shape[-1]].to(maps.device, torch.float32)
        return torch.einsum("bhqk,bk->bhq", maps.float(), some)

    return Reduction(each, lambda parts: torch.cat(list(parts), -1), narrow=True)


@cache
def gradient_sums(*, positive: bool = False) -> GradientReduction:
    """Keep attention times gradient, summed over heads and queries: ``[batch, key]`` float32.

    Parameters
    ----------
    positive : bool
        Keep only products above zero.
    """

    def each(maps: Tensor, gradients: Tensor, queries: slice) -> Tensor:
        product = maps.float() * gradients.float()
        return (product.clamp(min=0) if positive else product).sum((1, 2))

    return GradientReduction(each, total, narrow=True)


def _relevance(maps: Tensor, gradients: Tensor, queries: slice) -> Tensor:
    return (maps.float() * gradients.float()).clamp(min=0).mean(1)


RELEVANCE = GradientReduction(_relevance, along_queries, narrow=True)
"""The mean over heads of attention times gradient where that is positive, ``[batch, query, key]``
float32 (Chefer et al. 2021, equation 5)."""
