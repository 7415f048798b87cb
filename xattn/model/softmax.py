"""The backend `softmax`: catches the softmax inside modules that are named after attention.

For models that compute attention by themselves (DeBERTa, BLOOM, XLNet). The result of the softmax
is followed through casts, dropout and reshapes to the product with the values, so that values and
outputs can be edited as well; fused attention is computed step by step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from xattn.errors import AttentionError
from xattn.model.interface import attention_implementation, interface
from xattn.model.tap import Site, Tap

ATTENTION_CLASS = re.compile(r"Att(entio)?n")
# What attention modules and configurations call their number of heads.
HEADS = ("num_heads", "num_attention_heads", "num_attn_heads", "n_heads", "n_head", "heads")
PRODUCTS = frozenset({"matmul", "__matmul__", "bmm"})
# After these the elements are in another order, so that rows are no longer rows.
REORDERING = frozenset({"transpose", "permute", "movedim", "swapaxes", "t", "flip", "roll"})


@dataclass(frozen=True)
class Layout:
    """How a model lays out one attention map, and the way to ``[batch, head, query, key]``.

    Heads may be folded into the batch axis (BART's old code) or stand next to further axes
    (ProphetNet's streams, windows), which are folded into the batch axis here.
    """

    shape: torch.Size
    """``[..., query, key]`` as the model has it."""
    heads: int
    axis: int | None
    """Where the heads are; None if they are folded into the first axis."""

    @classmethod
    def of(cls, shape: torch.Size, module: nn.Module) -> Layout | None:
        """Find the layout of a map of `module`; None if the module has no heads.

        Raises
        ------
        AttentionError
            If the heads are not found in the shape.
        """
        heads = _heads(module)
        if heads is None or len(shape) < 3:
            return None  # mixes something else than tokens: experts, or the outputs of layers
        if len(shape) == 3 and shape[0] % heads == 0:
            return cls(shape, heads, None)
        for axis in range(len(shape) - 3, 0, -1):
            if shape[axis] == heads:
                return cls(shape, heads, axis)
        raise AttentionError(
            f"the attention of {type(module).__name__} is not laid out by heads, queries and keys",
            got=f"a softmax over {list(shape)}",
            expected=f"an axis of {heads} heads",
        )

    def by_head(self, tensor: Tensor) -> Tensor:
        """Bring ``[..., row, column]`` to ``[batch, head, row, column]``."""
        if self.axis is not None:
            tensor = tensor.movedim(self.axis, -3)
        return tensor.reshape(-1, self.heads, *tensor.shape[-2:])

    def as_before(self, tensor: Tensor) -> Tensor:
        """Bring ``[batch, head, row, column]`` back to ``[..., row, column]``."""
        if self.axis is None:
            return tensor.reshape(-1, *tensor.shape[-2:])
        others = [size for i, size in enumerate(self.shape[:-2]) if i != self.axis]
        return tensor.reshape(*others, *tensor.shape[-3:]).movedim(-3, self.axis)

    def spread(self, values: Tensor, probabilities: Tensor) -> Tensor:
        """Bring the values that `probabilities` are multiplied with to one of each head.

        Both are as the model multiplies them, so keys that heads share (multi-query attention) have
        an axis of size one, or none where heads and queries are folded into one axis (GPT-BigCode).
        """
        *lead, rows, _ = probabilities.shape
        if rows != self.shape[-2]:
            values, lead = values.unsqueeze(-3), [*lead, rows // self.shape[-2]]
        values = values.expand(*lead, *values.shape[-2:])
        return self.by_head(values.reshape(*self.shape[:-2], *values.shape[-2:]))


def _heads(module: nn.Module) -> int | None:
    for owner in (module, getattr(module, "config", None)):
        for name in HEADS:
            if isinstance(heads := getattr(owner, name, None), int):
                return heads
    return None


@dataclass(frozen=True)
class _Followed:
    """A tensor that holds the probabilities of one site in the order in which they were made."""

    tensor: Tensor
    """Kept alive, since it is recognised by its address."""
    site: Site
    layout: Layout
    module: nn.Module


class _SoftmaxMode(TorchFunctionMode):
    """Hands the attention of attention modules to a tap; everything else passes untouched."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.tap = tap
        self.inside: list[nn.Module] = []
        """The attention modules that are being computed, innermost last."""
        self.followed: dict[int, _Followed] = {}
        self.follows = any(edit.values or edit.outputs for edit in tap.edits)

    def enter(self, module: nn.Module, *_: Any) -> None:
        if self.tap.is_open:
            self.inside.append(module)

    def leave(self, module: nn.Module, *_: Any) -> None:
        if self.tap.is_open and self.inside and self.inside[-1] is module:
            self.inside.pop()
            self.followed = {i: f for i, f in self.followed.items() if f.module is not module}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.inside or self.tap.computing:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if func is nn.functional.scaled_dot_product_attention:
            return self._scaled_dot_product(func, *args, **kwargs)
        if name == "softmax":
            return self._softmax(func, args, kwargs)
        if not self.followed:
            return func(*args, **kwargs)
        if name in PRODUCTS and (found := self._find(args[:1])):
            return self._product(found, args[0], kwargs.get("other", kwargs.get("mat2", args[-1])))
        if name == "einsum":
            equation, *operands = args
            operands = operands[0] if isinstance(operands[0], (list, tuple)) else operands
            if (found := self._find(operands)) and len(operands) == 2:
                return self._einsum(found, equation, operands)
        found = self._find(args)
        result = func(*args, **kwargs)
        # casts, dropout, head masks and reshapes keep the elements
        kept = isinstance(result, Tensor) and found and result.numel() == found.tensor.numel()
        if found and kept and name not in REORDERING:
            self._follow(result, found.site, found.layout, found.module)
        return result

    def _follow(self, tensor: Tensor, site: Site, layout: Layout, module: nn.Module) -> None:
        self.followed[id(tensor)] = _Followed(tensor, site, layout, module)

    def _find(self, operands: Sequence[Any]) -> _Followed | None:
        return next((f for o in operands if (f := self.followed.get(id(o)))), None)

    def _softmax(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        scores: Tensor = args[0] if args else kwargs["input"]
        rest = args[1:]
        dim = rest[0] if rest else kwargs["dim"]
        module = self.inside[-1]
        over_keys = dim in (-1, scores.ndim - 1)
        layout = Layout.of(scores.shape, module) if over_keys else None
        if layout is None:
            result: Tensor = func(*args, **kwargs)
            return result
        # the same call on four axes
        rest, kwargs = ((-1, *rest[1:]), kwargs) if rest else ((), {**kwargs, "dim": -1})
        kwargs = {k: v for k, v in kwargs.items() if k != "input"}
        site = self.tap.begin(module)
        by_head = self.tap.attend(site, layout.by_head(scores), lambda s: func(s, *rest, **kwargs))
        probabilities = layout.as_before(by_head)
        if self.follows:
            self._follow(probabilities, site, layout, module)
        return probabilities

    def _mix(self, found: _Followed, probabilities: Tensor, values: Tensor) -> Tensor:
        """Multiply ``[batch, head, query, key]`` and ``[batch, head, key, dim]``, edited."""
        # a later product with the same probabilities is with something else (relative positions)
        self.followed = {i: f for i, f in self.followed.items() if f.site != found.site}
        values = self.tap.change("values", found.site, values)
        return self.tap.change("outputs", found.site, probabilities @ values)

    def _product(self, found: _Followed, probabilities: Tensor, values: Tensor) -> Tensor:
        layout = found.layout
        by_head = layout.by_head(probabilities.reshape(layout.shape))
        mixed = self._mix(found, by_head, layout.spread(values, probabilities))
        return layout.as_before(mixed).reshape(*probabilities.shape[:-1], values.shape[-1])

    def _einsum(self, found: _Followed, equation: str, operands: Sequence[Tensor]) -> Tensor:
        sources, result = equation.replace(" ", "").split("->")
        maps, other = sources.split(",")
        probabilities, values = operands
        if probabilities is not found.tensor:
            maps, other, probabilities, values = other, maps, values, probabilities
        lead, query, key = maps[:-2], maps[-2], maps[-1]
        dim = "".join(set(other) - set(maps))
        if len(dim) != 1 or key not in other or set(result) != {*lead, query, dim}:
            return torch.einsum(equation, *operands)
        # axes of the values that are missing are shared
        present = [letter for letter in (*lead, key, dim) if letter in other]
        values = torch.einsum(f"{other}->{''.join(present)}", values)
        for i, letter in enumerate(lead):
            values = values if letter in other else values.unsqueeze(i)
        layout = found.layout
        by_head = layout.by_head(probabilities.reshape(layout.shape))
        mixed = layout.as_before(
            self._mix(found, by_head, layout.spread(values, probabilities))
        ).reshape(*probabilities.shape[:-1], values.shape[-1])
        return torch.einsum(f"{lead}{query}{dim}->{result}", mixed)

    def _scaled_dot_product(
        self,
        func: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Do what ``scaled_dot_product_attention`` documents, with the tap in the middle."""
        module = self.inside[-1]
        layout = Layout.of(torch.Size([*query.shape[:-1], key.shape[-2]]), module)
        if layout is None:
            result: Tensor = func(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
            return result
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        scores = (
            query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        )
        lowest = torch.finfo(scores.dtype).min
        if is_causal:
            above = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(above, lowest)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, lowest)
            else:
                scores = scores + attn_mask
        site = self.tap.begin(module)
        by_head = self.tap.attend(site, layout.by_head(scores), partial(torch.softmax, dim=-1))
        found = _Followed(by_head, site, layout, module)
        return layout.as_before(self._mix(found, by_head, layout.spread(value, scores)))


@contextmanager
def _caught(network: PreTrainedModel, mode: _SoftmaxMode) -> Iterator[None]:
    handles = []
    try:
        for module in network.modules():
            if ATTENTION_CLASS.search(type(module).__name__):
                handles.append(module.register_forward_pre_hook(mode.enter))
                # also when the module raises, or the next forward pass would start inside it
                handles.append(module.register_forward_hook(mode.leave, always_call=True))
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def softmax(network: PreTrainedModel, tap: Tap) -> Iterator[None]:
    """Open `tap` by catching softmax inside attention modules."""
    # "eager" where the model knows it: fused kernels may be out of sight
    eager = attention_implementation(network, "eager")
    with tap.opened(network), eager, _caught(network, _SoftmaxMode(tap)):
        yield


@contextmanager
def mixed(network: PreTrainedModel, tap: Tap) -> Iterator[None]:
    """Open `tap` through the interface, and by catching softmax where modules do not follow it.

    Some models put modules of both kinds together (BLIP's image and text parts, say).
    """
    with interface(network, tap), _caught(network, _SoftmaxMode(tap)):
        yield
