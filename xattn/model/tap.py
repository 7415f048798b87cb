"""The tap: where attention happens in a network, and what is changed there.

A *site* is one call of an attention function during a forward pass, named by the module it happens
in and the number of calls of that module so far (ALBERT calls one module in every layer). While a
tap is open, each site hands its scores (before softmax), its probabilities, its values and what its
heads hand on to a list of edits; a recording is an edit that changes nothing.

How the sites are reached is the business of the backends `interface`, `softmax` and `maps`;
`attach` finds the one that serves a network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from xattn.errors import AttentionError


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
    """What to change at every attention site; what is None stays as it is.

    Windows, images or streams that a model folds into one attention call are in the batch axis.
    """

    scores: Change | None = None
    """``[batch, head, query, key]`` before softmax, so that rows still sum to what they did."""
    probabilities: Change | None = None
    """``[batch, head, query, key]`` after softmax; rows are not renormalised. They sum to one, or
    to less where the model lets a learned sink take the rest (gpt-oss): the sink is no key."""
    values: Change | None = None
    """``[batch, head, key, dim]``, one for each query head."""
    outputs: Change | None = None
    """``[batch, head, query, dim]``: what each head hands on, before the heads are put together."""


_open_tap: ContextVar[Tap | None] = ContextVar("open_tap", default=None)


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
        self.computing = False
        """Whether the `interface` backend is computing attention at this moment."""
        self._calls: dict[str, int] = defaultdict(int)

    @contextmanager
    def opened(self, network: nn.Module) -> Iterator[None]:
        """Be the tap that backends find in this thread, counting calls from every forward pass."""
        start = network.register_forward_pre_hook(self._reset)
        token = _open_tap.set(self)
        try:
            yield
        finally:
            _open_tap.reset(token)
            start.remove()

    @property
    def is_open(self) -> bool:
        """Whether this tap is the open one in this thread: hooks run in every thread."""
        return _open_tap.get() is self

    def _reset(self, *_: Any) -> None:
        if self.is_open:
            self._calls.clear()

    def begin(self, module: nn.Module) -> Site:
        """Return the site of the call that begins in `module`.

        Raises
        ------
        AttentionError
            If the module is in training mode: dropout would make maps and logits random.
        """
        name = self.names[module]
        if module.training:
            raise AttentionError(
                f"{name} is in training mode, where dropout changes attention at random",
                remedy="call eval() on the model",
            )
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


def open_tap(module: nn.Module) -> Tap | None:
    """Return the tap that is open in this thread, if it is one of the module's network."""
    tap = _open_tap.get()
    return tap if tap is not None and module in tap.names else None


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
