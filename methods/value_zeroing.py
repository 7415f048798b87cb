"""Value zeroing: how much a token's vector turns if another token's value is nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model import Model
from xattn.model.mixing import normalised, roll_out, singles
from xattn.model.zeroing import zeroed_values
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "value_zeroing",
    signed=False,
    total="one",
    needs={"attention"},
    citation="Mohebbi, Zuidema, Chrupała & Alishahi 2023, Quantifying Context Mixing in "
    "Transformers",
)
@dataclass(frozen=True)
class ValueZeroing:
    """How much the vector of a token turns if another token's value is nothing, rolled out.

    ``C_l[i, j] = distance(x̃_i, x̃_i without v_j)``: the vectors leave layer ``l``, in
    which alone the value of token ``j`` is zero in all heads. Rows are normalised to 1 and chained
    from the readout ``r`` down: ``s = r · C_L · ... · C_1``. The whole layer is computed, its
    feed-forward block and norms included, and nothing is linearised. Scores are unsigned, without
    unit, and sum to 1. In encoder-decoders the rows of a decoder's layer hold its own tokens and
    the source's (an extension). Each text runs once for each token.

    Attributes
    ----------
    distance : {"cosine", "euclidean"}
        How the turn is measured; the paper takes the cosine distance.
    """

    distance: Literal["cosine", "euclidean"] = "cosine"

    def __post_init__(self) -> None:
        if self.distance not in ("cosine", "euclidean"):
            raise InputError(
                "distance of value_zeroing",
                got=repr(self.distance),
                expected="cosine or euclidean",
            )

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        readout = model.trace(batch, target, reduce=None).readout
        scores = torch.zeros(batch.shape, device=model.device)
        for i, (columns, text) in enumerate(singles(model, batch)):
            steps = zeroed_values(model, text, self._change)
            scores[i, columns] = roll_out(readout[i, columns], normalised(steps))
        return scores

    def _change(self, without: Tensor, whole: Tensor) -> Tensor:
        if self.distance == "euclidean":
            moved: Tensor = torch.linalg.vector_norm(without - whole, dim=-1)
            return moved
        # 1 − cos is half the squared distance of unit vectors, which does not cancel
        unit = torch.nn.functional.normalize
        turned: Tensor = (unit(without, dim=-1) - unit(whole, dim=-1)).square().sum(-1) / 2
        return turned
