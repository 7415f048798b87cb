"""Integrated gradients: the target's change along a straight path, shared out among the tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model import Model
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "integrated_gradients",
    signed=True,
    total="difference",
    needs={"gradients"},
    citation="Sundararajan, Taly & Yan 2017, Axiomatic Attribution for Deep Networks",
)
@dataclass(frozen=True)
class IntegratedGradients:
    """The target's change on the way from a text without words, shared out among the tokens.

    ``s = Σ_hidden (e − e′) ⊙ ∫₀¹ ∂y/∂e (e′ + α (e − e′)) dα`` (equation 1). ``e`` are the token
    embeddings and ``e′`` the baseline: every token that is not special is replaced. The integral
    is a Gauss-Legendre sum whose points double until the completeness gap
    ``Σ s − (y(e) − y(e′))`` is under the tolerance. Scores are signed, in the target's unit, and
    sum to ``y(e) − y(e′)``.

    Attributes
    ----------
    baseline : {"auto", "mask", "pad", "unk", "zero"}
        The token whose embedding is the baseline: ``auto`` is the first that the tokenizer has of
        mask, pad, unk, eos and bos. ``zero`` is a zero vector: no token at all, and numerically
        harsh for models with RMS normalisation.
    steps : int
        Points of the first sum.
    tolerance : float
        Largest gap, relative to ``|y(e) − y(e′)|``.
    max_steps : int
        No more points than this; what gap is left is recorded with the result.
    """

    baseline: Literal["auto", "mask", "pad", "unk", "zero"] = "auto"
    steps: int = 8
    tolerance: float = 0.01
    max_steps: int = 256

    def __post_init__(self) -> None:
        if self.baseline not in ("auto", "mask", "pad", "unk", "zero"):
            raise InputError(
                "baseline of integrated_gradients",
                got=repr(self.baseline),
                expected="auto, mask, pad, unk or zero",
            )
        if not (isinstance(self.steps, int) and 1 <= self.steps <= self.max_steps):
            raise InputError(
                "steps of integrated_gradients",
                got=repr(self.steps),
                expected=f"1 to max_steps ({self.max_steps})",
            )
        if not 0 < self.tolerance < math.inf:
            raise InputError(
                "tolerance of integrated_gradients",
                got=repr(self.tolerance),
                expected="a number above 0",
            )

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        scores = torch.zeros(batch.shape, device=model.device)
        expected = self.difference(model, batch, target)
        open_rows = torch.arange(len(batch), device=model.device)
        steps = self.steps
        while len(open_rows):
            part = self._integral(model, batch, target, open_rows, steps)
            scores[open_rows] = part
            wanted = expected[open_rows]
            gap = (part.sum(-1) - wanted).abs()
            steps *= 2
            if steps > self.max_steps:
                break
            open_rows = open_rows[gap > self.tolerance * wanted.abs()]
        return scores

    def difference(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return ``y(e) − y(e′)``, ``[batch]``: what the scores of each text must sum to."""
        start = model.baseline(batch, self.baseline)
        return model.score(batch.inputs, target) - model.score(batch.inputs, target, start)

    def _integral(
        self, model: Model, batch: Batch, target: Target, rows: Tensor, steps: int
    ) -> Tensor:
        """Return the scores of `rows`, ``[row, token]``, with a sum of `steps` points."""
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        alphas = torch.tensor((nodes + 1) / 2, dtype=torch.float32, device=model.device)
        shares = torch.tensor(weights / 2, dtype=torch.float32, device=model.device)
        end, start = model.embeddings(batch.inputs), model.baseline(batch, self.baseline)
        # Every (text, point) is an input of its own; under the budget they share a pass.
        text, point = rows.repeat_interleave(steps), torch.arange(steps).repeat(len(rows))
        mean_gradient = torch.zeros_like(end, dtype=torch.float32)
        size = max(1, model.budget // end.shape[1])
        for first in range(0, len(text), size):
            here, at = text[first : first + size], point[first : first + size].to(model.device)
            embeddings = start[here] + alphas[at, None, None] * (end - start)[here]
            inputs = {name: tensor[here] for name, tensor in batch.inputs.items()}
            _, gradient = model.embedding_gradient(inputs, embeddings, target[here])
            mean_gradient.index_add_(0, here, gradient.float() * shares[at, None, None])
        return ((end - start)[rows] * mean_gradient[rows]).sum(-1)
