"""AttCAT: attentive class activation tokens, representations times gradient seen by attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.model import Model
from xattn.model.reduction import HEAD_MEAN
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch


@register(
    "attention_cat",
    signed=True,
    total="free",
    needs={"attention", "gradients"},
    citation="Qiang et al. 2022, AttCAT: Explaining Transformers via Attentive Class Activation "
    "Tokens (NeurIPS)",
)
@dataclass(frozen=True)
class AttentionCat(Traced):
    """What each layer's representation of a token does for the target, weighted by attention.

    ``s_i = Σ_l E_h[α_l]_i · c_l,i`` with ``c_l = Σ_hidden ∂y/∂h_l ⊙ h_l``, where ``h_l`` is what
    layer ``l`` returns and ``α_l,i`` the self-attention that token i gets in it from all tokens.
    In encoder-decoders each stream is weighted by its own self-attention: an extension. Scores are
    signed, in the target's unit.

    Attributes
    ----------
    along : {"key", "query"}
        With ``key`` a token's own ``c`` is multiplied by the attention that it gets; ``query`` is
        the matrix product ``A · c``, in which a token collects from those it looks at. The paper's
        formula can be read both ways; on the demo model the second reading is worse than random
        and the first is not.
    """

    along: Literal["key", "query"] = "key"

    def __post_init__(self) -> None:
        if self.along not in ("query", "key"):
            raise InputError(
                "along of attention_cat", got=repr(self.along), expected="query or key"
            )

    @property
    def request(self) -> Request:
        """Head means, and what the layers return with its derivative."""
        return Request((HEAD_MEAN,), layers=True, readout=False)

    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]``."""
        maps = trace.kept[HEAD_MEAN]
        scores = torch.zeros(batch.shape, device=trace.score.device)
        for layer, (hidden, slope) in zip(model.layers, trace.layers_out, strict=True):
            [own] = [i for i in layer.links if trace.links[i].queries == trace.links[i].keys]
            here = batch.streams[layer.stream]
            activation = (hidden.float() * slope.float()).sum(-1)
            if self.along == "query":
                scores[:, here] += (maps[own] @ activation[..., None])[..., 0]
            else:
                real = batch.real[:, here].float()
                scores[:, here] += activation * (real[:, None] @ maps[own])[:, 0]
        return scores
