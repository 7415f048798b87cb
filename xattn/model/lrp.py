"""Layer-wise relevance propagation as input times gradient.

The network is made linear with coefficients of the true run, so that input times gradient adds up
to the output:

==========================================  ===================================================
norms, divisions                            the denominator is a coefficient
functions of a number with f(0) = 0         ``f(x) / x`` is the coefficient (identity rule)
others (sigmoid, exp), a router's softmax   a coefficient
product of two that depend on the input     half of it goes to each (uniform rule)
the softmax of attention                    a coefficient (CP-LRP), or its own derivative (AttnLRP)
==========================================  ===================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from xattn.model.rules import Function, Rules, held, valued

Part = Literal["coefficient", "derivative"]
Gate = Literal["half", "coefficient"]
# Functions of numbers that gate nothing.
LEVEL = frozenset({"abs", "clamp", "clamp_max", "clamp_min", "clip", "pow", "square"})


class Relevance(Rules):
    """The rules of relevance propagation; see the head of this file.

    Parameters
    ----------
    attention : {"coefficient", "derivative"}
        What the softmax of attention is: CP-LRP or AttnLRP.
    gate : {"half", "coefficient"}
        What a product gives to a factor that is an activation, as in gated units: half of it, or
        nothing, so that all goes to what is gated.
    """

    def __init__(self, attention: Part, gate: Gate = "half") -> None:
        super().__init__()
        self.attention, self.gate = attention, gate
        self.activated: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        """The results of activations."""

    def number(self, x: Tensor, function: Function, name: str) -> Tensor:
        """Return ``x · (f(x) / x)`` with the fraction as a coefficient.

        What is not 0 at 0, or has no slope there, is a coefficient altogether.
        """
        given = x.detach()
        value = function(given)
        there, slope = _origin(function, given)
        if bool((there != 0).any()) or not bool(slope.isfinite().all()):
            return value
        result = valued(x, lambda: value, torch.where(given == 0, slope, value / given))
        if name not in LEVEL:
            self.activated[result] = True
        return result

    def statistic(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return a coefficient."""
        return func(*map(held, args), **kwargs)

    def product(self, function: Callable[..., Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return a product whose derivatives by both are halved, or that by a gate dropped."""
        if self.gate == "coefficient":
            if first in self.activated:
                return function(first.detach(), second)
            if second in self.activated:
                return function(first, second.detach())
        result = function(first, second)
        result.register_hook(_half)  # type: ignore[no-untyped-call]
        return result

    def solution(
        self, function: Callable[..., Tensor], read: Function, matrix: Tensor, right: Tensor
    ) -> Tensor:
        """Return a solution whose matrix is a coefficient, as denominators are."""
        return function(matrix.detach(), right)

    def softmax(self, x: Tensor, function: Function, dim: int, name: str) -> Tensor:
        """Return a coefficient, or the softmax as it is."""
        if not self.attending or self.attention == "coefficient":
            return function(x.detach())
        return function(x)


def _origin(function: Function, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and slope of a function of single numbers at 0."""
    origin = like.new_zeros([1] * like.ndim).requires_grad_()
    with torch.enable_grad():
        there = function(origin)
        if there.numel() > 1:  # a bound or an exponent for each number
            origin = torch.zeros_like(like).requires_grad_()
            there = function(origin)
        [slope] = torch.autograd.grad(there.sum(), origin)
    return there.detach(), slope


def _half(gradient: Tensor) -> Tensor:
    return gradient / 2
