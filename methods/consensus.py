"""Consensus: the tokens that an attention method and a gradient method agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from xattn.errors import InputError
from xattn.model import Model
from xattn.registry import Method, register
from xattn.registry import methods as registry
from xattn.types import Batch, Target

Fusion = Literal["product", "minimum"]


@register(
    "consensus",
    signed=False,
    total="free",
    needs={"attention", "gradients"},
    citation="none: it puts to the test the saying that where attention and gradients agree is "
    "most reliable; product and minimum are the t-norms of Zadeh 1965, Fuzzy Sets",
)
@dataclass(frozen=True)
class Consensus:
    """The fuzzy intersection of what two methods find important.

    ``s = a ∘ b`` with ``a = relu(s_attention) / max``, ``b = relu(s_gradient) / max`` (each text's
    largest score becomes 1), and ``∘`` the product or the minimum. A token scores high only if
    both methods say so. Scores are unsigned, without unit, and lie in [0, 1]. That the intersection
    is better than its parts is a claim to be measured and not a property.

    Attributes
    ----------
    attention, gradient : str
        Names of the two methods; any registered ones, without options.
    fusion : {"product", "minimum"}
        What an intersection is. The minimum keeps the scale; the product also tells apart tokens
        that one of the methods finds equally important.
    """

    attention: str = "rollout"
    gradient: str = "attention_gradient"
    fusion: Fusion = "product"

    def __post_init__(self) -> None:
        if self.fusion not in ("product", "minimum"):
            raise InputError(
                "fusion of consensus", got=repr(self.fusion), expected="product or minimum"
            )
        for name in (self.attention, self.gradient):
            if name == "consensus":
                raise InputError("a consensus of itself", got=name, expected="another method")

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        one, other = (
            self._shares(registry.build(name), model, batch, target)
            for name in (self.attention, self.gradient)
        )
        return one * other if self.fusion == "product" else one.minimum(other)

    @staticmethod
    def _shares(method: Method, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores above zero as shares of each text's largest; all 0 if there are none."""
        scores = (method(model, batch, target).float() * batch.real).clamp(min=0)
        largest = scores.amax(-1, keepdim=True)
        return scores / largest.where(largest > 0, 1)
