"""Layers: the modules that the vectors of tokens pass through one after another.

Which they are is seen and not known: a layer is the outermost module that takes and returns vectors
of all tokens of a stream, ``[batch, token, hidden]``, and attends once on the way (a decoder's
layer once to its own tokens and once to the encoder's).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from xattn.errors import AttentionError
from xattn.model.tap import Site
from xattn.model.trace import Link


@dataclass(frozen=True)
class Layer:
    """One call of a module that takes the vectors of a stream and returns new ones."""

    site: Site
    """The module and which of its calls: ALBERT calls one module many times."""
    stream: int
    """Whose vectors pass through it."""
    links: tuple[int, ...]
    """The attention in it: numbers of the model's links, in the order of computation."""


@dataclass(eq=False)
class _Call:
    """What was seen of one call of a module."""

    site: Site
    shape: tuple[int, ...] | None
    """Of the vectors it was given; None if it was given none."""
    kept: bool = False
    """Whether it returned vectors of the same shape."""
    inside: list[Site] = field(default_factory=list)
    """The attention modules that were called within, itself included."""


def first_tensor(values: Any, keywords: Mapping[str, Any] | None = None) -> Tensor | None:
    """Return the first tensor with three axes of what a module was given or has returned."""
    listed = list(values) if isinstance(values, (tuple, list)) else [values]
    tensors = (v for v in [*listed, *(keywords or {}).values()] if isinstance(v, Tensor))
    return next((tensor for tensor in tensors if tensor.ndim == 3), None)


@contextmanager
def _watched(network: nn.Module, attention: frozenset[str]) -> Iterator[list[_Call]]:
    """Yield a list that will hold every call of a module, the outer ones before the inner ones."""
    calls: list[_Call] = []
    active: list[_Call] = []
    counts: dict[str, int] = defaultdict(int)
    handles = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensor = first_tensor(args, kwargs)
            call = _Call(Site(name, counts[name]), None if tensor is None else tuple(tensor.shape))
            counts[name] += 1
            calls.append(call)
            active.append(call)
            if name in attention:
                for outer in active:
                    outer.inside.append(call.site)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        call, tensor = active.pop(), first_tensor(output)
        call.kept = tensor is not None and tuple(tensor.shape) == call.shape

    try:
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def find_layers(
    network: nn.Module,
    links: Sequence[Link],
    shapes: Sequence[tuple[int, int]],
    forward: Callable[[], Any],
) -> tuple[Layer, ...]:
    """Return the layers of a network in the order of computation.

    Parameters
    ----------
    network : Module
    links : sequence of Link
        The attention between tokens.
    shapes : sequence of (int, int)
        Inputs and tokens of each stream of the probe that `forward` runs.
    forward : callable
        Runs the network once.

    Raises
    ------
    AttentionError
        If some attention is in no such module.
    """
    with _watched(network, frozenset(link.site.module for link in links)) as calls:
        forward()
    kinds = {link.site: (link.queries, link.keys) for link in links}
    numbers = {link.site: number for number, link in enumerate(links)}
    found: dict[Site, Layer] = {}
    for link in links:
        for call in calls:  # the outermost come first
            inside = [site for site in call.inside if site in kinds]
            alike = [site for site in inside if kinds[site] == kinds[link.site]]
            fits = call.shape is not None and call.shape[:2] == shapes[link.queries]
            if alike == [link.site] and call.kept and fits:
                at = tuple(numbers[site] for site in inside)
                found.setdefault(call.site, Layer(call.site, link.queries, at))
                break
        else:
            raise AttentionError(
                f"the layer around {link.site} cannot be found",
                expected="a module that takes and returns [batch, token, hidden]",
                remedy="use a method that follows attention alone, such as rollout",
            )
    return tuple(found.values())


@contextmanager
def at_layers(
    network: nn.Module,
    layers: Sequence[Layer],
    before: Callable[[Layer, Tensor], Tensor],
    after: Callable[[Layer, Tensor], Tensor],
) -> Iterator[None]:
    """Put something else in place of the vectors that enter and leave layers."""
    known = {layer.site: layer for layer in layers}
    calls: dict[str, int] = defaultdict(int)
    handles = []

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        layer, given = known.get(Site(name, calls[name])), first_tensor(args, kwargs)
        if layer is None or given is None:
            return None
        new = before(layer, given)
        swapped = tuple(new if value is given else value for value in args)
        return swapped, {k: new if v is given else v for k, v in kwargs.items()}

    def leave(name: str, module: nn.Module, args: Any, output: Any) -> Any:
        layer, returned = known.get(Site(name, calls[name])), first_tensor(output)
        calls[name] += 1
        if layer is None or returned is None:
            return None
        new = after(layer, returned)
        if isinstance(output, (tuple, list)):
            return type(output)(new if value is returned else value for value in output)
        return new

    try:
        for name in {layer.site.module for layer in layers}:
            module = network.get_submodule(name)
            handles.append(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(leave, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
