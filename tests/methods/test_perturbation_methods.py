"""Occlusion, LIME, Shapley and Owen values, oracle: closed forms, slow references, captum, shap."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, ShapleyValues
from torch import Tensor

import xattn
from xattn.errors import InputError
from xattn.methods.exact_shapley import all_coalitions, shapley_values
from xattn.methods.kernel_shap import regression, sampled_coalitions
from xattn.model import Model
from xattn.model.game import games, worth
from xattn.model.scorer import Scorer
from xattn.testing import TEXTS

Array = np.ndarray[Any, Any]
SHORT = "A dull, lifeless film."
ALL = ("occlusion", "lime", "kernel_shap", "partition_shap", "exact_shapley", "oracle")


class Additive(torch.nn.Module):
    """Stands in for a network: tokens add up, and one pair of them is worth more together."""

    def __init__(self, model: Model, weights: dict[int, float], pair: tuple[int, int]) -> None:
        super().__init__()
        self.inner, self.config, self.dtype = model.network, model.network.config, torch.float32
        table = torch.zeros(len(model.tokenizer))
        for token, weight in weights.items():
            table[token] = weight
        self.register_buffer("table", table)
        self.pair = pair

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.inner.get_input_embeddings()  # type: ignore[operator, no-any-return]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
        table: Any = self.table
        total = (table[input_ids] * attention_mask).sum(1)
        both = [((input_ids == t) & (attention_mask > 0)).any(1) for t in self.pair]
        total = total + 6.0 * (both[0] & both[1])
        return type("Output", (), {"logits": torch.stack([total, -total, 0 * total], -1)})()


@pytest.fixture(scope="module")
def additive(tiny_of: Callable[..., Model]) -> Model:
    base = tiny_of("bert")
    [encoding] = base.encode([SHORT])
    ids = encoding.row["input_ids"][~encoding.special].tolist()
    weights = {token: float(number + 1) for number, token in enumerate(dict.fromkeys(ids))}
    return Model(Additive(base, weights, (ids[0], ids[-1])), base.tokenizer, name="additive")


def expected_parts(model: Model) -> tuple[Array, int]:
    [encoding] = model.encode([SHORT])
    table: Any = model.network.table
    parts = table[torch.from_numpy(encoding.row["input_ids"])].numpy() * ~encoding.special
    return parts.astype(np.float64), int((~encoding.special).sum())


@pytest.mark.parametrize("operator", ["delete", "mask", "attention-mask"])
@pytest.mark.parametrize("method", ["occlusion", "exact_shapley", "kernel_shap", "partition_shap"])
def test_what_adds_up_and_what_is_worth_more_together(
    additive: Model, method: str, operator: str
) -> None:
    """Additive parts are everybody's own; a pair's bonus is shared, but lost twice by occlusion."""
    parts, count = expected_parts(additive)
    first, last = 1, count
    bonus = 6.0 if method == "occlusion" else 3.0
    parts[[first, last]] += bonus
    spec = f"{method}:operator={operator}"
    item = xattn.explain(additive, [SHORT], [spec], label=0, unit="token")[0]
    assert count <= 12
    np.testing.assert_allclose(item.scores, parts, atol=1e-4)
    if method != "occlusion":
        assert item.gap == pytest.approx(0, abs=1e-4)


def test_lime_finds_the_weights_of_a_linear_model(additive: Model) -> None:
    parts, _ = expected_parts(additive)
    pair = additive.network.pair
    additive.network.pair = (-1, -1)  # no bonus
    try:
        spec = "lime:samples=200,alpha=1e-06"
        item = xattn.explain(additive, [SHORT], [spec], label=0)[0]
    finally:
        additive.network.pair = pair
    np.testing.assert_allclose(item.scores, parts, atol=1e-3)


def slow_values(model: Model, operator: str, text: str) -> tuple[dict[tuple[int, ...], float], int]:
    """Return the worth of every set of removable tokens, each by a model call of its own."""
    [encoding] = model.encode([text])
    places = np.flatnonzero(~encoding.special)
    batch = model.batch([encoding])
    label = int(model.logits(batch.inputs).argmax())
    found = {}
    for number in range(2 ** len(places)):
        stays = tuple(i for i in range(len(places)) if number >> i & 1)
        keep = encoding.special.copy()
        keep[places[list(stays)]] = True
        row = {name: values.copy() for name, values in encoding.row.items()}
        if operator == "delete":
            row = {name: values[keep] for name, values in row.items()}
        else:
            row["input_ids"][~keep] = model.tokenizer.mask_token_id
        found[stays] = float(model.logits(model.collate([row]))[0, label])
    return found, len(places)


@pytest.mark.parametrize("operator", ["delete", "mask"])
def test_shapley_values_are_the_mean_over_all_orders(demo: Model, operator: str) -> None:
    text = "A dull film."
    worth, count = slow_values(demo, operator, text)
    expected = np.zeros(count)
    for order in permutations(range(count)):
        for k, player in enumerate(order):
            before, after = tuple(sorted(order[:k])), tuple(sorted(order[: k + 1]))
            expected[player] += (worth[after] - worth[before]) / factorial(count)
    for method in ("exact_shapley", "kernel_shap"):
        item = xattn.explain(demo, [text], [f"{method}:operator={operator}"])[0]
        np.testing.assert_allclose(item.scores[~item.special], expected, atol=1e-4)


def owen(worth: dict[tuple[int, ...], float], tree: Any, context: tuple[int, ...]) -> Array:
    """Owen values by plain recursion."""
    from xattn.methods.partition_shap import members_of

    count = max(map(len, worth))
    if isinstance(tree, int):
        found = np.zeros(count)
        found[tree] = worth[tuple(sorted((*context, tree)))] - worth[context]
        return found
    left, right = tree
    beside = [tuple(sorted((*context, *members_of(part)))) for part in tree]
    return 0.5 * (
        owen(worth, left, context)
        + owen(worth, left, beside[1])
        + owen(worth, right, context)
        + owen(worth, right, beside[0])
    )


def test_partition_values_equal_the_recursion(demo: Model) -> None:
    from xattn.methods.partition_shap import hierarchy

    text = "A dull film. So long!"
    worth, _ = slow_values(demo, "mask", text)
    batch = demo.batch(demo.encode([text]))
    [game] = games(demo, batch, demo.target(batch), "mask")
    tree = hierarchy(game)
    assert tree == (((0, 1), (2, 3)), ((4, 5), 6))
    item = xattn.explain(demo, [text], ["partition_shap:operator=mask"])[0]
    np.testing.assert_allclose(item.scores[~item.special], owen(worth, tree, ()), atol=1e-4)


def test_partition_values_equal_shap(demo: Model) -> None:
    shap = pytest.importorskip("shap")
    text = "A dull film. So"
    worth, count = slow_values(demo, "mask", text)
    # a linkage as scipy writes it: ((0 1) (2 3)) (4)
    batch = demo.batch(demo.encode([text]))
    [game] = games(demo, batch, demo.target(batch), "mask")
    from xattn.methods.partition_shap import hierarchy

    assert hierarchy(game) == (((0, 1), (2, 3)), 4)
    linkage = np.array([[0, 1, 1, 2], [2, 3, 1, 2], [5, 6, 2, 4], [7, 4, 3, 5]], dtype=float)

    def value(rows: Array) -> Array:
        return np.array([worth[tuple(np.flatnonzero(row).tolist())] for row in rows])

    masker = shap.maskers.Partition(np.zeros((1, count)), clustering=linkage)
    explainer = shap.explainers.Partition(value, masker)
    expected = explainer(np.ones((1, count)), max_evals=1000, silent=True).values[0]
    item = xattn.explain(demo, [text], ["partition_shap:operator=mask"])[0]
    np.testing.assert_allclose(item.scores[~item.special], expected, atol=1e-4)


def test_few_passes_still_sum(demo: Model) -> None:
    specs = ["partition_shap:evaluations=12", "kernel_shap:samples=8", "kernel_shap:samples=60"]
    for item in xattn.explain(demo, TEXTS, specs):
        assert item.gap == pytest.approx(0, abs=1e-4)


def test_kernel_shap_comes_nearer_with_more_samples(demo: Model) -> None:
    text = TEXTS[0] + " So dull"
    exact = xattn.explain(demo, [text], ["exact_shapley"])[0].scores
    error = []
    for samples in (20, 100, 400):
        runs = [f"kernel_shap:samples={samples},seed={seed}" for seed in range(4)]
        found = [item.scores for item in xattn.explain(demo, [text], runs)]
        error.append(np.mean([np.linalg.norm(one - exact) for one in found]))
    assert error[0] > 2 * error[1] > 4 * error[2]


@pytest.mark.parametrize(("players", "samples"), [(1, 4), (2, 8), (5, 30), (9, 40), (14, 100)])
def test_sampled_coalitions(players: int, samples: int) -> None:
    coalitions, weights = (
        sampled_coalitions(players, samples, np.random.default_rng(0))
        if players > 1
        else (np.zeros((0, 1), dtype=bool), np.ones(0))
    )
    assert len(coalitions) <= samples
    assert not coalitions.all(1).any()
    assert coalitions.any(1).all()
    if players > 1:
        assert weights.sum() == pytest.approx(1)
    if players == 5:  # all 2⁵ − 2: the regression is exact
        assert len(coalitions) == 30
        values = np.random.default_rng(1).random(32)
        values[0] = 0
        number = coalitions @ (1 << np.arange(5))
        got = regression(coalitions, weights, values[number], values[-1])
        np.testing.assert_allclose(got, shapley_values(values, 5), atol=1e-9)


def test_shapley_of_an_and() -> None:
    """Three players, a worth of 1 only for the first two together."""
    coalitions = all_coalitions(3)
    values = (coalitions[:, 0] & coalitions[:, 1]).astype(float)
    np.testing.assert_allclose(shapley_values(values, 3), [0.5, 0.5, 0])


def test_occlusion_and_shapley_equal_captum(demo: Model) -> None:
    text = "A dull film."
    batch = demo.batch(demo.encode([text]))
    ids = batch.inputs["input_ids"]
    label = int(demo.logits(batch.inputs).argmax())
    mask = demo.token_id("mask")
    blank = torch.where(batch.special, ids, mask)

    def forward(ids: Tensor) -> Tensor:
        rows = {name: value.expand(len(ids), -1) for name, value in batch.inputs.items()}
        return demo.logits({**rows, "input_ids": ids})[:, label]

    items = xattn.explain(demo, [text], ["occlusion:operator=mask", "exact_shapley:operator=mask"])
    ablation = FeatureAblation(forward).attribute(ids, baselines=blank)[0]
    np.testing.assert_allclose(items[0].scores, ablation.numpy(), atol=1e-4)
    torch.manual_seed(0)
    sampled = ShapleyValues(forward).attribute(ids[:, :], baselines=blank)[0]
    np.testing.assert_allclose(items[1].scores, sampled.numpy(), atol=1e-4)


@pytest.mark.parametrize("unit", ["word", "sentence", [(0, 8), (10, 19)]])
def test_units_go_as_a_whole(demo: Model, unit: Any) -> None:
    text = "A clumsy, heartless bore. Dull!"
    item = xattn.explain(demo, [text], ["occlusion:operator=mask"], unit=unit)[0]
    [encoding] = demo.encode([text])
    batch = demo.batch([encoding])
    target = demo.target(batch)
    whole = float(demo.score(batch.inputs, target))
    grouped = encoding.in_units(unit)
    for number, score in enumerate(item.scores):
        members = np.flatnonzero(grouped.units == number)
        if encoding.special[members].any():
            assert score == 0
            continue
        ids = batch.inputs["input_ids"].clone()
        ids[0, members] = demo.token_id("mask")
        left = float(demo.score({**batch.inputs, "input_ids": ids}, target))
        assert score == pytest.approx(whole - left, abs=1e-4)


def test_oracle_is_the_best_order(demo: Model) -> None:
    """With a beam wide enough the search sees every order of a short text."""
    text = "A dull film."
    worth, count = slow_values(demo, "mask", text)

    def area(order: tuple[int, ...]) -> float:
        return sum(
            worth[tuple(sorted(set(range(count)) - set(order[:k])))] for k in range(1, count + 1)
        )

    areas = {order: area(order) for order in permutations(range(count))}
    for kind, best in (("morf", min(areas.values())), ("lerf", max(areas.values()))):
        spec = f"oracle:order={kind},beam=50,operator=mask"
        item = xattn.explain(demo, [text], [spec])[0]
        ranks = item.scores[~item.special]
        order = tuple(np.argsort(-ranks if kind == "morf" else ranks).tolist())
        assert area(order) == pytest.approx(best, abs=1e-4)
        greedy = xattn.explain(demo, [text], [f"oracle:order={kind},operator=mask"])[0]
        assert sorted(greedy.scores[~item.special]) == list(range(1, count + 1))


@pytest.mark.parametrize("method", ["occlusion", "kernel_shap", "partition_shap", "lime"])
@pytest.mark.parametrize(
    ("text", "word"),
    [("The film was dreadful.", "dreadful"), ("What a wonderful evening.", "wonderful")],
)
def test_the_planted_word_comes_first(demo: Model, method: str, text: str, word: str) -> None:
    item = xattn.explain(demo, [text], [method], unit="word")[0]
    assert item.tokens[int(item.scores.argmax())] == word


TASKS = [
    ("bert", "tag", None, "each"), ("bert", "answer", ["It is long."], "span"),
    ("bert", "fill", None, None), ("gpt2", "generate", [" sat"], "each"),
    ("llama", "generate", [" sat"], "whole"), ("t5", "generate", [" sat"], "each"),
    ("bart", "generate", [" sat"], "whole"),
]  # fmt: skip


@pytest.mark.parametrize("operator", ["delete", "mask", "attention-mask"])
@pytest.mark.parametrize(("family", "task", "pairs", "at"), TASKS)
def test_every_task(
    tiny_of: Callable[..., Model], family: str, task: str, pairs: Any, at: Any, operator: str
) -> None:
    model = tiny_of(family, task=task)
    if operator == "mask" and model.tokenizer.mask_token_id is None:
        pytest.skip("no mask token")
    text = "A dull [MASK]" if task == "fill" else "A dull film"
    specs = [f"occlusion:operator={operator}", f"kernel_shap:samples=16,operator={operator}"]
    occluded, shap = (
        [item for item in xattn.explain(model, [text], specs, pairs=pairs, at=at)
         if item.method == name] for name in ("occlusion", "kernel_shap")
    )  # fmt: skip
    assert occluded
    for item, other in zip(occluded, shap, strict=True):
        assert np.abs(item.scores).max() > 1e-3
        assert other.gap == pytest.approx(0, abs=1e-3)
        assert (item.scores[item.special] == 0).all()


def test_a_place_moves_with_what_is_cut_out(tiny_of: Callable[..., Model]) -> None:
    """Occlusion of a decoder's prompt equals asking about the shorter prompt."""
    model = tiny_of("gpt2", task="generate")
    text, written = "A dull film", " sat"
    item = xattn.explain(model, [text], ["occlusion:operator=delete"], pairs=[written], at=0)[0]
    [encoding] = model.encode([text], [written])
    [aim] = model.aims([encoding], at=0)[0]
    ids = encoding.row["input_ids"]
    whole = float(model.logits(model.collate([encoding.row]))[0, aim.position[0], aim.label[0]])
    for place in range(aim.position[0] + 1):
        shorter = np.delete(ids, place)
        row = {"input_ids": shorter, "attention_mask": np.ones_like(shorter)}
        logits = model.logits(model.collate([row]))[0, aim.position[0] - 1, aim.label[0]]
        assert item.scores[place] == pytest.approx(whole - float(logits), abs=1e-4)
    assert (item.scores[aim.position[0] + 1 :] == 0).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("occlusion:operator=erase", "operator of occlusion: got 'erase'"),
        ("kernel_shap:samples=1", "samples of kernel_shap: got 1"),
        ("lime:width=0.0", "width of lime: got 0.0"),
        ("partition_shap:evaluations=0", "evaluations of partition_shap"),
        ("oracle:order=best", "order of oracle"),
        ("oracle:beam=0", "beam of oracle"),
    ],
)
def test_options_that_make_no_sense(demo: Model, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        xattn.explain(demo, ["A film."], [spec])


def test_too_many_units_are_refused(demo: Model) -> None:
    with pytest.raises(InputError, match=r"got \d+ units, .* expected at most 12 units; take larg"):
        xattn.explain(demo, [TEXTS[1]], ["exact_shapley"])
    assert xattn.explain(demo, [TEXTS[1]], ["exact_shapley"], unit="sentence")[0].gap is not None


def test_inputs_are_scored_once(demo: Model) -> None:
    before = demo.passes.forward
    xattn.explain(demo, ["Dull dull"], ["occlusion:operator=delete"])
    # the prediction, the whole text and one of two equal words
    assert demo.passes.forward - before == 3


@pytest.mark.parametrize("operator", ["delete", "attention-mask"])
@pytest.mark.parametrize("method", ["exact_shapley", "occlusion", "kernel_shap", "partition_shap"])
def test_what_stands_behind_the_place_has_no_part(
    tiny_of: Callable[..., Model], method: str, operator: str
) -> None:
    model = tiny_of("gpt2", task="generate")
    found = xattn.explain(
        model, ["A clumsy"], [f"{method}:operator={operator}"], pairs=[" film, dull"]
    )
    written = np.flatnonzero(found[0].segments == 1)
    assert len(found) == len(written) > 1
    for item, place in zip(found, written, strict=True):
        assert np.abs(item.scores[:place]).sum() > 1e-4
        assert (item.scores[place:] == 0).all()


def test_a_prompt_that_went_is_the_empty_token(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("gpt2", task="generate")
    [encoding] = model.encode(["A clumsy film"], [" is dull"])
    [aim, *_] = model.aims([encoding], at=0)[0]
    batch, target = model.batch([encoding]), model.target_of([aim])
    [played] = games(model, batch, target, "delete")
    everything, nothing = np.ones((1, len(played)), bool), np.zeros((1, len(played)), bool)
    [[full, empty]] = worth(Scorer(model), [played], [np.concatenate([everything, nothing])])
    alone = {"input_ids": torch.tensor([[model.token_id("auto")]])}
    with torch.inference_mode():
        logits = model.network(**alone).logits[0, 0]
        whole = model.network(**batch.inputs).logits[0]
    place = int(target.position.flatten()[0])
    assert empty == pytest.approx(float(logits[aim.label[0]]), abs=1e-5)
    assert full == pytest.approx(float(whole[place, aim.label[0]]), abs=1e-5)
