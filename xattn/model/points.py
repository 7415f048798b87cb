"""Gradients at many points of embedding space, of many texts, in passes that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xattn.errors import ModelError
from xattn.types import Batch, Target

if TYPE_CHECKING:
    from xattn.model.runner import Runner

Place = Callable[[slice], Tensor]
"""Takes which points and returns their embeddings ``[point, token, hidden]``."""


def gradients_at(
    model: Runner, batch: Batch, target: Target, texts: Tensor, place: Place
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield targets and their derivatives by the embeddings at points, some at a time.

    Points of different texts share passes. However many there are, no more run together than the
    model's budget of tokens allows; where the device's memory does not do, half as many from then
    on.

    Parameters
    ----------
    model : Runner
    batch : Batch
    target : Target
        Of the batch.
    texts : Tensor
        ``[point]`` int64: which text of the batch each point belongs to.
    place : callable

    Yields
    ------
    slice
        Which points.
    Tensor
        ``[point]``: the targets there.
    Tensor
        ``[point, token, hidden]`` float32: the derivatives.

    Raises
    ------
    ModelError
        If the memory does not do for a single point.
    """
    size = max(1, model.budget // batch.shape[1])
    first = 0
    while first < len(texts):
        some = slice(first, min(first + size, len(texts)))
        here = texts[some]
        inputs = {name: tensor[here] for name, tensor in batch.inputs.items()}
        try:
            score, gradient = model.embedding_gradient(inputs, place(some), target[here])
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise ModelError(
                    "one forward and backward pass does not fit the memory",
                    got=f"{batch.shape[1]} tokens",
                    remedy="use shorter texts, --dtype bfloat16, or a method without gradients",
                ) from error
            size = (some.stop - some.start + 1) // 2
            continue
        yield some, score, gradient.float()
        first = some.stop
