"""Generic attention explainability: relevance carried up through gradient-weighted attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.kinds import Traced
from xattn.model import Model
from xattn.model.reduction import RELEVANCE
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch


@register(
    "generic_attention",
    signed=False,
    total="free",
    needs={"attention", "gradients"},
    citation="Chefer, Gur & Wolf 2021, Generic Attention-Model Explainability for Interpreting "
    "Bi-Modal and Encoder-Decoder Transformers (ICCV)",
)
@dataclass(frozen=True)
class GenericAttention(Traced):
    """Relevance carried through all layers by attention times gradient where that is positive.

    ``Ā = E_h[(∂y/∂A ⊙ A)⁺]`` (equation 5), ``R ← R + Ā · R`` in every layer from ``R = I``
    (equation 6), and the scores are the readout's row of the last ``R``; the paper reads the row
    of [CLS]. In encoder-decoders the relevance of the source to the target grows by
    ``R_ts ← R_ts + Ā · R_ts`` in self-attention (equation 7) and by
    ``R_ts ← R_ts + R̄_ttᵀ · Ā · R̄_ss`` in cross-attention (equation 10), where ``R̄`` is ``R``
    with what it holds beyond the identity brought to rows of sum 1 (equations 8 and 9). Scores are
    unsigned, without unit; the token that the prediction is read from keeps the 1 of the identity.
    """

    @property
    def request(self) -> Request:
        """Positive products of attention and gradient, averaged over heads."""
        return Request((RELEVANCE,))

    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]``."""
        relevances = trace.kept[RELEVANCE]
        if any(link.queries != link.keys for link in trace.links):
            return self._crossed(trace, relevances)
        row = trace.readout[:, None].clone()
        for number in reversed(range(len(trace.links))):  # only a row is carried down
            here = trace.queries(number)
            row[..., here] += row[..., here] @ relevances[number]
        return row[:, 0]

    @staticmethod
    def _crossed(trace: Trace, relevances: tuple[Tensor, ...]) -> Tensor:
        """Return the scores where the decoder looks at the encoder, ``[batch, token]``."""
        source, target = trace.streams
        count = len(trace.readout)

        def identity(stream: slice) -> Tensor:
            size = stream.stop - stream.start
            return torch.eye(size, device=trace.readout.device).expand(count, size, size).clone()

        own = {0: identity(source), 1: identity(target)}
        width = target.stop - target.start, source.stop - source.start
        crossed = torch.zeros(count, *width, device=trace.readout.device)
        for link, relevance in zip(trace.links, relevances, strict=True):
            if link.queries != link.keys:
                crossed = crossed + _beyond(own[1]).mT @ relevance @ _beyond(own[0])
                continue
            if link.queries == 1:
                crossed = crossed + relevance @ crossed
            own[link.queries] = own[link.queries] + relevance @ own[link.queries]
        row = trace.readout[:, None, target]
        return torch.cat([row @ crossed, row @ own[1]], dim=-1)[:, 0]


def _beyond(relevance: Tensor) -> Tensor:
    """Return ``R̄``: what R holds beyond the identity with rows of sum 1, and the identity."""
    identity = torch.eye(relevance.shape[-1], device=relevance.device)
    beyond = relevance - identity
    total = beyond.sum(-1, keepdim=True)
    return beyond / total.where(total > 0, 1) + identity
