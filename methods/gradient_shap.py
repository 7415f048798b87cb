"""Gradient SHAP: expected gradients between the baseline and the text, with noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xattn.draw import generator
from xattn.errors import InputError
from xattn.methods.smoothgrad import spread
from xattn.model import Model
from xattn.model.points import gradients_at
from xattn.registry import register
from xattn.types import Batch, Target


@register(
    "gradient_shap",
    signed=True,
    total="free",
    needs={"gradients"},
    citation="Lundberg & Lee 2017, A Unified Approach to Interpreting Model Predictions; as "
    "expected gradients in Erion et al. 2021",
)
@dataclass(frozen=True)
class GradientShap:
    """The expectation of gradients at random points between the baseline and the text.

    ``s = E_α,ε [Σ_hidden (e + ε − e′) ⊙ ∂y/∂e (e′ + α (e + ε − e′))]`` with ``α`` uniform in
    [0, 1) and Gaussian noise ``ε``: SHAP values where the model is linear and the features are
    independent. Scores are signed, in the target's unit. They sum to ``y(e) − y(e′)`` in
    expectation and without noise only: integrated gradients compute that limit.

    Attributes
    ----------
    samples : int
    noise : float
        Standard deviation of ``ε`` in units of the range of the text's embeddings.
    baseline : {"auto", "mask", "pad", "unk", "zero"}
        As in `integrated_gradients`; special tokens stay as they are.
    seed : int
    """

    samples: int = 25
    noise: float = 0.0
    baseline: Literal["auto", "mask", "pad", "unk", "zero"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.samples, int) and self.samples >= 1):
            raise InputError(
                "samples of gradient_shap", got=repr(self.samples), expected="1 or more"
            )
        if not 0 <= self.noise < float("inf"):
            raise InputError("noise of gradient_shap", got=repr(self.noise), expected="0 or more")
        if self.baseline not in ("auto", "mask", "pad", "unk", "zero"):
            raise InputError(
                "baseline of gradient_shap",
                got=repr(self.baseline),
                expected="auto, mask, pad, unk or zero",
            )

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        actual, start = model.embeddings(batch.inputs), model.baseline(batch, self.baseline)
        texts = torch.arange(len(batch), device=actual.device).repeat_interleave(self.samples)
        scale = self.noise * spread(batch, actual)
        scores = torch.zeros(batch.shape, device=actual.device)
        moved: list[Tensor] = []

        def place(some: slice) -> Tensor:
            alphas = torch.zeros(some.stop - some.start, 1, 1, device=actual.device)
            change = (actual - start)[texts[some]]
            for row, number in enumerate(range(some.start, some.stop)):
                i, sample = divmod(number, self.samples)
                draw = generator(batch.encodings[i], self.seed, sample)
                alphas[row] = draw.random()
                if self.noise:
                    # special tokens are no feature: they neither move nor score
                    columns = torch.from_numpy(batch.columns(i)[~batch.encodings[i].special])
                    noise = draw.standard_normal((len(columns), change.shape[-1]), dtype=np.float32)
                    change[row, columns] += scale[i] * torch.from_numpy(noise).to(change)
            moved[:] = [change.float()]
            return start[texts[some]] + alphas.to(change.dtype) * change

        for some, _, gradient in gradients_at(model, batch, target, texts, place):
            parts = (moved[0] * gradient).sum(-1) / self.samples
            scores.index_add_(0, texts[some], parts)
        return scores
