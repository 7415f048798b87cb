"""Other attention maps in place of the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model.interventions import OfQueries, allowed
from xattn.model.places import Layout, Places
from xattn.model.tap import Edit, Site


@dataclass(frozen=True, eq=False)
class Uniform(OfQueries):
    """Let queries look at all keys alike that they may look at.

    What was masked before, by the model or by an earlier edit, stays masked.
    """

    needs = frozenset({"scores"})

    def resolve(self, places: Places) -> Edit:
        """Return the edit for one batch."""
        chosen, rows = self._rows(places, places.layout.heads.keys())

        def change(site: Site, scores: Tensor) -> Tensor:
            if site not in chosen:
                return scores
            # Keeping the largest score keeps the distance to masked keys, and to a sink.
            level = scores.amax(-1, keepdim=True)
            return torch.where(rows(site, scores) & allowed(scores), level, scores)

        return Edit(scores=change)


@dataclass(frozen=True, eq=False)
class Permuted(OfQueries):
    """Give each query's attention to other keys: the same numbers in another order.

    Keys change places among those that the query may look at. The order depends on the seed, the
    layer, the head and the query's and keys' positions, and on nothing else: neither on the other
    texts of a batch, nor on padding, nor on whether a cache is used.

    Attributes
    ----------
    seed : int
    """

    seed: int = 0

    needs = frozenset({"scores"})

    def resolve(self, places: Places) -> Edit:
        """Return the edit for one batch."""
        chosen, rows = self._rows(places, places.layout.heads.keys())
        numbers = {site: number for number, site in enumerate(places.layout.heads)}

        def change(site: Site, scores: Tensor) -> Tensor:
            if site not in chosen:
                return scores
            first = places.first_query(site), places.first_key(site)
            ranks = _hash(self.seed, numbers[site], first, scores)
            may = allowed(scores)
            # Allowed keys come first, once by position and once by hash; the rest keeps its order.
            here = (~may).to(torch.uint8).argsort(dim=-1, stable=True)
            there = torch.where(may, ranks, torch.iinfo(torch.int64).max)
            moved = scores.gather(-1, there.argsort(dim=-1, stable=True))
            permuted = torch.empty_like(scores).scatter(-1, here, moved)
            return torch.where(rows(site, scores), permuted, scores)

        return Edit(scores=change)


def _hash(seed: int, layer: int, first: tuple[int, int], like: Tensor) -> Tensor:
    """Return a number for each head, query and key, ``[1, head, query, key]`` int64 from 0.

    Counters are mixed as in splitmix64 (Steele, Lea & Flood 2014), so that each number depends on
    its own place alone: a generator's would depend on how much was drawn before.
    """
    _, heads, queries, keys = like.shape
    device = like.device
    x = torch.full((1, 1, 1, 1), seed & (2**31 - 1), dtype=torch.int64, device=device)
    places = (
        torch.tensor([layer], device=device)[:, None, None],
        torch.arange(heads, device=device)[:, None, None],
        torch.arange(first[0], first[0] + queries, device=device)[:, None],
        torch.arange(first[1], first[1] + keys, device=device),
    )
    for place in places:
        x = _mix(x + place + 1)
    return x & torch.iinfo(torch.int64).max


def _mix(x: Tensor) -> Tensor:
    """Return 64 bits that look random, one to one; products wrap around."""
    x = x * -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number, and so on
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & (2**33 - 1))


@dataclass(frozen=True, eq=False)
class Frozen(OfQueries):
    """Put given maps in place of the model's own, from another text or recorded earlier.

    Attributes
    ----------
    maps : sequence of Tensor or array
        One for each chosen layer, in order: ``[head, query, key]`` for every text of a batch, or
        ``[batch, head, query, key]``; such as `AttentionMaps.maps` or `Trace.maps`. Their shape
        must be that of the maps they replace: all heads, and the padding of the batch.
    """

    maps: Sequence[Tensor | npt.NDArray[np.floating]] = field(repr=False)

    needs = frozenset({"probabilities"})

    def check(self, layout: Layout) -> dict[Site, tuple[int, ...]]:
        """Return the heads of each site that are meant; refuse maps that cannot be theirs."""
        chosen = super().check(layout)
        if len(self.maps) != len(chosen):
            raise InputError(
                "frozen maps do not fit the layers",
                got=f"{len(self.maps)} maps",
                expected=f"{len(chosen)}, one for each chosen layer",
            )
        for site, given in zip(chosen, self.maps, strict=True):
            if given.ndim not in (3, 4) or given.shape[-3] != layout.heads[site]:
                raise InputError(
                    f"the frozen map for {site} has a strange shape",
                    got=str(list(given.shape)),
                    expected=f"[head, query, key] or [batch, head, query, key] with "
                    f"{layout.heads[site]} heads",
                )
        return chosen

    def resolve(self, places: Places) -> Edit:
        """Return the edit for one batch."""
        maps = dict(zip(self.check(places.layout), map(torch.as_tensor, self.maps), strict=True))
        chosen, rows = self._rows(places, maps.keys())

        def change(site: Site, p: Tensor) -> Tensor:
            if site not in chosen:
                return p
            given = maps[site].to(p)
            given = given if given.ndim == 4 else given[None]
            if given.shape[1:] != p.shape[1:] or given.shape[0] not in (1, p.shape[0]):
                raise InputError(
                    f"the frozen map for {site} does not fit the texts",
                    got=str(list(maps[site].shape)),
                    expected=f"[batch, head, query, key] = {list(p.shape)}",
                    remedy="freeze maps of a text with as many tokens",
                )
            return torch.where(rows(site, p), given, p)

        return Edit(probabilities=change)
