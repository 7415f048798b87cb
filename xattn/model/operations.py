"""Operations that torch is asked for, under one name however they are written.

``x += y``, ``x.add_(y)``, ``torch.add(x, y)`` and ``y + x`` are one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
SYNONYMS = {
    "truediv": "div", "true_divide": "div", "divide": "div", "multiply": "mul",
    "linalg_vector_norm": "vector_norm", "linalg_norm": "vector_norm",
}  # fmt: skip
OPERATORS = frozenset({"add", "sub", "mul", "div", "matmul"})


@dataclass(frozen=True, eq=False)
class Call:
    """One operation that torch was asked for, as a function that changes nothing."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Tensor | None = None
    """The tensor that the result is to be written into."""

    @classmethod
    def of(cls, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Return a call of `function`, however it is written."""
        written = getattr(function, "__name__", "")
        name, in_place, swapped = plain_name(written)
        if in_place and name == "copy":
            return cls(name, _copy, args, kwargs, args[0])
        if in_place and callable(pure := getattr(torch.Tensor, name, None)):
            return cls(name, pure, args, kwargs, args[0])
        if swapped:
            return cls(name, getattr(torch, name), _as_tensors(args[1::-1]), kwargs)
        return cls(written if in_place else name, function, args, kwargs)

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
        return tensors((*self.args, *self.kwargs.values()))

    def named(self, order: Sequence[str]) -> dict[str, Any]:
        """Return all arguments by name; `order` has the names of those that stand by place."""
        return {**dict(zip(order, self.args, strict=False)), **self.kwargs}

    def operand(self, place: int, name: str) -> Any:
        """Return an argument by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs[name]


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors in a sequence, also those in sequences within."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors(value)
    return found


def linear_operands(call: Call) -> tuple[Any, Any, Any]:
    """Return the input, the weight and the bias of a linear map."""
    given = call.named(ORDER[call.name])
    entering, weight, bias = (given.get(name) for name in LINEAR[call.name])
    return entering, weight, bias


def plain_name(written: str) -> tuple[str, bool, bool]:
    """Return what an operator is called as a function, whether in place, whether swapped.

    Examples
    --------
    >>> plain_name("__iadd__"), plain_name("mul_"), plain_name("__rtruediv__")
    (('add', True, False), ('mul', True, False), ('div', False, True))
    """
    if written.startswith("__") and written.endswith("__"):
        inner = written[2:-2]
        for marker, in_place, swapped in (("i", True, False), ("r", False, True)):
            rest = SYNONYMS.get(inner[1:], inner[1:])
            if inner.startswith(marker) and rest in OPERATORS:
                return rest, in_place, swapped
        return SYNONYMS.get(inner, inner), False, False
    name = written.rstrip("_")
    return SYNONYMS.get(name, name), written.endswith("_"), False


def _as_tensors(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return two operands as tensors: one may be a number."""
    like = next(value for value in values if isinstance(value, Tensor))
    return tuple(v if isinstance(v, Tensor) else like.new_tensor(v) for v in values)


def _copy(target: Tensor, source: Tensor, *_: Any) -> Tensor:
    return source.to(target.dtype).expand_as(target)


def maps_numbers(module: nn.Module, given: Tensor, value: Any) -> bool:
    """Whether a module without weights maps every number by itself, as activations do.

    Then some numbers can change and the results of others stay, and numbers in another order give
    their results in that order. (A softmax passes the second test, a mask by place the first.)
    """
    if not isinstance(value, Tensor) or value.shape != given.shape:
        return False
    chosen = torch.rand(given.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    moved = module.forward(torch.where(chosen.to(given.device), given + 1, given))
    turned = module.forward(given.flatten().roll(1).view_as(given)).flatten().roll(-1)
    return all(
        torch.allclose(found, value, atol=1e-5, rtol=1e-5)
        for found in (torch.where(chosen.to(given.device), value, moved), turned.view_as(value))
    )
