"""What one forward pass (and one backward pass) through a tapped network leaves behind.

Attention sites are told apart by who looks at whom. The lengths of a map's two axes say it: on a
probe whose streams have different lengths, a site whose queries and keys are as many as the tokens
of one stream is self-attention there, one with queries of the decoder's stream and keys of the
encoder's is cross-attention. A site that fits no stream (windows in the batch axis, latent arrays)
is off the chain: it can be edited, but no method follows attention through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from xattn.model.tap import Site

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
    """``[batch, token]``: where the prediction is read from; rows sum to 1, 0 at padding."""

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
