"""The backend `interface`: attention computed by a function that transformers knows by name.

transformers looks its attention functions up by name (``AttentionInterface``) and builds masks by
the same name. One function registered there serves every model that follows the interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.utils import logging as hf_logging

from xattn.errors import AttentionError
from xattn.model.tap import Tap, open_tap

# The name must not contain "sdpa", "flash_attention" or a slash: transformers interprets these.
INTERFACE_NAME = "xattn"

# Tensors that some models hand to every attention function although only fused kernels use them:
# positions are in queries and keys already, and packed sequences come one by one. Any other tensor
# must be understood, or the backend refuses.
REDUNDANT = frozenset(
    {"position_ids", "cache_position", "position_embeddings", "cu_seq_lens_q", "cu_seq_lens_k"}
)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    sinks: Tensor | None = None,
    indices: Tensor | None = None,
    **extras: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention as transformers' eager functions do, with the open tap in the middle.

    The parameter names are transformers' own, since some models pass them by keyword. Dropout is
    left out: a tap refuses modules in training mode, and without a tap nothing comes here.
    """
    unknown = [k for k, v in extras.items() if isinstance(v, Tensor) and k not in REDUNDANT]
    if unknown:
        raise AttentionError(
            f"{type(module).__name__} passes tensors to its attention that the interface backend "
            "does not know",
            got=", ".join(unknown),
        )
    tap = open_tap(module)
    sink = s_aux if s_aux is not None else sinks
    plain = indices is None and value.shape[1] == key.shape[1] and (sink is None or sink.ndim == 1)
    if tap is not None and plain and not tap.needs_maps:
        mask = attention_mask if position_bias is None else position_bias
        if position_bias is not None and attention_mask is not None:
            mask = position_bias + attention_mask[..., : key.shape[2]]
        mixed = tap.mix(
            tap.begin(module), query, key, value,
            mask=mask, scale=scaling, softcap=softcap, sinks=sink,
        )  # fmt: skip
        return mixed.transpose(1, 2).contiguous(), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = _by_group(query, key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    if indices is not None:  # [batch, query, chosen]: sparse attention to the keys chosen
        left_out = torch.ones_like(scores[:, :1], dtype=torch.bool)
        left_out.scatter_(-1, indices.long().unsqueeze(1), False)
        scores = scores.masked_fill(left_out, torch.finfo(scores.dtype).min)

    def softmax(scores: Tensor) -> Tensor:
        precise = torch.promote_types(scores.dtype, torch.float32)
        if sink is None:
            return scores.softmax(-1, dtype=precise).to(value.dtype)
        # a sink takes its share of each row and has no value: a key that nobody reads
        column = (sink.view(1, -1, 1, 1) if sink.ndim == 1 else sink).expand(*scores.shape[:-1], 1)
        columns = torch.cat([scores, column.to(scores.dtype)], -1)
        return columns.softmax(-1, dtype=precise)[..., :-1].to(value.dtype)

    if tap is None:  # another thread runs the network while a tap is open here
        probabilities = softmax(scores)
        mixed = _by_group(probabilities, value)
    else:
        site = tap.begin(module)
        tap.computing = True
        try:
            probabilities = tap.attend(site, scores, softmax)
            if any(edit.values for edit in tap.edits):  # which see one of each query head
                value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
            value = tap.change("values", site, value)
            mixed = tap.change("outputs", site, _by_group(probabilities, value))
        finally:
            tap.computing = False
    return mixed.transpose(1, 2).contiguous(), probabilities


def _by_group(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right``, where groups of query heads in `left` share a head of `right`."""
    if left.shape[1] == right.shape[1]:
        return left @ right
    grouped = left.reshape(len(left), right.shape[1], -1, left.shape[-1])
    return (grouped @ right).view(*left.shape[:-1], right.shape[-1])


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Build masks as eager attention has them, and none where a single query sees all keys.

    So it is in most steps of generation, in which fused attention goes without a mask by the same
    rule; building one would take as long as a layer of a small model.
    """
    single = kwargs.get("q_length") == 1 and kwargs.get("allow_is_causal_skip", True)
    if single and sdpa_mask(*args, **kwargs) is None:
        return None
    mask: Tensor | None = eager_mask(*args, **kwargs)
    return mask


@contextmanager
def attention_implementation(network: PreTrainedModel, name: str) -> Iterator[None]:
    """Run a transformers model under another attention implementation, then put the old ones back.

    Models that do not follow the interface keep theirs; the verification notices.
    """
    # The attribute behind the property: the property's setter writes to all sub-configs as well.
    before = [(config, config._attn_implementation_internal) for config in _configs(network)]
    try:
        with quiet():  # refusals are found by the verification, not read in a log
            network.set_attn_implementation(name)
            yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing anything but errors into the log."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)


def _configs(network: nn.Module) -> list[Any]:
    """Return every transformers configuration in a network, each once."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [getattr(module, "config", None) for module in network.modules()]
    while waiting:
        config = waiting.pop()
        if hasattr(config, "_attn_implementation_internal") and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


@contextmanager
def interface(network: PreTrainedModel, tap: Tap) -> Iterator[None]:
    """Open `tap` through transformers' attention interface."""
    AttentionInterface.register(INTERFACE_NAME, _attention)
    # Without a registered mask the model would silently lose padding and causality.
    AttentionMaskInterface.register(INTERFACE_NAME, _mask)
    with tap.opened(network), attention_implementation(network, INTERFACE_NAME):
        yield
