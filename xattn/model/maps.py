"""The backend `maps`: attention maps as the model itself returns them, to be read only.

For models whose attention is neither behind the interface nor a softmax over queries and keys. The
maps carry no gradient, and nothing that is done to them has an effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from xattn.errors import AttentionError
from xattn.model.interface import attention_implementation
from xattn.model.tap import Site, Tap

# In the order of computation.
FIELDS = ("vision_attentions", "encoder_attentions", "attentions", "decoder_attentions",
          "cross_attentions")  # fmt: skip


@contextmanager
def maps(network: PreTrainedModel, tap: Tap) -> Iterator[None]:
    """Open `tap` on the maps that the network returns with ``output_attentions=True``.

    Sites are named by the field of the output and the position in it.

    Raises
    ------
    AttentionError
        If an edit wants to change something, or a map is not ``[batch, head, query, key]``.
    """
    if any(edit.scores or edit.values or edit.outputs for edit in tap.edits):
        raise _read_only(type(network).__name__)

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if not tap.is_open:
            return None
        return args, {**kwargs, "output_attentions": True, "return_dict": True}

    def read(module: nn.Module, args: Any, output: Any) -> None:
        if not tap.is_open:
            return
        for field in FIELDS:
            for call, probabilities in enumerate(getattr(output, field, None) or ()):
                _show(tap, Site(field, call), probabilities.detach())

    handles = [
        network.register_forward_pre_hook(ask, with_kwargs=True),
        network.register_forward_hook(read),
    ]
    try:
        with tap.opened(network), attention_implementation(network, "eager"), _unhooked(network):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _show(tap: Tap, site: Site, probabilities: Tensor) -> None:
    sums = probabilities.sum(-1)
    if probabilities.ndim != 4 or bool((sums > 1.01).any()) or bool((probabilities < 0).any()):
        raise AttentionError(
            f"{site} is not an attention map",
            got=f"shape {list(probabilities.shape)}, rows that sum to {float(sums.max()):.3g}",
            expected="[batch, head, query, key], rows that sum to one",
        )
    if tap.change("probabilities", site, probabilities) is not probabilities:
        raise _read_only(str(site))


def _read_only(what: str) -> AttentionError:
    return AttentionError(
        f"the attention maps of {what} can only be read",
        got="an edit of attention",
        remedy="perturb the input instead",
    )


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
