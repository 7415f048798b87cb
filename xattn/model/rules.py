"""Backward rules: what a derivative is replaced by, so that relevance is passed on and not lost.

A mode watches every function that torch computes on something that depends on the embeddings, and
gives some of them another derivative; values stay what they are. No architecture is known by name.

`Relevance` makes the network linear with coefficients of the true run, so that input times gradient
adds up to the output (layer-wise relevance propagation):

==========================================  ===================================================
norms, divisions                            the denominator is a coefficient
activations                                 ``f(x) / x`` is the coefficient (identity rule)
sigmoid, exp, a router's softmax            a coefficient
product of two that depend on the input     half of it goes to each (uniform rule)
the softmax of attention                    a coefficient (CP-LRP), or its own derivative (AttnLRP)
==========================================  ===================================================

`Differences` compares each input with a baseline in the same batch and passes on finite differences
(DeepLIFT): ``Δf / Δx`` for functions of single numbers, ``Δa · b̄ + ā · Δb`` for products, and
compositions of these for softmax and norms. Differences add up exactly.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from xattn.model.frozen import ACTIVATIONS, COEFFICIENTS, kind_of
from xattn.model.operations import LINEAR, ORDER, plain_name

Function = Callable[[Tensor], Tensor]
Part = Literal["coefficient", "derivative"]
Gate = Literal["half", "coefficient"]
PRODUCTS = frozenset({"mul", "multiply", "matmul", "bmm", "mm"})
SOFTMAX = frozenset({"softmax", "log_softmax"})
ELEMENTWISE = frozenset(
    {"sigmoid", "erf", "exp", "sqrt", "rsqrt", "reciprocal", "pow", "square", "log", "softplus",
     "logsigmoid", "sin", "cos"}
)  # fmt: skip


def depends(value: Any) -> bool:
    """Whether a tensor, or one in a list, depends on the embeddings."""
    if isinstance(value, (list, tuple)):
        return any(map(depends, value))
    return isinstance(value, Tensor) and value.requires_grad


def held(value: Any) -> Any:
    """Return a tensor without its derivative; anything else as it is."""
    return value.detach() if isinstance(value, Tensor) else value


def valued(path: Tensor, value: Tensor) -> Tensor:
    """Return a tensor with the derivative of `path` and another value."""
    return path + (value - path).detach()


def norm_arguments(args: Any, kwargs: dict[str, Any], names: Sequence[str]) -> list[Any]:
    """Return the arguments of a norm in order, also those that are given by name or not at all."""
    defaults = {"weight": None, "bias": None, "eps": None if "bias" not in names else 1e-5}
    missing = ("input", "normalized_shape", *names)[len(args) :]
    return [*args, *(kwargs.get(name, defaults.get(name)) for name in missing)]


class Rules(TorchFunctionMode):
    """Replaces derivatives of functions; subclasses say by what."""

    def __init__(self) -> None:
        super().__init__()
        self.attending = 0
        """How many attention modules are being computed, one inside the other."""
        self.paused = False
        """Whether functions keep their own derivatives."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if not any(map(depends, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        base, in_place, swapped = plain_name(getattr(func, "__name__", ""))
        rule = self._rule(base)
        if rule is None:
            return func(*args, **kwargs)
        if in_place:
            func = getattr(torch, base)
        elif swapped:
            func, args = getattr(torch, base), args[1::-1]
        result = rule(base, func, args, kwargs)
        return args[0].copy_(result) if in_place else result

    def _rule(self, base: str) -> Callable[[str, Any, Any, dict[str, Any]], Any] | None:
        if base in PRODUCTS or base in LINEAR:
            return self._multiplied
        if base in SOFTMAX:
            return self._softmax
        if base in ACTIVATIONS:
            return self._activation
        if base in ELEMENTWISE or base in COEFFICIENTS:
            return self._number
        return {
            "div": self._quotient,
            "einsum": self._einsum,
            "layer_norm": self._layer_norm,
            "rms_norm": self._rms_norm,
        }.get(base)

    # ------------------------------------------------------- what subclasses decide

    @abstractmethod
    def activation(self, x: Tensor, function: Function, value: Tensor) -> Tensor:
        """Return `value` of an activation of `x`."""

    @abstractmethod
    def number(self, x: Tensor, function: Function, name: str) -> Tensor:
        """Return another function of single numbers, or a statistic."""

    @abstractmethod
    def product(self, function: Callable[..., Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return a product of two that both depend on the embeddings."""

    @abstractmethod
    def softmax(self, x: Tensor, function: Function, dim: int, name: str) -> Tensor:
        """Return a softmax."""

    # ------------------------------------------------------------ functions of torch

    def _activation(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        def function(x: Tensor) -> Tensor:
            found: Tensor = func(x, *args[1:], **kwargs)
            return found

        return self.activation(args[0], function, function(args[0].detach()))

    def _number(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["input"]
        rest = {k: v for k, v in kwargs.items() if k != "input"}
        if not isinstance(x, Tensor) or any(map(depends, args[1:])):
            return func(*map(held, args), **{k: held(v) for k, v in kwargs.items()})
        return self.number(x, lambda t: func(t, *args[1:], **rest), base)

    def _softmax(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["input"]
        rest = {k: v for k, v in kwargs.items() if k != "input"}
        dim = int(args[1] if len(args) > 1 else kwargs.get("dim", -1))
        return self.softmax(x, lambda t: func(t, *args[1:], **rest), dim, base)

    def _quotient(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        dividend, divisor, *rest = args
        if not depends(divisor):
            return func(*args, **kwargs)
        inverse = self.number(divisor, torch.reciprocal, "reciprocal")
        if not depends(dividend) or not depends(inverse):
            return valued(dividend * inverse, func(held(dividend), held(divisor), *rest, **kwargs))
        return self.product(torch.mul, dividend, inverse)

    def _multiplied(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if base in LINEAR:
            given = {**dict(zip(ORDER[base], args, strict=False)), **kwargs}
            entering, weight = given[LINEAR[base][0]], given[LINEAR[base][1]]
            if not (depends(entering) and depends(weight)):
                return func(*args, **kwargs)
            # baddbmm of queries and keys; what is added to it is a mask or a bias
            path = self.product(torch.matmul, entering, weight) * kwargs.get("alpha", 1)
            return valued(path, func(*map(held, args), **{k: held(v) for k, v in kwargs.items()}))
        first, second, *rest = args
        if not (depends(first) and depends(second)):
            return func(*args, **kwargs)
        return self.product(lambda a, b: func(a, b, *rest, **kwargs), first, second)

    def _einsum(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        equation, *operands = args
        operands = operands[0] if isinstance(operands[0], (list, tuple)) else operands
        if len(operands) != 2 or not all(map(depends, operands)):
            return func(*args, **kwargs)
        return self.product(lambda a, b: func(equation, a, b, **kwargs), *operands)

    def _layer_norm(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x, shape, weight, bias, eps = norm_arguments(args, kwargs, ("weight", "bias", "eps"))
        axes = tuple(range(-len(shape), 0))
        return self._normed(x - x.mean(axes, keepdim=True), axes, weight, bias, eps)

    def _rms_norm(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x, shape, weight, eps = norm_arguments(args, kwargs, ("weight", "eps"))
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        return self._normed(x, tuple(range(-len(shape), 0)), weight, None, eps)

    def _normed(self, x: Tensor, axes: tuple[int, ...], weight: Any, bias: Any, eps: float) -> Any:
        power = self.number(x, torch.square, "square").mean(axes, keepdim=True)
        inverse = self.number(power + eps, torch.rsqrt, "rsqrt")
        result = self.product(torch.mul, x, inverse) if depends(inverse) else x * inverse
        result = result if weight is None else result * weight
        return result if bias is None else result + bias


class Relevance(Rules):
    """Layer-wise relevance propagation as input times gradient; see the head of this file.

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
        self._activated: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.softmaxes: list[tuple[Tensor, Tensor]] = []
        """Scores and probabilities of attention whose softmax kept its derivative."""

    def activation(self, x: Tensor, function: Function, value: Tensor) -> Tensor:
        """Return ``x · (f(x) / x)`` with the fraction as a coefficient."""
        given = x.detach()
        slope = torch.where(given == 0, torch.zeros_like(given), value / given)
        result = valued(x * slope, value)
        self._activated[result] = True
        return result

    def number(self, x: Tensor, function: Function, name: str) -> Tensor:
        """Return a coefficient."""
        return function(x.detach())

    def product(self, function: Callable[..., Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return a product whose derivatives by both are halved, or that by a gate dropped."""
        if self.gate == "coefficient":
            if first in self._activated:
                return function(first.detach(), second)
            if second in self._activated:
                return function(first, second.detach())
        return (function(first, second.detach()) + function(first.detach(), second)) / 2

    def softmax(self, x: Tensor, function: Function, dim: int, name: str) -> Tensor:
        """Return a coefficient, or the softmax as it is."""
        if not self.attending or self.attention == "coefficient":
            return function(x.detach())
        # what goes in and what comes out differ in relevance: the ledger counts it
        scores = x * 1
        probabilities = function(scores)
        self.softmaxes.append((scores, probabilities))
        return probabilities


class Differences(Rules):
    """DeepLIFT's rescale rule; the first half of every batch is compared with the second."""

    def activation(self, x: Tensor, function: Function, value: Tensor) -> Tensor:
        """Return ``f(x)`` with the slope ``Δf / Δx``."""
        return self.number(x, function, "activation")

    def number(self, x: Tensor, function: Function, name: str) -> Tensor:
        """Return ``f(x)`` with the slope ``Δf / Δx``, or the derivative where Δx is tiny."""
        if name == "var":
            raise NotImplementedError("variances outside of norms")
        one, other = x.chunk(2)
        value, start = function(one.detach()), function(other.detach())
        change = (one - other).detach().nan_to_num(nan=0.0)
        scale = one.detach().abs() + other.detach().abs()
        small = change.abs() <= 1e-2 * scale.clamp(min=1e-2)
        middle = ((one + other) / 2).detach().requires_grad_()
        with torch.enable_grad():
            [slope] = torch.autograd.grad(function(middle).sum(), middle)
        # differences of numbers that are nearly alike need more digits than the network has
        fine = function(one.detach().double()) - function(other.detach().double())
        # to third order the derivative in the middle is the difference quotient
        safe = torch.where(small, torch.ones_like(change), change)
        slope = torch.where(small, slope, (fine / safe.double()).to(slope.dtype))
        return torch.cat([valued(one * slope, value), start])

    def product(self, function: Callable[..., Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return a product with ``Δ(ab) = Δa · b̄ + ā · Δb``."""
        a, b = first.chunk(2), second.chunk(2)
        means = [((one + other) / 2).detach() for one, other in (a, b)]
        path = function(a[0], means[1]) + function(means[0], b[0])
        value = function(first.detach(), second.detach()).chunk(2)
        return torch.cat([valued(path, value[0]), value[1]])

    def softmax(self, x: Tensor, function: Function, dim: int, name: str) -> Tensor:
        """Return a softmax as exponentials by their sum."""
        one, other = (part.amax(dim, keepdim=True) for part in x.detach().chunk(2))
        largest = torch.maximum(one, other)
        power = self.number(x - torch.cat([largest, largest]), torch.exp, "exp")
        total = power.sum(dim, keepdim=True)
        if name == "log_softmax":
            return x - torch.cat([largest, largest]) - self.number(total, torch.log, "log")
        return self.product(torch.mul, power, self.number(total, torch.reciprocal, "reciprocal"))


@contextmanager
def ruled(network: nn.Module, mode: Rules, attention: Collection[str]) -> Iterator[None]:
    """Run a network under rules; `attention` names its attention modules.

    Activations that are modules of their own are taken as one, however they are written.
    """
    kinds: dict[nn.Module, str] = {}
    waiting: list[Tensor | None] = []

    def enter(module: nn.Module, args: Any) -> None:
        mode.attending += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode.attending -= 1

    def strip(module: nn.Module, args: Any) -> Any:
        single = len(args) == 1 and depends(args[0]) and args[0].is_floating_point()
        waiting.append(args[0] if single else None)
        return (args[0].detach(),) if single else None

    def activate(module: nn.Module, args: Any, output: Any) -> Any:
        given = waiting.pop()
        if given is None:
            return None
        if module not in kinds:
            kinds[module] = kind_of(module, args[0], output)
        if kinds[module] == "identity":
            return given
        if kinds[module] == "other":
            return module.forward(given)
        mode.paused = True
        try:
            if kinds[module] == "activation":
                return mode.activation(given, module.forward, output)
            return mode.number(given, module.forward, "module")
        finally:
            mode.paused = False

    handles = []
    try:
        for name, module in network.named_modules():
            if name in attention:
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
            elif not [*module.children(), *module.parameters(), *module.buffers()]:
                handles.append(module.register_forward_pre_hook(strip))
                handles.append(module.register_forward_hook(activate))
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()
