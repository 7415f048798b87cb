"""The backend `maps`: attention maps as the model's own modules return them, to be read only.

For models whose attention is neither behind the interface nor a softmax over queries and keys. The
maps carry no gradient, and nothing that is done to them has an effect.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xattn.errors import AttentionError
from xattn.model.interface import attention_implementation
from xattn.model.softmax import ATTENTION_CLASS
from xattn.model.tap import Tap

Reader = Callable[[nn.Module, dict[str, Any], tuple[Any, ...]], Tensor]


@contextmanager
def maps(network: PreTrainedModel, tap: Tap) -> Iterator[None]:
    """Open `tap` on the maps that attention modules return with ``output_attentions=True``.

    Raises
    ------
    AttentionError
        If an edit wants to change something.
    """
    if any(edit.scores or edit.values or edit.outputs for edit in tap.edits):
        raise _read_only(type(network).__name__)
    accepted = inspect.signature(network.forward).parameters
    asks = "output_attentions" in accepted or "kwargs" in accepted
    length = 0

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        nonlocal length
        if not tap.is_open or not asks:
            return None
        given = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
        length = 0 if given is None else given.shape[1]
        return args, {**kwargs, "output_attentions": True}

    def read(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not tap.is_open or not isinstance(output, tuple):
            return
        reader = READERS.get(type(module).__name__)
        found = [reader(module, kwargs, output)[..., :length, :length]] if reader else output[1:]
        for probabilities in filter(_is_map, found):
            site = tap.begin(module)
            probabilities = probabilities.detach()
            if tap.change("probabilities", site, probabilities) is not probabilities:
                raise _read_only(str(site))

    handles = [network.register_forward_pre_hook(ask, with_kwargs=True)]
    handles += [
        module.register_forward_hook(read, with_kwargs=True)
        for module in network.modules()
        if ATTENTION_CLASS.search(type(module).__name__)
        and not any(ATTENTION_CLASS.search(type(m).__name__) for m in _below(module))
    ]
    try:
        with tap.opened(network), attention_implementation(network, "eager"), _unhooked(network):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _below(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if m is not module)


def _is_map(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or tensor.ndim != 4 or not tensor.is_floating_point():
        return False
    sums = tensor.float().sum(-1)
    return bool((tensor >= 0).all() and (sums < 1.01).all() and (sums > 0.99).any())


def _read_only(what: str) -> AttentionError:
    return AttentionError(
        f"the attention maps of {what} can only be read",
        got="an edit of attention",
        remedy="perturb the input instead",
    )


def _banded(module: nn.Module, kwargs: dict[str, Any], output: tuple[Any, ...]) -> Tensor:
    """Lay a band of windows and a few global tokens out as ``[batch, head, query, key]``.

    The band is ``[batch, query, head, global + window]``; rows of global tokens are empty there and
    come apart as ``[batch, head, global, key]``.
    """
    band: Tensor = output[1].transpose(1, 2)
    reach = int(module.one_sided_attn_window_size)  # type: ignore[arg-type]
    width = 2 * reach + 1
    batch, heads, tokens, _ = band.shape
    keys = torch.arange(tokens, device=band.device)[:, None] + torch.arange(width).to(band.device)
    dense = band.new_zeros(batch, heads, tokens, tokens + 2 * reach)
    dense.scatter_(-1, keys.expand(batch, heads, -1, -1), band[..., -width:])
    dense = dense[..., reach:-reach]
    for i, chosen in enumerate(kwargs["is_index_global_attn"]):
        (positions,) = chosen.nonzero(as_tuple=True)
        count = len(positions)
        if count:
            dense[i, ..., positions] += band[i, ..., :count]
            dense[i, :, positions] = output[2][i, :, :count]
    return dense


# The one place where architectures are known by name: what these modules return is no map yet.
READERS: dict[str, Reader] = {
    # The map is a band, which is the point of these models: whole maps never exist in them.
    "LongformerSelfAttention": _banded,
    "LEDEncoderSelfAttention": _banded,
}


@contextmanager
def _unhooked(network: nn.Module) -> Iterator[None]:
    """Remove the hooks that transformers installs for good when maps are first asked for.

    They would keep the model from being pickled.
    """
    flag = "_output_capturing_hooks_installed"
    before = {module: set(module._forward_hooks) for module in network.modules()}
    flagged = {module for module in before if flag in module.__dict__}
    try:
        yield
    finally:
        for module, hooks in before.items():
            for key, hook in list(module._forward_hooks.items()):
                if key not in hooks and "output_capturing" in hook.__module__:
                    del module._forward_hooks[key]
            if flag in module.__dict__ and module not in flagged:
                delattr(module, flag)
