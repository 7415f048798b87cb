"""Gradient flow: attention flow over attention that matters to the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.methods.flow import check_memory, flows
from xattn.methods.rollout import check_residual
from xattn.model import Model
from xattn.model.reduction import RELEVANCE, GradientReduction, along_queries
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch


def _slope(maps: Tensor, gradients: Tensor, queries: slice) -> Tensor:
    return gradients.float().clamp(min=0).mean(1)


SLOPE = GradientReduction(_slope, along_queries, narrow=True)
"""The mean over heads of the positive gradient, ``[batch, query, key]`` float32."""
WEIGHTS = {"product": RELEVANCE, "gradient": SLOPE}


@register(
    "gradient_flow",
    signed=False,
    total="free",
    needs={"attention", "gradients"},
    citation="Azarkhalili & Libbrecht 2025, Generalized Attention Flow: Feature Attribution for "
    "Transformer Models via Maximum Flow (ACL)",
)
@dataclass(frozen=True)
class GradientFlow(Traced):
    """How much can run from the prediction to a token over attention that matters to the target.

    The maximum flow from the readout to each token, as in `flow`, with capacities ``residual · I +
    (1 − residual) · W_l``: ``W_l`` is ``E_h[(∂y/∂A_l ⊙ A_l)⁺]`` or ``E_h[(∂y/∂A_l)⁺]`` (the paper's
    AGF and GF), brought to rows of sum 1; rows that are zero throughout keep to themselves. The
    paper reads all tokens off one flow to a common sink, which is not unique and made so by a log
    barrier; here every token has a maximum of its own, which is unique as it is, and which is
    `flow` if attention takes the place of ``W``. Scores are unsigned, without unit, in [0, 1].

    Attributes
    ----------
    weight : {"product", "gradient"}
        ``W``: positive attention times gradient, or the positive gradient alone.
    residual : float
        Share of the residual connection in each layer.
    memory : float
        As in `flow`.
    """

    weight: Literal["product", "gradient"] = "product"
    residual: float = 0.5
    memory: float = 4.0

    def __post_init__(self) -> None:
        check_residual("gradient_flow", self.residual)
        check_memory("gradient_flow", self.memory)
        if self.weight not in WEIGHTS:
            raise InputError(
                "weight of gradient_flow", got=repr(self.weight), expected="product or gradient"
            )

    @property
    def request(self) -> Request:
        """Gradient-weighted attention and the readout."""
        return Request((WEIGHTS[self.weight],))

    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]``."""
        layers = []
        for number, weights in enumerate(trace.kept[WEIGHTS[self.weight]]):
            wide = weights.cpu().double()
            total = wide.sum(-1, keepdim=True)
            wide = (1 - self.residual) * wide / total.where(total > 0, 1)
            if trace.queries(number) == trace.keys(number):
                idle = torch.diag_embed((total[..., 0] == 0).double() * (1 - self.residual))
                wide = wide + idle
            layers.append(wide)
        return flows(batch, trace, layers, self.residual, self.memory, "gradient_flow")
