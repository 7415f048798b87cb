"""Norms of weighted values: how much a token's value adds to what attention puts out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.methods.rollout import check_residual
from xattn.model import Model
from xattn.model.decomposition import attention_parts
from xattn.model.mixing import normalised, roll_out, singles
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "value_norm",
    signed=False,
    total="one",
    needs={"attention"},
    citation="Kobayashi et al. 2020, Attention is Not Only a Weight: Analyzing Transformers with "
    "Vector Norms",
)
@dataclass(frozen=True)
class ValueNorm:
    """How long the vectors are that a token's values add to what attention puts out, rolled out.

    ``N_l[i, j] = ‖Σ_h α_h[i, j] f_h(x_j)‖`` with ``f_h(x) = (x W_V + b_V) W_O``: a token that is
    looked at much may have a value near zero. With the bias of the output projection, the vectors
    sum to the attention's output, which is verified on every text. The
    paper stops at each layer; here layers are chained as in rollout:
    ``s = r · M_L · ... · M_1`` with ``M_l = residual · I + (1 − residual) · N_l``, the rows of
    ``N_l`` summing to 1. In encoder-decoders cross-attention hands its share on to the source, as
    in rollout. Scores are unsigned, without unit, and sum to 1.

    Attributes
    ----------
    residual : float
        Share of the residual connection in each layer.
    norm : {2, 1}
        Which norm; the paper takes 2.
    layer : int, optional
        The norms of one layer alone, counted from 0 (negative from the last): no rollout.
    """

    residual: float = 0.5
    norm: Literal[2, 1] = 2
    layer: int | None = None

    def __post_init__(self) -> None:
        check_residual("value_norm", self.residual)
        if self.norm not in (1, 2):
            raise InputError("norm of value_norm", got=repr(self.norm), expected="2 or 1")

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        trace = model.trace(batch, target, reduce=None)
        scores = torch.zeros(batch.shape, device=model.device)
        for i, (columns, text) in enumerate(singles(model, batch)):
            readout = trace.readout[i, columns]
            steps = attention_parts(model, text, lambda parts, whole: parts.norm(self.norm, -1))
            steps = normalised(steps)
            if self.layer is None:
                for queries, matrix in steps:
                    matrix *= 1 - self.residual
                    matrix[:, queries].diagonal().add_(self.residual)
                scores[i, columns] = roll_out(readout, steps)
                continue
            row = torch.zeros_like(readout)
            for numbers in trace.layers().values():
                if not -len(numbers) <= self.layer < len(numbers):
                    raise InputError(
                        "layer of value_norm",
                        got=str(self.layer),
                        expected=f"{-len(numbers)} to {len(numbers) - 1}",
                    )
                queries, matrix = steps[numbers[self.layer]]
                row += readout[queries] @ matrix
            scores[i, columns] = row / row.sum()  # a decoder's tokens look at two streams
        return scores
