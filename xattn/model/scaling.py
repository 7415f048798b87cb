"""Less or more attention to chosen tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model.interventions import Intervention, OfQueries, allowed, head_flags, key_flags
from xattn.model.places import Places
from xattn.model.tap import Edit, Site


@dataclass(frozen=True, eq=False)
class Scale(OfQueries):
    """Multiply the attention to marked tokens.

    By default rows still sum to what they did: ``p′ = p f / Σ p f`` with the factor f where the
    key is marked and 1 elsewhere, computed by adding ``log f`` to the scores before softmax.
    Otherwise probabilities are multiplied after softmax and what is taken away is lost.

    A row whose every allowed key gets the same factor stays as it is under renormalisation, and
    the factor 0 is no exception: as f goes to 0, ``p f / Σ p f`` stays p. So a query that may look
    at nothing else (the first token of a decoder at itself) goes on looking.

    Attributes
    ----------
    mark : str
        The tokens that are looked at.
    factor : float
        0 or more; 1 changes no bit.
    renormalize : bool
        Whether rows are brought back to their sum.
    others : bool
        Multiply the attention to every token of the texts *but* the marked ones, special ones
        included. Generated tokens are neither.
    """

    mark: str
    factor: float
    renormalize: bool = field(default=True, kw_only=True)
    others: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.factor < math.inf:
            raise InputError(
                f"factor of {type(self).__name__}",
                got=repr(self.factor),
                expected="a finite number, 0 or more",
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Scores, or probabilities without renormalisation."""
        return frozenset({"scores" if self.renormalize else "probabilities"})

    def resolve(self, places: Places) -> Edit:
        """Return the edit for one batch."""
        tokens = key_flags(places, self.check(places.layout), self.mark, self.others)
        chosen, rows = self._rows(places, tokens.keys())

        def region(site: Site, tensor: Tensor) -> Tensor:
            return rows(site, tensor) & places.keys(site, tokens[site]).to(tensor.device)

        def change_scores(site: Site, scores: Tensor) -> Tensor:
            if site not in chosen:
                return scores
            may = allowed(scores)
            hit = region(site, scores) & may
            if self.factor:
                return torch.where(hit, scores + math.log(self.factor), scores)
            hit = hit & (may & ~hit).any(-1, keepdim=True)
            return scores.masked_fill(hit, torch.finfo(scores.dtype).min)

        def change_probabilities(site: Site, p: Tensor) -> Tensor:
            return torch.where(region(site, p), p * self.factor, p) if site in chosen else p

        if self.renormalize:
            return Edit(scores=change_scores)
        return Edit(probabilities=change_probabilities)


@dataclass(frozen=True, eq=False)
class Suppress(Scale):
    """Let no query look at marked tokens: `Scale` by 0."""

    factor: float = field(default=0.0, init=False)


@dataclass(frozen=True, eq=False)
class Boost(Scale):
    """Multiply the attention to marked tokens by 1 or more: `Scale` that cannot be mistaken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1:
            raise InputError(
                "factor of Boost",
                got=repr(self.factor),
                expected="1 or more",
                remedy="Scale takes smaller ones",
            )


@dataclass(frozen=True, eq=False)
class ZeroValues(Intervention):
    """Let marked tokens be looked at but hand nothing on: their value vectors become zero.

    The same as `Scale` by 0 without renormalisation, for all queries: the attention that goes
    there is spent.

    Attributes
    ----------
    mark : str
        The tokens whose values are zeroed.
    """

    mark: str

    needs = frozenset({"values"})

    def resolve(self, places: Places) -> Edit:
        """Return the edit for one batch."""
        chosen = self.check(places.layout)
        tokens = key_flags(places, chosen, self.mark, others=False)

        def change(site: Site, values: Tensor) -> Tensor:
            if site not in tokens:
                return values
            heads = head_flags(places.layout, site, chosen[site], values)
            hit = places.keys(site, tokens[site]).transpose(-1, -2).to(values.device)
            return values.masked_fill(heads & hit, 0)

        return Edit(values=change)
