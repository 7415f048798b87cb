"""Layer-wise relevance propagation written out, layer by layer, with numpy: no derivatives.

One block of a BERT-like classifier: attention with one head, residual, layer norm, an activation
layer, residual, layer norm, and a linear read-out of the first token. Relevance goes from each
output back to what it was summed from, in proportion to the summands (Bach et al. 2015), under the
rules of Ali et al. 2022 (attention weights and the deviations of norms are constants) or of
Achtibat et al. 2024 (attention weights get relevance, too). Also DeepLIFT's softmax.
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


def block_backward(relevance: Array, record: dict[str, Array], derivative: bool = False) -> Array:
    """Return the relevance of a block's input, given that of its output."""
    r = norm_backward(relevance, record["sum2"], record["out"], record["gain2"], record["dev2"])
    kept, r = split(r, record["mid"], record["ff"])
    r = linear_backward(r, record["act"], record["ff"], record["w2"])
    # an activation hands its relevance on as it is
    kept = kept + linear_backward(r, record["mid"], record["pre"], record["w1"])
    r = norm_backward(kept, record["sum1"], record["mid"], record["gain1"], record["dev1"])
    kept, r = split(r, record["x"], record["att"])
    r = linear_backward(r, record["mixed"], record["att"], record["wo"])
    return kept + attention_backward(r, record, derivative)


def attention_backward(relevance: Array, record: dict[str, Array], derivative: bool) -> Array:
    """One head, ``mixed_ti = Σ_s p_ts v_si``, with weights that are constants or ones of AttnLRP.

    AttnLRP (Achtibat et al. 2024): factors of a product share alike (eq. 15), and the softmax gives
    its scores ``s_i (R_i − p_i Σ_j R_j)`` of the relevance ``R`` of its weights (eq. 13).
    """
    p, values, mixed = record["p"], record["value"], record["mixed"]
    share = 0.5 if derivative else 1.0
    to_values, to_weights = np.zeros_like(values), np.zeros_like(p)
    for t in range(len(p)):
        for s in range(len(p)):
            for i in range(values.shape[1]):
                if mixed[t, i] != 0:
                    part = relevance[t, i] * p[t, s] * values[s, i] / mixed[t, i]
                    to_values[s, i] += share * part
                    to_weights[t, s] += share * part
    result = linear_backward(to_values, record["x"], values, record["wv"])
    if not derivative:
        return result
    query, key = record["query"], record["key"]
    root = np.sqrt(query.shape[1])
    to_query, to_key = np.zeros_like(query), np.zeros_like(key)
    for t in range(len(p)):
        scores = key @ query[t] / root
        to_scores = scores * (to_weights[t] - p[t] * to_weights[t].sum())
        for s in range(len(p)):
            for i in range(query.shape[1]):
                part = to_scores[s] * query[t, i] * key[s, i] / root / scores[s]
                to_query[t, i] += part / 2
                to_key[s, i] += part / 2
    result += linear_backward(to_query, record["x"], query, record["wq"])
    return result + linear_backward(to_key, record["x"], key, record["wk"])


def softmax_multipliers(now: Array, then: Array) -> Array:
    """Return DeepLIFT's multipliers of a softmax, ``[input, output]``, by its chain rule.

    ``e_i = exp x_i``, ``S = Σ e``, ``z_i = x_i − log S``, ``p_i = exp z_i``: every function of one
    number has the multiplier ``Δf / Δx`` (Shrikumar et al. 2017, eq. 3 and 8).
    """
    powers, before = np.exp(now), np.exp(then)
    log, log_before = np.log(powers.sum()), np.log(before.sum())
    outer = (log - log_before) / (powers.sum() - before.sum())
    result = np.zeros((len(now), len(now)))
    for i in range(len(now)):
        to_sum = outer * (powers[i] - before[i]) / (now[i] - then[i])
        for j in range(len(now)):
            z, z_before = now[j] - log, then[j] - log_before
            slope = (np.exp(z) - np.exp(z_before)) / (z - z_before)
            result[i, j] = slope * ((i == j) - to_sum)
    return result
