"""Input times gradient: the target's change, to first order, if a token's embedding were taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.methods.saliency import length
from xattn.model import Model
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch


@register(
    "input_x_gradient",
    signed=True,
    total="free",
    needs={"gradients"},
    citation="Shrikumar et al. 2016, Not Just a Black Box: Learning Important Features Through "
    "Propagating Activation Differences",
)
@dataclass(frozen=True)
class InputXGradient(Traced):
    """The target's change, to first order, if a token's embedding were replaced by the baseline's.

    ``s = Σ_hidden (e − e′) ⊙ ∂y/∂e``, with ``e′ = 0`` as published. Exact where the model is
    linear; elsewhere the scores sum to nothing in particular. Scores are signed, in the target's
    unit.

    Attributes
    ----------
    reduction : {"sum", "l2", "l1"}
        How the hidden axis becomes a number. The norms are unsigned, as in ferret's and other
        published rankings: they do not tell apart for and against.
    baseline : {"zero", "auto", "mask", "pad", "unk"}
        ``e′``: zeros, or a token's embedding as in `integrated_gradients` (special tokens then are
        their own baseline and score 0).
    """

    reduction: Literal["sum", "l2", "l1"] = "sum"
    baseline: Literal["zero", "auto", "mask", "pad", "unk"] = "zero"

    def __post_init__(self) -> None:
        choices = {
            "reduction": ("sum", "l2", "l1"),
            "baseline": ("zero", "auto", "mask", "pad", "unk"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} of input_x_gradient",
                    got=repr(getattr(self, name)),
                    expected=" or ".join((", ".join(known[:-1]), known[-1])),
                )

    @property
    def request(self) -> Request:
        """The embeddings and the derivative by them."""
        return Request(embeddings=True, readout=False)

    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]``."""
        assert trace.embeddings is not None
        embeddings, slopes = trace.embeddings
        if self.baseline != "zero":
            embeddings = embeddings - model.baseline(batch, self.baseline)
        product = embeddings.float() * slopes.float()
        if self.reduction == "sum":
            return product.sum(-1)
        return length(product, self.reduction)
