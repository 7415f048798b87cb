"""Attention flow: how much can run from the prediction to a token if attention limits each edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from xattn.methods.rollout import MIXTURE, check_residual
from xattn.model import Model
from xattn.registry import register
from xattn.types import Batch, Floats, Target

# scipy's capacities are int32. All flow leaves a source whose edges sum to SCALE, so no residual
# capacity exceeds 2 · SCALE, and a capacity is off by at most half of 1/SCALE.
SCALE = 2**29


def max_flows(layers: Sequence[Floats], readout: Floats) -> npt.NDArray[np.float64]:
    """Return the maximum flow from the readout to each input token.

    Nodes are (layer, position); an edge runs from (l, i) to (l − 1, j) with capacity
    ``layers[l][i, j]``, and from a source to (L, i) with capacity ``readout[i]``.

    Parameters
    ----------
    layers : sequence of float arrays
        ``[token, token]`` each, first layer first.
    readout : float array
        ``[token]``, sums to 1.

    Returns
    -------
    float array
        ``[token]``, each in [0, 1]; off by less than ``layers · token / SCALE``.
    """
    count, depth = len(readout), len(layers)
    source = (depth + 1) * count
    tails, heads, capacities = (
        [np.full(count, source)],
        [depth * count + np.arange(count)],
        [readout],
    )
    for level, capacity in enumerate(layers, start=1):
        rows, columns = np.nonzero(capacity)
        tails.append(level * count + rows)
        heads.append((level - 1) * count + columns)
        capacities.append(capacity[rows, columns])
    scaled = np.rint(np.concatenate(capacities) * SCALE).astype(np.int32)
    graph = csr_array(
        (scaled, (np.concatenate(tails), np.concatenate(heads))), shape=(source + 1, source + 1)
    )
    flows = [maximum_flow(graph, source, token).flow_value for token in range(count)]
    return np.array(flows) / SCALE


@register(
    "flow",
    signed=False,
    total="free",
    needs={"attention"},
    citation="Abnar & Zuidema 2020, Quantifying Attention Flow in Transformers; Shapley values of "
    "the flow game by Ethayarajh & Jurafsky 2021, Attention Flows are Shapley Value Explanations",
)
@dataclass(frozen=True)
class Flow:
    """How much can run from the prediction to a token if attention limits every edge.

    The maximum flow from the readout to each input token (section 3). Edges have the capacities of
    rollout's layers, ``residual · I + (1 − residual) · Ā_l``. Scores are unsigned, without unit,
    and lie in [0, 1]. In deep bidirectional encoders the flow of most tokens is the smaller of 1
    and what the *first* layer sends to them: flow then says little about the layers above.

    Attributes
    ----------
    residual : float
        Share of the residual connection in each layer; the paper takes 0.5.
    """

    residual: float = 0.5

    def __post_init__(self) -> None:
        check_residual("flow", self.residual)

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        trace = model.trace(batch, target, reduce=MIXTURE)
        # off the device first: MPS knows no double precision
        readout = trace.readout.cpu().double().numpy()
        mixtures = []
        for number, maps in enumerate(trace.maps):
            mixture = np.tile(np.eye(batch.shape[1]), (len(batch), 1, 1))
            queries, keys = trace.queries(number), trace.keys(number)
            mixture[:, queries] *= self.residual
            mixture[:, queries, keys] += (1 - self.residual) * maps.cpu().double().numpy()
            mixtures.append(mixture)
        scores = torch.zeros(batch.shape)
        for i in range(len(batch)):
            columns = batch.columns(i)
            layers = [mixture[i][np.ix_(columns, columns)] for mixture in mixtures]
            flows = max_flows(layers, readout[i, columns])
            scores[i, torch.from_numpy(columns)] = torch.from_numpy(flows).float()
        return scores.to(model.device)
