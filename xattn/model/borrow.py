"""Borrowing a network: each context manager changes one thing for a while and puts it back.

Also after an exception or Ctrl-C.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xattn.errors import AttentionError, ModelError
from xattn.model.tap import Site

Noise = Callable[[Tensor, Tensor], Tensor]
"""Takes a module's input and output; returns what to add to the latter."""

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_FINDING = threading.Lock()


def lock(network: nn.Module) -> threading.RLock:
    """Return the one lock of a network, however many adapters are around it."""
    with _FINDING:
        return _LOCKS.setdefault(network, threading.RLock())


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without gradients of its parameters."""
    training = [module for module in network.modules() if module.training]
    # by name: offloaded parameters are other objects after every forward pass
    trainable = [
        (module, name)
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    try:
        for module in training:
            module.training = False
        for module, name in trainable:
            getattr(module, name).requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for module, name in trainable:
            getattr(module, name).requires_grad_(True)


@contextmanager
def padding_named(network: Any, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Tell a decoder which id is padding if its configuration does not.

    Decoder classifiers read the last token that is not padding, and refuse batches when their
    configuration names no padding token.
    """
    config = network.config.get_text_config()
    if "attention_mask" not in inputs or config.pad_token_id is not None:
        yield
        return
    # Padding is on the right. A zero elsewhere in the mask hides a token that is really there.
    padding = inputs["input_ids"][:, -1][inputs["attention_mask"][:, -1] == 0]
    config.pad_token_id = int(padding[0]) if len(padding) else -1
    try:
        yield
    finally:
        config.pad_token_id = None


@contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Let modules' outputs pass through hooks."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.enter_context(module.register_forward_hook(hook))
        yield


@contextmanager
def output_of(network: nn.Module, site: Site) -> Iterator[list[Tensor]]:
    """Yield a list that will hold the output of a site's module, with a gradient."""
    held: list[Tensor] = []
    calls = 0

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 != site.call:
            return None
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor):
            raise AttentionError(
                f"the output of {site} is not a tensor",
                got=type(first).__name__,
                remedy="use a method that does not need attention",
            )
        if not first.requires_grad:
            first = first.detach().requires_grad_()
        held.append(first)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    with _hooked([(network.get_submodule(site.module), hook)]):
        yield held


@contextmanager
def outputs_like(network: nn.Module, shape: Sequence[int]) -> Iterator[list[tuple[Site, Tensor]]]:
    """Yield a list that will hold every module's output ``[*shape, hidden]`` with a gradient."""
    held: list[tuple[Site, Tensor]] = []
    calls: dict[str, int] = defaultdict(int)

    def hook(name: str, module: nn.Module, args: Any, output: Any) -> None:
        site = Site(name, calls[name])
        calls[name] += 1
        alike = isinstance(output, Tensor) and output.shape[:-1] == tuple(shape)
        if alike and output.requires_grad:
            held.append((site, output))

    with _hooked([(module, partial(hook, name)) for name, module in network.named_modules()]):
        yield held


@contextmanager
def embedded(tables: Sequence[tuple[nn.Module, Tensor]]) -> Iterator[None]:
    """Make embedding tables return given embeddings, for one forward pass.

    Parameters
    ----------
    tables : sequence of (Module, Tensor)
        In the order in which the network asks them; one table may serve encoder and decoder.

    Raises
    ------
    ModelError
        If the network did not ask each table exactly once.
    """
    waiting: dict[nn.Module, list[Tensor]] = {}
    for table, embeddings in tables:
        waiting.setdefault(table, []).append(embeddings)
    surplus = 0

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        nonlocal surplus
        if not waiting[module]:
            surplus += 1
            return output
        # a clone: models may write into it
        return waiting[module].pop(0).to(output.dtype).clone()

    with _hooked([(table, hook) for table in waiting]):
        yield
    left = sum(map(len, waiting.values()))
    if surplus or left:
        raise ModelError(
            "the model does not read its tokens through its embedding table",
            got=f"{len(tables) + surplus - left} look-ups in one forward pass",
            expected=str(len(tables)),
            remedy="use a method that does not need gradients of embeddings",
        )


@contextmanager
def shaken(tables: Sequence[tuple[nn.Module, Noise]]) -> Iterator[None]:
    """Make embedding tables add noise to what they return.

    Parameters
    ----------
    tables : sequence of (Module, Noise)
        With what is added, given the table's input and output.
    """

    def hook(add: Noise, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + add(args[0], output)

    with _hooked([(table, partial(hook, add)) for table, add in tables]):
        yield


@contextmanager
def averaged(tables: Sequence[tuple[nn.Module, Tensor, Tensor]]) -> Iterator[None]:
    """Make embedding tables return their mean row at some tokens, for one forward pass.

    Parameters
    ----------
    tables : sequence of (Module, Tensor, Tensor)
        With ``[batch, token]`` bool and ``[hidden]`` each, in the order in which the network asks
        them.
    """
    waiting: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    for table, blank, mean in tables:
        waiting.setdefault(table, []).append((blank, mean))

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        if not waiting[module]:
            return output
        blank, mean = waiting[module].pop(0)
        return torch.where(blank[:, :, None], mean.to(output), output)

    with _hooked([(table, hook) for table in waiting]):
        yield
