"""Integrated gradients: the target's change along a straight path, shared out among the tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Complete
from xattn.model import Model
from xattn.model.points import gradients_at
from xattn.registry import register
from xattn.types import Batch, Floats, Target


@register(
    "integrated_gradients",
    signed=True,
    total="difference",
    needs={"gradients"},
    citation="Sundararajan, Taly & Yan 2017, Axiomatic Attribution for Deep Networks",
)
@dataclass(frozen=True)
class IntegratedGradients(Complete):
    """The target's change on the way from a text without words, shared out among the tokens.

    ``s = Σ_hidden (e − e′) ⊙ ∫₀¹ ∂y/∂e (e′ + α (e − e′)) dα`` (equation 1). ``e`` are the token
    embeddings and ``e′`` the baseline: every token that is not special is replaced. The integral
    is a Gauss-Legendre sum whose points grow by half until the completeness gap
    ``Σ s − (y(e) − y(e′))`` is under the tolerance. Scores are signed, in the target's unit, and
    sum to ``y(e) − y(e′)``.

    Sequential integrated gradients (Enguehard 2023), whose path moves one token at a time while the
    others stand, need no sum: along such a path only that token's share is counted, and it is all
    of the change, so their scores are those of `occlusion` by the baseline's token.

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
    rule : {"gauss-legendre", "riemann"}
        How points and weights are chosen. Riemann's sum (right ends of equal steps) is for
        comparison: it needs several times as many.
    """

    baseline: Literal["auto", "mask", "pad", "unk", "zero"] = "auto"
    steps: int = 8
    tolerance: float = 0.01
    max_steps: int = 256
    rule: Literal["gauss-legendre", "riemann"] = "gauss-legendre"

    def __post_init__(self) -> None:
        if self.rule not in ("gauss-legendre", "riemann"):
            raise InputError(
                "rule of integrated_gradients",
                got=repr(self.rule),
                expected="gauss-legendre or riemann",
            )
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

    def attribute(self, model: Model, batch: Batch, target: Target) -> tuple[Tensor, Tensor]:
        """Return scores ``[batch, token]`` and ``y(e) − y(e′)``, ``[batch]``."""
        end, start = model.embeddings(batch.inputs), model.baseline(batch, self.baseline)
        expected = model.score(batch.inputs, target) - model.score(batch.inputs, target, start)
        scores = torch.zeros(batch.shape, device=model.device)
        open_rows = torch.arange(len(batch), device=model.device)
        steps = self.steps
        while len(open_rows):
            part = self._integral(model, batch, target, open_rows, steps, (start, end - start))
            scores[open_rows] = part
            wanted = expected[open_rows]
            gap = (part.sum(-1) - wanted).abs()
            # by half as many again: twice as many cost more than the few gaps that remain
            steps = math.ceil(1.5 * steps)
            if steps > self.max_steps:
                break
            open_rows = open_rows[gap > self.tolerance * wanted.abs()]
        return scores, expected

    def _integral(
        self,
        model: Model,
        batch: Batch,
        target: Target,
        rows: Tensor,
        steps: int,
        path: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the scores of `rows`, ``[row, token]``, with a sum of `steps` points."""
        alphas, shares = (
            torch.tensor(values, dtype=torch.float32, device=model.device)
            for values in points(self.rule, steps)
        )
        start, change = path
        # Every (text, point) is an input of its own; under the budget they share a pass.
        texts, at = rows.repeat_interleave(steps), alphas.repeat(len(rows))[:, None, None]
        share = shares.repeat(len(rows))[:, None]
        scores = torch.zeros(batch.shape, device=model.device)

        def place(some: slice) -> Tensor:
            return start[texts[some]] + at[some].to(start.dtype) * change[texts[some]]

        for some, _, gradient in gradients_at(model, batch, target, texts, place):
            parts = (change[texts[some]].float() * gradient).sum(-1)
            scores.index_add_(0, texts[some], share[some] * parts)
        return scores[rows]


def points(rule: str, steps: int) -> tuple[Floats, Floats]:
    """Return places on the way from 0 to 1 and their weights, ``[step]`` each.

    Examples
    --------
    >>> points("riemann", 2)
    (array([0.5, 1. ]), array([0.5, 0.5]))
    """
    if rule == "riemann":
        return np.arange(1, steps + 1) / steps, np.full(steps, 1 / steps)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2
