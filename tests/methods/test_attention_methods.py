"""Raw attention, rollout and flow against definitions written out slowly, and closed forms."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog

import xattn
from xattn.data import load_dataset
from xattn.errors import InputError
from xattn.methods.flow import max_flows
from xattn.model import Edit, Model
from xattn.testing import TEXTS

Array = NDArray[np.float64]


def captured(model: Model, text: str) -> tuple[list[Array], Array]:
    """Return head means per layer and the readout, in double precision."""
    batch = model.batch(model.encode([text]))
    trace = model.trace(batch, model.target(batch))
    means = [maps[0].double().mean(0).numpy() for maps in trace.maps]
    return means, trace.readout[0].double().numpy()


def scores(model: Model, text: str, spec: str) -> Array:
    return xattn.explain(model, [text], [spec])[0].scores.astype(np.float64)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_attention_is_the_readout_row_of_a_layer(tiny: Model, layer: int) -> None:
    means, readout = captured(tiny, TEXTS[0])
    row = means[layer][int(readout.argmax())]
    np.testing.assert_allclose(scores(tiny, TEXTS[0], f"attention:layer={layer}"), row, atol=1e-6)


def test_attention_of_one_head(demo: Model) -> None:
    batch = demo.batch(demo.encode([TEXTS[0]]))
    maps = demo.trace(batch, demo.target(batch)).maps[1][0, 2]
    expected = maps[0].numpy()  # BERT reads from [CLS]
    np.testing.assert_allclose(
        scores(demo, TEXTS[0], "attention:layer=1,head=2"), expected, atol=1e-6
    )


@pytest.mark.parametrize("residual", [0.0, 0.3, 0.5, 1.0])
def test_rollout_is_the_matrix_product(tiny: Model, residual: float) -> None:
    means, readout = captured(tiny, TEXTS[1])
    product = np.eye(len(readout))
    for mean in means:
        product = (residual * np.eye(len(readout)) + (1 - residual) * mean) @ product
    got = scores(tiny, TEXTS[1], f"rollout:residual={residual}")
    np.testing.assert_allclose(got, readout @ product, atol=1e-6)


def test_rollout_on_the_demo_model_is_the_matrix_product(demo: Model) -> None:
    means, readout = captured(demo, TEXTS[1])
    layers = [0.5 * np.eye(len(readout)) + 0.5 * mean for mean in means]
    product = layers[3] @ layers[2] @ layers[1] @ layers[0]
    np.testing.assert_allclose(scores(demo, TEXTS[1], "rollout"), product[0], atol=1e-6)


def networkx_flows(layers: list[Array], readout: Array) -> Array:
    count, depth = len(readout), len(layers)
    graph = nx.DiGraph()
    for i, share in enumerate(readout):
        graph.add_edge("source", (depth, i), capacity=share)
    for level, capacity in enumerate(layers, start=1):
        for i, j in itertools.product(range(count), repeat=2):
            graph.add_edge((level, i), (level - 1, j), capacity=capacity[i, j])
    return np.array([nx.maximum_flow_value(graph, "source", (0, j)) for j in range(count)])


@pytest.mark.parametrize("text", [TEXTS[0], "Dull!"])
def test_flow_equals_networkx(tiny: Model, text: str) -> None:
    means, readout = captured(tiny, text)
    layers = [0.5 * np.eye(len(readout)) + 0.5 * mean for mean in means]
    expected = networkx_flows(layers, readout)
    np.testing.assert_allclose(scores(tiny, text, "flow"), expected, atol=1e-6)


def test_flow_equals_networkx_on_the_demo_model(demo: Model) -> None:
    means, readout = captured(demo, TEXTS[0])
    layers = [0.5 * np.eye(len(readout)) + 0.5 * mean for mean in means]
    np.testing.assert_allclose(
        scores(demo, TEXTS[0], "flow"), networkx_flows(layers, readout), atol=1e-6
    )


def linear_program(layers: list[Array], readout: Array, sink: int) -> float:
    """Solve the flow problem as a linear program over the edges."""
    count, depth = len(readout), len(layers)
    edges = [("s", (depth, i), readout[i]) for i in range(count)]
    edges += [
        ((level, i), (level - 1, j), layers[level - 1][i, j])
        for level in range(1, depth + 1)
        for i in range(count)
        for j in range(count)
    ]
    inner = [(level, i) for level in range(1, depth + 1) for i in range(count)]
    balance = np.zeros((len(inner), len(edges)))
    for e, (tail, head, _) in enumerate(edges):
        for n, node in enumerate(inner):
            balance[n, e] = (head == node) - (tail == node)
    gain = np.array([-float(head == (0, sink)) for _, head, _ in edges])
    # flow that ends in another input token is allowed and counts for nothing
    solved = linprog(
        gain, A_eq=balance, b_eq=np.zeros(len(inner)), bounds=[(0, c) for *_, c in edges]
    )
    return float(-solved.fun)


@pytest.mark.parametrize("kind", ["dense", "peaked", "one-hot", "causal", "zeros"])
def test_flow_equals_a_linear_program(kind: str) -> None:
    rng = np.random.default_rng(3)
    count, depth = 5, 3
    logits = rng.normal(size=(depth, count, count)) * (12 if kind == "peaked" else 1)
    if kind == "causal":
        logits = np.where(np.tri(count, dtype=bool), logits, -np.inf)
    maps = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    if kind == "one-hot":
        maps = np.eye(count)[rng.integers(count, size=(depth, count))]
    if kind == "zeros":
        maps[:, :, 1:3] = 0
    readout = np.array([0.1, 0.0, 0.2, 0.3, 0.4])
    expected = [linear_program(list(maps), readout, sink) for sink in range(count)]
    np.testing.assert_allclose(max_flows(list(maps), readout), expected, atol=1e-6)


def test_flow_on_the_demo_model_is_decided_by_the_first_layer(demo: Model) -> None:
    """What the README says of flow: nothing above the first layer matters."""
    for text in load_dataset(limit=20).texts:
        means, _ = captured(demo, text)
        first = 0.5 * np.eye(len(means[0])) + 0.5 * means[0]
        np.testing.assert_allclose(
            scores(demo, text, "flow"), np.minimum(1, first.sum(0)), atol=1e-5
        )


def test_flow_of_one_layer_is_its_row() -> None:
    row = np.array([[0.2, 0.8], [0.6, 0.4]])
    np.testing.assert_allclose(max_flows([row], np.array([0.0, 1.0])), [0.6, 0.4], atol=1e-8)


def test_a_copying_model_gives_all_to_the_copied_token(demo: Model) -> None:
    """If every position looks only at token 3, so do attention, rollout without residual, flow."""

    def copy(site: xattn.model.Site, p: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(p).index_fill(-1, torch.tensor([3]), 1.0)

    with demo.edit(Edit(probabilities=copy)):
        for spec in ("attention", "rollout:residual=0.0", "flow:residual=0.0"):
            got = scores(demo, TEXTS[0], spec)
            assert got[3] == pytest.approx(1.0, abs=1e-6)
            assert np.delete(got, 3) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("attention:layer=9", "layer of attention: got 9, expected -4 to 3"),
        ("attention:head=4", "head of attention: got 4, expected -4 to 3"),
        ("attention_gradient:layer=-5", "layer of attention_gradient: got -5, expected -4 to 3"),
        ("rollout:residual=1.5", "residual of rollout: got 1.5, expected 0 to 1"),
        ("flow:residual=-1", "residual of flow: got -1.0, expected 0 to 1"),
    ],
)
def test_options_out_of_range(demo: Model, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        xattn.explain(demo, ["A dull film."], [spec])


def test_readout_mix_starts_rollout(tiny_of: Callable[..., Model]) -> None:
    """A mean-pooling head starts from all tokens, weighted by what it reads."""
    model = tiny_of("modernbert")
    model.network.config.classifier_pooling = "mean"
    means, readout = captured(model, TEXTS[0])
    assert (readout > 0).all()
    product = np.eye(len(readout))
    for mean in means:
        product = (0.5 * np.eye(len(readout)) + 0.5 * mean) @ product
    np.testing.assert_allclose(scores(model, TEXTS[0], "rollout"), readout @ product, atol=1e-6)
