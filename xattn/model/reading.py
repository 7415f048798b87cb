"""Readings: how much attention goes to chosen tokens, written down while a model runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from xattn.model.interventions import OfQueries, key_flags
from xattn.model.places import Places
from xattn.model.tap import Edit, Site


@dataclass(frozen=True, eq=False)
class Mass(OfQueries):
    """Write down the attention to marked tokens, ``Σ_marked p``, and change nothing.

    Opened like an intervention, with the same choice of tokens, layers and heads, and as right in
    every step of generation: there each step adds one entry a layer, and with all tokens of the
    prompt marked the entries are the attention to the context that lookback ratios are made of
    (Chuang et al. 2024, Lookback Lens). It sees what the edits that were opened before it left.

    Attributes
    ----------
    mark : str
        The tokens that are looked at.
    found : list of (Site, Tensor)
        What was read, in the order of computation: ``[row, head, query]`` of the chosen heads,
        0 for queries that are not chosen, without gradient.
    """

    mark: str
    found: list[tuple[Site, Tensor]] = field(default_factory=list, repr=False)

    needs = frozenset()

    def resolve(self, places: Places) -> Edit:
        """Return the recording for one batch."""
        tokens = key_flags(places, self.check(places.layout), self.mark, others=False)
        chosen, rows = self._rows(places, tokens.keys())

        def change(site: Site, p: Tensor) -> Tensor:
            places.note(site, p)  # where maps can only be read, nothing saw them before
            if site in chosen:
                hit = places.keys(site, tokens[site]).to(p.device)
                mass = (p.detach() * hit).sum(-1, keepdim=True) * rows(site, p)
                self.found.append((site, mass[:, list(chosen[site]), :, 0]))
            return p

        return Edit(probabilities=change)
