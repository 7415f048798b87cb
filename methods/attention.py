"""Raw attention: where the position that the prediction is read from looks, in one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.model import Model
from xattn.model.reduction import Reduction, along_queries
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch


@register(
    "attention",
    signed=False,
    total="one",
    needs={"attention"},
    citation="Bahdanau et al. 2015, Neural Machine Translation by Jointly Learning to Align and "
    "Translate; questioned by Jain & Wallace 2019, Attention is not Explanation",
)
@dataclass(frozen=True)
class Attention(Traced):
    """How much the position that the prediction is read from looks at a token, in one layer.

    ``s = r · Ā_l``: ``r`` is the readout (see `Model.trace`), ``Ā_l`` the attention of layer
    ``l``, averaged over heads or of one head. Scores are unsigned, without unit, and sum to 1. In
    encoder-decoders half of them is the cross-attention to the source and half the decoder's to
    what it has written.

    Attributes
    ----------
    layer : int
        Which layer, counted from 0; negative numbers count from the last.
    head : int, optional
        Which head; the mean of all by default.
    """

    layer: int = -1
    head: int | None = None

    @property
    def request(self) -> Request:
        """The head, or the mean of heads, and the readout."""
        return Request((self._reduction,))

    @property
    def _reduction(self) -> Reduction:
        return Reduction(self._pick, along_queries, narrow=True)

    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]``."""
        maps = trace.kept[self._reduction]
        scores = torch.zeros(batch.shape, device=model.device)
        for numbers in trace.layers().values():
            count = len(numbers)
            if not -count <= self.layer < count:
                raise InputError(
                    "layer of attention", got=str(self.layer), expected=f"{-count} to {count - 1}"
                )
            number = numbers[self.layer]
            row = trace.readout[:, None, trace.queries(number)]
            scores[:, trace.keys(number)] += (row @ maps[number].float())[:, 0]
        # attention sinks take a share of a row, and a decoder's tokens look at two streams
        return scores / scores.sum(-1, keepdim=True)

    def _pick(self, maps: Tensor, queries: slice) -> Tensor:
        if self.head is None:
            return maps.mean(1)
        if not -maps.shape[1] <= self.head < maps.shape[1]:
            raise InputError(
                "head of attention",
                got=str(self.head),
                expected=f"{-maps.shape[1]} to {maps.shape[1] - 1}",
            )
        return maps[:, self.head]
