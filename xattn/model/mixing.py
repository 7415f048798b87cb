"""Mixing: which tokens each token's vector is made of after a layer, followed down by rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from xattn.errors import AttentionError
from xattn.model.adapter import Model
from xattn.types import Batch

Measure = Callable[[Tensor, Tensor], Tensor]
"""Takes parts ``[part, query, hidden]`` and their sum with biases ``[query, hidden]``, returns a
number for each part and query, ``[part, query]``."""
Step = tuple[slice, Tensor]
"""Where the tokens that look stand on the token axis, and ``[query, token]``: at whom."""
REMEDY = "use value_zeroing, or a method that follows attention alone, such as rollout"


def roll_out(readout: Tensor, steps: Sequence[Step]) -> Tensor:
    """Carry a row down through steps, last to first: rollout with other mixtures than attention's.

    Parameters
    ----------
    readout : Tensor
        ``[token]``: where the prediction is read from.
    steps : sequence of Step
        First layer first.

    Examples
    --------
    >>> step = (slice(0, 2), torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    >>> roll_out(torch.tensor([0.5, 0.5]), [step])
    tensor([0.7500, 0.2500])
    """
    row = readout
    for queries, matrix in reversed(steps):
        looking, row = row[queries], row.clone()
        row[queries] = 0
        row = row + looking @ matrix
    return row


def normalised(steps: Sequence[Step]) -> list[Step]:
    """Return steps whose rows sum to 1; a token to which nothing contributes keeps to itself.

    Examples
    --------
    >>> [(_, matrix)] = normalised([(slice(0, 2), torch.tensor([[1.0, 3.0], [0.0, 0.0]]))])
    >>> matrix
    tensor([[0.2500, 0.7500],
            [0.0000, 1.0000]])
    """
    found = []
    for queries, matrix in steps:
        matrix = matrix.clone()
        matrix[:, queries].diagonal().add_((matrix.sum(-1) == 0).to(matrix.dtype))
        found.append((queries, matrix / matrix.sum(-1, keepdim=True)))
    return found


def singles(model: Model, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
    """Yield each text of a batch alone, without padding, and where its tokens were."""
    for i, encoding in enumerate(batch.encodings):
        columns = torch.from_numpy(batch.columns(i)).to(model.device)
        yield columns, model.batch([encoding])


def chunks(model: Model, batch: Batch) -> list[range]:
    """Return the tokens of a text in runs whose copies of the text stay within the budget."""
    tokens = batch.shape[1]
    size = max(1, model.budget // tokens)
    return [range(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def single(tokens: range, stream: slice, lanes: int, like: Tensor) -> Tensor:
    """Return ``[lane, token]``: 1 where a lane is of that token of the stream, else 0."""
    mask = torch.zeros(lanes, stream.stop - stream.start, dtype=like.dtype, device=like.device)
    for lane, token in enumerate(tokens):
        if stream.start <= token < stream.stop:
            mask[lane, token - stream.start] = 1
    return mask


def require_values(model: Model) -> None:
    """Raise `AttentionError` unless probabilities and values can be reached in all layers."""
    missing = {"probabilities", "values"} - model.attach().serves
    if missing:
        raise AttentionError(
            f"the {' and '.join(sorted(missing))} of {type(model.network).__name__} cannot be "
            "followed",
            remedy="use a method that only reads attention, such as attention or rollout",
        )
