"""SmoothGrad: gradients averaged over noisy copies of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xattn.draw import generator
from xattn.errors import InputError
from xattn.methods.saliency import length
from xattn.model import Model
from xattn.model.points import gradients_at
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "smoothgrad",
    signed=True,
    total="free",
    needs={"gradients"},
    citation="Smilkov et al. 2017, SmoothGrad: removing noise by adding noise",
)
@dataclass(frozen=True)
class SmoothGrad:
    """The gradient, averaged over copies of the embeddings with Gaussian noise.

    ``g = 1/n Σ_i ∂y/∂e (e + N(0, σ²))`` (section 3), and ``s = Σ_hidden e ⊙ g`` (signed, in the
    target's unit) or ``‖g‖₂`` (unsigned). Every text has noise of its own, decided by the seed and
    the text.

    Attributes
    ----------
    samples : int
        Noisy copies; the paper finds little gain beyond 50.
    noise : float
        ``σ`` in units of the range ``max e − min e`` of the text's embeddings; the paper takes 0.1
        to 0.2.
    base : {"input_x_gradient", "saliency"}
        What is made of the averaged gradient.
    seed : int
    """

    samples: int = 25
    noise: float = 0.1
    base: Literal["input_x_gradient", "saliency"] = "input_x_gradient"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.samples, int) and self.samples >= 1):
            raise InputError("samples of smoothgrad", got=repr(self.samples), expected="1 or more")
        if not 0 <= self.noise < float("inf"):
            raise InputError("noise of smoothgrad", got=repr(self.noise), expected="0 or more")
        if self.base not in ("input_x_gradient", "saliency"):
            raise InputError(
                "base of smoothgrad", got=repr(self.base), expected="input_x_gradient or saliency"
            )

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        actual = model.embeddings(batch.inputs)
        texts = torch.arange(len(batch), device=actual.device).repeat_interleave(self.samples)
        scale = self.noise * spread(batch, actual)
        total = torch.zeros_like(actual, dtype=torch.float32)

        def place(some: slice) -> Tensor:
            points = actual[texts[some]]
            for point, number in zip(points, range(some.start, some.stop), strict=True):
                i, sample = divmod(number, self.samples)
                columns = torch.from_numpy(batch.columns(i)).to(points.device)
                draw = generator(batch.encodings[i], self.seed, sample)
                noise = draw.standard_normal((len(columns), points.shape[-1]), dtype=np.float32)
                point[columns] += scale[i] * torch.from_numpy(noise).to(points)
            return points

        for some, _, gradient in gradients_at(model, batch, target, texts, place):
            total.index_add_(0, texts[some], gradient / self.samples)
        if self.base == "saliency":
            return length(total, "l2")
        return (actual.float() * total).sum(-1)


def spread(batch: Batch, embeddings: Tensor) -> Tensor:
    """Return the range ``[batch]`` of each text's embeddings, padding left out."""
    inside = batch.real[:, :, None]
    largest = embeddings.masked_fill(~inside, -torch.inf).amax((1, 2))
    return largest - embeddings.masked_fill(~inside, torch.inf).amin((1, 2))
