"""Which inputs go through the model together: sorted by length, under a budget of tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model import marks
from xattn.types import Ints, Row

WASTE = 0.15
"""Share of padding from which on a large group is divided."""


def buckets(lengths: Sequence[int] | Ints, budget: int) -> list[Ints]:
    """Split inputs into groups of similar length.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each input.
    budget : int
        The largest number of tokens of a group, padding counted; an input that is over the budget
        by itself gets a group of its own.

    Returns
    -------
    list of int arrays
        Positions in `lengths`, longest first, so that memory runs out at once or never.

    Examples
    --------
    >>> buckets([8, 9, 30], budget=40)
    [array([2]), array([1, 0])]
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        end = start + max(1, budget // longest)
        rows = np.arange(1, len(order[start:end]) + 1)
        padding = 1 - lengths[order[start:end]].cumsum() / (rows * longest)
        # a group that is large already ends where padding becomes a fair part of the work
        wasteful = (padding > WASTE) & (rows * longest > budget // 4)
        if wasteful.any():
            end = start + max(1, int(wasteful.argmax()))
        groups.append(order[start:end])
        start = end
    return groups


def pad(rows: Sequence[Row], pad_id: int, device: torch.device) -> Mapping[str, Tensor]:
    """Stack inputs of different lengths, filled up on the right.

    Parameters
    ----------
    rows : sequence of Row
        Each with the same keys. Arrays ``[token]`` of one name may differ in length; all others
        (pictures) have one shape.
    pad_id : int
        What ``input_ids`` and ``decoder_input_ids`` are filled with; everything else with 0.
    device : torch.device

    Returns
    -------
    mapping of str to Tensor
        Each ``[batch, token]``, or ``[batch, ...]``.

    Raises
    ------
    InputError
        If the rows do not carry the same marks.
    """
    marks.check_same(rows)
    stacked = {}
    for name, first in rows[0].items():
        arrays = [row[name] for row in rows]
        if first.ndim == 1:
            width = max(map(len, arrays))
            fill = pad_id if name.endswith("input_ids") else 0
            table = np.full((len(rows), width), fill, dtype=first.dtype)
            for i, array in enumerate(arrays):
                table[i, : len(array)] = array
        elif len({array.shape for array in arrays}) > 1:
            raise InputError(
                "the pictures of a batch must have one size",
                got=" and ".join(sorted({str(list(array.shape)) for array in arrays})),
                remedy="explain them one by one, or let the processor crop them",
            )
        else:
            table = np.stack(arrays)
        stacked[name] = torch.from_numpy(table).to(device)
    return stacked


def refuse_left_padding(inputs: Mapping[str, Tensor], pad_ids: Collection[int]) -> None:
    """Refuse inputs that are padded on the left.

    Models count positions from the left, so most read a text that is moved to the right as another
    text (only those that are told positions, or have none, do not); and padding is told from hidden
    tokens by standing on the right.

    Parameters
    ----------
    inputs : mapping
        ``input_ids`` and ``attention_mask``, each ``[batch, token]``, if the model has them.
    pad_ids : collection of int
        Ids that mean padding. Without the id a masked token is one that was hidden on purpose.

    Raises
    ------
    InputError
        Naming the first such row.
    """
    if not {"input_ids", "attention_mask"} <= inputs.keys():
        return
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    first = torch.isin(ids[:, 0], torch.tensor(sorted(pad_ids), device=ids.device))
    left = first & (mask[:, 0] == 0) & (mask != 0).any(-1)
    if bool(left.any()):
        raise InputError(
            f"input {int(left.nonzero()[0])} of the batch is padded on the left",
            expected="padding on the right",
            remedy='set tokenizer.padding_side = "right", or leave it to Model.encode and .batch',
        )
