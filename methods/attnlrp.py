"""AttnLRP: relevance carried through the softmax of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from xattn.errors import InputError
from xattn.model import Model
from xattn.model.relevance import relevance
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "attnlrp",
    signed=True,
    total="free",
    needs={"attention", "gradients"},
    citation="Achtibat et al. 2024, "
    "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers (ICML)",
)
@dataclass(frozen=True)
class AttnLrp:
    """What the embedding of a token contributes to the target, through attention as well.

    Layer-wise relevance propagation in which the softmax keeps its derivative, matrix products give
    half to each factor, the denominators of norms are coefficients and activations keep ``f(x) /
    x``. Then ``s = Σ_hidden e ⊙ ∂y/∂e`` under these rules. Scores are signed, in the target's unit.
    With what biases and positions contribute, and what comes into being in softmaxes, they sum to
    the logit; see `xattn.model.relevance.ledger`, which is checked once a model: where relevance
    gets lost, the method refuses.

    The notice of the authors' library LXT says that layer-wise relevance propagation is covered by
    a patent and free for personal and scientific use only. The rules here follow the papers.

    Attributes
    ----------
    gate : {"half", "coefficient"}
        What a gated unit's product gives to the gate: half, or nothing, so that all goes to what is
        gated.
    """

    gate: Literal["half", "coefficient"] = "half"

    def __post_init__(self) -> None:
        if self.gate not in ("half", "coefficient"):
            raise InputError("gate of attnlrp", got=repr(self.gate), expected="half or coefficient")

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        return relevance(model, batch, target, "derivative", self.gate)
