"""ALTI: how near a token's part comes to what the attention block puts out, rolled out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
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
    "alti",
    signed=False,
    total="one",
    needs={"attention"},
    citation="Ferrando, Gállego & Costa-jussà 2022, Measuring the Mixing of Contextual "
    "Information in the Transformer; for encoder-decoders Ferrando et al. 2022, Towards Opening "
    "the Black Box of Neural Machine Translation",
)
@dataclass(frozen=True)
class Alti:
    """How near the part of a token comes to what the attention block puts out, rolled out.

    ``c_ij = max(0, ‖y_i‖₁ − ‖y_i − T_i(x_j)‖₁)`` with rows normalised to 1,
    where ``y_i`` is the output of the attention block with residual connection and layer norm, and
    ``T_i(x_j)`` the part of it that comes from token ``j``; then ``s = r · C_L · ... · C_1`` from
    the readout ``r``. A long part that points away from the output does not count; a token
    that no part comes near to keeps to itself. The parts and the biases sum to ``y``, which is
    verified on every text. Scores are unsigned, without unit,
    and sum to 1.

    Extensions: where norms stand before the blocks (GPT-2), ``y_i`` is what the attention block
    leaves in the residual stream; where attention and feed-forward block stand side by side (GPT-J)
    ``y_i`` leaves the latter out. A decoder's layer that looks at a source has one block of its
    two attentions (ALTI+ has two).

    Attributes
    ----------
    norm : {1, 2}
        Which norm measures proximity; the paper takes 1.
    """

    norm: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise InputError("norm of alti", got=repr(self.norm), expected="1 or 2")

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        readout = model.trace(batch, target, reduce=None).readout
        scores = torch.zeros(batch.shape, device=model.device)
        for i, (columns, text) in enumerate(singles(model, batch)):
            steps = layer_parts(model, text, self._proximity, "block")
            scores[i, columns] = roll_out(readout[i, columns], normalised(steps))
        return scores

    def _proximity(self, parts: Tensor, whole: Tensor) -> Tensor:
        size = partial(torch.linalg.vector_norm, ord=self.norm, dim=-1)
        nearness: Tensor = size(whole) - size(whole - parts)
        return nearness.clamp(min=0)
