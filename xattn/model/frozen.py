"""A network with its coefficients held still: what it does to the parts of its input.

Attention probabilities, the denominators of norms, the slopes of activations and gates depend on
the whole input. Held at what they are in the true run, they leave an affine map, which takes a sum
of parts to the sum of their images. So a part can be followed through any network by forward-mode
differentiation: every row of a batch holds the same input, which alone decides the coefficients,
and carries one part of it along as its tangent. `Frozen` differs from plain derivatives just where
a coefficient is made:

======================================  =====================================================
softmax, sigmoid, erf, roots, powers    a coefficient: its tangent is dropped
division                                by a coefficient
activation f with f(0) = 0              ``f(x) / x`` is the coefficient (zero-origin slope)
product of two that carry parts         half of it goes to each (gated units)
query times key                         dropped: softmax follows
biases and other constants              see `Rows`
======================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

Sharing = Literal["absdot", "norm", "equal", "none"]
"""Who gets a constant that is added to a sum of parts: each part by its absolute product with the
constant, by its norm, all parts that are not zero alike; or nobody."""

COEFFICIENTS = frozenset(
    {"softmax", "log_softmax", "sigmoid", "erf", "exp", "sqrt", "rsqrt", "reciprocal", "pow",
     "square", "var", "var_mean", "std", "norm",
     "vector_norm", "logsumexp"}
)  # fmt: skip
ACTIVATIONS = frozenset(
    {"gelu", "relu", "relu6", "silu", "tanh", "leaky_relu", "elu", "celu", "selu", "mish",
     "hardswish", "hardtanh", "softsign", "clamp", "abs"}
)  # fmt: skip
LINEAR = {
    "linear": ("input", "weight", "bias"),
    "conv1d": ("input", "weight", "bias"),
    "addmm": ("mat1", "mat2", "input"),
    "baddbmm": ("batch1", "batch2", "input"),
}
"""What the parameters are called that take the input, the weight and the bias."""
ORDER = {
    "linear": ("input", "weight", "bias"),
    "conv1d": ("input", "weight", "bias"),
    "addmm": ("input", "mat1", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
}
PRODUCTS = frozenset({"mul", "multiply", "matmul", "bmm", "mm"})
DUNDER = {"truediv": "div", "true_divide": "div"}


def parts_of(tensor: Any) -> Tensor | None:
    """Return the parts that a tensor carries, one a row, of its own shape; None if it has none."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return None
    return _unpack(tensor)[1]


def plain(tensor: Any) -> Any:
    """Return a tensor without the parts that it carries; anything else as it is."""
    if parts_of(tensor) is None:
        return tensor
    return _unpack(tensor)[0].detach()


def carrying(tensor: Tensor, parts: Tensor) -> Tensor:
    """Return a tensor that carries parts, ``[row, ...]`` both."""
    dual: Tensor = forward_ad.make_dual(plain(tensor), parts.to(tensor.dtype))  # type: ignore[no-untyped-call]
    return dual


def by_row(tensor: Tensor, rows: int) -> Tensor:
    """Return ``[row · n, ...]`` as ``[row, n, ...]``."""
    return tensor.reshape(rows, -1, *tensor.shape[1:])


