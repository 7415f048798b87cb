"""GlobEnc: norms of a whole layer's parts, residual connections and norms included, rolled out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model import Model
from xattn.model.decomposition import layer_parts
from xattn.model.mixing import normalised, roll_out, singles
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "globenc",
    signed=False,
    total="one",
    needs={"attention"},
    citation="Modarressi et al. 2022, GlobEnc: Quantifying Global Token Attribution by "
    "Incorporating the Whole Encoder Layer in Transformers",
)
@dataclass(frozen=True)
class GlobEnc:
    """How long the part is that a token has in what a layer puts out, rolled out.

    ``N_l[i, j] = ‖x̃_ij‖`` where ``x̃_ij = g₂(g₁(Σ_h α_h[i, j] f_h(x_j) + 1[i = j] x_i))``
    (section 3, N_ENC): what attention and the residual connection bring from token ``j``, under
    both layer norms with the statistics of the true run and without their bias. The feed-forward
    block is passed by in its residual connection, as in the paper. Rows are normalised to 1 and
    chained from the readout ``r`` down: ``s = r · N_L · ... · N_1``. The parts, the biases and the
    feed-forward block sum to the layer's output, which is verified on every text. Scores are
    unsigned, without unit, and sum to 1.

    Extensions: where norms stand before the blocks (GPT-2), the first is contained in the values
    and the second in the feed-forward block alone; where they stand behind the branches (Gemma 2)
    it is the branch that is normalised. A decoder's layer that looks at a source passes on to its
    own tokens and to the source's. Networks without a residual connection around the feed-forward
    block (MobileBERT) are refused.

    Attributes
    ----------
    norm : {2, 1}
        Which norm; the paper takes 2.
    """

    norm: Literal[2, 1] = 2

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise InputError("norm of globenc", got=repr(self.norm), expected="2 or 1")

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        readout = model.trace(batch, target, reduce=None).readout
        scores = torch.zeros(batch.shape, device=model.device)
        for i, (columns, text) in enumerate(singles(model, batch)):
            steps = layer_parts(
                model, text, lambda parts, whole: parts.norm(self.norm, -1), "layer"
            )
            scores[i, columns] = roll_out(readout[i, columns], normalised(steps))
        return scores
