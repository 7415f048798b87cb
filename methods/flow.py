"""Attention flow: how much can run from the prediction to a token if attention limits each edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.kinds import Traced
from xattn.maxflow import max_flows
from xattn.maxflow.compiled import Array
from xattn.methods.rollout import MIXTURE, check_residual
from xattn.model import Model
from xattn.model.trace import Request, Trace
from xattn.registry import register
from xattn.types import Batch

ARRAYS = 4
"""Copies of a text's maps in double precision: by rows, by columns, and the search's flows so."""


@register(
    "flow",
    signed=False,
    total="free",
    needs={"attention"},
    citation="Abnar & Zuidema 2020, Quantifying Attention Flow in Transformers; Shapley values of "
    "the flow game by Ethayarajh & Jurafsky 2021, Attention Flows are Shapley Value Explanations",
)
@dataclass(frozen=True)
class Flow(Traced):
    """How much can run from the prediction to a token if attention limits every edge.

    The maximum flow from the readout to each input token (section 3), exact; see `xattn.maxflow`.
    Edges have the capacities of rollout's layers, ``residual · I + (1 − residual) · Ā_l``. Scores
    are unsigned, without unit, and lie in [0, 1]. In deep bidirectional encoders the flow of most
    tokens is the smaller of 1 and what the *first* layer sends to them: flow then says little about
    the layers above, and nearly the same of every prediction.

    Attributes
    ----------
    residual : float
        Share of the residual connection in each layer; the paper takes 0.5.
    memory : float
        GiB that the maps of one text may take in double precision; longer texts are refused.
    """

    residual: float = 0.5
    memory: float = 4.0

    def __post_init__(self) -> None:
        check_residual("flow", self.residual)
        check_memory("flow", self.memory)

    @property
    def request(self) -> Request:
        """Head means and the readout."""
        return Request((MIXTURE,))

    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]``."""
        layers = [(1 - self.residual) * maps.cpu().double() for maps in trace.kept[MIXTURE]]
        return flows(batch, trace, layers, self.residual, self.memory, "flow")


def check_memory(method: str, memory: float) -> None:
    """Raise `InputError` unless the memory is a number above 0."""
    if not 0 < memory < float("inf"):
        raise InputError(f"memory of {method}", got=str(memory), expected="GiB, above 0")


def flows(
    batch: Batch,
    trace: Trace,
    layers: Sequence[Tensor],
    residual: float,
    memory: float,
    method: str,
    solve: Callable[[Array, Array], Array] = max_flows,
    arrays: int = ARRAYS,
) -> Tensor:
    """Return the flow from the readout to each token, ``[batch, token]``.

    Parameters
    ----------
    batch : Batch
    trace : Trace
    layers : sequence of Tensor
        ``[batch, query, key]`` of each link: what goes from token to token.
    residual : float
        What each token that looks hands to itself.
    memory : float
        GiB at most.
    method : str
        Who is to blame in messages.
    solve : callable
        Takes layers and source as `max_flows` does, and returns ``[token]``.
    arrays : int
        How many copies of a text's maps that takes.

    Raises
    ------
    InputError
        If a text's maps would take more.
    """
    # off the device first: MPS knows no double precision
    readout = trace.readout.cpu().double().numpy()
    scores = torch.zeros(batch.shape)
    for i in range(len(batch)):
        columns = batch.columns(i)
        count = len(columns)
        size = arrays * 8 * len(layers) * count**2 / 2**30
        if size > memory:
            raise InputError(
                f"{method} of a text of {count} tokens in {len(layers)} layers",
                got=f"{size:.3g} GiB of maps",
                expected=f"at most {memory:.3g}",
                remedy=f"allow more ({method}:memory={np.ceil(size):.0f}), or take rollout",
            )
        stack = np.zeros((len(layers), count, count))
        for number, layer in enumerate(layers):
            mixture = np.eye(batch.shape[1])
            queries, keys = trace.queries(number), trace.keys(number)
            mixture[queries] *= residual
            mixture[queries, keys] += layer[i].numpy()
            stack[number] = mixture[np.ix_(columns, columns)]
        found = solve(stack, readout[i, columns])
        scores[i, torch.from_numpy(columns)] = torch.from_numpy(found).float()
    return scores.to(trace.readout.device)
