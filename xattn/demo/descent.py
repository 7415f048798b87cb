"""Gradient descent as both demo models are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Descent:
    """AdamW with clipped gradients, a linear warm-up and a linear decay to zero.

    Parameters
    ----------
    model
        What to train; only its matrices decay.
    peak
        Learning rate at the end of the warm-up.
    steps
        How often :meth:`step` will be called.
    weight_decay
        Decay of the matrices.
    warm_up
        Share of the steps in which the rate rises.
    """

    def __init__(
        self, model: nn.Module, peak: float, steps: int, weight_decay: float, warm_up: float
    ) -> None:
        self.model = model
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for parameter in model.parameters():
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=peak,
            betas=(0.9, 0.98),
        )
        warm = max(1, int(steps * warm_up))
        self.rate = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm)),
        )

    def step(self, loss: Tensor) -> None:
        """Take one step against the gradient of a scalar loss."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()
