"""Norm-based and decomposition methods written from the papers' equations, in plain loops.

For BERT classifiers, from ``output_attentions``, ``output_hidden_states`` and the weights alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def array(tensor: Tensor) -> Array:
    result: Array = tensor.detach().double().numpy()
    return result


def eager(network: Any, inputs: Mapping[str, Tensor]) -> Any:
    """Run a copy, so that nothing of the network is changed, with attention maps returned."""
    network = copy.deepcopy(network)
    network.set_attn_implementation("eager")
    with torch.no_grad():
        return network(**inputs, output_attentions=True, output_hidden_states=True)


class Bert:
    """One text in a BERT classifier: weights, true vectors and attention, in double precision."""

    def __init__(self, network: Any, inputs: Mapping[str, Tensor]) -> None:
        out = eager(network, inputs)
        self.network, self.config = network, network.config
        self.vectors = [array(h[0]) for h in out.hidden_states]
        self.attention = [array(a[0]) for a in out.attentions]
        self.logits = array(out.logits[0])
        self.layers = list(network.base_model.encoder.layer)
        self.tokens = len(self.vectors[0])

    def affine(self, module: Any, x: Array) -> Array:
        return x @ array(module.weight).T + array(module.bias)

    def values(self, layer: int, head: int) -> Array:
        """f_h(x_j) = (x_j W_V + b_V) W_O of one head, ``[token, hidden]``."""
        block = self.layers[layer].attention
        size = self.config.hidden_size // self.config.num_attention_heads
        part = slice(head * size, (head + 1) * size)
        v = self.affine(block.self.value, self.vectors[layer])[:, part]
        return v @ array(block.output.dense.weight)[:, part].T

    def weighted(self, layer: int) -> Array:
        """Σ_h α_h[i, j] f_h(x_j), ``[i, j, hidden]``."""
        count, hidden = self.tokens, self.config.hidden_size
        result = np.zeros((count, count, hidden))
        for head in range(self.config.num_attention_heads):
            values = self.values(layer, head)
            for i in range(count):
                for j in range(count):
                    result[i, j] += self.attention[layer][head, i, j] * values[j]
        return result

    def with_residual(self, layer: int) -> Array:
        parts = self.weighted(layer)
        for i in range(self.tokens):
            parts[i, i] += self.vectors[layer][i]
        return parts

    def before_norm(self, layer: int) -> Array:
        bias = array(self.layers[layer].attention.output.dense.bias)
        return self.with_residual(layer).sum(1) + bias

    def norm_of_parts(self, module: Any, parts: Array, true: Array) -> Array:
        """g(x̃_ij): centred by its own mean, scaled by the deviation of the true vector."""
        result = np.zeros_like(parts)
        for i in range(len(parts)):
            deviation = math.sqrt(true[i].var() + module.eps)
            for j in range(parts.shape[1]):
                part = parts[i, j]
                result[i, j] = (part - part.mean()) / deviation * array(module.weight)
        return result

    def norm(self, module: Any, true: Array) -> Array:
        parts = self.norm_of_parts(module, true[:, None], true)
        return parts[:, 0] + array(module.bias)


def rolled_out(matrices: list[Array], row: Array) -> Array:
    for matrix in reversed(matrices):
        row = row @ (matrix / matrix.sum(1, keepdims=True))
    return row


def value_norm(bert: Bert, row: Array, residual: float = 0.5) -> Array:
    matrices = []
    for layer in range(len(bert.layers)):
        norms = np.linalg.norm(bert.weighted(layer), axis=-1)
        norms /= norms.sum(1, keepdims=True)
        matrices.append(residual * np.eye(bert.tokens) + (1 - residual) * norms)
    return rolled_out(matrices, row)


def globenc(bert: Bert, row: Array) -> Array:
    matrices = []
    for number, layer in enumerate(bert.layers):
        first = bert.before_norm(number)
        parts = bert.norm_of_parts(
            layer.attention.output.LayerNorm, bert.with_residual(number), first
        )
        middle = bert.norm(layer.attention.output.LayerNorm, first)
        inner = bert.affine(layer.intermediate.dense, middle)
        second = bert.affine(layer.output.dense, gelu(inner)) + middle
        parts = bert.norm_of_parts(layer.output.LayerNorm, parts, second)
        matrices.append(np.linalg.norm(parts, axis=-1))
    return rolled_out(matrices, row)


def alti(bert: Bert, row: Array) -> Array:
    matrices = []
    for number, layer in enumerate(bert.layers):
        true = bert.before_norm(number)
        parts = bert.norm_of_parts(
            layer.attention.output.LayerNorm, bert.with_residual(number), true
        )
        y = bert.norm(layer.attention.output.LayerNorm, true)
        matrix = np.zeros((bert.tokens, bert.tokens))
        for i in range(bert.tokens):
            for j in range(bert.tokens):
                matrix[i, j] = max(0, np.abs(y[i]).sum() - np.abs(y[i] - parts[i, j]).sum())
        matrices.append(matrix)
    return rolled_out(matrices, row)


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def share(parts: Array, bias: Array, rule: str) -> Array:
    """Give a bias to the parts ``[i, j, hidden]``, by one of the paper's rules."""
    result = parts.copy()
    if rule == "none":
        return result
    for i in range(len(parts)):
        if rule == "absdot":
            weights = np.array([abs(part @ bias) for part in parts[i]])
        elif rule == "norm":
            weights = np.array([np.linalg.norm(part) for part in parts[i]])
        else:
            weights = np.array([float(np.linalg.norm(part) > 0) for part in parts[i]])
        if weights.sum() > 0:
            for j, weight in enumerate(weights / weights.sum()):
                result[i, j] += weight * bias
    return result


