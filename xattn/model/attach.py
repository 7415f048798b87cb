"""Attaching: the backend that is seen to serve a network, and what it serves.

No backend is trusted, and no architecture is known by name: each backend is tried on a probe, and
the first that leaves the logits alone is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xattn.errors import AttentionError, ModelError
from xattn.model.interface import interface
from xattn.model.maps import maps
from xattn.model.softmax import mixed, softmax
from xattn.model.tap import Change, Edit, Site, Tap

Backend = Callable[[PreTrainedModel, Tap], AbstractContextManager[None]]
BACKENDS: dict[str, Backend] = {
    "mixed": mixed,
    "softmax": softmax,
    "maps": maps,
    "interface": interface,
}

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far logits with a tap may be from those without, relative to the largest (at least 1)."""

GRADIENTS = "gradients"
WHAT = tuple(f.name for f in fields(Edit))
# What a network raises that cannot work with a backend: an unknown implementation is a KeyError, a
# result that it cannot use anything of the others. The message of each is kept.
FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Attached:
    """What was seen when a network was tapped."""

    backend: str
    """A name in `BACKENDS`."""
    sites: tuple[Site, ...]
    """In the order of computation."""
    shapes: tuple[tuple[int, int, int], ...]
    """Heads, queries and keys of each site in the probe."""
    serves: frozenset[str]
    """The fields of `Edit` that take effect at every site, and ``"gradients"`` if the logits'
    gradient reaches every map that they depend on."""
    skipped: tuple[str, ...] = ()
    """Layers without attention in a stack of layers that have it (hybrids)."""


class _Trial:
    """A tap whose edit changes nothing and keeps what it sees."""

    def __init__(self, network: PreTrainedModel, what: Sequence[str]) -> None:
        self.tap = Tap(network, (Edit(**{each: self._see(each) for each in what}),))
        self.maps: dict[Site, Tensor] = {}
        self.seen: dict[str, set[Site]] = {what: set() for what in WHAT}
        self.outside: set[Site] = set()
        """The sites that were not reached through the interface."""

    def _see(self, what: str) -> Change:
        def change(site: Site, tensor: Tensor) -> Tensor:
            self.seen[what].add(site)
            if what != "probabilities":
                return tensor
            if not self.tap.computing:
                self.outside.add(site)
            if torch.is_grad_enabled() and not tensor.requires_grad:
                # frozen parameters: the first map depends on nothing that has a gradient
                self.maps[site] = tensor.detach().requires_grad_()
                return self.maps[site].clone()  # a leaf is nothing that a model may write into
            self.maps[site] = tensor
            return tensor

        return change

    def without_gradient(self, logits: Tensor) -> set[Site]:
        """Return the sites whose maps the logits' gradient does not reach."""
        if not logits.requires_grad:
            return set(self.maps)
        try:
            gradients = torch.autograd.grad(
                logits.float().square().sum(), list(self.maps.values()), allow_unused=True
            )
        except RuntimeError:  # an operation without a derivative, at all or in this precision
            return set(self.maps)
        return {site for site, g in zip(self.maps, gradients, strict=True) if g is None}


def find_backend(network: PreTrainedModel, forward: Callable[[], Tensor]) -> Attached:
    """Return the first backend that is seen to leave the logits alone, and what it serves.

    Parameters
    ----------
    network : PreTrainedModel
        In evaluation mode, or put into it by `forward`.
    forward : callable
        Runs the network on a probe and returns its logits, of any shape. It must leave the gradient
        mode alone: whether gradients reach the maps is tried too.

    Raises
    ------
    AttentionError
        If there is no attention, or no backend reproduces the logits.
    ModelError
        If the logits are not numbers even without a tap.
    """
    with torch.no_grad():
        plain = forward()
    if bool(plain.isnan().any()):
        raise ModelError("logits are not numbers on a probe", remedy="check the weights")
    failures = []
    # A trial of `mixed` tells whether the interface alone would reach everything.
    for name in [name for name in BACKENDS if name != "interface"]:
        try:
            return _attach(network, forward, name, plain)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            failures.append(f"{name}: {error}")
    raise AttentionError(
        f"the attention of {type(network).__name__} cannot be reached",
        got="; ".join(failures),
        expected="attention, and the logits of the untapped model",
        remedy="use a method that does not need attention, such as integrated_gradients",
    )


