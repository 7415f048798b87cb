"""Attention rollout: attention followed through all layers as a chain of mixtures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model import Model
from xattn.registry import register
from xattn.types import Batch, Target


def head_mean(maps: Tensor) -> Tensor:
    """Average attention over heads, rows summing to 1.

    Rows of a model with attention sinks sum to less before.

    Parameters
    ----------
    maps : Tensor
        ``[batch, head, query, key]``.

    Returns
    -------
    Tensor
        ``[batch, query, key]`` float32.
    """
    mean = maps.float().mean(1)
    return mean / mean.sum(-1, keepdim=True)


def check_residual(method: str, residual: float) -> None:
    """Raise `InputError` unless the residual share lies in [0, 1]."""
    if not 0 <= residual <= 1:
        raise InputError(f"residual of {method}", got=str(residual), expected="0 to 1")


def mix(maps: Tensor, residual: float) -> Tensor:
    """Return one layer's mixture of positions ``residual · I + (1 − residual) · Ā``.

    Parameters
    ----------
    maps : Tensor
        ``[batch, query, key]``, rows summing to 1.
    residual : float
        Share of the residual connection, 0 to 1.
    """
    eye = torch.eye(maps.shape[-1], device=maps.device)
    return residual * eye + (1 - residual) * maps


@register(
    "rollout",
    signed=False,
    total="one",
    needs={"attention"},
    citation="Abnar & Zuidema 2020, Quantifying Attention Flow in Transformers",
)
@dataclass(frozen=True)
class Rollout:
    """Attention followed from the prediction down through all layers, as a chain of mixtures.

    ``s = r · M_L · ... · M_1`` (section 3, equation 1), where ``r`` is the readout (see
    `Model.trace`), ``M_l = residual · I + (1 − residual) · Ā_l``, and ``Ā_l`` the mean of the
    heads of layer ``l``. Scores are unsigned, without unit, and sum to 1. Only a
    row is carried down, so the cost is ``layers · token²`` and not ``token³``.

    Attributes
    ----------
    residual : float
        Share of the residual connection in each layer; the paper takes 0.5.
    """

    residual: float = 0.5

    def __post_init__(self) -> None:
        check_residual("rollout", self.residual)

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        trace = model.trace(batch, target, reduce=head_mean)
        row = trace.readout[:, None]
        for maps in reversed(trace.maps):
            row = row @ mix(maps, self.residual)
        return row[:, 0]
