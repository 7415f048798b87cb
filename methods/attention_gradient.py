"""Attention times gradient: attention that matters to the target, and in which direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model import Model
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "attention_gradient",
    signed=True,
    total="free",
    needs={"attention", "gradients"},
    citation="Serrano & Smith 2019, Is Attention Interpretable?; Barkan et al. 2021, Grad-SAM: "
    "Explaining Transformers via Gradient Self-Attention Maps",
)
@dataclass(frozen=True)
class AttentionGradient:
    """Attention to a token, times what that attention does to the target, summed over layers.

    ``s_k = Σ_l Σ_h Σ_q A_l[h, q, k] · ∂y/∂A_l[h, q, k]``. The sum runs over all queries: those that
    the prediction does not depend on have no gradient. Scores are signed, in the target's unit.

    Attributes
    ----------
    layer : int, optional
        One layer, counted from 0 (negative from the last); the sum of all by default.
    positive : bool
        Keep only products above zero, as Grad-SAM does; scores are then unsigned in meaning.
    """

    layer: int | None = None
    positive: bool = False

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        trace = model.trace(batch, target, gradients=True)
        count = len(trace.maps)
        if self.layer is None:
            chosen = range(count)
        elif -count <= self.layer < count:
            chosen = range(self.layer % count, self.layer % count + 1)
        else:
            raise InputError(
                "layer of attention_gradient",
                got=str(self.layer),
                expected=f"{-count} to {count - 1}",
            )
        scores = torch.zeros(batch.input_ids.shape, device=model.device)
        for layer in chosen:
            product = trace.maps[layer].float() * trace.gradients[layer].float()
            product = product.clamp(min=0) if self.positive else product
            scores += product.sum((1, 2))
        return scores