def _unpack(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return primal, tangent


@dataclass(frozen=True)
class Rows:
    """What the rows of a batch carry: first the parts, then what belongs to none of them."""

    parts: int
    sharing: Sharing = "none"
    """Constants are shared among the parts; with ``none`` they have a row of their own."""
    aside: bool = False
    """Whether what was computed from the input, but not followed, has another row."""

    @property
    def total(self) -> int:
        """How many rows there are."""
        return self.parts + (self.sharing == "none") + self.aside

    def add(self, parts: Tensor, constant: Tensor, *, computed: bool) -> Tensor:
        """Return the parts of a sum with a constant of the same shape ``[row · n, ..., hidden]``.

        `computed` says that the constant comes from the input and not from weights alone.
        """
        if len(parts) % self.total:
            return parts  # rows are in another order here: the ledger will tell
        rows, added = by_row(parts, self.total).clone(), by_row(constant, self.total)[0]
        if self.sharing == "none":
            rows[self.parts + (self.aside and computed)] += added
        else:
            rows += added * self._shares(rows, added)
        return rows.flatten(0, 1)

    def _shares(self, rows: Tensor, constant: Tensor) -> Tensor:
        if self.sharing == "absdot":
            weights = (rows * constant).sum(-1, keepdim=True).abs()
        else:
            weights = rows.norm(dim=-1, keepdim=True)
            weights = weights if self.sharing == "norm" else (weights > 0).to(rows.dtype)
        total = weights.sum(0, keepdim=True)
        shares: Tensor = weights / torch.where(total > 0, total, torch.ones_like(total))
        return shares


class Frozen(TorchFunctionMode):
    """Carries parts through everything that torch computes; see the head of this file.

    Parameters
    ----------
    rows : Rows
    on_projection : callable, optional
        What to do with the first linear map after `awaiting` was set; takes `awaiting` and the
        product, and returns what goes on.
    """

    def __init__(
        self, rows: Rows, on_projection: Callable[[int, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.rows, self.on_projection = rows, on_projection
        self.awaiting: int | None = None
        """The attention whose output projection comes next."""
        self.skipping = False
        """Whether linear maps hand on nothing: set by whoever leaves out feed-forward blocks."""
        self.left_out = False
        """Whether something that was skipped was added since this was last set to False."""
        self.attending = 0
        """How many attention modules are being computed, one inside the other."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        base, in_place, swapped = base_of(name)
        rule = self._rule(base)
        if rule is None or not any(map(_carries, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        if in_place:
            func = getattr(torch, base)
        elif swapped:
            func, args = getattr(torch, base), args[1::-1]
        result = rule(base, func, args, kwargs)
        return args[0].copy_(result) if in_place else result

    def _rule(self, base: str) -> Callable[[str, Any, Any, dict[str, Any]], Any] | None:
        if base in LINEAR:
            return self._linear
        if base in COEFFICIENTS:
            return self._coefficient
        if base in ACTIVATIONS:
            return self._activation
        if base in PRODUCTS:
            return self._product
        return {
            "div": self._quotient,
            "einsum": self._einsum,
            "add": self._sum,
            "sub": self._sum,
            "rsub": self._sum,
            "layer_norm": self._layer_norm,
            "rms_norm": self._rms_norm,
        }.get(base)

    def _coefficient(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return func(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})

    def _activation(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return scaled(args[0], self._coefficient(base, func, args, kwargs))

    def _quotient(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        dividend, divisor, *rest = args
        return func(dividend, plain(divisor), *rest, **kwargs)

    def _sum(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        first, second = args[:2] if len(args) > 1 else (args[0], kwargs["other"])
        if _carries(first) and _carries(second):
            return result
        # a constant may be scaled, or subtracted: what counts is the difference that it makes
        if _carries(first):
            constant, nothing = second, (torch.zeros_like(plain(first)), *args[1:])
        else:
            constant, nothing = first, (first, torch.zeros_like(plain(second)), *args[2:])
        effect = func(*nothing, **kwargs)
        return self._with_constant(result, effect, _has_rows(constant, effect))

    def _with_constant(self, result: Tensor, constant: Tensor, computed: bool) -> Tensor:
        parts = parts_of(result)
        assert parts is not None
        self.left_out |= computed and self.skipping and not self.attending
        whole = constant.expand_as(result)
        return carrying(result, self.rows.add(parts, whole, computed=computed))

    def _linear(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(ORDER[base], args, strict=False)), **kwargs}
        entering, weight, bias = (given.get(name) for name in LINEAR[base])
        if _carries(weight) or not _carries(entering):  # queries times keys, if anything
            return self._coefficient(base, func, args, kwargs)
        if self.skipping and self.awaiting is None:
            return self._coefficient(base, func, args, kwargs)
        product = func(*args, **kwargs)
        if bias is not None and not _carries(bias):
            constant = bias * given.get("beta", 1)
            if base == "conv1d":  # hidden comes before tokens
                product = product.transpose(1, 2)
            product = self._with_constant(product, constant, False)
            product = product.transpose(1, 2) if base == "conv1d" else product
        return self._projected(product)

    def _projected(self, product: Tensor) -> Tensor:
        if self.awaiting is None or self.on_projection is None:
            return product
        number, self.awaiting = self.awaiting, None
        return self.on_projection(number, product)

    def _product(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        first, second, *rest = args
        if not _carries(second):
            return self._weighted(base, func, args, kwargs)
        if not _carries(first):
            return func(*args, **kwargs)
        if self.attending and base not in ("mul", "multiply"):
            return self._coefficient(base, func, args, kwargs)
        return (func(first, plain(second), *rest, **kwargs)
                + func(plain(first), second, *rest, **kwargs)) / 2  # fmt: skip

    def _weighted(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Multiply what carries parts with a number, or with a matrix: another linear map."""
        if base in ("mul", "multiply"):
            return func(*args, **kwargs)
        if self.skipping and self.awaiting is None:
            return self._coefficient(base, func, args, kwargs)
        return self._projected(func(*args, **kwargs))

    def _einsum(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        equation, *operands = args
        operands = operands[0] if isinstance(operands[0], (list, tuple)) else operands
        if len(operands) != 2:  # the ledger will tell
            return func(*args, **kwargs)

        def product(first: Tensor, second: Tensor) -> Tensor:
            return cast(Tensor, func(equation, first, second, **kwargs))

        return self._product(base, product, tuple(operands), {})

    def _layer_norm(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x, shape, weight, bias, eps = norm_arguments(args, kwargs, ("weight", "bias", "eps"))
        axes = tuple(range(-len(shape), 0))
        value = func(plain(x), shape, weight, bias, eps)
        variance = plain(x).var(axes, correction=0, keepdim=True)
        result = (x - x.mean(axes, keepdim=True)) * (variance + eps).rsqrt()
        result = result if weight is None else result * weight
        result = carrying(value, cast(Tensor, parts_of(result)))
        return result if bias is None else self._with_constant(result, bias, False)

    def _rms_norm(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x, shape, weight, eps = norm_arguments(args, kwargs, ("weight", "eps"))
        axes = tuple(range(-len(shape), 0))
        value = func(plain(x), shape, weight, eps)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        result = x * (plain(x).square().mean(axes, keepdim=True) + eps).rsqrt()
        result = result if weight is None else result * weight
        return carrying(value, cast(Tensor, parts_of(result)))


def scaled(x: Tensor, value: Tensor) -> Tensor:
    """Return what a function without origin made of `x`, carrying the parts of `x` in scale."""
    given, parts = plain(x), cast(Tensor, parts_of(x))
    slope = torch.where(given == 0, torch.zeros_like(given), value / given)
    return carrying(value, parts * slope)


def _carries(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_carries, value))
    return parts_of(value) is not None


def base_of(name: str) -> tuple[str, bool, bool]:
    """Return what an operator is called as a function, whether in place, whether swapped.

    Examples
    --------
    >>> base_of("__iadd__"), base_of("mul_"), base_of("__rtruediv__"), base_of("rsqrt")
    (('add', True, False), ('mul', True, False), ('div', False, True), ('rsqrt', False, False))
    """
    if name.startswith("__") and name.endswith("__"):
        inner = name[2:-2]
        for marker, in_place, swapped in (("i", True, False), ("r", False, True)):
            rest = inner[1:]
            rest = DUNDER.get(rest, rest)
            if inner.startswith(marker) and rest in {"add", "sub", "mul", "div", "matmul"}:
                return rest, in_place, swapped
        return DUNDER.get(inner, inner), False, False
    in_place = name.endswith("_")
    base = name.rstrip("_")
    return DUNDER.get(base, base), in_place, False


def _has_rows(constant: Any, whole: Tensor) -> bool:
    """Whether a constant is one for each row, and so no weight."""
    alike = isinstance(constant, Tensor) and constant.ndim == whole.ndim
    return alike and len(constant) == len(whole) > 1


def norm_arguments(args: Any, kwargs: dict[str, Any], names: Sequence[str]) -> list[Any]:
    """Return the arguments of a norm in order, also those that are given by name or not at all."""
    defaults = {"weight": None, "bias": None, "eps": None if "bias" not in names else 1e-5}
    missing = ("input", "normalized_shape", *names)[len(args) :]
    return [*args, *(kwargs.get(name, defaults.get(name)) for name in missing)]


@contextmanager
def frozen(network: nn.Module, mode: Frozen, attention: Collection[str]) -> Iterator[None]:
    """Carry parts through a network; `attention` names its attention modules.

    An activation may be a module that is written in simple steps. What has no weights, and maps
    every number by itself, is taken as one.
    """
    kinds: dict[nn.Module, str] = {}

    def enter(module: nn.Module, args: Any) -> None:
        mode.attending += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode.attending -= 1

    held: list[Tensor | None] = []

    def strip(module: nn.Module, args: Any) -> Any:
        single = len(args) == 1 and parts_of(args[0]) is not None
        held.append(args[0] if single else None)
        return (plain(args[0]),) if single else None

    def activate(module: nn.Module, args: Any, output: Any) -> Any:
        given = held.pop()
        if given is None:
            return None
        if module not in kinds:
            kinds[module] = kind_of(module, args[0], output)
        if kinds[module] == "activation":
            return scaled(given, output)
        if kinds[module] == "identity":
            return given
        return output if kinds[module] == "coefficient" else module.forward(given)

    handles = []
    try:
        for name, module in network.named_modules():
            if name in attention:
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
            elif not [*module.children(), *module.parameters(), *module.buffers()]:
                handles.append(module.register_forward_pre_hook(strip))
                handles.append(module.register_forward_hook(activate))
        with forward_ad.dual_level(), mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


def kind_of(module: nn.Module, given: Tensor, value: Any) -> str:
    """Tell activations, coefficients (f(0) is not 0) and modules that mix numbers apart."""
    if not isinstance(value, Tensor) or value.shape != given.shape:
        return "other"
    if torch.equal(value, given):
        return "identity"
    turned = module.forward(given.flatten().flip(0).view_as(given))
    if not torch.allclose(turned.flatten().flip(0).view_as(value), value, atol=1e-5, rtol=1e-5):
        return "other"
    origin = module.forward(torch.zeros_like(given[:1]))
    return "activation" if not bool(origin.any()) else "coefficient"
