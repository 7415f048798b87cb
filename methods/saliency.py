"""Saliency: how steeply the target changes with a token's embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.model import Model
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch

Norm = Literal["l2", "l1", "mean", "max"]


@register(
    "saliency",
    signed=False,
    total="free",
    needs={"gradients"},
    citation="Simonyan, Vedaldi & Zisserman 2014, Deep Inside Convolutional Networks: Visualising "
    "Image Classification Models and Saliency Maps",
)
@dataclass(frozen=True)
class Saliency(Traced):
    """How steeply the target changes with a token's embedding, in whichever direction.

    ``s = ‖∂y/∂e‖`` (section 3 takes the largest absolute value over the colours of a pixel). Scores
    are unsigned, in the target's unit for a unit of embedding.

    Attributes
    ----------
    norm : {"l2", "l1", "mean", "max"}
        How the gradient's hidden axis becomes a number: Euclidean length, sum, mean or maximum of
        absolute values. Rankings by ``l1`` and ``mean`` are the same.
    """

    norm: Norm = "l2"

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "l1", "mean", "max"):
            raise InputError(
                "norm of saliency", got=repr(self.norm), expected="l2, l1, mean or max"
            )

    @property
    def request(self) -> Request:
        """The derivative by the embeddings."""
        return Request(embeddings=True, readout=False)

    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]``."""
        assert trace.embeddings is not None
        return length(trace.embeddings[1].float(), self.norm)


def length(vectors: Tensor, norm: Norm) -> Tensor:
    """Return a norm of vectors ``[..., hidden]``."""
    if norm == "mean":
        return vectors.abs().mean(-1)
    order = {"l2": 2.0, "l1": 1.0, "max": float("inf")}[norm]
    found: Tensor = torch.linalg.vector_norm(vectors, order, dim=-1)
    return found
