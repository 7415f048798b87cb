"""Attention taps: every attention map of a Hugging Face model, to read, differentiate and edit.

A *site* is one call of an attention function during a forward pass, named by the module it happens
in and the number of calls of that module so far (ALBERT calls one module in every layer). While a
tap is open, each site hands its scores (before softmax) and its probabilities to a list of edits; a
recording is an edit that changes nothing.

Two backends reach the sites:

- `interface` registers one attention function and its mask with transformers' own
  ``AttentionInterface`` and switches the model to it;
- `softmax` catches ``softmax`` and ``scaled_dot_product_attention`` inside modules that are named
  after attention, for models that compute attention by themselves (DeBERTa).

Neither is trusted: `Model` compares logits with and without the tap before the first use.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.utils import logging as hf_logging

from xattn.errors import AttentionError

# The name must not contain "sdpa", "flash_attention" or a slash: transformers interprets these.
INTERFACE_NAME = "xattn"
ATTENTION_CLASS = re.compile(r"Att(entio)?n")
# Tensors that some models hand to the attention function although it has no use for them: they
# are already part of queries, keys or the mask.
REDUNDANT = frozenset({"position_ids", "cache_position", "position_embeddings"})


class Site(NamedTuple):
    """One call of an attention function within a forward pass."""

    module: str
    """Qualified name of the module, as in ``named_modules()``."""
    call: int
    """How many times this module had been called before in the same forward pass."""

    def __str__(self) -> str:
        return f"{self.module}#{self.call}" if self.call else self.module


Change = Callable[[Site, Tensor], Tensor]
"""Takes a site and its tensor ``[batch, head, query, key]``, returns one of the same shape."""


@dataclass(frozen=True)
class Edit:
    """What to change at every attention site; what is None stays as it is."""

    scores: Change | None = None
    """``[batch, head, query, key]`` before softmax, so that rows still sum to one."""
    probabilities: Change | None = None
    """``[batch, head, query, key]`` after softmax; rows are not renormalised."""
    values: Change | None = None
    """``[batch, head, key, dim]``, one for each query head."""
    outputs: Change | None = None
    """``[batch, head, query, dim]``: what each head hands on, before the heads are put together."""


class Tap:
    """The sites of one network and the edits that are applied there.

    Parameters
    ----------
    network : torch.nn.Module
        The model whose sites are tapped.
    edits : sequence of Edit
        Applied at each site, in order.
    """

    def __init__(self, network: nn.Module, edits: Sequence[Edit]) -> None:
        self.names = {module: name for name, module in network.named_modules()}
        self.edits = edits
        self._calls: dict[str, int] = defaultdict(int)

    def reset(self, *_: Any) -> None:
        """Start counting calls anew: a forward pass begins."""
        self._calls.clear()

    def begin(self, module: nn.Module) -> Site:
        """Return the site of the call that begins in `module`."""
        name = self.names[module]
        site = Site(name, self._calls[name])
        self._calls[name] += 1
        return site

    def attend(self, site: Site, scores: Tensor, softmax: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the probabilities of one site, edited.

        Parameters
        ----------
        site : Site
        scores : Tensor
            ``[batch, head, query, key]``, masked, before softmax.
        softmax : callable
            The model's own normalisation.
        """
        scores = self.change("scores", site, scores)
        return self.change("probabilities", site, softmax(scores))

    def change(self, what: str, site: Site, tensor: Tensor) -> Tensor:
        """Apply the edits of `what` (a field of `Edit`) to a tensor of one site, in order."""
        for edit in self.edits:
            tensor = _changed(getattr(edit, what), site, tensor)
        return tensor


def _changed(change: Change | None, site: Site, before: Tensor) -> Tensor:
    """Apply a change; refuse a result that would be broadcast in silence."""
    if change is None:
        return before
    after = change(site, before)
    if not isinstance(after, Tensor) or after.shape != before.shape:
        raise AttentionError(
            f"an edit at {site} returned something else than it was given",
            got=str(list(after.shape)) if isinstance(after, Tensor) else type(after).__name__,
            expected=f"a tensor {list(before.shape)}",
        )
    return after


_open_tap: ContextVar[Tap | None] = ContextVar("open_tap", default=None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **extras: Any,
) -> tuple[Tensor, Tensor]:
    """Compute attention as transformers' eager functions do, with the open tap in the middle.

    The parameter names are transformers' own: some models pass them by keyword.
    """
    unknown = [k for k, v in extras.items() if isinstance(v, Tensor) and k not in REDUNDANT]
    if unknown or extras.get("softcap") is not None:
        raise AttentionError(
            f"{type(module).__name__} passes tensors to its attention that the interface backend "
            "does not know",
            got=", ".join(unknown) or "softcap",
        )
    groups = query.shape[1] // key.shape[1]  # grouped queries share a key head
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scale
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]

    def softmax(scores: Tensor) -> Tensor:
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype)

    tap = _open_tap.get()
    if tap is None or module not in tap.names:
        probabilities = softmax(scores)
        mixed = probabilities @ value
    else:
        site = tap.begin(module)
        probabilities = tap.attend(site, scores, softmax)
        mixed = tap.change("outputs", site, probabilities @ tap.change("values", site, value))
    return mixed.transpose(1, 2).contiguous(), probabilities


