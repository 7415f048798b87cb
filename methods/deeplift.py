"""DeepLIFT: the difference from a baseline, passed on by finite differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Complete
from xattn.model import Model
from xattn.model.differences import differences
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "deeplift",
    signed=True,
    total="difference",
    needs={"attention", "gradients"},
    citation="Shrikumar, Greenside & Kundaje 2017, Learning Important Features Through Propagating "
    "Activation Differences (ICML)",
)
@dataclass(frozen=True)
class DeepLift(Complete):
    """The target's difference from the baseline's, shared out by finite differences.

    Text and baseline go through the network side by side. Every function of single numbers passes
    on ``Δf / Δx`` (the rescale rule); products, which the paper leaves out, pass on
    ``Δ(ab) = Δa · b̄ + ā · Δb``, and softmax and norms are made of these. Scores are signed, in the
    target's unit, and sum to ``y(e) − y(e′)``. captum's DeepLift knows activations that are modules
    and not the products and softmax of attention: its scores of transformers do not sum.

    Attributes
    ----------
    baseline : {"auto", "mask", "pad", "unk", "zero"}
        As in `integrated_gradients`; special tokens are their own baseline.
    """

    baseline: Literal["auto", "mask", "pad", "unk", "zero"] = "auto"

    def __post_init__(self) -> None:
        if self.baseline not in ("auto", "mask", "pad", "unk", "zero"):
            raise InputError(
                "baseline of deeplift",
                got=repr(self.baseline),
                expected="auto, mask, pad, unk or zero",
            )

    def attribute(self, model: Model, batch: Batch, target: Target) -> tuple[Tensor, Tensor]:
        """Return scores ``[batch, token]`` and ``y(e) − y(e′)``, ``[batch]``."""
        return differences(model, batch, target, self.baseline)
