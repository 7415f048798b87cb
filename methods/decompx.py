"""DecompX: every token's own vector, carried through all layers into the logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from xattn.errors import AttentionError, InputError
from xattn.model import Model
from xattn.model.attach import TOLERANCE
from xattn.model.decomposition import output_parts
from xattn.model.lanes import Sharing
from xattn.model.mixing import chunks, singles
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "decompx",
    signed=True,
    total="difference",
    needs={"attention"},
    citation="Modarressi et al. 2023, DecompX: Explaining Transformers Decisions by Propagating "
    "Token Decomposition",
)
@dataclass(frozen=True)
class DecompX:
    """How much of the logit comes from each token's own vector, carried through all layers.

    Each vector in the network is a sum with a part for each token, ``x_i = Σ_j x_i⇐j``, from the
    vectors that enter the first layer (``x_i⇐i = x_i``) to the logits (section 3). Attention mixes
    parts with its probabilities; layer norms scale them by the statistics of the true run;
    activations by ``f(x) / x`` of the true ``x``, the line through zero; so does the head. Scores
    are signed, in the target's unit. With shared biases they sum to the logit, without to the logit
    minus what the biases add; that they do is verified on every text.

    Extensions: gated units give half of the product to each factor, routers of experts hold still.
    The second stream of an encoder-decoder starts at its own first layer. Only logits are sums:
    probabilities are refused.

    All parts of a text are in memory together when biases are shared, ``token²`` vectors of each
    layer in turn; with ``none`` they come in runs under the model's budget.

    Attributes
    ----------
    bias : {"absdot", "norm", "equal", "none"}
        Who gets a bias: every part by its absolute product with it (the paper's choice), by its
        norm, all alike; or nobody. Biases are shared where they are added; the paper does so for
        those of values once the heads are put together.
    """

    bias: Sharing = "absdot"

    def __post_init__(self) -> None:
        if self.bias not in get_args(Sharing):
            raise InputError(
                "bias of decompx", got=repr(self.bias), expected="absdot, norm, equal or none"
            )

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        scores = torch.zeros(batch.shape, device=model.device)
        for i, (columns, text) in enumerate(singles(model, batch)):
            runs = chunks(model, text) if self.bias == "none" else [range(text.shape[1])]
            one = target[torch.tensor([i], device=model.device)]
            parts, constant, score = output_parts(model, text, one, self.bias, runs)
            gap = float((parts.sum() + constant - score).abs())
            scale = float(torch.stack([score.abs(), parts.abs().max(), constant.abs()]).max())
            if not gap <= TOLERANCE.get(model.dtype, 1e-4) * scale:
                raise AttentionError(
                    f"the parts of {type(model.network).__name__} do not add up to its logits",
                    got=f"a gap of {gap / scale:.1e} of the largest number",
                    expected="at most 1e-4",
                    remedy="use integrated_gradients, or alti, which goes layer by layer",
                )
            scores[i, columns] = parts.float()
        return scores

    def difference(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return the logit, without what biases add that are not shared, ``[batch]``."""
        score = model.score(batch.inputs, target)
        if self.bias != "none":
            return score
        for i, (_, text) in enumerate(singles(model, batch)):
            one = target[torch.tensor([i], device=model.device)]
            score[i] -= output_parts(model, text, one, "none", [range(0)])[1]
        return score
