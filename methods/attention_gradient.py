"""Attention times gradient: attention that matters to the target, and in which direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.model import Model
from xattn.model.reduction import gradient_sums
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch


@register(
    "attention_gradient",
    signed=True,
    total="free",
    needs={"attention", "gradients"},
    citation="Serrano & Smith 2019, Is Attention Interpretable?; Barkan et al. 2021, Grad-SAM: "
    "Explaining Transformers via Gradient Self-Attention Maps",
)
@dataclass(frozen=True)
class AttentionGradient(Traced):
    """Attention to a token, times what that attention does to the target, summed over layers.

    ``s_k = Σ_l Σ_h Σ_q A_l[h, q, k] · ∂y/∂A_l[h, q, k]``. The sum runs over all queries: those that
    the prediction does not depend on have no gradient. In encoder-decoders the sum runs over the
    layers of all three stacks. Scores are signed, in the target's unit.

    Attributes
    ----------
    layer : int, optional
        One layer, counted from 0 (negative from the last); the sum of all by default.
    positive : bool
        Keep only products above zero, as Grad-SAM does; scores are then unsigned in meaning.
    """

    layer: int | None = None
    positive: bool = False

    @property
    def request(self) -> Request:
        """Attention times gradient of each map, summed over heads and queries."""
        return Request((gradient_sums(positive=self.positive),), readout=False)

    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]``."""
        products = trace.kept[gradient_sums(positive=self.positive)]
        scores = torch.zeros(batch.shape, device=trace.score.device)
        for numbers in trace.layers().values():
            for number in numbers if self.layer is None else [self._chosen(numbers, self.layer)]:
                scores[:, trace.keys(number)] += products[number]
        return scores

    @staticmethod
    def _chosen(numbers: list[int], layer: int) -> int:
        count = len(numbers)
        if not -count <= layer < count:
            raise InputError(
                "layer of attention_gradient", got=str(layer), expected=f"{-count} to {count - 1}"
            )
        return numbers[layer]
