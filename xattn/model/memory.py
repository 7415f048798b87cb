"""Memory: how much of it a forward and a backward pass hold for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InputError

if TYPE_CHECKING:
    from xattn.model.adapter import Model
    from xattn.model.runner import Runner


LONGEST = 512
"""Tokens of the text that is tried, if the model takes as many."""


class Peak:
    """The most memory that a block takes above what is held before it.

    Attributes
    ----------
    bytes : int or None
        After the block; None where neither a CUDA device nor Linux keeps account of it.

    Examples
    --------
    >>> with Peak(torch.device("cpu")) as peak:
    ...     _ = torch.ones(2**24)
    >>> peak.bytes is None or peak.bytes > 2**25
    True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before: int | None = torch.cuda.memory_allocated(self.device)
        else:
            self._before = _reset_peak()
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            cuda = self.device.type == "cuda"
            most = torch.cuda.max_memory_allocated(self.device) if cuda else _status("VmHWM")
            self.bytes = max(0, most - self._before)


def _reset_peak() -> int | None:
    """Set the process's high-water mark back and return what is held; None if it cannot be."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        return _status("VmRSS")
    except OSError:  # another system, or one that forbids it
        return None


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        found = next(line for line in lines if line.startswith(f"{field}:"))
    return int(found.split()[1]) * 1024


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
