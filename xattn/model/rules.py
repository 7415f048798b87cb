"""Backward rules: what a derivative is replaced by while a network runs.

A mode watches every function that torch computes on something that depends on the embeddings, and
gives some of them another derivative; values stay what they are. No architecture is known by name.
Norms, fused attention and other compositions are taken apart into functions of single numbers,
products and sums; subclasses say what becomes of these: see `lrp.Relevance` and
`differences.Differences`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function

from xattn.model.operations import maps_numbers, plain_name
from xattn.model.tap import Edit
from xattn.types import Batch

if TYPE_CHECKING:
    from xattn.model.adapter import Model

Function = Callable[[Tensor], Tensor]
ROUNDING = 8
"""How many units in the last place of what was added up are put down to rounding."""
PRODUCTS = frozenset({"mul", "multiply", "matmul", "bmm", "mm", "mv", "dot", "outer"})
WEIGHTED = frozenset({"linear", "conv1d", "conv2d"})
FUSED = frozenset({"addmm", "baddbmm", "addbmm"})
SOFTMAX = frozenset({"softmax", "log_softmax"})
# Functions that map every number by itself. Whether f(0) = 0 is seen when they are called.
NUMBERS = frozenset(
    {"abs", "celu", "clamp", "clamp_max", "clamp_min", "clip", "cos", "elu", "erf", "erfc",
     "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log", "log1p",
     "log_sigmoid", "logsigmoid", "mish", "module", "pow", "reciprocal", "relu", "relu6",
     "rpow", "rsqrt", "selu", "sigmoid", "silu", "sin", "softplus", "softsign", "sqrt",
     "square", "tanh", "tanhshrink", "threshold"}
)  # fmt: skip
STATISTICS = frozenset({"var", "std", "norm", "vector_norm", "logsumexp", "var_mean", "std_mean"})
MODULE = "module"
"""What a module is called that maps every number by itself."""
COMPOSED = frozenset({"glu", "normalize", "scaled_dot_product_attention"})
"""What is computed in steps that are seen one by one."""


class _Valued(torch.autograd.Function):
    """A value with the derivative of something else, times a slope."""

    @staticmethod
    def forward(
        ctx: Any, path: Tensor, slope: Tensor | None, value: Callable[[], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(slope)
        return value()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        [slope] = ctx.saved_tensors
        return gradient if slope is None else gradient * slope, None, None


def valued(path: Tensor, value: Callable[[], Tensor], slope: Tensor | None = None) -> Tensor:
    """Return a value, computed here without a derivative, with that of ``slope · path``."""
    result: Tensor = _Valued.apply(path, slope, value)  # type: ignore[no-untyped-call]
    return result


def depends(value: Any) -> bool:
    """Whether a tensor, or one in a list, depends on the embeddings."""
    if isinstance(value, (list, tuple)):
        return any(map(depends, value))
    return isinstance(value, Tensor) and value.requires_grad


def held(value: Any) -> Any:
    """Return a tensor without its derivative; anything else as it is."""
    return value.detach() if isinstance(value, Tensor) else value


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
        rule = self.rule(base)
        if rule is None:
            return func(*args, **kwargs)
        if in_place:
            func = getattr(torch, base, None) or getattr(nn.functional, base)
        elif swapped:
            func, args = getattr(torch, base), args[1::-1]
        result = rule(base, func, args, kwargs)
        return args[0].copy_(result) if in_place else result

    def rule(self, base: str) -> Callable[[str, Any, Any, dict[str, Any]], Any] | None:
        """Return what is done in place of a function of torch, if anything."""
        if base in NUMBERS:
            return self._number
        if base in PRODUCTS:
            return self._multiplied
        if base in WEIGHTED:
            return self._weighted
        if base in FUSED:
            return self._fused
        if base in SOFTMAX:
            return self._softmax
        if base in STATISTICS:
            return self.statistic
        return {
            "div": self._quotient,
            "einsum": self._einsum,
            "glu": self._glu,
            "layer_norm": self._norm,
            "linalg_solve_triangular": self._solve,
            "normalize": self._normalize,
            "rms_norm": self._norm,
            "scaled_dot_product_attention": self._attend,
        }.get(base)

    # ------------------------------------------------------- what subclasses decide

    @abstractmethod
    def number(self, x: Tensor, function: Function, name: str) -> Tensor:
        """Return a function of single numbers; ``module`` is the name of one that is a module."""

    @abstractmethod
    def statistic(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return a variance, a norm or the logarithm of a sum of exponentials."""

    @abstractmethod
    def product(self, function: Callable[..., Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return a product of two that both depend on the embeddings."""

    @abstractmethod
    def solution(
        self, function: Callable[..., Tensor], read: Function, matrix: Tensor, right: Tensor
    ) -> Tensor:
        """Return the solution of linear equations; `read` picks what counts of their matrix."""

    @abstractmethod
    def softmax(self, x: Tensor, function: Function, dim: int, name: str) -> Tensor:
        """Return a softmax."""

    # ------------------------------------------------------------ functions of torch

    def _number(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs = dict(kwargs)
        x = args[0] if args else kwargs.pop("input")
        rest = args[1:]
        if not isinstance(x, Tensor) or depends(rest):  # a power with an exponent from the input
            return func(*args, **kwargs)
        overwrites = kwargs.get("inplace") or any(value is True for value in rest)

        def function(given: Tensor) -> Tensor:
            found: Tensor = func(given.clone() if overwrites else given, *rest, **kwargs)
            return found

        return self.number(x, function, base)

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
        if not isinstance(dividend, Tensor) or not depends(dividend):
            return dividend * inverse
        if not depends(inverse):
            return func(dividend, held(divisor), *rest, **kwargs)
        return self.product(torch.mul, dividend, inverse)

    def _multiplied(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs = dict(kwargs)
        first, *rest = args
        names = ("other", "mat2", "vec", "tensor", "vec2")
        second = rest.pop(0) if rest else next(kwargs.pop(n) for n in names if n in kwargs)
        if not (depends(first) and depends(second)):
            return func(*args, **kwargs) if len(args) > 1 else func(first, second, **kwargs)
        return self.product(lambda a, b: func(a, b, *rest, **kwargs), first, second)

    def _weighted(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
        entering, weight, bias = (given.pop(n, None) for n in ("input", "weight", "bias"))
        if not (depends(entering) and depends(weight)):
            return func(*args, **kwargs)
        rest = args[3:]
        result = self.product(lambda a, b: func(a, b, None, *rest, **given), entering, weight)
        if bias is None:
            return result
        return result + bias.view(-1, *[1] * {"linear": 0, "conv1d": 1, "conv2d": 2}[base])

    def _fused(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return a sum of something and a product, as of queries and keys."""
        names = ("input", "mat1", "mat2") if base == "addmm" else ("input", "batch1", "batch2")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        added, first, second = (given[name] for name in names)
        if not (depends(first) and depends(second)):
            return func(*args, **kwargs)
        result = self.product(torch.matmul, first, second) * kwargs.get("alpha", 1)
        result = result.sum(0) if base == "addbmm" else result
        return result if kwargs.get("beta", 1) == 0 else result + added * kwargs.get("beta", 1)

    def _solve(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return a division by a matrix (linear attention with a delta rule)."""
        matrix, right = args
        if not depends(matrix) or not kwargs.get("left", True):
            return func(*args, **kwargs)
        diagonal = int(kwargs.get("unitriangular", False))

        def read(m: Tensor) -> Tensor:  # the rest of the matrix is not looked at
            return m.triu(diagonal) if kwargs["upper"] else m.tril(-diagonal)

        return self.solution(lambda m, r: func(m, r, **kwargs), read, matrix, right)

    def _einsum(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        equation, *operands = args
        operands = operands[0] if isinstance(operands[0], (list, tuple)) else operands
        if len(operands) != 2 or not all(map(depends, operands)):
            return func(*args, **kwargs)
        return self.product(lambda a, b: func(equation, a, b, **kwargs), *operands)

    def _norm(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Layer and root mean square normalisation, as divisions by a deviation."""
        order = ("input", "normalized_shape", "weight", "bias", "eps")
        names = order if base == "layer_norm" else (*order[:3], "eps")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x, weight, bias = given["input"], given.get("weight"), given.get("bias")
        eps = given.get("eps", 1e-5 if base == "layer_norm" else None)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        axes = tuple(range(-len(given["normalized_shape"]), 0))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide - wide.mean(axes, keepdim=True) if base == "layer_norm" else wide
        power = self.number(wide, torch.square, "square").mean(axes, keepdim=True)
        inverse = self.number(power + eps, torch.rsqrt, "rsqrt")
        path = self.product(torch.mul, wide, inverse) if depends(inverse) else wide * inverse
        path = path if weight is None else path * weight
        path = path if bias is None else path + bias
        return valued(path, lambda: func(*map(held, args), **kwargs))

    def _normalize(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(("input", "p", "dim", "eps"), args, strict=False)), **kwargs}
        x, p, dim = given["input"], given.get("p", 2.0), given.get("dim", 1)
        with self:
            length = torch.linalg.vector_norm(x, p, dim, keepdim=True)
            return x / length.clamp_min(given.get("eps", 1e-12))

    def _glu(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", -1)
        with self:
            first, second = x.chunk(2, dim)
            return first * second.sigmoid()

    def _attend(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Fused attention, in whole steps."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key, value = (given[name] for name in names[:3])
        mask, scale = given.get("attn_mask"), given.get("scale")
        with self:
            if given.get("enable_gqa"):
                groups = query.shape[-3] // key.shape[-3]
                key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            scores = query @ key.transpose(-2, -1) * scale
            if given.get("is_causal"):
                mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            if mask is not None and mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            elif mask is not None:
                scores = scores + mask
            return torch.softmax(scores, -1) @ value


def overwrites(module: nn.Module) -> bool:
    """Whether a module writes into its input."""
    return bool(getattr(module, "inplace", False))


@contextmanager
def ruled(network: nn.Module, mode: Rules, attention: Collection[str]) -> Iterator[None]:
    """Run a network under rules; `attention` names its attention modules.

    Activations that are modules of their own are taken as one, however they are written.
    """
    elementwise: dict[nn.Module, bool] = {}
    waiting: list[Tensor | None] = []

    def enter(module: nn.Module, args: Any) -> None:
        mode.attending += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode.attending -= 1

    def strip(module: nn.Module, args: Any) -> Any:
        single = len(args) == 1 and depends(args[0]) and args[0].is_floating_point()
        single = single and torch.is_grad_enabled()
        waiting.append(args[0] if single else None)
        if not single:
            return None
        stripped = args[0].detach()
        return (stripped.clone() if overwrites(module) else stripped,)

    def activate(module: nn.Module, args: Any, output: Any) -> Any:
        given = waiting.pop()
        if given is None:
            return None
        still = given.detach()
        if isinstance(output, Tensor) and torch.equal(output, still):
            return given  # as dropout does
        if module not in elementwise:
            elementwise[module] = maps_numbers(module, still, output)
        if not elementwise[module]:
            return module.forward(given)

        def function(x: Tensor) -> Tensor:
            found: Tensor = module.forward(x.clone() if overwrites(module) else x)
            return found

        function.__name__ = MODULE
        return handle_torch_function(function, (given,), given)

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


@contextmanager
def following(model: Model, batch: Batch, leaf: Tensor, rules: Rules) -> Iterator[None]:
    """Run a model's network with other embeddings under rules."""
    model.require_gradients()
    attached = model.attach()
    names = frozenset(site.module for site in attached.sites)
    # attention in whole steps, so that they are seen one by one
    steps = [Edit(probabilities=lambda site, p: p)] if attached.backend != "maps" else []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(model.borrowed(batch.inputs, steps))
        stack.enter_context(model.embedded(batch.inputs, leaf))
        stack.enter_context(ruled(model.network, rules, names))
        yield
