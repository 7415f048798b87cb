"""The barrier's flow against a general solver, linear programs and symmetries."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn.errors import ModelError
from xattn.maxflow import barrier as module
from xattn.maxflow import max_flows
from xattn.maxflow.barrier import central_flow

Array = np.ndarray[Any, Any]
spec = importlib.util.spec_from_file_location(
    "flow_reference", Path(__file__).parent / "reference" / "flow.py"
)
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def stack(depth: int, count: int, power: float = 1.0, seed: int = 0) -> Array:
    maps = np.random.default_rng(seed).random((depth, count, count)) ** power
    mixed: Array = 0.3 * np.eye(count) + 0.7 * maps / maps.sum(-1, keepdims=True)
    return mixed


def largest(layers: Array, source: Array) -> float:
    """Return the maximum flow to all tokens: one more layer leads them to the first token."""
    join = np.zeros((1, *layers.shape[1:]))
    join[0, :, 0] = len(source)
    return float(reference.max_flow(np.concatenate([join, layers]), source, 0))


@pytest.mark.parametrize("barrier", [0.1, 0.01])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_equals_a_general_solver(depth: int, barrier: float) -> None:
    layers, source = stack(depth, 3), np.array([0.5, 0.2, 0.3])
    expected = reference.central_flow(layers, source, barrier)
    np.testing.assert_allclose(central_flow(layers, source, barrier), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["even", "peaked", "causal", "unnormalised", "zeros"])
def test_nears_the_maximum_as_the_barrier_falls(kind: str) -> None:
    layers, source = stack(3, 5, 8 if kind == "peaked" else 1), np.eye(5)[4]
    if kind == "causal":
        layers = np.tril(layers)
    if kind == "unnormalised":
        layers = layers * np.random.default_rng(1).random((3, 5, 1))
    if kind == "zeros":
        layers[:, :, 1:3] = 0
    whole = largest(layers, source)
    for barrier in (1e-2, 1e-4, 1e-6):
        total = central_flow(layers, source, barrier).sum()
        assert whole - 2 * barrier * (layers > 0).sum() <= total <= whole + 1e-9


def test_each_share_is_at_most_the_tokens_own_maximum() -> None:
    layers, source = stack(4, 6, 4), np.eye(6)[0]
    assert (central_flow(layers, source, 1e-5) <= max_flows(layers, source) + 1e-9).all()


def test_with_one_token_to_reach_it_is_flow() -> None:
    layers, source = stack(3, 5), np.eye(5)[2]
    layers[0, :, [0, 1, 3, 4]] = 0
    found = central_flow(layers, source, 1e-8)
    np.testing.assert_allclose(found, max_flows(layers, source), atol=1e-6)
    assert not found[[0, 1, 3, 4]].any()


def test_tokens_that_change_places_change_their_shares() -> None:
    layers, source = stack(3, 5, 3), np.array([0.1, 0.4, 0.2, 0.2, 0.1])
    order = np.array([3, 0, 4, 2, 1])
    moved = central_flow(layers[:, order][:, :, order], source[order], 1e-4)
    np.testing.assert_allclose(moved, central_flow(layers, source, 1e-4)[order], atol=1e-8)


def test_tokens_alike_get_the_same() -> None:
    layers = np.full((4, 6, 6), 1 / 6)
    found = central_flow(layers, np.eye(6)[1], 1e-6)
    np.testing.assert_allclose(found, 1 / 6, atol=1e-4)


def test_nothing_flows_where_no_way_leads() -> None:
    layers, source = np.tril(stack(3, 5)), np.eye(5)[2]
    assert not central_flow(layers, source, 1e-4)[3:].any()
    assert not central_flow(np.zeros((2, 3, 3)), np.eye(3)[0], 1e-4).any()
    assert not central_flow(stack(2, 3), np.zeros(3), 1e-4).any()


def test_a_search_that_does_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 1)
    with pytest.raises(ModelError, match="no balance after 1 steps"):
        central_flow(stack(3, 5), np.eye(5)[0], 1e-6)
