"""Consensus: the tokens that an attention method and a gradient method agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal, get_args

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.model import Model
from xattn.registry import Method, register
from xattn.registry import methods as registry
from xattn.types import Batch, Target

Fusion = Literal["product", "geometric_mean", "minimum", "rank_minimum", "top_k"]
LEVEL = 1e-5
"""Shares no further apart are level, and no further from 0 are 0: rounding must not rank tokens."""


@register(
    "consensus",
    signed=True,
    total="free",
    needs={"attention", "gradients"},
    citation="none: it puts to the test the saying that where attention and gradients agree is "
    "most reliable; product and minimum are intersections of Zadeh 1965, Fuzzy Sets; the geometric "
    "mean is of Dyckhoff & Pedrycz 1984, Generalized Means as Model of Compensative Connectives; "
    "top k as in Fagin et al. 2003, Comparing Top k Lists",
)
@dataclass(frozen=True)
class Consensus:
    """The intersection of what two methods find important.

    ``s = sign · (a ∘ b)``, where ``a`` and ``b`` are the sizes of the two methods' scores, as
    shares of the largest among the text's own tokens (special tokens get a score and at most 1, but
    set no scale). A token scores high only if both methods say so. The sign is that of the method
    that has signs; where two have, a token on whose sign they differ is agreed on by nobody and
    gets 0. Scores lie in [-1, 1], without unit. That the intersection is better than its parts is
    a claim to be measured (docs/consensus.md) and not a property.

    Attributes
    ----------
    attention, gradient : str
        The two methods: names of any that are registered, or a name with one option
        (``rollout:residual=0.3``; any number of them in Python).
    by : {"product", "geometric_mean", "minimum", "rank_minimum", "top_k"}
        What ``a ∘ b`` is:

        - product: ``a · b``.
        - geometric_mean: ``√(a · b)``. The order of tokens is that of the product; only values
          differ, which sums over words and correlations see.
        - minimum: ``min(a, b)``.
        - rank_minimum: ``min(rank(a), rank(b)) / n`` with ranks from 1 for the smallest of the
          text's ``n`` tokens, the mean rank where tokens are level, and 0 for what a method gives
          nothing. It orders tokens by the least k with which they are in both methods' top k,
          whatever the distributions of the scores.
        - top_k: 1 for tokens in the top k of both, 0 for all others. It is a set and not an order.
    share : float
        The k of `top_k` as a share of the text's tokens, in (0, 1]; never less than one token.
    """

    attention: str = "rollout"
    gradient: str = "attention_gradient"
    by: Fusion = "product"
    share: float = 0.25

    def __post_init__(self) -> None:
        if self.by not in get_args(Fusion):
            raise InputError(
                "by of consensus", got=repr(self.by), expected=", ".join(get_args(Fusion))
            )
        if not 0 < self.share <= 1:
            raise InputError(
                "share of consensus", got=str(self.share), expected="more than 0, at most 1"
            )
        for name in (self.attention, self.gradient):
            if name.partition(":")[0].strip() == "consensus":
                raise InputError("a consensus of itself", got=name, expected="another method")

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        parts = [registry.build(name) for name in (self.attention, self.gradient)]
        scores = [part.float() * batch.real for part in _scores(parts, model, batch, target)]
        words = ~batch.special
        one, other = (_sizes(part, words) for part in scores)
        return self._both(one, other, words) * _direction(parts, scores)

    def _both(self, one: Tensor, other: Tensor, words: Tensor) -> Tensor:
        """Return what both sizes have in common, ``[batch, token]`` in [0, 1]."""
        if self.by == "product":
            return one * other
        if self.by == "geometric_mean":
            return (one * other).sqrt()
        if self.by == "minimum":
            return one.minimum(other)
        if self.by == "rank_minimum":
            return _ranks(one, words).minimum(_ranks(other, words))
        return _top(one, words, self.share) * _top(other, words, self.share)


def _scores(parts: Sequence[Method], model: Model, batch: Batch, target: Target) -> list[Tensor]:
    """Return the scores of methods; those that read a trace share one."""
    traced = [part for part in parts if isinstance(part, Traced)]
    trace = None
    if traced:
        trace = model.record(batch, target, reduce(or_, (part.request for part in traced)))
    return [
        part.read(model, batch, trace)
        if trace is not None and isinstance(part, Traced)
        else part(model, batch, target)
        for part in parts
    ]


def _direction(parts: Sequence[Method], scores: Sequence[Tensor]) -> Tensor:
    """Return the sign that the signed methods agree on; 0 where they differ."""
    signs = [
        score.sign() for part, score in zip(parts, scores, strict=True) if part.declaration.signed
    ]
    return torch.stack(signs).mean(0) if signs else torch.ones_like(scores[0])


def _sizes(scores: Tensor, words: Tensor) -> Tensor:
    """Return sizes as shares of the largest of the text's own tokens, at most 1."""
    sizes = scores.abs()
    largest = (sizes * words).amax(-1, keepdim=True)
    return (sizes / largest.where(largest != 0, 1)).clamp(max=1)


def _places(sizes: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many of the text's own tokens are smaller, and not larger; and how many it has."""
    padding = (~words).sum(-1, keepdim=True)
    ordered = sizes.masked_fill(~words, -1).sort(-1).values
    smaller = torch.searchsorted(ordered, sizes - LEVEL) - padding
    upto = torch.searchsorted(ordered, sizes + LEVEL, right=True) - padding
    return smaller, upto, words.sum(-1, keepdim=True)


def _ranks(sizes: Tensor, words: Tensor) -> Tensor:
    """Return mean ranks as shares, in [0, 1]."""
    smaller, upto, count = _places(sizes, words)
    ranks = ((smaller + upto + 1) / 2 / count).clamp(max=1)
    return torch.where(sizes > LEVEL, ranks, 0 * sizes)  # what is not finite stays so


def _top(sizes: Tensor, words: Tensor, share: float) -> Tensor:
    """Return 1 for tokens that fewer than k of the text's own exceed, else 0."""
    _, upto, count = _places(sizes, words)
    inside = count - upto < (share * count).round().clamp(min=1)
    return torch.where(inside & (sizes > LEVEL), 1.0, 0 * sizes)
