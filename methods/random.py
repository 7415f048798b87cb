"""Random scores: the yardstick that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.draw import generator
from xattn.model import Model
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "random",
    signed=False,
    total="free",
    citation="none: a baseline without information, uniform in [0, 1)",
)
@dataclass(frozen=True)
class Random:
    """Uniform scores in [0, 1), drawn anew for every text.

    Attributes
    ----------
    seed : int
        Together with what the model reads of the text it decides the draw, so the scores of a text
        do not depend on the batch in which it stands.
    """

    seed: int = 0

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        scores = torch.zeros(batch.shape)
        for i, encoding in enumerate(batch.encodings):
            draw = generator(encoding, self.seed).random(len(encoding))
            scores[i, torch.from_numpy(batch.columns(i))] = torch.from_numpy(draw).float()
        return scores.to(model.device)
