"""Attention flow beside other maximum-flow solvers, looped over the tokens, on many kinds of maps.

Run it with ``python benchmarks/attention_flow.py [--quick]``. For each size and kind of map it
prints microseconds a flow from one position (and from all positions, where maps are bidirectional
the certificates are shared), ratios to OR-Tools, scipy and, on a sample, networkx in the same run,
the share of flows that the bounds settle without a search, the share that equals ``min(1, column
sum of the first layer)``, and the largest deviation from OR-Tools at scale 2^44. Compilation is not
counted. OR-Tools is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

import xattn
from xattn.data import load_dataset
from xattn.maxflow import depth_flows, settled
from xattn.methods.rollout import MIXTURE

try:
    from ortools.graph.python import max_flow
except ImportError:
    max_flow = None

Array = np.ndarray[Any, Any]
SIZES = ((6, 32), (12, 64), (12, 128), (24, 128), (12, 256))
KINDS = ("random", "peaked", "sinks", "one-hot")
SCALE = 2**44


def maps(kind: str, depth: int, count: int, causal: bool) -> Array:
    """Return head means of 12 made-up heads with half a residual, ``[layer, token, token]``."""
    draw = np.random.default_rng(0)
    if kind == "one-hot":
        mean = np.eye(count)[draw.integers(0, count, (depth, 12, count))].mean(1)
        mean = np.tril(mean) + np.diag([1e-9] * count) if causal else mean
        mean /= mean.sum(-1, keepdims=True)
        return 0.5 * np.eye(count) + 0.5 * mean
    scores = draw.normal(0, {"random": 1.5, "peaked": 4.0, "sinks": 1.5}[kind],
                         (depth, 12, count, count))  # fmt: skip
    if kind == "sinks":
        scores[..., 0] += 6
    if causal:
        scores = np.where(np.tril(np.ones((count, count))) > 0, scores, -1e9)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: Array = 0.5 * np.eye(count) + 0.5 * weights.mean(1)
    return mixed


def trained() -> dict[str, Array]:
    """Return the longest demo text's maps in the demo classifier and in the storyteller."""
    found = {}
    text = max(load_dataset().texts, key=len)
    for name, task in (("classifier", None), ("storyteller", "generate")):
        model = xattn.load(task=task)
        batch = model.batch(model.encode([text]))
        [aim] = model.aims(batch.encodings, at="next" if task else None)[0]
        trace = model.trace(batch, model.target_of([aim]), reduce=MIXTURE)
        layers = np.stack([layer[0].double().numpy() for layer in trace.maps])
        found[name] = 0.5 * np.eye(layers.shape[1]) + 0.5 * layers
    return found


def seconds(task: Callable[[], Any], repeats: int = 5) -> float:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def edges(layers: Array, source: Array) -> tuple[Array, Array, Array, int]:
    """Return tails, heads, capacities and the source's node."""
    depth, count, _ = layers.shape
    level, i, j = np.nonzero(layers)
    start = (depth + 1) * count
    tails = np.concatenate([(level + 1) * count + i, np.full(count, start)])
    heads = np.concatenate([level * count + j, depth * count + np.arange(count)])
    return tails, heads, np.concatenate([layers[level, i, j], source]), start


def by_ortools(layers: Array, source: Array, sinks: Array) -> tuple[Array, float]:
    tails, heads, capacities, start = edges(layers, source)
    whole = np.rint(capacities * SCALE).astype(np.int64)
    used = whole > 0
    solver = max_flow.SimpleMaxFlow()
    solver.add_arcs_with_capacity(
        tails[used].astype(np.int32), heads[used].astype(np.int32), whole[used]
    )
    flows, begin = [], time.perf_counter()
    for sink in sinks:
        solver.solve(start, int(sink))
        flows.append(solver.optimal_flow() / SCALE)
    return np.array(flows), (time.perf_counter() - begin) / len(sinks)


def by_scipy(layers: Array, source: Array, sinks: Array) -> float:
    tails, heads, capacities, start = edges(layers, source)
    whole = np.rint(capacities * 2**29).astype(np.int32)
    graph = csr_array((whole, (tails, heads)), shape=(start + 1, start + 1))
    begin = time.perf_counter()
    for sink in sinks:
        maximum_flow(graph, start, int(sink))
    return (time.perf_counter() - begin) / len(sinks)


def by_networkx(layers: Array, source: Array, sinks: Array) -> float:
    tails, heads, capacities, start = edges(layers, source)
    graph = nx.DiGraph()
    for tail, head, capacity in zip(tails.tolist(), heads.tolist(), capacities, strict=True):
        graph.add_edge(tail, head, capacity=float(capacity))
    begin = time.perf_counter()
    for sink in sinks:
        nx.maximum_flow_value(graph, start, int(sink))
    return (time.perf_counter() - begin) / len(sinks)


def line(name: str, layers: Array, *, networkx: bool) -> None:
    depth, count, _ = layers.shape
    position = count - 1 if not np.triu(layers, 1).any() else 0
    source, everywhere = np.eye(count)[position], np.eye(count)
    flows, how = settled(layers, source)
    settled(layers, everywhere)
    one = seconds(lambda: settled(layers, source)) / count
    every = seconds(lambda: settled(layers, everywhere), 3) / count**2
    deep = seconds(lambda: depth_flows(layers, source), 3) / count
    sinks = np.unique(np.linspace(0, count - 1, 16).astype(int))
    ratios, deviation = [], float("nan")
    if max_flow is not None:
        expected, theirs = by_ortools(layers, source, sinks)
        depths = sum(by_ortools(layers[:d], source, sinks[::3])[1] for d in range(1, depth + 1))
        deviation = float(np.abs(flows[sinks] - expected).max())
        ratios += [theirs / one, theirs / every, depths / deep]
    ratios.append(by_scipy(layers, source, sinks[::3]) / one)
    if networkx:
        ratios.append(by_networkx(layers, source, sinks[::8]) / one)
    first = np.minimum(1, layers[0].sum(0))
    cut = float((np.abs(flows - first) < 1e-5).mean())
    print(
        f"{name:24} {depth:3} {count:4} {1e6 * one:8.1f} {1e6 * every:8.2f} "
        f"{how['bounds'] / count:6.0%} {cut:6.0%} {deviation:9.1e} "
        + " ".join(f"{ratio:9.0f}" for ratio in ratios),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(f"{'':33} µs a flow from      settled = first             times faster than")
    print(
        f"{'maps':24} {'L':>3} {'n':>4} {'one':>8} {'all':>8} {'bounds':>6} {'layer':>6} "
        f"{'deviation':>9} {'OR one':>9} {'OR all':>9} {'OR deep':>9} {'scipy':>9} {'networkx':>9}"
    )
    for depth, count in SIZES[:2] if quick else SIZES:
        for causal in (False, True):
            for kind in KINDS:
                name = f"{kind}, {'causal' if causal else 'bidirectional'}"
                slow = kind == "random" and count <= 128 and not quick
                line(name, maps(kind, depth, count, causal), networkx=slow)
    for name, layers in trained().items():
        line(f"trained {name}", layers, networkx=not quick)


if __name__ == "__main__":
    main()
