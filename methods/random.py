"""Random scores: the yardstick that every method has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
        Together with the text's token ids it decides the draw, so the scores of a text do not
        depend on the batch in which it stands.
    """

    seed: int = 0

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        scores = torch.zeros(batch.shape)
        for i, encoding in enumerate(batch.encodings):
            first = encoding.row.get("input_ids", next(iter(encoding.row.values())))
            content = first.tobytes() + str(self.seed).encode()
            key = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
            draw = np.random.default_rng(key).random(len(encoding))
            scores[i, torch.from_numpy(batch.columns(i))] = torch.from_numpy(draw).float()
        return scores.to(model.device)