@contextmanager
def attention_implementation(network: PreTrainedModel, name: str) -> Iterator[None]:
    """Run a transformers model under another attention implementation, then put the old ones back.

    Models that do not follow the interface keep theirs; the verification notices.
    """
    owned: list[Any] = [getattr(module, "config", None) for module in network.modules()]
    configs = {id(c): c for c in owned if hasattr(c, "_attn_implementation")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # refusals are found by the verification, not read in a log
    try:
        network.set_attn_implementation(name)
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
        hf_logging.set_verbosity(verbosity)


@contextmanager
def interface(network: PreTrainedModel, tap: Tap) -> Iterator[None]:
    """Open `tap` through transformers' attention interface."""
    AttentionInterface.register(INTERFACE_NAME, _attention)
    # Without a registered mask the model would silently lose padding and causality.
    AttentionMaskInterface.register(INTERFACE_NAME, eager_mask)
    start = network.register_forward_pre_hook(tap.reset)
    token = _open_tap.set(tap)
    try:
        with attention_implementation(network, INTERFACE_NAME):
            yield
    finally:
        _open_tap.reset(token)
        start.remove()


class _SoftmaxMode(TorchFunctionMode):
    """Hands the softmax of attention modules to a tap; everything else passes untouched."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.tap = tap
        self.inside: list[nn.Module] = []
        """The attention modules that are being computed, innermost last."""

    def enter(self, module: nn.Module, *_: Any) -> None:
        self.inside.append(module)

    def leave(self, *_: Any) -> None:
        self.inside.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            if func is nn.functional.scaled_dot_product_attention:
                return self._scaled_dot_product(*args, **kwargs)
            if getattr(func, "__name__", "") == "softmax" and args[0].ndim == 4:
                return self._softmax(func, args, kwargs)
        return func(*args, **kwargs)

    def _softmax(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        dim = kwargs["dim"] if "dim" in kwargs else args[1]
        if dim not in (-1, args[0].ndim - 1):
            result: Tensor = func(*args, **kwargs)
            return result
        site = self.tap.begin(self.inside[-1])
        return self.tap.attend(site, args[0], lambda scores: func(scores, *args[1:], **kwargs))

    def _scaled_dot_product(
        self,
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
        site = self.tap.begin(self.inside[-1])
        probabilities = self.tap.attend(site, scores, lambda s: s.softmax(-1))
        mixed = probabilities @ self.tap.change("values", site, value)
        return self.tap.change("outputs", site, mixed)


@contextmanager
def softmax(network: PreTrainedModel, tap: Tap) -> Iterator[None]:
    """Open `tap` by catching softmax inside attention modules."""
    mode = _SoftmaxMode(tap)
    handles = [network.register_forward_pre_hook(tap.reset)]
    try:
        for module in network.modules():
            if ATTENTION_CLASS.search(type(module).__name__):
                handles.append(module.register_forward_pre_hook(mode.enter))
                # also when the module raises, or the next forward pass would start inside it
                handles.append(module.register_forward_hook(mode.leave, always_call=True))
        # "eager" where the model knows it: fused kernels have no softmax to catch
        with attention_implementation(network, "eager"), mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Attached:
    """A backend that was seen to leave the logits alone, and what it reaches."""

    backend: str
    sites: tuple[Site, ...]
    """In the order of computation."""
    shapes: tuple[tuple[int, int, int], ...]
    """Of each site in the probe: heads, queries, keys."""
    serves: frozenset[str]
    """The fields of `Edit` that take effect at every site; ``gradients`` if maps carry them."""
    skipped: tuple[str, ...] = ()
    """Layers that mix positions in another way than by attention."""


Backend = Callable[[PreTrainedModel, Tap], AbstractContextManager[None]]
BACKENDS: dict[str, Backend] = {"interface": interface, "softmax": softmax}

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far logits with a tap may be from those without, relative to the largest (at least 1)."""


def find_backend(network: PreTrainedModel, forward: Callable[[], Tensor]) -> Attached:
    """Return the first backend that is seen to leave the logits alone, and the sites it reaches.

    Parameters
    ----------
    network : PreTrainedModel
    forward : callable
        Runs the network on a probe and returns its logits.

    Raises
    ------
    AttentionError
        If there is no attention, or no backend reproduces the logits.
    """
    plain = forward()
    allowed = TOLERANCE.get(network.dtype, 1e-4) * max(1.0, float(plain.abs().max()))
    failures = []
    for name, backend in BACKENDS.items():
        sites: dict[Site, tuple[int, int, int]] = {}

        def note(
            site: Site, probabilities: Tensor, sites: dict[Site, tuple[int, int, int]] = sites
        ) -> Tensor:
            _, heads, queries, keys = probabilities.shape
            sites[site] = (heads, queries, keys)
            return probabilities

        try:
            with backend(network, Tap(network, (Edit(probabilities=note),))):
                difference = float((forward() - plain).abs().max())
        except (AttentionError, KeyError, ValueError) as error:
            failures.append(f"{name}: {error}")
            continue
        if sites and difference <= allowed:
            serves = frozenset({"scores", "probabilities", "values", "outputs", "gradients"})
            return Attached(name, tuple(sites), tuple(sites.values()), serves)
        failures.append(f"{name}: logits differ by {difference:.2g}" if sites else f"{name}: none")
    raise AttentionError(
        f"the attention of {type(network).__name__} cannot be reached",
        got="; ".join(failures),
        expected=f"attention, and the logits of the untapped model within {allowed:.1g}",
        remedy="use a method that does not need attention, such as integrated_gradients",
    )