def decompx(bert: Bert, label: int, rule: str) -> Array:
    """Parts of a logit: BERT with pooler and classifier, biases shared where they are added."""
    config, count = bert.config, bert.tokens
    parts = np.zeros((count, count, config.hidden_size))
    for i in range(count):
        parts[i, i] = bert.vectors[0][i]
    size = config.hidden_size // config.num_attention_heads
    for number, layer in enumerate(bert.layers):
        attention = layer.attention
        values = share(
            parts @ array(attention.self.value.weight).T, array(attention.self.value.bias), rule
        )
        mixed = np.zeros_like(parts)
        for head in range(config.num_attention_heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(count):
                for k in range(count):
                    mixed[i, :, part] += bert.attention[number][head, i, k] * values[k, :, part]
        dense = attention.output.dense
        mixed = share(mixed @ array(dense.weight).T, array(dense.bias), rule) + parts
        first = bert.before_norm(number)
        norm = attention.output.LayerNorm
        parts = share(bert.norm_of_parts(norm, mixed, first), array(norm.bias), rule)
        middle = bert.norm(norm, first)

        dense = layer.intermediate.dense
        inner = bert.affine(dense, middle)
        wide = share(parts @ array(dense.weight).T, array(dense.bias), rule)
        wide = wide * (gelu(inner) / inner)[:, None]
        dense = layer.output.dense
        narrow = share(wide @ array(dense.weight).T, array(dense.bias), rule) + parts
        second = bert.affine(dense, gelu(inner)) + middle
        norm = layer.output.LayerNorm
        parts = share(bert.norm_of_parts(norm, narrow, second), array(norm.bias), rule)
    dense = bert.network.bert.pooler.dense
    given = bert.affine(dense, bert.vectors[-1][:1])
    pooled = share(parts[:1] @ array(dense.weight).T, array(dense.bias), rule)
    pooled = pooled * (np.tanh(given) / given)[:, None]
    dense = bert.network.classifier
    result: Array = share(pooled @ array(dense.weight).T, array(dense.bias), rule)[0, :, label]
    return result


def value_zeroing(
    network: Any, inputs: Mapping[str, Tensor], layers: list[Any], values: list[Any], row: Array
) -> Array:
    """Run the whole network again for every layer and token, that token's value set to zero.

    `layers` are the modules whose outputs are compared, `values` the linear maps in them that make
    the values.
    """

    def outputs(zeroed: Any = None, token: int = 0) -> list[Array]:
        found: list[Array] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            found.append(array((output[0] if isinstance(output, tuple) else output)[0]))

        def zero(module: Any, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, token] = 0
            return output

        handles = [layer.register_forward_hook(keep) for layer in layers]
        if zeroed is not None:
            handles.append(zeroed.register_forward_hook(zero))
        with torch.no_grad():
            network(**inputs)
        for handle in handles:
            handle.remove()
        return found

    true = outputs()
    matrices = []
    for number, module in enumerate(values):
        count = len(true[0])
        matrix = np.zeros((count, count))
        for j in range(count):
            changed = outputs(module, j)[number]
            for i in range(count):
                a, b = true[number][i], changed[i]
                matrix[i, j] = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        matrices.append(matrix)
    return rolled_out(matrices, row)


def frozen_llama(network: Any, inputs: Mapping[str, Tensor], label: int) -> Array:
    """Jacobian times first vectors of a Llama classifier, its coefficients held still by autograd.

    Attention probabilities, roots and slopes of activations are detached; a gated product gives
    half of itself to each factor. There are no biases, so the parts sum to the logit.
    """
    out = eager(network, inputs)
    config, model = network.config, network.model
    start = out.hidden_states[0][0].detach().double().requires_grad_()

    def weights(module: Any) -> Tensor:
        result: Tensor = module.weight.detach().double()
        return result

    def norm(module: Any, x: Tensor) -> Tensor:
        root = (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).sqrt().detach()
        return x / root * weights(module)

    x = start
    for number, layer in enumerate(model.layers):
        given = norm(layer.input_layernorm, x)
        value = given @ weights(layer.self_attn.v_proj).T
        heads = []
        groups = config.num_attention_heads // config.num_key_value_heads
        size = config.hidden_size // config.num_attention_heads
        for head in range(config.num_attention_heads):
            shared = head // groups
            part = value[:, shared * size : (shared + 1) * size]
            heads.append(out.attentions[number][0, head].double() @ part)
        x = x + torch.cat(heads, -1) @ weights(layer.self_attn.o_proj).T
        given = norm(layer.post_attention_layernorm, x)
        gate = given @ weights(layer.mlp.gate_proj).T
        active = gate * torch.sigmoid(gate).detach()
        up = given @ weights(layer.mlp.up_proj).T
        product = (active * up.detach() + active.detach() * up) / 2
        x = x + product @ weights(layer.mlp.down_proj).T
    logit = (norm(model.norm, x[-1:]) @ weights(network.score).T)[0, label]
    (gradient,) = torch.autograd.grad(logit, start)
    return array((gradient * start).sum(-1))
