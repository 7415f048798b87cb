"""A network with its coefficients held still: what it does to the parts of its input.

Attention probabilities, the denominators of norms, the slopes of activations and gates depend on
the whole input. Held at what they are in the true run, they leave an affine map, which takes a sum
of parts to the sum of their images. So while a network runs, `Frozen` sees every operation, and
computes beside each result what becomes of the parts of its operands. That is the operation's own
derivative along each part, except where a coefficient is made:

======================================  =====================================================
softmax, sigmoid, erf, roots, powers    a coefficient: the result has no parts
division                                by a coefficient
activation f with f(0) = 0              ``f(x) / x`` is the coefficient (zero-origin slope)
product of two that have parts          half of it goes to each (gated units)
query times key                         a coefficient: softmax follows
biases and other constants              see `Lanes`
======================================  =====================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Sharing = Literal["absdot", "norm", "equal", "none"]
"""Who gets a constant that is added to a sum of parts: each part by its absolute product with the
constant, by its norm, all parts that are not zero alike; or nobody."""

COEFFICIENTS = frozenset(
    {"softmax", "log_softmax", "sigmoid", "erf", "exp", "sqrt", "rsqrt", "reciprocal", "pow",
     "square", "var", "var_mean", "std", "norm", "vector_norm", "logsumexp"}
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
    "conv1d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "addmm": ("input", "mat1", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
}
FRESH = re.compile(r"(zeros|ones|empty|full|rand|randn)_like|new_\w+")
"""Operations that take no more than shape and type of what they are given."""
MATRIX_PRODUCTS = frozenset({"matmul", "bmm", "mm"})
DIVISIONS = {"truediv": "div", "true_divide": "div", "divide": "div", "multiply": "mul"}
OPERATORS = frozenset({"add", "sub", "mul", "div", "matmul"})


@dataclass(frozen=True)
class Lanes:
    """Who has a part: each of `count`, then what belongs to none of them."""

    count: int
    sharing: Sharing = "none"
    """Constants are shared among the parts; with ``none`` they have a lane of their own."""
    aside: bool = False
    """Whether what is skipped on purpose has another lane."""

    @property
    def total(self) -> int:
        """How many lanes there are."""
        return self.count + (self.sharing == "none") + self.aside

    def add(self, parts: Tensor, constant: Tensor, *, skipped: bool = False) -> Tensor:
        """Return the parts ``[lane, ..., hidden]`` of a sum with a constant ``[..., hidden]``."""
        if self.sharing != "none":
            return parts + constant * self._shares(parts, constant)
        parts = parts.clone()
        parts[self.count + (self.aside and skipped)] += constant
        return parts

    def _shares(self, parts: Tensor, constant: Tensor) -> Tensor:
        if self.sharing == "absdot":
            weights = torch.einsum("l...d,...d->l...", parts, constant).abs()[..., None]
        else:
            weights = parts.norm(dim=-1, keepdim=True)
            weights = weights if self.sharing == "norm" else (weights > 0).to(parts.dtype)
        total = weights.sum(0, keepdim=True)
        shares: Tensor = weights / torch.where(total > 0, total, torch.ones_like(total))
        return shares


@dataclass(frozen=True, eq=False)
class _Call:
    """One operation that torch was asked for, as a function that changes nothing."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, swaps: Mapping[int, Any] | None = None) -> Any:
        """Compute it, with other tensors in place of those with these ids."""

        def swapped(value: Any) -> Any:
            if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
                return type(value)(map(swapped, value))
            return swaps.get(id(value), value) if swaps else value

        kwargs = {name: swapped(value) for name, value in self.kwargs.items()}
        return self.function(*map(swapped, self.args), **kwargs)

    def tensors(self) -> list[Tensor]:
        """Return the tensors that it is given."""
        return _tensors((*self.args, *self.kwargs.values()))

    def operand(self, place: int, name: str) -> Any:
        """Return an argument by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs[name]


class Frozen(TorchFunctionMode):
    """Follows parts through everything that torch computes; see the head of this file.

    Parameters
    ----------
    lanes : Lanes
    on_projection : callable, optional
        Called with `awaiting` and the product of the first linear map after it was set.
    """

    def __init__(
        self, lanes: Lanes, on_projection: Callable[[int, Tensor], None] | None = None
    ) -> None:
        super().__init__()
        self.lanes, self.on_projection = lanes, on_projection
        self.awaiting: int | None = None
        """The attention whose output projection comes next."""
        self.skipping = False
        """Whether linear maps hand on nothing: set by whoever leaves out feed-forward blocks."""
        self.left_out = False
        """Whether something that was skipped was added since this was last set to False."""
        self.attending = 0
        """How many attention modules are being computed, one inside the other."""
        self.paused = 0
        """Whether nothing is followed at the moment: within modules with rules of their own."""
        self._parts: Any = WeakTensorKeyDictionary()
        self._skipped: Any = WeakTensorKeyDictionary()

    def parts(self, tensor: Tensor) -> Tensor | None:
        """Return the parts of a tensor, ``[lane, ...]``; None if it has none."""
        found: Tensor | None = self._parts.get(tensor)
        return found

    def carry(self, tensor: Tensor, parts: Tensor) -> Tensor:
        """Say what the parts of a tensor are, and return it."""
        self._parts[tensor] = parts
        return tensor

    def drop(self, tensor: Tensor) -> Tensor:
        """Say that a tensor has no parts, and return it."""
        self._parts.pop(tensor, None)
        return tensor

    def skip(self, tensor: Tensor) -> None:
        """Say that a tensor was computed by what is skipped."""
        self._skipped[tensor] = True

    def known(self, value: Any) -> bool:
        """Whether a value has parts, or was computed by what is skipped."""
        return isinstance(value, Tensor) and (value in self._parts or value in self._skipped)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Follow nothing in the meantime."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = () if self.paused else _tensors((*args, *kwargs.values()))
        carry = any(tensor in self._parts for tensor in given)
        if not carry and not any(tensor in self._skipped for tensor in given):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if FRESH.fullmatch(name):
            return func(*args, **kwargs)
        if name == "__setitem__":
            self._set_item(*args)
            return func(*args, **kwargs)
        base, in_place, swapped = base_of(name)
        if in_place and base != "copy" and not callable(getattr(torch.Tensor, base, None)):
            self.drop(args[0])  # zero_ and the like
            return func(*args, **kwargs)
        if in_place:
            call = _Call(base, _pure(base), args, kwargs)
        elif swapped:
            call = _Call(base, getattr(torch, base), _as_tensors(args[1::-1]), kwargs)
        else:
            call = _Call(base, func, args, kwargs)
        result = call.run()
        outputs = [tensor for tensor in _tensors((result,)) if tensor.is_floating_point()]
        found = self._rule(base)(call, result) if carry and outputs else None
        target = args[0] if in_place else None
        if target is not None:
            result, outputs = target.copy_(result), [target]
        parts = found if isinstance(found, tuple) else (found,) * len(outputs)
        for tensor, part in zip(outputs, parts, strict=True):
            self._note(tensor, part, skipped=not carry)
        if self.awaiting is not None and self._maps(call):
            number, self.awaiting = self.awaiting, None
            if self.on_projection is not None:
                self.on_projection(number, result)
        return result

    def _note(self, tensor: Tensor, parts: Tensor | None, *, skipped: bool) -> None:
        if parts is not None:
            self._parts[tensor] = parts
            return
        self.drop(tensor)
        if skipped:
            self._skipped[tensor] = True

    def _maps(self, call: _Call) -> bool:
        """Whether an operation maps what has parts by a matrix of weights."""
        if call.name in LINEAR:
            entering, weight, _ = _linear_operands(call)
            return self._has(entering) and not self._has(weight)
        if call.name in MATRIX_PRODUCTS:
            return self._has(call.operand(0, "input")) and not self._has(call.args[1])
        return False

    def _has(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._parts

    def _rule(self, base: str) -> Callable[[_Call, Any], Any]:
        if base in LINEAR:
            return self._linear
        if base in COEFFICIENTS:
            return lambda call, result: None
        if base in ACTIVATIONS:
            return lambda call, result: self.slope(call.operand(0, "input"), result)
        if base in MATRIX_PRODUCTS:
            return self._matrix_product
        rules: dict[str, Callable[[_Call, Any], Any]] = {
            "mul": self._product,
            "div": self._quotient,
            "einsum": self._einsum,
            "add": self._sum,
            "sub": self._sum,
            "rsub": self._sum,
            "layer_norm": self._layer_norm,
            "rms_norm": self._rms_norm,
        }
        return rules.get(base, self._derivative)

    def _derivative(self, call: _Call, result: Any) -> tuple[Tensor, ...]:
        """Return the parts of every result: the derivative along the parts of all operands."""
        sources = {id(tensor): tensor for tensor in call.tensors() if tensor in self._parts}

        def outputs(*values: Tensor) -> tuple[Tensor, ...]:
            found = call.run(dict(zip(sources, values, strict=True)))
            return tuple(t for t in _tensors((found,)) if t.is_floating_point())

        def along(*parts: Tensor) -> tuple[Tensor, ...]:
            tangents: tuple[Tensor, ...] = jvp(outputs, tuple(sources.values()), parts)[1]
            return tangents

        followed: tuple[Tensor, ...] = vmap(along)(*[self._parts[t] for t in sources.values()])
        return followed

    def _along(self, call: _Call, operand: Tensor, others: Mapping[int, Any]) -> Tensor:
        """Return what a linear operation makes of the parts of one operand, the others fixed."""
        followed: Tensor = vmap(lambda part: call.run({**others, id(operand): part}))(
            self._parts[operand]
        )
        return followed

    def slope(self, x: Tensor, value: Tensor) -> Tensor | None:
        """Return the parts of f(x): those of x by the slope of the line through zero."""
        parts = self.parts(x)
        if parts is None:
            return None
        return parts * torch.where(x == 0, torch.zeros_like(x), value / x)

    def _sum(self, call: _Call, result: Tensor) -> Tensor:
        first, second = call.operand(0, "input"), call.operand(1, "other")
        if self._has(first) and self._has(second):
            if first.shape == second.shape and call.name == "add" and not call.kwargs:
                both: Tensor = self._parts[first] + self._parts[second]
                return both
            return self._derivative(call, result)[0]
        (parts,) = self._derivative(call, result)
        # a constant may be scaled, or subtracted: what counts is the difference that it makes
        source, constant = (first, second) if self._has(first) else (second, first)
        effect = call.run({id(source): torch.zeros_like(source)})
        skipped = isinstance(constant, Tensor) and constant in self._skipped
        self.left_out |= skipped
        return self.lanes.add(parts, effect.expand_as(result), skipped=skipped)

    def _linear(self, call: _Call, result: Tensor) -> Tensor | None:
        entering, weight, bias = _linear_operands(call)
        if not self._has(entering) or self._has(weight):  # queries times keys, if anything
            return None
        if self._skips():
            self._skipped[result] = True
            return None
        given = {**dict(zip(ORDER[call.name], call.args, strict=False)), **call.kwargs}
        if call.name == "linear":
            parts = nn.functional.linear(self._parts[entering], weight)
        elif call.name == "conv1d":
            rest = {k: v for k, v in given.items() if k not in ("input", "weight", "bias")}
            flat = nn.functional.conv1d(self._parts[entering].flatten(0, 1), weight, **rest)
            parts = flat.unflatten(0, (self.lanes.total, -1))  # type: ignore[no-untyped-call]
        else:
            parts = self._parts[entering] @ weight * given.get("alpha", 1)
        if bias is None or self._has(bias):
            return parts
        constant = bias * given.get("beta", 1)
        if call.name == "conv1d":  # hidden comes before tokens
            shape = result.transpose(-1, -2).shape
            added = self.lanes.add(parts.transpose(-1, -2), constant.expand(shape))
            return added.transpose(-1, -2)
        return self.lanes.add(parts, constant.expand_as(result))

    def _skips(self) -> bool:
        return self.skipping and self.awaiting is None

    def _quotient(self, call: _Call, result: Tensor) -> Tensor | None:
        dividend, divisor = call.operand(0, "input"), call.operand(1, "other")
        if not self._has(dividend):
            return None
        if dividend.shape == result.shape:
            parts: Tensor = self._parts[dividend] / divisor
            return parts
        return self._along(call, dividend, {})

    def _product(self, call: _Call, result: Tensor) -> Tensor:
        first, second = call.operand(0, "input"), call.operand(1, "other")
        sides = [
            self._parts[a] * b if a.shape == result.shape else self._along(call, a, {})
            for a, b in ((first, second), (second, first))
            if self._has(a)
        ]
        return sides[0] if len(sides) == 1 else (sides[0] + sides[1]) / 2

    def _matrix_product(self, call: _Call, result: Tensor) -> Tensor | None:
        return self._bilinear(call, result, call.args[0], call.operand(1, "other"))

    def _einsum(self, call: _Call, result: Tensor) -> Any:
        operands = call.tensors()
        if len(operands) != 2:  # the ledger will tell
            return self._derivative(call, result)
        return self._bilinear(call, result, *operands)

    def _bilinear(
        self, call: _Call, result: Tensor, first: Tensor, second: Tensor
    ) -> Tensor | None:
        both = self._has(first) and self._has(second)
        if both and self.attending:
            return None
        if self._has(first) and not both and self._skips():
            self._skipped[result] = True
            return None
        sides = [self._along(call, side, {}) for side in (first, second) if self._has(side)]
        return sides[0] if len(sides) == 1 else (sides[0] + sides[1]) / 2

    def _layer_norm(self, call: _Call, result: Tensor) -> Tensor:
        x, shape, weight, bias, eps = _norm_operands(call, ("weight", "bias", "eps"))
        axes = tuple(range(-len(shape), 0))
        root = (x.var(axes, correction=0, keepdim=True) + eps).rsqrt()
        parts: Tensor = self._parts[x]
        parts = (parts - parts.mean(axes, keepdim=True)) * root
        parts = parts if weight is None else parts * weight
        return parts if bias is None else self.lanes.add(parts, bias.expand_as(result))

    def _rms_norm(self, call: _Call, result: Tensor) -> Tensor:
        x, shape, weight, eps = _norm_operands(call, ("weight", "eps"))
        axes = tuple(range(-len(shape), 0))
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        parts: Tensor = self._parts[x] * (x.square().mean(axes, keepdim=True) + eps).rsqrt()
        return parts if weight is None else parts * weight

    def _set_item(self, target: Tensor, index: Any, value: Any) -> None:
        """Follow ``target[index] = value``."""
        known, given = self.parts(target), self.parts(value) if self._has(value) else None
        parts = (
            target.new_zeros(self.lanes.total, *target.shape) if known is None else known.clone()
        )
        place = (slice(None), *(index if isinstance(index, tuple) else (index,)))
        slot = parts[place]
        if given is None:
            parts[place] = 0
        else:
            missing = slot.ndim - given.ndim
            parts[place] = given.reshape(len(given), *[1] * missing, *given.shape[1:])
        self._parts[target] = parts


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _as_tensors(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return two operands as tensors: one may be a number."""
    like = next(value for value in values if isinstance(value, Tensor))
    return tuple(v if isinstance(v, Tensor) else like.new_tensor(v) for v in values)


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
            rest = DIVISIONS.get(inner[1:], inner[1:])
            if inner.startswith(marker) and rest in OPERATORS:
                return rest, in_place, swapped
        return DIVISIONS.get(inner, inner), False, False
    base = name.rstrip("_")
    return DIVISIONS.get(base, base), name.endswith("_"), False


