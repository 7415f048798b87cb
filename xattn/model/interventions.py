"""Interventions: what people want to change about attention, in words instead of tensors.

An `Edit` changes tensors at sites. An intervention says which tokens, layers and heads are meant,
and becomes an edit anew for every batch: tokens are named by marks (see `xattn.model.marks`), which
travel with the texts, so it is right for every subset, order, repetition and step of generation.

    [encoding] = model.encode(["The plot is thin, but the acting is superb."])
    encoding = mark(encoding, "praise", words="superb")
    with model.edit(Suppress("praise", layers=[-2, -1])):
        model.logits(model.batch([encoding]).inputs)

Several interventions apply in the order in which they are given, each to what the one before it
left: first all that change scores, then all that change probabilities, values and outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xattn.errors import AttentionError, InputError
from xattn.model import marks
from xattn.model.places import Heads, Layout, Places
from xattn.model.tap import Edit, Site

Queries = str | Collection[int]
"""The queries that are meant: a mark, or positions (a ``range`` may reach into text to come)."""

MASKED = 1000.0
"""A score that is further than this below the largest of its row is masked. Its probability is
zero in every floating-point type, and all masks of transformers are further away."""


def allowed(scores: Tensor) -> Tensor:
    """Return which keys each query may look at, ``[batch, head, query, key]`` bool."""
    return scores > scores.amax(-1, keepdim=True) - MASKED


@dataclass(frozen=True, eq=False)
class Intervention(ABC):
    """A change of attention in words; each kind is a subclass.

    Attributes
    ----------
    layers : sequence of int, optional
        Attention layers, counted within each stack from 0, or from -1 at the last; all by default.
    heads : sequence of int, or mapping of layer to these, optional
        All by default. A mapping chooses the layers, too.
    stack : str, optional
        ``encoder``, ``decoder`` or ``cross`` (or what else the model has); all by default.
    """

    layers: Sequence[int] | None = field(default=None, kw_only=True)
    heads: Heads | None = field(default=None, kw_only=True)
    stack: str | None = field(default=None, kw_only=True)

    needs: ClassVar[frozenset[str]]
    """The fields of `Edit` that it makes use of."""

    def check(self, layout: Layout) -> dict[Site, tuple[int, ...]]:
        """Return the heads of each site that are meant.

        Raises
        ------
        InputError
            If a stack, layer or head does not exist.
        """
        return layout.select(self.layers, self.heads, self.stack)

    @abstractmethod
    def resolve(self, places: Places) -> Edit:
        """Return the edit for the batch that `places` follows.

        Raises
        ------
        InputError
            If the texts lack a mark.
        """


Intervenable = Edit | Intervention
FIELDS = frozenset(f.name for f in fields(Edit))
"""What can be changed at a site."""


def needs(edit: Intervenable) -> frozenset[str]:
    """Return the fields of `Edit` that an edit or intervention makes use of."""
    if isinstance(edit, Intervention):
        return edit.needs
    return frozenset(name for name in FIELDS if getattr(edit, name) is not None)


def check(edits: Sequence[Intervenable], layout: Layout, serves: Collection[str]) -> None:
    """Refuse edits that cannot take effect, before anything is run.

    Parameters
    ----------
    edits : sequence of Edit or Intervention
    layout : Layout
    serves : collection of str
        The fields of `Edit` that take effect at the model's sites.

    Raises
    ------
    InputError
        If a stack, layer or head does not exist.
    AttentionError
        If the model's attention cannot be changed in that way.
    """
    for edit in edits:
        if not isinstance(edit, (Edit, Intervention)):
            raise InputError(
                "not an edit", got=type(edit).__name__, expected="an Edit or an intervention"
            )
        reached = FIELDS.intersection(serves)
        missing = needs(edit) - reached
        if missing:
            raise AttentionError(
                f"{type(edit).__name__} cannot take effect in this model",
                got=f"attention whose {' and '.join(sorted(missing))} can only be read"
                if "probabilities" not in reached
                else f"attention whose {' and '.join(sorted(missing))} cannot be reached",
                expected=f"one of {', '.join(sorted(reached))}" if reached else "",
                remedy="remove or mask tokens instead (xattn compare)",
            )
        if isinstance(edit, Intervention):
            edit.check(layout)


@contextmanager
def resolved(
    network: nn.Module,
    edits: Sequence[Intervenable],
    layout: Layout,
    inputs: Mapping[str, Tensor],
) -> Iterator[tuple[Edit, ...]]:
    """Yield plain edits for one batch, right in every forward pass over it until the end.

    Parameters
    ----------
    network : torch.nn.Module
        Gets a hook that notes where each forward pass stands in the text.
    edits : sequence of Edit or Intervention
    layout : Layout
    inputs : mapping of str to Tensor
        The batch, each ``[batch, token]``, marks included.

    Raises
    ------
    InputError
        If the texts lack a mark.
    """
    if not any(isinstance(edit, Intervention) for edit in edits):
        yield tuple(edit for edit in edits if isinstance(edit, Edit))
        return
    places = Places(layout, inputs)
    plain = [e.resolve(places) if isinstance(e, Intervention) else e for e in edits]
    handle = network.register_forward_pre_hook(places.begin, with_kwargs=True)
    try:
        yield (Edit(scores=places.note), *plain)
    finally:
        handle.remove()


def head_flags(layout: Layout, site: Site, numbers: Sequence[int], like: Tensor) -> Tensor:
    """Return which heads of a site's tensor ``[batch, head, ...]`` are meant, ``[1, head, 1, 1]``.

    Raises
    ------
    AttentionError
        If the tensor does not keep the heads apart.
    """
    if like.shape[1] != layout.heads[site]:
        raise AttentionError(
            f"the heads at {site} cannot be told apart",
            got=str(like.shape[1]),
            expected=f"{layout.heads[site]}",
            remedy="choose an intervention on maps, such as Scale",
        )
    flags = torch.zeros(like.shape[1], dtype=torch.bool, device=like.device)
    flags[list(numbers)] = True
    return flags[None, :, None, None]


def key_flags(
    places: Places, chosen: Mapping[Site, tuple[int, ...]], name: str, others: bool
) -> dict[Site, Tensor]:
    """Return the flags ``[batch, token]`` of each site whose keys carry a mark.

    In an encoder-decoder, source and target text carry marks of their own: stacks that read the
    other text are passed by.
    """
    found = {}
    for site in chosen:
        flags = places.tokens(name, site)
        if flags is not None:
            found[site] = ~flags if others else flags
    if not found:
        _refuse(places, name)
    return found


def _refuse(places: Places, name: str) -> None:
    known = [*marks.names(places.inputs), *marks.names(places.inputs, "decoder_")]
    raise InputError(
        f"the texts carry no mark {name!r} where the intervention looks for it",
        got="marks " + ", ".join(map(repr, dict.fromkeys(known))) if known else "no marks",
        remedy=f"mark the tokens first: mark(encoding, {name!r}, words=...)",
    )


def _asking(
    places: Places, chosen: Mapping[Site, tuple[int, ...]], queries: Queries | None
) -> dict[Site, Tensor | Collection[int]] | None:
    """Return the flags of each site's queries, or None for all queries."""
    if queries is None:
        return None
    if not isinstance(queries, str):
        return dict.fromkeys(chosen, queries)
    found: dict[Site, Tensor | Collection[int]] = {}
    for site in chosen:
        flags = places.tokens(queries, site, queries=True)
        if flags is not None:
            found[site] = flags
    if not found:
        _refuse(places, queries)
    return found


