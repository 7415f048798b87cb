"""Beginnings that inputs share are run once, and nothing comes out otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from xattn.errors import ModelError
from xattn.evaluation.truth.words import word_tokenizer
from xattn.model import Model, Suppress
from xattn.model.prefixes import Prefixes, stretches
from xattn.model.scorer import Scorer
from xattn.testing import TEXTS, network_state
from xattn.types import Row, Target

DECODERS = ("gpt2", "llama", "qwen2")
REMEMBER_OTHERWISE = {"openai-gpt", "deepseek_v32", "qwen3_next", "jamba"}
"""Causal architectures that keep no keys and values, or not these alone."""


def variants(model: Model, count: int = 40) -> list[Row]:
    """Return a text without some of its tokens, of several lengths."""
    [encoding] = model.encode([" ".join(TEXTS[:3])], truncate=True)
    draw = np.random.default_rng(0)
    rows: list[Row] = [encoding.row]
    for number in range(count):
        late = draw.integers(len(encoding) // 2, len(encoding), size=3)
        kept = np.ones(len(encoding), dtype=bool)
        kept[late] = False
        ids = encoding.row["input_ids"]
        if number % 2:  # another token in place, or a shorter text
            rows.append({**encoding.row, "input_ids": np.where(kept, ids, 7)})
        else:
            rows.append({name: values[kept] for name, values in encoding.row.items()})
    return rows


def test_stretches_hold_every_beginning_once() -> None:
    draw = np.random.default_rng(1)
    rows = [draw.integers(0, 2, size=n) for n in draw.integers(1, 14, size=60)]
    cut = stretches(rows)
    for i, row in enumerate(rows):
        [number] = [j for j, part in enumerate(cut) if i in part.ends]
        node = cut[number].nodes[i]
        pieces = []
        for part in cut[number::-1]:
            pieces.append(part.tokens[node])
            node = part.parents[node]
        assert np.concatenate(pieces[::-1]).tolist() == row.tolist()
    width = cut[1].start
    for j, part in enumerate(cut):
        beginnings = {row[: (j + 1) * width].tobytes() for row in rows if len(row) > j * width}
        assert len(part.tokens) == len(beginnings)


@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_those_without_caches(tiny_of: Callable[..., Model], family: str) -> None:
    model = tiny_of(family)
    rows, before = variants(model), network_state(model.network)
    prefixes = Prefixes(model, least=0)
    shared = prefixes.logits(rows)
    assert shared is not None
    plain = torch.cat([model.logits(model.collate([row])) for row in rows])
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-4)
    assert prefixes.run < 0.8 * prefixes.tokens
    assert network_state(model.network) == before


@pytest.mark.parametrize("budget", [40, 2048])
def test_small_batches_give_the_same(tiny_of: Callable[..., Model], budget: int) -> None:
    model = tiny_of("llama")
    rows, before = variants(model), model.budget
    try:
        model.budget = budget
        shared = Prefixes(model, least=0).logits(rows)
    finally:
        model.budget = before
    plain = torch.cat([model.logits(model.collate([row])) for row in rows])
    assert shared is not None
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-4)


def test_scores_are_the_same_through_the_scorer(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("gpt2")
    rows, scorer = variants(model), Scorer(model)
    assert scorer.prefixes.logits(rows) is None  # too small to be worth it
    scorer.prefixes = Prefixes(model, least=0)
    found = scorer.logits(rows)
    assert scorer.prefixes.run > 0
    plain = torch.cat([model.logits(model.collate([row])) for row in rows])
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


def test_what_caches_cannot_serve_is_left_alone(demo: Model, tiny_of: Callable[..., Model]) -> None:
    assert Prefixes(demo, least=0).logits(variants(demo)) is None  # reads in both directions
    model = tiny_of("gpt2")
    rows = variants(model)
    hidden = [{**row, "attention_mask": row["attention_mask"].copy()} for row in rows]
    for row in hidden:
        row["attention_mask"][1] = 0
    assert Prefixes(model, least=0).logits(hidden) is None
    draw = np.random.default_rng(0)
    apart: list[Row] = [
        {"input_ids": draw.integers(5, 50, size=20), "attention_mask": np.ones(20, dtype=np.int64)}
        for _ in range(10)
    ]
    assert Prefixes(model, least=0).logits(apart) is None  # nothing in common
    with model.edit(Suppress("one")):
        assert Prefixes(model, least=0).logits(rows) is None


def test_logits_that_are_not_finite_are_told(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("gpt2")
    rows, prefixes = variants(model), Prefixes(model, least=0)
    assert prefixes.logits(rows) is not None
    kept = model.network.score.weight.detach().clone()
    try:
        with torch.no_grad():
            model.network.score.weight[0, 0] = torch.nan
        with pytest.raises(ModelError, match="logits are not finite"):
            prefixes.logits(rows)
    finally:
        with torch.no_grad():
            model.network.score.weight.copy_(kept)


def test_an_input_is_one_pass(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("gpt2")
    rows, prefixes = variants(model), Prefixes(model, least=0)
    prefixes.logits(rows)
    before = model.passes.forward
    prefixes.logits(rows)
    assert model.passes.forward - before == len(rows)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("places", [1, 3])
def test_targets_of_language_models_are_those_without_caches(
    tiny_of: Callable[..., Model], family: str, places: int
) -> None:
    model = tiny_of(family, task="generate")
    rows = [row for row in variants(model) if len(row["input_ids"]) > 8]
    draw = np.random.default_rng(2)
    label = torch.from_numpy(draw.integers(5, 40, size=(len(rows), places)))
    ends = np.array([len(row["input_ids"]) for row in rows])
    position = torch.from_numpy(ends[:, None] - 1 - np.arange(places) * 4)
    target = Target(label, quantity="log_probability", position=position)
    prefixes = Prefixes(model, least=0)
    shared = prefixes.values(rows, target)
    assert shared is not None
    plain = torch.cat(
        [model.score(model.collate([row]), target[torch.tensor([i])]) for i, row in enumerate(rows)]
    )
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-4)
    assert prefixes.run < 0.8 * prefixes.tokens


def test_every_architecture_is_served_rightly_or_not_at_all(decoder: Any) -> None:
    words = [f"w{i}" for i in range(60)]
    model = Model(decoder.build(), word_tokenizer(words, "[CLS] $A", 40), name="tiny")
    draw = np.random.default_rng(0)
    whole = draw.integers(5, 60, size=24)
    rows: list[Row] = []
    for _ in range(12):
        ids = np.where(draw.random(24) < np.linspace(-0.5, 0.5, 24), 4, whole)
        rows.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    label = torch.from_numpy(draw.integers(5, 60, size=(len(rows), 1)))
    target = Target(label, position=torch.full((len(rows), 1), 23))
    if model.task.name == "classify":
        target = Target(label[:, 0] % len(model.labels))
        logits = Prefixes(model, least=0).logits(rows)
        shared = None if logits is None else target(logits)
    else:
        shared = Prefixes(model, least=0).values(rows, target)
    if shared is None:
        assert decoder.kind in REMEMBER_OTHERWISE
        return
    plain = model.score(model.collate(rows), target)
    torch.testing.assert_close(shared, plain, atol=2e-4, rtol=1e-3)