def _pure(base: str) -> Callable[..., Any]:
    """Return the operation that does not change its first operand."""
    if base == "copy":
        return lambda target, source, *_: source.to(target.dtype).expand_as(target)
    pure: Callable[..., Any] = getattr(torch.Tensor, base)
    return pure


def _linear_operands(call: _Call) -> tuple[Any, Any, Any]:
    given = {**dict(zip(ORDER[call.name], call.args, strict=False)), **call.kwargs}
    entering, weight, bias = (given.get(name) for name in LINEAR[call.name])
    return entering, weight, bias


def _norm_operands(call: _Call, names: Sequence[str]) -> list[Any]:
    """Return the operands of a norm in order, also those given by name or not at all."""
    defaults = {"weight": None, "bias": None, "eps": None if "bias" not in names else 1e-5}
    missing = ("input", "normalized_shape", *names)[len(call.args) :]
    return [*call.args, *(call.kwargs.get(name, defaults.get(name)) for name in missing)]


@contextmanager
def frozen(network: nn.Module, mode: Frozen, attention: Collection[str]) -> Iterator[None]:
    """Follow parts through a network; `attention` names its attention modules.

    An activation may be a module that is written in simple steps. What has no weights, and maps
    every number by itself, is taken as one.
    """
    kinds: dict[nn.Module, str] = {}

    def enter(module: nn.Module, args: Any) -> None:
        mode.attending += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode.attending -= 1

    def begin(module: nn.Module, args: Any) -> None:
        mode.paused += 1

    def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        mode.paused -= 1
        if not any(map(mode.known, (*args, *kwargs.values()))) or mode.known(output):
            return None
        kind = "other"
        with mode.still():
            if len(args) == 1 and not kwargs and isinstance(output, Tensor):
                kind = kinds.setdefault(module, kind_of(module, args[0], output))
                if kind == "activation":
                    _activated(mode, args[0], output)
        return module.forward(*args, **kwargs) if kind == "other" else None

    handles = []
    try:
        for name, module in network.named_modules():
            if name in attention:
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
            elif _is_simple(module):
                handles.append(module.register_forward_pre_hook(begin))
                handles.append(
                    module.register_forward_hook(end, with_kwargs=True, always_call=True)
                )
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _activated(mode: Frozen, given: Tensor, value: Tensor) -> None:
    parts = mode.slope(given, value)
    if parts is None:
        mode.skip(value)
    else:
        mode.carry(value, parts)


def _is_simple(module: nn.Module) -> bool:
    """Whether a module has neither weights nor modules of its own; a softmax is seen anyway."""
    inner = [*module.children(), *module.parameters(), *module.buffers()]
    return not inner and not isinstance(module, nn.Softmax)


def kind_of(module: nn.Module, given: Tensor, value: Any) -> str:
    """Tell activations, coefficients (f(0) is not 0) and modules that mix numbers apart."""
    if not isinstance(value, Tensor) or value.shape != given.shape or torch.equal(value, given):
        return "other"
    turned = module.forward(given.flatten().flip(0).view_as(given))
    if not torch.allclose(turned.flatten().flip(0).view_as(value), value, atol=1e-5, rtol=1e-5):
        return "other"
    origin = module.forward(torch.zeros_like(given[:1]))
    return "activation" if not bool(origin.any()) else "coefficient"
