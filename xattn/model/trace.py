"""What one forward pass (and one backward pass) through a tapped network leaves behind.

Attention sites are told apart by who looks at whom. The lengths of a map's two axes say it: on a
probe whose streams have different lengths, a site whose queries and keys are as many as the tokens
of one stream is self-attention there, one with queries of the decoder's stream and keys of the
encoder's is cross-attention. A site that fits no stream (windows in the batch axis, latent arrays)
is off the chain: it can be edited, but no method follows attention through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xattn.errors import AttentionError
from xattn.model import borrow
from xattn.model.reduction import HEAD_MEAN, WHOLE, GradientReduction, Reduction
from xattn.model.tap import Edit, Reading, Site
from xattn.types import AttentionMaps, Batch, Target

if TYPE_CHECKING:
    from xattn.model.runner import Runner

STACKS = {(0, 0): "encoder", (1, 1): "decoder", (1, 0): "cross"}


@dataclass(frozen=True)
class Link:
    """One site of the chain: which tokens look at which."""

    site: Site
    queries: int
    """The stream of those who look."""
    keys: int
    """The stream of those who are looked at."""
    stack: str
    """``self`` in models of one stream; else ``encoder``, ``decoder`` or ``cross``; ``text`` or
    ``image`` in models of both."""


def chain(
    sites: Sequence[Site], shapes: Sequence[tuple[int, int, int]], widths: Sequence[int]
) -> tuple[Link, ...]:
    """Return the sites between tokens, in the order of computation.

    Parameters
    ----------
    sites : sequence of Site
    shapes : sequence of (int, int, int)
        Heads, queries and keys of each, seen on a probe.
    widths : sequence of int
        Tokens of each stream of that probe, all different.

    Examples
    --------
    >>> shapes = [(4, 7, 7), (4, 5, 5), (4, 5, 7)]
    >>> sites = [Site("e", 0), Site("d.self", 0), Site("d.cross", 0)]
    >>> [link.stack for link in chain(sites, shapes, widths=(7, 5))]
    ['encoder', 'decoder', 'cross']
    """
    stream = {width: number for number, width in enumerate(widths)}
    links = []
    for site, (_, queries, keys) in zip(sites, shapes, strict=True):
        if queries in stream and keys in stream:
            pair = stream[queries], stream[keys]
            links.append(Link(site, *pair, STACKS[pair] if len(widths) > 1 else "self"))
    return tuple(links)


def readouts(links: Sequence[Link]) -> tuple[Link, ...]:
    """Return the last site of each stream that the prediction is read from.

    A stream that another one looks at (the encoder's) is read through that one only.
    """
    seen = {link.keys for link in links if link.keys != link.queries}
    last = {link.queries: link for link in links if link.queries not in seen}
    return tuple(last.values())


@dataclass(frozen=True)
class Request:
    """What shall be recorded in one forward and one backward pass; requests add up by ``|``."""

    reductions: tuple[Reduction | GradientReduction, ...] = ()
    """What is kept of each map."""
    embeddings: bool = False
    """Whether the embeddings are kept, and the derivative of the target by them."""
    layers: bool = False
    """Whether what each layer returns is kept, and the derivative of the target by it."""
    readout: bool = True
    """Whether it is found out where the prediction is read from."""

    def __or__(self, other: Request) -> Request:
        """Return a request for both, what they share once."""
        return Request(
            tuple(dict.fromkeys((*self.reductions, *other.reductions))),
            self.embeddings or other.embeddings,
            self.layers or other.layers,
            self.readout or other.readout,
        )

    @property
    def graded(self) -> bool:
        """Whether the target is differentiated by maps."""
        return any(isinstance(reduction, GradientReduction) for reduction in self.reductions)


@dataclass(frozen=True, eq=False)
class Trace:
    """Attention maps of one batch, and where its predictions are read from.

    Maps and gradients are kept as they came, one tensor a site, in the order of computation.
    """

    score: Tensor
    """``[batch]``: the target."""
    links: tuple[Link, ...]
    """Per map: its site, and who looks at whom."""
    streams: tuple[slice, ...]
    """Where each stream stands on the token axis."""
    maps: tuple[Tensor, ...]
    """Per site ``[batch, head, query, key]``, or what `reduce` made of it."""
    gradients: tuple[Tensor, ...]
    """Per site the derivative of the target by the map, same shape; empty if not asked for."""
    readout: Tensor
    """``[batch, token]``: where the prediction is read from; rows sum to 1, 0 at padding. Zeros if
    not asked for."""
    kept: Mapping[Reduction | GradientReduction, tuple[Tensor, ...]] = field(default_factory=dict)
    """What each reduction of a request left of each map."""
    embeddings: tuple[Tensor, Tensor] | None = None
    """The embeddings ``[batch, token, hidden]`` and the derivative of the target by them."""
    layers_out: tuple[tuple[Tensor, Tensor], ...] = ()
    """What each layer returned, ``[batch, token of its stream, hidden]``, and the derivative of the
    target by it; in the order of `Runner.layers`."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site of each map."""
        return tuple(link.site for link in self.links)

    def queries(self, index: int) -> slice:
        """Return where those who look in map `index` stand on the token axis."""
        return self.streams[self.links[index].queries]

    def keys(self, index: int) -> slice:
        """Return where those who are looked at in map `index` stand on the token axis."""
        return self.streams[self.links[index].keys]

    def layers(self) -> dict[str, list[int]]:
        """Return for each stack the numbers of its maps, first layer first."""
        stacks: dict[str, list[int]] = {}
        for number, link in enumerate(self.links):
            stacks.setdefault(link.stack, []).append(number)
        return stacks


def take(
    model: Runner,
    batch: Batch,
    target: Target,
    *,
    reduce: Reduction | None = WHOLE,
    gradients: bool | GradientReduction = False,
) -> Trace:
    """Run forward once, recording attention maps, and backward as far as needed.

    The readout is found by gradient and not by model family: positions mix in attention only,
    so the derivative of the target by the output of the *last* attention module is non-zero at
    exactly the positions that the prediction is read from. Its norm per position, normalised,
    is the readout.

    Parameters
    ----------
    batch : Batch
    target : Target
    reduce : Reduction, optional
        What is kept of each map: whole maps by default, nothing with None. Applied to runs of
        queries as they are computed, so that what is not needed is never held.
    gradients : bool or GradientReduction
        Also differentiate the target by every map, and keep the whole derivatives, or what the
        reduction makes of maps and derivatives: that computes each attention twice and holds a
        few queries of it. Without it, the backward pass is as short as the head of the model.

    Raises
    ------
    AttentionError
        If the model's attention cannot be reached, or its maps carry no gradients.
    """
    if gradients is True and reduce is not WHOLE:
        raise ValueError("gradients are taken of whole maps: do not reduce them")
    wanted = [r for r in (reduce, gradients) if isinstance(r, Reduction | GradientReduction)]
    if gradients is True:
        return record(model, batch, target, Request(), whole=True)
    trace = record(model, batch, target, Request(tuple(wanted)))
    return replace(
        trace,
        maps=() if reduce is None else trace.kept[reduce],
        gradients=trace.kept[gradients] if isinstance(gradients, GradientReduction) else (),
    )


def record(
    model: Runner, batch: Batch, target: Target, request: Request, *, whole: bool = False
) -> Trace:
    """Run forward once and backward as far as needed, recording what is asked for.

    The readout is found by gradient; see `take`.

    Parameters
    ----------
    batch : Batch
    target : Target
    request : Request
    whole : bool
        Also keep whole maps and the derivatives by them.

    Raises
    ------
    AttentionError
        If the model's attention cannot be reached, or its maps carry no gradients.
    """
    if not (request.reductions or request.readout or request.layers or whole):
        return _run(model, batch, target, request, {}, whole=False)
    if (whole or request.graded) and model.attach().backend == "maps":
        raise AttentionError(
            f"the attention maps of {type(model.network).__name__} carry no gradients",
            got="maps that can only be read",
            remedy="use a method that needs no gradients of attention, such as attention",
        )
    with model.lock:
        at = {link: link.site for link in readouts(model.links())} if request.readout else {}
        cut = model.cut
        # who needs more than the readout needs the whole graph; so do targets read in many places
        short = not (whole or request.graded or request.embeddings or request.layers)
        if at and cut is not None and short and target.weight is None:
            [link] = at
            trace = _run(model, batch, target, request, {link: cut}, whole=whole)
            if bool(((trace.readout > 0).sum(-1) == 1).all()):
                return trace
            # several positions: how much each counts is said by the last attention only
        return _run(model, batch, target, request, at, whole=whole)


def _run(
    model: Runner,
    batch: Batch,
    target: Target,
    request: Request,
    at: Mapping[Link, Site],
    *,
    whole: bool,
) -> Trace:
    """Do what `record` says, with the readout of each stream found at the output of a module."""
    model.require_gradients()
    links = model.links() if at or request.reductions or request.layers or whole else ()
    sizes = {link.site: (batch.widths[link.queries], batch.widths[link.keys]) for link in links}
    maps: dict[Site, Tensor] = {}
    kept: dict[Reduction | GradientReduction, dict[Site, Tensor]] = {
        reduction: {} for reduction in request.reductions
    }

    def note(site: Site, probabilities: Tensor) -> Tensor:
        # frozen parameters: the first map depends on nothing that has a gradient
        if site in sizes and not probabilities.requires_grad:
            probabilities = probabilities.detach().requires_grad_()
        maps[site] = probabilities
        return probabilities

    recordings = [Edit(probabilities=note)] if whole else []
    readings = [Reading(reduce, kept[reduce].__setitem__, sizes) for reduce in request.reductions]
    passed = [layer.site for layer in model.layers] if request.layers else []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        tap = stack.enter_context(model.borrowed(batch.inputs, recordings, readings))
        leaves = []
        if request.embeddings:
            leaves.append(model.embeddings(batch.inputs).requires_grad_())
            stack.enter_context(model.embedded(batch.inputs, leaves[0]))
        out = [stack.enter_context(borrow.output_of(model.network, site)) for site in passed]
        last = [stack.enter_context(borrow.output_of(model.network, site)) for site in at.values()]
        score = model.value(batch.inputs, target)
        groups = [
            [maps[link.site] for link in links] if whole else [],
            leaves,
            [held[0] for held in out],
            [held[0] for held in last],
            tap.sources if tap is not None else [],
        ]
        ends = np.cumsum([len(group) for group in groups]).tolist()
        sources = [source for group in groups for source in group]
        found = model.backward(score, sources) if sources else ()
    slopes = [found[end - len(group) : end] for group, end in zip(groups, ends, strict=True)]
    return Trace(
        score=score.detach(),
        links=links,
        streams=batch.streams,
        maps=tuple(m.detach() for m in groups[0]),
        gradients=slopes[0],
        readout=_readout(batch, dict(zip(at, slopes[3], strict=True)))
        if at
        else torch.zeros(batch.shape, device=score.device),
        kept={r: tuple(by[link.site] for link in links) for r, by in kept.items()},
        embeddings=(leaves[0].detach(), slopes[1][0]) if leaves else None,
        layers_out=tuple((h.detach(), g) for h, g in zip(groups[2], slopes[2], strict=True)),
    )


def find_cut(model: Runner, probe: Batch) -> tuple[Site | None, Tensor]:
    """Return a module behind the last attention through which the prediction reads one position.

    Behind the last attention positions do not mix. So if the target depends on one position of a
    later module's output, it depends on that position of the last attention, and no graph of the
    modules in between need be held. Found on a probe, while maps are read by runs of queries.

    Returns
    -------
    Site, optional
        None if there is no such module, or several streams are read from.
    Tensor
        The logits of the probe.
    """
    links = model.links()
    [last, *others] = readouts(links)
    sizes = {link.site: (probe.widths[link.queries], probe.widths[link.keys]) for link in links}
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        reading = Reading(HEAD_MEAN, lambda site, mean: None, sizes)
        stack.enter_context(model.borrowed(probe.inputs, readings=[reading]))
        stack.enter_context(borrow.output_of(model.network, last.site))
        shape = (len(probe), probe.widths[last.queries])
        outputs = stack.enter_context(borrow.outputs_like(model.network, shape))
        logits = model.forward(probe.inputs)
        # a token's own logits where there are such, else those of the whole text
        score = logits.flatten(1, -2)[:, 0, 0] if logits.ndim > 2 else logits[:, 0]
        # not the logits themselves: of these only some positions are computed later
        outputs = [(site, output) for site, output in outputs if output.shape != logits.shape]
        sources = [output for _, output in outputs]
        found = torch.autograd.grad(score.sum(), sources, allow_unused=True) if sources else ()
    cut = None
    for (site, _), gradient in zip(outputs, found, strict=True):
        if gradient is not None and bool((gradient.any(-1).sum(-1) == 1).all()):
            cut = site
    return None if others else cut, logits.detach()


def _readout(batch: Batch, gradients: Mapping[Link, Tensor]) -> Tensor:
    """Return the normalised strength ``[batch, token]`` of gradients by the last outputs."""
    first = next(iter(gradients.values()))
    strength = torch.zeros(batch.shape, device=first.device)
    for link, gradient in gradients.items():
        count, width = len(batch), batch.widths[link.queries]
        if gradient.shape[:2] == (width, count) != (count, width):
            gradient = gradient.transpose(0, 1)  # laid out by token and text
        if gradient.ndim != 3 or gradient.shape[:2] != (count, width):
            raise AttentionError(
                f"the output of {link.site} is not laid out by text and token",
                got=str(list(gradient.shape)),
                expected=f"[batch, token, hidden], beginning {[count, width]}",
                remedy="use a method that does not need attention",
            )
        strength[:, batch.streams[link.queries]] = gradient.float().norm(dim=-1)
    strength = strength * batch.real
    total = strength.sum(-1, keepdim=True)
    if bool((total == 0).any()):
        raise AttentionError(
            "the prediction does not depend on the last attention layer",
            got="a zero gradient at " + ", ".join(str(link.site) for link in gradients),
            remedy="a probability near 0 or 1 has none: explain the logit (--quantity logit)",
        )
    return strength / total


def maps_of(
    trace: Trace, batch: Batch, index: int, stack: str, layers: Sequence[int]
) -> AttentionMaps:
    """Cut the maps of one text in one stack out of a batch."""
    link = trace.links[layers[0]]
    encoding = batch.encodings[index]
    rows, columns = encoding.widths[link.queries], encoding.widths[link.keys]
    heads = {trace.maps[layer].shape[1] for layer in layers}
    if len(heads) > 1:
        raise AttentionError(
            f"the layers of {stack} attention have different numbers of heads",
            got=", ".join(map(str, sorted(heads))),
            remedy="record single layers with Model.trace",
        )
    stacked = torch.stack(
        [trace.maps[layer][index, :, :rows, :columns].float() for layer in layers]
    )
    tokens = np.array(encoding.tokens, dtype=object)
    readout = trace.readout[index, batch.streams[link.queries]][:rows]
    return AttentionMaps(
        tokens=tuple(tokens[encoding.streams == link.queries]),
        maps=stacked.cpu().numpy(),
        sites=tuple(str(trace.links[layer].site) for layer in layers),
        readout=readout.cpu().numpy(),
        keys=tuple(tokens[encoding.streams == link.keys]),
        stack=stack,
    )
