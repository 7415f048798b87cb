"""CP-LRP: relevance with attention and norms held still."""

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
    "cp_lrp",
    signed=True,
    total="free",
    needs={"attention", "gradients"},
    citation="Ali et al. 2022, "
    "XAI for Transformers: Better Explanations through Conservative Propagation (ICML)",
)
@dataclass(frozen=True)
class CpLrp:
    """What the embedding of a token contributes to the target, layer by layer.

    Layer-wise relevance propagation in which attention probabilities and the denominators of norms
    are coefficients; activations keep ``f(x) / x``, and a product
    of two gives half to each. Then ``s = Σ_hidden e ⊙ ∂y/∂e`` under these rules. Scores are signed,
    in the target's unit. With what biases and positions contribute they sum to the logit; see
    `xattn.model.relevance.ledger`, which is checked once a model: where relevance gets lost, the
    method refuses.

    The notice of the authors' library LXT says that layer-wise relevance propagation is covered by
    a patent and free for personal and scientific use only. The rules here follow the papers.

    Attributes
    ----------
    gate : {"half", "coefficient"}
        What a gated unit's product gives to the gate: half, or nothing, so that all goes to what is
        gated (as LXT has it).
    """

    gate: Literal["half", "coefficient"] = "half"

    def __post_init__(self) -> None:
        if self.gate not in ("half", "coefficient"):
            raise InputError("gate of cp_lrp", got=repr(self.gate), expected="half or coefficient")

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        return relevance(model, batch, target, "coefficient", self.gate)
