"""Attention rollout: attention followed through all layers as a chain of mixtures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.model import Model
from xattn.model.reduction import HEAD_MEAN, Reduction
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch


def _mixture(maps: Tensor, queries: slice) -> Tensor:
    mean = HEAD_MEAN.each(maps, queries)
    return mean.div_(mean.sum(-1, keepdim=True))


MIXTURE = Reduction(_mixture, HEAD_MEAN.join, narrow=True)
"""The mean of the heads, ``[batch, query, key]`` float32, rows summing to 1: those of a model with
attention sinks sum to less before."""


def check_residual(method: str, residual: float) -> None:
    """Raise `InputError` unless the residual share lies in [0, 1]."""
    if not 0 <= residual <= 1:
        raise InputError(f"residual of {method}", got=str(residual), expected="0 to 1")


@register(
    "rollout",
    signed=False,
    total="one",
    needs={"attention"},
    citation="Abnar & Zuidema 2020, Quantifying Attention Flow in Transformers",
)
@dataclass(frozen=True)
class Rollout(Traced):
    """Attention followed from the prediction down through all layers, as a chain of mixtures.

    ``s = r · M_L · ... · M_1`` (section 3, equation 1), where ``r`` is the readout (see
    `Model.trace`), ``M_l = residual · I + (1 − residual) · Ā_l``, and ``Ā_l`` the mean of the
    heads of layer ``l``. In encoder-decoders a cross-attention layer hands the other share on to
    the source, and the encoder's layers follow below the decoder's. Scores are unsigned, without
    unit, and sum to 1. Only a row is carried down, so the cost is ``layers · token²`` and not
    ``token³``.

    Attributes
    ----------
    residual : float
        Share of the residual connection in each layer; the paper takes 0.5.
    """

    residual: float = 0.5

    def __post_init__(self) -> None:
        check_residual("rollout", self.residual)

    @property
    def request(self) -> Request:
        """Head means and the readout."""
        return Request((MIXTURE,))

    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]``."""
        maps = trace.kept[MIXTURE]
        row = trace.readout[:, None].clone()
        for number in reversed(range(len(trace.links))):
            queries, keys = trace.queries(number), trace.keys(number)
            looking = row[..., queries].clone()
            row[..., queries] *= self.residual
            row[..., keys] += (1 - self.residual) * (looking @ maps[number])
        return row[:, 0]