def _attach(
    network: PreTrainedModel, forward: Callable[[], Tensor], name: str, plain: Tensor
) -> Attached:
    """Try one backend; an error says what is wrong with it."""
    writes = name != "maps"
    trial = _Trial(network, WHAT if writes else ("probabilities",))
    with BACKENDS[name](network, trial.tap), torch.set_grad_enabled(writes):
        logits = forward()
    if not trial.maps:
        raise AttentionError("none")
    check_same(logits.detach(), plain, network.dtype)
    sites = tuple(trial.maps)
    if name == "mixed":
        if trial.outside == set(sites):
            raise AttentionError("the interface reaches nothing")
        name = name if trial.outside else "interface"
    served = {what for what in WHAT if writes and trial.seen[what] == set(sites)}
    if writes:
        cut = trial.without_gradient(logits)
        if not cut or _idle(network, forward, name, cut):
            served.add(GRADIENTS)
    return Attached(
        backend=name,
        sites=sites,
        shapes=tuple((m.shape[1], m.shape[2], m.shape[3]) for m in trial.maps.values()),
        serves=frozenset(served),
        skipped=_without_attention(network, sites),
    )


def check_same(logits: Tensor, plain: Tensor, dtype: torch.dtype) -> None:
    """Raise `AttentionError` if logits with a tap are not those without, for weights of a type."""
    difference, allowed = _compared(logits, plain, dtype)
    if difference > allowed:
        raise AttentionError(f"logits differ by {difference:.2g}, more than {allowed:.1g}")


def same(logits: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    """Return whether logits are the same, as far as weights of a type can tell."""
    difference, allowed = _compared(logits, plain, dtype)
    return difference <= allowed


def _compared(logits: Tensor, plain: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return the largest difference, and how large it may be."""
    difference, scale = _difference(logits, plain)
    return difference, TOLERANCE.get(dtype, 1e-4) * max(1.0, scale)


def _difference(logits: Tensor, plain: Tensor) -> tuple[float, float]:
    """Return the largest difference, and the largest logit."""
    # Where classes are ruled out, by minus infinity or a huge number, nothing else will do.
    ordinary = plain.abs() < 1e9
    if not torch.equal(logits[~ordinary], plain[~ordinary]) or not bool(ordinary.any()):
        return float("inf"), 0.0
    expected = plain[ordinary]
    difference = float((logits[ordinary] - expected).abs().nan_to_num(nan=float("inf")).max())
    return difference, float(expected.abs().max())


def _idle(
    network: PreTrainedModel, forward: Callable[[], Tensor], backend: str, sites: Collection[Site]
) -> bool:
    """Return whether the logits do not depend on some sites, whose gradient is rightly none.

    CANINE's last attention is computed for tasks on characters only.
    """

    def halve(site: Site, probabilities: Tensor) -> Tensor:
        return probabilities / 2 if site in sites else probabilities

    logits = []
    for edit in (Edit(), Edit(probabilities=halve)):
        with torch.no_grad(), BACKENDS[backend](network, Tap(network, (edit,))):
            logits.append(forward())
    return torch.equal(*logits)


def _without_attention(network: nn.Module, sites: Sequence[Site]) -> tuple[str, ...]:
    """Return the layers that hold no site, of every stack of layers that holds one."""
    skipped: list[str] = []
    inner: tuple[str, ...] = ()  # what stands within a layer is a part of it
    for stack, module in network.named_modules():
        if not isinstance(module, nn.ModuleList) or stack.startswith(inner):
            continue
        layers = [f"{stack}.{i}" for i in range(len(module))]
        empty = [x for x in layers if not any(f"{s.module}.".startswith(f"{x}.") for s in sites)]
        if len(empty) < len(layers):
            skipped += empty
            inner += (f"{stack}.",)
    return tuple(skipped)
