"""Layer-wise relevance propagation written out, layer by layer, with numpy: no derivatives.

One block of a BERT-like classifier: attention with one head, residual, layer norm, an activation
layer, residual, layer norm, and a linear read-out of the first token. Relevance goes from each
output back to what it was summed from, in proportion to the summands (Bach et al. 2015), under the
rules of Ali et al. 2022: attention weights and the deviations of norms are constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def norm_forward(x: Array, gain: Array, shift: Array, eps: float) -> tuple[Array, Array]:
    deviation = np.sqrt(x.var(-1, keepdims=True) + eps)
    return (x - x.mean(-1, keepdims=True)) / deviation * gain + shift, deviation


def norm_backward(relevance: Array, x: Array, out: Array, gain: Array, deviation: Array) -> Array:
    """Summands of ``out_i`` are ``x_j (δ_ij − 1/d) gain_i / deviation``, and the shift."""
    size = x.shape[-1]
    weight = (np.eye(size) - 1 / size) * gain[:, None]
    result = np.zeros_like(x)
    for t in range(len(x)):
        for i in range(size):
            if out[t, i] != 0:
                result[t] += relevance[t, i] / out[t, i] * weight[i] * x[t] / deviation[t, 0]
    return result


def linear_backward(relevance: Array, x: Array, out: Array, weight: Array) -> Array:
    """Summands of ``out_i`` are ``x_j weight_ij``, and the bias."""
    result = np.zeros_like(x)
    for t in range(len(x)):
        for i in range(weight.shape[0]):
            if out[t, i] != 0:
                result[t] += relevance[t, i] / out[t, i] * weight[i] * x[t]
    return result


def split(relevance: Array, one: Array, other: Array) -> tuple[Array, Array]:
    """A sum gives to its summands in proportion."""
    total = one + other
    share = np.divide(relevance, total, out=np.zeros_like(total), where=total != 0)
    return share * one, share * other


def block_backward(relevance: Array, record: dict[str, Array]) -> Array:
    """Return the relevance of a block's input, given that of its output."""
    r = norm_backward(relevance, record["sum2"], record["out"], record["gain2"], record["dev2"])
    kept, r = split(r, record["mid"], record["ff"])
    r = linear_backward(r, record["act"], record["ff"], record["w2"])
    # an activation hands its relevance on as it is
    kept = kept + linear_backward(r, record["mid"], record["pre"], record["w1"])
    r = norm_backward(kept, record["sum1"], record["mid"], record["gain1"], record["dev1"])
    kept, r = split(r, record["x"], record["att"])
    r = linear_backward(r, record["mixed"], record["att"], record["wo"])
    # mixed_ti = Σ_s p_ts v_si
    values = np.zeros_like(record["value"])
    for t in range(len(r)):
        for s in range(len(r)):
            for i in range(r.shape[1]):
                if record["mixed"][t, i] != 0:
                    part = record["p"][t, s] * record["value"][s, i] / record["mixed"][t, i]
                    values[s, i] += r[t, i] * part
    return kept + linear_backward(values, record["x"], record["value"], record["wv"])
