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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from xattn.errors import AttentionError
from xattn.model import kernel
from xattn.model.reduction import GradientReduction, Reduction


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


@dataclass(frozen=True)
class Reading:
    """What to keep of the (edited) maps of some sites, which it leaves as they are."""

    reduce: Reduction | GradientReduction
    """A `GradientReduction` is served when the target is differentiated: the sources of that
    backward pass include `Tap.sources`."""
    keep: Callable[[Site, Tensor], None]
    """Takes a site and what `reduce` left of its maps."""
    sizes: Mapping[Site, tuple[int, int]]
    """Queries and keys of each site that is read; others are passed by."""


_open_tap: ContextVar[Tap | None] = ContextVar("open_tap", default=None)


class Tap:
    """The sites of one network, the edits that are applied there and the readings taken.

    Parameters
    ----------
    network : torch.nn.Module
        The model whose sites are tapped.
    edits : sequence of Edit
        Applied at each site, in order.
    readings : sequence of Reading
        Taken at each site after the edits.
    """

    def __init__(
        self, network: nn.Module, edits: Sequence[Edit], readings: Sequence[Reading] = ()
    ) -> None:
        self.names = {module: name for name, module in network.named_modules()}
        self.edits, self.readings = edits, readings
        self.sources: list[Tensor] = []
        """What the target must be differentiated by for the readings of gradients to be taken."""
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
            self.sources.clear()

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
        return self._read(site, self.change("probabilities", site, softmax(scores)))

    @property
    def needs_maps(self) -> bool:
        """Whether whole maps must exist: edits see them; readings do with runs of queries."""
        return bool(self.edits)

    def mix(self, site: Site, query: Tensor, key: Tensor, value: Tensor, **form: Any) -> Tensor:
        """Return the outputs ``[batch, head, query, dim]`` of a site and take the readings.

        Parameters
        ----------
        site : Site
        query, key, value : Tensor
        **form
            What else `kernel.attention` takes: mask, scale, softcap, sinks.
        """
        reductions: list[tuple[Reduction, Callable[[Tensor], None]]] = []
        gradients: list[tuple[GradientReduction, Callable[[Tensor], None]]] = []
        for reading in self._due(site, (query.shape[2], key.shape[2])):
            reduce, keep = reading.reduce, partial(reading.keep, site)
            if isinstance(reduce, Reduction):
                reductions.append((reduce, keep))
            else:
                gradients.append((reduce, keep))
        if gradients:
            query = self._rooted(query)
        output, kept = kernel.attention(
            query, key, value, reductions=[r for r, _ in reductions], gradients=gradients, **form
        )
        for (_, note), reduced in zip(reductions, kept, strict=True):
            note(reduced)
        return output

    def _read(self, site: Site, probabilities: Tensor) -> Tensor:
        """Take the readings of whole maps; return the maps to go on with."""
        due = self._due(site, probabilities.shape[-2:])
        if any(isinstance(reading.reduce, GradientReduction) for reading in due):
            probabilities = self._rooted(probabilities)
        run = slice(0, probabilities.shape[-2])
        maps = probabilities.detach()
        for reading in due:
            reduce, keep = reading.reduce, partial(reading.keep, site)
            if isinstance(reduce, Reduction):
                keep(reduce.join([reduce.each(maps, run)]))
            else:
                hook = partial(_keep_gradient, reduce, keep, maps, run)
                probabilities.register_hook(hook)  # type: ignore[no-untyped-call]
        return probabilities

    def _due(self, site: Site, size: Sequence[int]) -> list[Reading]:
        """Return the readings of a site, whose maps must be of the size that they expect."""
        due = [reading for reading in self.readings if site in reading.sizes]
        for reading in due:
            if tuple(size) != reading.sizes[site]:
                raise AttentionError(
                    f"the attention at {site} is not between the tokens of the text",
                    got=f"{size[0]} queries and {size[1]} keys",
                    expected="{} and {}".format(*reading.sizes[site]),
                    remedy="use a method that does not need attention",
                )
        return due

    def _rooted(self, tensor: Tensor) -> Tensor:
        """Return a tensor with a gradient that the backward pass is made to compute.

        Frozen parameters leave the first site of a stack without one; and where something does have
        one, a backward pass goes no further than to what it is asked for.
        """
        rooted = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        self.sources.append(rooted)
        return rooted

    def change(self, what: str, site: Site, tensor: Tensor) -> Tensor:
        """Apply the edits of `what` (a field of `Edit`) to a tensor of one site, in order."""
        for edit in self.edits:
            tensor = _changed(getattr(edit, what), site, tensor)
        return tensor


def open_tap(module: nn.Module) -> Tap | None:
    """Return the tap that is open in this thread, if it is one of the module's network."""
    tap = _open_tap.get()
    return tap if tap is not None and module in tap.names else None


def _keep_gradient(
    reduce: GradientReduction,
    keep: Callable[[Tensor], None],
    maps: Tensor,
    run: slice,
    gradient: Tensor,
) -> None:
    keep(reduce.join([reduce.each(maps, gradient, run)]))


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
