"""Batches of token ids, and the removal of tokens from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL_TOKENS))
_BATCHES_PER_BUCKET = 40


@dataclass(frozen=True)
class Encoded:
    """Token ids with their targets.

    Attributes
    ----------
    ids
        One list of token ids per text, special tokens included.
    positive
        Label of each text as a probability of "positive", shape ``(texts,)``.
    weight
        Weight of each text in the loss, shape ``(texts,)``.
    """

    ids: list[list[int]]
    positive: Tensor
    weight: Tensor


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Stack rows of ids into one tensor of shape ``(rows, longest)``, filled up with [PAD]."""
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD
    )


def bucketed_batches(lengths: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Draw one epoch of batches of similar length, which saves most of the padding.

    Parameters
    ----------
    lengths
        Tokens per text, shape ``(texts,)``.
    size
        Texts per batch; the last batch may be smaller.
    generator
        Source of the order.

    Yields
    ------
    Tensor
        Indices of the texts of one batch, shape ``(size,)``.
    """
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    for first in range(0, len(order), size * _BATCHES_PER_BUCKET):
        bucket = order[first : first + size * _BATCHES_PER_BUCKET]
        bucket = bucket[lengths[bucket].argsort(stable=True)]
        batches += [bucket[start : start + size] for start in range(0, len(bucket), size)]
    for position in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[position]


def remove_tokens(ids: Tensor, rate: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Remove random tokens as explanation metrics do: deleted, or replaced by a special token.

    Parameters
    ----------
    ids
        Padded token ids, shape ``(texts, tokens)``.
    rate
        Probability of removal for each token of a text, shape ``(texts,)``.
    generator
        Source of the removals.

    Returns
    -------
    tuple of Tensor
        New ids and their attention mask, both of shape ``(texts, tokens)``. [CLS] and [SEP]
        stay. Each text is treated in one way: deletion, [MASK], [UNK], or an attended [PAD].
    """
    present = ids != PAD
    hit = torch.rand(ids.shape, generator=generator) < rate[:, None]
    hit &= present & (ids != CLS) & (ids != SEP)
    # -1 stands for deletion.
    ways = torch.tensor([-1, MASK, UNK, PAD])
    way = ways[torch.randint(len(ways), (len(ids), 1), generator=generator)]
    kept = present & ~(hit & (way == -1))
    order = (~kept).int().argsort(dim=1, stable=True)
    ids = torch.where(hit, way.clamp(min=PAD), ids).gather(1, order)
    attended = kept.gather(1, order)
    return ids * attended, attended.long()
