"""Maximum flows against linear programs, scipy's, networkx's and closed forms."""

from __future__ import annotations

import importlib.util
from itertools import permutations
from math import factorial
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from xattn.maxflow import depth_flows, max_flows, settled
from xattn.maxflow.compiled import compiled

Array = np.ndarray[Any, Any]
spec = importlib.util.spec_from_file_location(
    "flow_reference", Path(__file__).parent / "reference" / "flow.py"
)
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

KINDS = ("random", "peaked", "one-hot", "zeros", "ties", "unnormalised")


def stack(kind: str, depth: int, count: int, causal: bool, residual: float, seed: int) -> Array:
    draw = np.random.default_rng(seed)
    maps = draw.random((depth, count, count))
    if kind == "peaked":
        maps = maps**12
    elif kind == "one-hot":
        maps = np.eye(count)[draw.integers(0, count, (depth, count))]
    elif kind == "zeros":
        maps *= draw.random((depth, count, count)) < 0.3
    elif kind == "ties":
        maps = draw.integers(0, 3, (depth, count, count)) / 4
    if causal:
        maps = np.tril(maps)
    if kind in ("random", "peaked"):
        maps /= maps.sum(-1, keepdims=True)
    return residual * np.eye(count) + (1 - residual) * maps


def sources(count: int, one: bool, seed: int) -> Array:
    draw = np.random.default_rng(seed)
    if one:
        return np.eye(count)[draw.integers(count)]
    mix = draw.random(count)
    return mix / mix.sum()


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    depth=st.integers(1, 5),
    count=st.integers(1, 4),
    causal=st.booleans(),
    residual=st.sampled_from([0.0, 0.5, 0.9]),
    one=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_flows_equal_a_linear_program(
    kind: str, depth: int, count: int, causal: bool, residual: float, one: bool, seed: int
) -> None:
    layers, source = stack(kind, depth, count, causal, residual, seed), sources(count, one, seed)
    expected = [reference.max_flow(layers, source, sink) for sink in range(count)]
    np.testing.assert_allclose(max_flows(layers, source), expected, atol=1e-6)


def by_scipy(layers: Array, source: Array) -> Array:
    scale, (depth, count, _) = 2**29, layers.shape
    start = (depth + 1) * count
    tails, heads = [np.full(count, start)], [depth * count + np.arange(count)]
    capacities = [source]
    for level in range(1, depth + 1):
        rows, columns = np.nonzero(layers[level - 1])
        tails.append(level * count + rows)
        heads.append((level - 1) * count + columns)
        capacities.append(layers[level - 1][rows, columns])
    scaled = np.rint(np.concatenate(capacities) * scale).astype(np.int32)
    where = (np.concatenate(tails), np.concatenate(heads))
    graph = csr_array((scaled, where), shape=(start + 1, start + 1))
    return np.array([maximum_flow(graph, start, j).flow_value for j in range(count)]) / scale


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 4, 5, 6, 8, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_larger_flows_equal_those_of_scipy(kind: str, depth: int, causal: bool) -> None:
    count = 20
    for residual in (0.0, 0.5):
        layers = stack(kind, depth, count, causal, residual, seed=depth)
        everything = max_flows(layers, np.eye(count))
        for position in (0, 7, count - 1):
            one = np.eye(count)[position]
            expected = by_scipy(layers, one)
            np.testing.assert_allclose(max_flows(layers, one), expected, atol=1e-6)
            np.testing.assert_allclose(everything[position], expected, atol=1e-6)
        mix = sources(count, one=False, seed=depth)
        np.testing.assert_allclose(max_flows(layers, mix), by_scipy(layers, mix), atol=1e-6)


def test_each_step_settles_some_flows() -> None:
    deep = stack("random", 12, 32, False, 0.5, seed=0)
    assert settled(deep, np.eye(32)[0])[1] == {"nothing": 0, "bounds": 32, "search": 0}
    assert settled(deep, np.eye(32))[1]["bounds"] == 32 * 32
    shallow = stack("random", 4, 32, False, 0.5, seed=0)
    assert settled(shallow, np.eye(32)[0])[1]["search"] > 16
    assert settled(np.tril(deep), np.eye(32)[3])[1]["nothing"] == 28


def test_flows_equal_those_of_networkx() -> None:
    layers, count = stack("peaked", 6, 6, False, 0.5, seed=3), 6
    graph = nx.DiGraph()
    for level in range(6):
        for i in range(count):
            for j in range(count):
                graph.add_edge((level + 1, i), (level, j), capacity=layers[level, i, j])
    found = max_flows(layers, np.eye(count)[2])
    for sink in range(count):
        assert found[sink] == pytest.approx(
            nx.maximum_flow_value(graph, (6, 2), (0, sink)), abs=1e-9
        )


def test_two_layers_in_closed_form() -> None:
    layers = stack("random", 2, 9, False, 0.3, seed=1)
    for t in range(9):
        expected = np.minimum(layers[1, t][:, None], layers[0]).sum(0)
        np.testing.assert_allclose(max_flows(layers, np.eye(9)[t]), expected, atol=1e-12)


def test_one_layer_is_the_row() -> None:
    layers = stack("random", 1, 9, True, 0.3, seed=1)
    np.testing.assert_allclose(max_flows(layers, np.eye(9)[4]), layers[0, 4], atol=1e-12)


def test_every_depth() -> None:
    layers, source = stack("random", 5, 8, True, 0.5, seed=2), np.eye(8)[7]
    found = depth_flows(layers, source)
    for depth in range(1, 6):
        np.testing.assert_allclose(found[depth - 1], by_scipy(layers[:depth], source), atol=1e-6)


def test_chosen_sinks() -> None:
    layers = stack("random", 3, 8, False, 0.5, seed=2)
    some = max_flows(layers, np.eye(8), sinks=[5, 1])
    np.testing.assert_array_equal(some, max_flows(layers, np.eye(8))[:, [5, 1]])


def test_flows_to_tokens_are_shapley_values_of_one_layer() -> None:
    """Players are the tokens of a layer; a coalition is worth what can flow to its members."""
    row = stack("random", 1, 4, False, 0.5, seed=5)[0, 1]
    worth = {s: sum(row[list(s)]) for s in [tuple(sorted(p[:k])) for p in permutations(range(4))
                                            for k in range(5)]}  # fmt: skip
    values = np.zeros(4)
    for order in permutations(range(4)):
        for k, player in enumerate(order):
            before, after = tuple(sorted(order[:k])), tuple(sorted(order[: k + 1]))
            values[player] += (worth[after] - worth[before]) / factorial(4)
    layers = np.tile(row, (1, 4, 1))
    np.testing.assert_allclose(max_flows(layers, np.eye(4)[1]), values)


@pytest.mark.parametrize(
    ("layers", "source", "message"),
    [
        (-np.ones((1, 2, 2)), np.ones(2), "not negative"),
        (np.full((1, 2, 2), np.nan), np.ones(2), "finite"),
        (np.ones((1, 2, 2)), np.ones(3), "do not fit"),
        (np.ones((2, 2)), np.ones(2), "do not fit"),
    ],
)
def test_bad_capacities(layers: Array, source: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        max_flows(layers, source)


def test_kernels_are_compiled_where_no_folder_can_be_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert compiled(doubled)(21.0) == 42.0


def doubled(number: float) -> float:
    return 2 * number