@dataclass(frozen=True, eq=False)
class OfQueries(Intervention):
    """An intervention on rows of attention.

    Attributes
    ----------
    queries : str or collection of int, optional
        A mark of the tokens that look, or their positions; all by default.
    """

    queries: Queries | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.queries is None or isinstance(self.queries, str):
            return
        positions = self.queries
        # A range may be too long to look through: its ends stand for it.
        ends = (positions[:1], positions[-1:]) if isinstance(positions, range) else (positions,)
        numbers = [p for part in ends for p in part]
        if not numbers or not all(isinstance(p, (int, np.integer)) and p >= 0 for p in numbers):
            raise InputError(
                "queries are given by a mark or by positions",
                got=repr(positions),
                expected="one or more whole numbers from 0",
                remedy="mark the tokens to count from the end of each text",
            )

    def _rows(
        self, places: Places, sites: Collection[Site]
    ) -> tuple[Mapping[Site, tuple[int, ...]], Callable[[Site, Tensor], Tensor]]:
        """Return the chosen heads of each site, and a function that flags its chosen rows.

        That function returns ``[row or 1, head, query or 1, 1]`` bool.
        """
        chosen = {s: heads for s, heads in self.check(places.layout).items() if s in sites}
        asking = _asking(places, chosen, self.queries)
        if asking is not None:
            chosen = {site: heads for site, heads in chosen.items() if site in asking}

        def flag(site: Site, tensor: Tensor) -> Tensor:
            heads = head_flags(places.layout, site, chosen[site], tensor)
            if asking is None:
                return heads
            return heads & places.queries(site, asking[site]).to(tensor.device)

        return chosen, flag
