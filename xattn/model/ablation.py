"""Heads that hand on nothing, less, or no more than usual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model.interventions import OfQueries
from xattn.model.places import Layout, Places
from xattn.model.tap import Edit, Site
from xattn.types import Encoding

if TYPE_CHECKING:
    from xattn.model.adapter import Model


@dataclass(frozen=True, eq=False)
class AblateHeads(OfQueries):
    """Move what heads hand on towards nothing, or towards what they hand on by habit.

    ``o′ = m + scale (o − m)``, before the heads are put together. With ``m = 0`` that is ablation
    by zero (Michel et al. 2019) or, with a scale between, damping; with a mean it is mean
    ablation as in Wang et al. 2022 (Interpretability in the Wild): what a head hands on, on
    average over *reference* texts, is kept, and only what this text makes of it is taken away.
    The mean is not taken over the batch at hand: it would depend on who shares a batch and, in
    decoders, on text to come.

    Attributes
    ----------
    mean : sequence of Tensor or array, optional
        One for each chosen layer, in order: ``[head, dim]``; see `mean_outputs`. Zero by default.
    scale : float
        How much of the deviation stays.
    """

    mean: Sequence[Tensor | npt.NDArray[np.floating]] | None = field(default=None, repr=False)
    scale: float = 0.0

    needs = frozenset({"outputs"})

    def check(self, layout: Layout) -> dict[Site, tuple[int, ...]]:
        """Return the heads of each site that are meant; refuse means that cannot be theirs."""
        chosen = super().check(layout)
        if not math.isfinite(self.scale):
            raise InputError("scale of AblateHeads", got=repr(self.scale), expected="a number")
        if self.mean is None:
            return chosen
        if len(self.mean) != len(chosen):
            raise InputError(
                "mean outputs do not fit the layers",
                got=f"{len(self.mean)} means",
                expected=f"{len(chosen)}, one for each chosen layer",
            )
        for site, given in zip(chosen, self.mean, strict=True):
            if given.ndim != 2 or given.shape[0] != layout.heads[site]:
                raise InputError(
                    f"the mean output for {site} has a strange shape",
                    got=str(list(given.shape)),
                    expected=f"[head, dim] with {layout.heads[site]} heads",
                )
        return chosen

    def resolve(self, places: Places) -> Edit:
        """Return the edit for one batch."""
        given = self.check(places.layout)
        towards = {} if self.mean is None else dict(zip(given, self.mean, strict=True))
        chosen, rows = self._rows(places, given.keys())

        def change(site: Site, outputs: Tensor) -> Tensor:
            if site not in chosen:
                return outputs
            hit = rows(site, outputs)
            if not towards:
                return torch.where(hit, outputs * self.scale, outputs)
            mean = torch.as_tensor(towards[site]).to(outputs)[None, :, None, :]
            if mean.shape[-1] != outputs.shape[-1]:
                raise InputError(
                    f"the mean output for {site} has a strange shape",
                    got=str(list(mean.shape[1::2])),
                    expected=str(list(outputs.shape[1::2])),
                )
            return torch.where(hit, mean + self.scale * (outputs - mean), outputs)

        return Edit(outputs=change)


def mean_outputs(model: Model, encodings: Sequence[Encoding]) -> tuple[Tensor, ...]:
    """Return what each head hands on, on average over the tokens of some texts.

    Parameters
    ----------
    model : Model
    encodings : sequence of Encoding
        Reference texts; every token counts the same, special ones included.

    Returns
    -------
    tuple of Tensor
        One for each site, ``[head, dim]`` float32.

    Raises
    ------
    AttentionError
        If the model's heads cannot be reached.
    """
    queries = {link.site: link.queries for link in model.links()}
    sums: dict[Site, Tensor] = {}
    counts: dict[Site, float] = {}
    for _, batch in model.batches(encodings):
        real = batch.real.double()
        parts = [real[:, stream] for stream in batch.streams]

        def add(site: Site, outputs: Tensor, parts: list[Tensor] = parts) -> Tensor:
            if site in queries:
                weights = parts[queries[site]]
                total = torch.einsum("bhqd,bq->hd", outputs.detach().double(), weights)
                sums[site] = sums[site] + total if site in sums else total
                counts[site] = counts.get(site, 0.0) + float(weights.sum())
            return outputs

        with model.edit(Edit(outputs=add)):
            model.logits(batch.inputs)
    return tuple((total / counts[site]).float() for site, total in sums.items())
