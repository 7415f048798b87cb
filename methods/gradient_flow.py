"""Gradient flow: attention flow over attention that matters to the target."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.maxflow.barrier import central_flow
from xattn.methods.flow import check_memory, flows
from xattn.methods.rollout import check_residual
from xattn.model import Model
from xattn.model.reduction import RELEVANCE, GradientReduction, along_queries
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch


def _slope(maps: Tensor, gradients: Tensor, queries: slice) -> Tensor:
    # masked keys have a gradient, too: what it would do to look at padding, or at what comes later
    return (gradients.float().clamp(min=0) * (maps > 0)).mean(1)


SLOPE = GradientReduction(_slope, along_queries, narrow=True)
"""The mean over heads of the positive gradient by what is seen, ``[batch, query, key]`` float32."""
EDGES = 16
"""Copies of a text's maps that the barrier's flow holds beside its second derivatives."""
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
    AGF and GF), brought to rows of sum 1; rows that are zero throughout keep to themselves. With
    attention in the place of ``W`` (the paper's AF) it is `flow`. Scores are unsigned, without
    unit, in [0, 1].

    The paper reads all tokens off one flow to a common sink. That maximum is shared out in many
    ways, so a log barrier singles one out, ``max Σ f + μ Σ_e [log f_e + log(c_e − f_e)]``:
    ``sink="common"`` does this; scores then sum to the maximum, at most 1, less what the barrier
    costs. With rows of sum 1 nearly any split can be a maximum, as rollout is one, so which one is
    reported is the barrier's choice: it spreads flow as evenly as capacities let it. By default
    every token has a maximum of its own, which is unique as it is.

    Attributes
    ----------
    weight : {"product", "gradient"}
        ``W``: positive attention times gradient, or the positive gradient alone.
    sink : {"each", "common"}
        A flow to each token by itself, or one flow to all of them as in the paper.
    barrier : float
        ``μ`` of the common flow.
    residual : float
        Share of the residual connection in each layer.
    memory : float
        As in `flow`.
    """

    weight: Literal["product", "gradient"] = "product"
    sink: Literal["each", "common"] = "each"
    barrier: float = 1e-4
    residual: float = 0.5
    memory: float = 4.0

    def __post_init__(self) -> None:
        check_residual("gradient_flow", self.residual)
        check_memory("gradient_flow", self.memory)
        if self.weight not in WEIGHTS:
            raise InputError(
                "weight of gradient_flow", got=repr(self.weight), expected="product or gradient"
            )
        if self.sink not in ("each", "common"):
            raise InputError(
                "sink of gradient_flow", got=repr(self.sink), expected="each or common"
            )
        if not 0 < self.barrier < float("inf"):
            raise InputError("barrier of gradient_flow", got=str(self.barrier), expected="above 0")

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
        given = (batch, trace, layers, self.residual, self.memory, "gradient_flow")
        if self.sink == "each":
            return flows(*given)
        solve = partial(central_flow, barrier=self.barrier)
        # second derivatives between all nodes, their part that counts, and its factor
        return flows(*given, solve=solve, arrays=3 * len(layers) + EDGES)
