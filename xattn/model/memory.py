"""Memory: how much of it a forward and a backward pass hold for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InputError

if TYPE_CHECKING:
    from xattn.model.adapter import Model
    from xattn.model.runner import Runner


LONGEST = 512
"""Tokens of the text that is tried, if the model takes as many."""


def held_bytes(model: Runner, inputs: Mapping[str, Tensor]) -> int:
    """Return what a forward pass holds until the backward pass, in bytes.

    Counted is every tensor that autograd keeps, each storage once; parameters are not.
    """
    own = {p.untyped_storage().data_ptr() for p in model.network.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = model.embeddings(inputs).requires_grad_()
    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        model.borrowed(inputs),
        model.embedded(inputs, leaf),
    ):
        # the graph must outlive the count, or a storage's address could be given away twice
        output = model.output(inputs)
    del output
    return sum(seen.values())


def tokens_within(model: Model, memory: float) -> int:
    """Return how many tokens of long texts fit a memory together, forward and backward; at least 1.

    What attention holds grows with the square of a text's length, so long texts are tried; shorter
    ones need less.

    Parameters
    ----------
    model : Model
    memory : float
        GiB for activations; the parameters stand outside.

    Raises
    ------
    InputError
        Unless it is above 0.
    """
    if not 0 < memory < float("inf"):
        raise InputError("memory", got=str(memory), expected="GiB, above 0")
    length = min(LONGEST, model.limit or LONGEST)
    row = {
        name: values if values.ndim > 1 else np.resize(values, length)
        for name, values in model.probe().encodings[0].row.items()
    }
    inputs = model.collate([row])
    each = held_bytes(model, inputs) / model.embeddings(inputs).shape[1]
    # gradients of activations come and go while the graph is still held: a quarter more
    return max(1, int(memory * 2**30 / (1.25 * each)))
