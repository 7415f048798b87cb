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
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from xattn.errors import AttentionError
from xattn.model.lanes import Lanes
from xattn.model.operations import (
    LINEAR,
    ORDER,
    Call,
    linear_operands,
    maps_numbers,
    tensors,
)

COEFFICIENTS = frozenset(
    {"softmax", "log_softmax", "sigmoid", "erf", "exp", "sqrt", "rsqrt", "reciprocal", "pow",
     "square", "var", "var_mean", "std", "norm", "vector_norm", "logsumexp"}
)  # fmt: skip
ACTIVATIONS = frozenset(
    {"gelu", "relu", "relu6", "silu", "tanh", "leaky_relu", "elu", "celu", "selu", "mish",
     "hardswish", "hardtanh", "softsign", "clamp", "abs"}
)  # fmt: skip
FRESH = re.compile(r"(zeros|ones|empty|full|rand|randn)_like|new_\w+|zero_|fill_|setitem")
"""Operations that take no more than shape and type of what they are given, or have no result."""
MATRIX_PRODUCTS = frozenset({"matmul", "bmm", "mm"})


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
        self.lean = False
        """Whether they hand on nothing within attention, where values are given parts anew."""
        self.leaked = False
        """Whether something that was skipped went another way than through a sum after attention:
        then nothing may be skipped within attention."""
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
        self._skipped.pop(tensor, None)
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
        given = () if self.paused else tensors((*args, *kwargs.values()))
        carry = any(tensor in self._parts for tensor in given)
        if not carry and not any(tensor in self._skipped for tensor in given):
            return func(*args, **kwargs)
        call = Call.of(func, args, kwargs)
        if call.name == "setitem":
            self._set_item(*args)
        if FRESH.fullmatch(call.name):
            if call.name.endswith("_"):
                self.drop(args[0])
            return func(*args, **kwargs)
        result = call.run()
        outputs = [tensor for tensor in tensors((result,)) if tensor.is_floating_point()]
        found = self._rule(call.name)(call, result) if carry and outputs else None
        if call.target is not None:
            result, outputs = call.target.copy_(result), [call.target]
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
            self._skipped.pop(tensor, None)
            return
        self.drop(tensor)
        if skipped:
            self._skipped[tensor] = True

    def _maps(self, call: Call) -> bool:
        """Whether an operation maps what has parts by a matrix of weights."""
        if call.name in LINEAR:
            entering, weight, _ = linear_operands(call)
            return self._has(entering) and not self._has(weight)
        if call.name in MATRIX_PRODUCTS:
            return self._has(call.operand(0, "input")) and not self._has(call.args[1])
        return False

    def _has(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._parts

    def _rule(self, base: str) -> Callable[[Call, Any], Any]:
        if base in LINEAR:
            return self._linear
        if base in COEFFICIENTS:
            return lambda call, result: None
        if base in ACTIVATIONS:
            return lambda call, result: self.slope(call.operand(0, "input"), result)
        if base in MATRIX_PRODUCTS:
            return self._matrix_product
        rules: dict[str, Callable[[Call, Any], Any]] = {
            "mul": self._product,
            "div": self._quotient,
            "einsum": self._einsum,
            "add": self._sum,
            "sub": self._sum,
            "rsub": self._sum,
            "layer_norm": self._layer_norm,
            "rms_norm": self._rms_norm,
        }
        return rules.get(base, self._other)

    def _other(self, call: Call, result: Any) -> tuple[Tensor, ...]:
        self.leaked |= any(t in self._skipped and t not in self._parts for t in call.tensors())
        return self._derivative(call, result)

    def _derivative(self, call: Call, result: Any) -> tuple[Tensor, ...]:
        """Return the parts of every result: the derivative along the parts of all operands."""
        sources = {id(tensor): tensor for tensor in call.tensors() if tensor in self._parts}

        def outputs(*values: Tensor) -> tuple[Tensor, ...]:
            found = call.run(dict(zip(sources, values, strict=True)))
            return tuple(t for t in tensors((found,)) if t.is_floating_point())

        def along(*parts: Tensor) -> tuple[Tensor, ...]:
            tangents: tuple[Tensor, ...] = jvp(outputs, tuple(sources.values()), parts)[1]
            return tangents

        given = [self._parts[tensor] for tensor in sources.values()]
        try:
            followed: tuple[Tensor, ...] = vmap(along)(*given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise AttentionError(
                f"no part of a token can be followed through torch's {call.name}",
                got=str(error).partition(". ")[0],
                remedy="use value_zeroing; if it mixes experts, experts_implementation='eager'",
            ) from error
        return followed

    def _along(self, call: Call, operand: Tensor) -> Tensor:
        """Return what a linear operation makes of the parts of one operand, the others fixed."""
        followed: Tensor = vmap(lambda part: call.run({id(operand): part}))(self._parts[operand])
        return followed

    def slope(self, x: Tensor, value: Tensor) -> Tensor | None:
        """Return the parts of f(x): those of x by the slope of the line through zero."""
        parts = self.parts(x)
        if parts is None:
            return None
        return parts * torch.where(x == 0, torch.zeros_like(x), value / x)

    def _sum(self, call: Call, result: Tensor) -> Tensor:
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
        self.leaked |= skipped and self.attending > 0
        return self.lanes.add(parts, effect.expand_as(result), skipped=skipped)

    def _linear(self, call: Call, result: Tensor) -> Tensor | None:
        entering, weight, bias = linear_operands(call)
        if not self._has(entering) or self._has(weight):  # queries times keys, if anything
            return None
        if self._skips():
            self._skipped[result] = True
            return None
        given = call.named(ORDER[call.name])
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
        skipping = self.skipping or (self.lean and self.attending > 0)
        return skipping and self.awaiting is None

    def _quotient(self, call: Call, result: Tensor) -> Tensor | None:
        dividend, divisor = call.operand(0, "input"), call.operand(1, "other")
        if not self._has(dividend):
            return None
        if dividend.shape == result.shape:
            parts: Tensor = self._parts[dividend] / divisor
            return parts
        return self._along(call, dividend)

    def _product(self, call: Call, result: Tensor) -> Tensor:
        first, second = call.operand(0, "input"), call.operand(1, "other")
        sides = [
            self._parts[a] * b if a.shape == result.shape else self._along(call, a)
            for a, b in ((first, second), (second, first))
            if self._has(a)
        ]
        return sides[0] if len(sides) == 1 else (sides[0] + sides[1]) / 2

    def _matrix_product(self, call: Call, result: Tensor) -> Tensor | None:
        return self._bilinear(call, result, call.args[0], call.operand(1, "other"))

    def _einsum(self, call: Call, result: Tensor) -> Any:
        operands = call.tensors()
        if len(operands) != 2:  # the ledger will tell
            return self._derivative(call, result)
        return self._bilinear(call, result, *operands)

    def _bilinear(self, call: Call, result: Tensor, first: Tensor, second: Tensor) -> Tensor | None:
        both = self._has(first) and self._has(second)
        if both and self.attending:
            return None
        if self._has(first) and not both and self._skips():
            self._skipped[result] = True
            return None
        sides = [self._along(call, side) for side in (first, second) if self._has(side)]
        return sides[0] if len(sides) == 1 else (sides[0] + sides[1]) / 2

    def _layer_norm(self, call: Call, result: Tensor) -> Tensor:
        given = call.named(("input", "normalized_shape", "weight", "bias", "eps"))
        x, shape, eps = given["input"], given["normalized_shape"], given.get("eps", 1e-5)
        weight, bias = given.get("weight"), given.get("bias")
        axes = tuple(range(-len(shape), 0))
        root = (x.var(axes, correction=0, keepdim=True) + eps).rsqrt()
        parts: Tensor = self._parts[x]
        parts = (parts - parts.mean(axes, keepdim=True)) * root
        parts = parts if weight is None else parts * weight
        return parts if bias is None else self.lanes.add(parts, bias.expand_as(result))

    def _rms_norm(self, call: Call, result: Tensor) -> Tensor:
        given = call.named(("input", "normalized_shape", "weight", "eps"))
        x, shape = given["input"], given["normalized_shape"]
        weight, eps = given.get("weight"), given.get("eps")
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
        if output is None:  # the module has raised
            return None
        if len(args) != 1 or kwargs:
            return module.forward(*args, **kwargs)
        with mode.still():
            if module not in kinds:
                kinds[module] = kind_of(module, args[0], output)
            if kinds[module] == "activation":
                _activated(mode, args[0], output)
        return module.forward(*args) if kinds[module] == "other" else None

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
    if not maps_numbers(module, given, value) or torch.equal(value, given):
        return "other"
    origin = module.forward(torch.zeros_like(given[:1]))
    return "activation" if not bool(origin.any()) else "coefficient"
