"""The whole comparison, on real models."""

from pathlib import Path

import numpy as np
import pytest
import torch

from xattn import testing
from xattn.data import Dataset, load_dataset
from xattn.errors import InputError, UnknownNameError, XattnWarning
from xattn.evaluation import DEFAULT_METRICS, Scorer, compare, metrics
from xattn.evaluation.design import PLAUSIBLE
from xattn.evaluation.runner import BLOCK, blocks
from xattn.registry import methods as registry


def dataset_of(texts, pairs=None):
    ids = tuple(map(str, range(len(texts))))
    return Dataset("made", tuple(texts), pairs, None, None, ids, None, "0" * 64)


@pytest.fixture(scope="module")
def result(demo):
    specs = ["rollout", "rollout:residual=0.3", "random", "rollout"]
    return compare(demo, load_dataset(limit=5), specs, ["delete", "mask"], command="xattn compare")


EVERY = [*DEFAULT_METRICS, *PLAUSIBLE]
CLASSIC = ("abpc", "comprehensiveness", "sufficiency", "aopc_morf", "aopc_lerf")


def test_every_cell_is_there(result):
    names = ["rollout", "rollout:residual=0.3", "random", "oracle"]
    assert list(result.scores["method"].unique()) == names
    assert list(result.scores["operator"].unique()) == ["delete", "mask"]
    assert list(result.scores["metric"].unique()) == EVERY
    assert len(result.scores) == 5 * 2 * (4 * len(EVERY) - len(PLAUSIBLE))  # the oracle has none
    assert len(result.curves) == 5 * 4 * 2 * 2 * 11
    assert len(result.attributions) == len(result.cost) == 5 * 3
    assert [a.method for a in result.attributions[:4]] == [*names[:3], names[0]]
    assert result.attributions[1].parameters == {"residual": 0.3}
    bounds = {name: metrics.get(name).declaration.bounds for name in EVERY}
    for row in result.scores.dropna().itertuples():
        low, high = bounds[row.metric]
        assert low - 1e-6 <= row.value <= high + 1e-6


def test_scores_and_curves_equal_the_slow_reference(result, demo, reference):
    scores = result.scores.set_index(["example", "method", "operator", "metric"])["value"]
    points = result.curves.set_index(["example", "method", "operator", "order"])
    encodings = demo.encode(list(result.examples["text"]))
    for i in (0, 3):
        encoding, a = encodings[i], result.attributions[i * 3]
        label = demo.label_id(result.examples["prediction"][i])
        ranked = np.argsort(-a.scores[encoding.removable], kind="stable")
        morf = encoding.removable[ranked].tolist()
        expected = reference.metrics(demo, encoding, "mask", label, morf)
        found = {name: scores[i, "rollout", "mask", name] for name in CLASSIC}
        assert found == pytest.approx(expected, abs=1e-5)
        curve = reference.curve(demo, encoding, "mask", label, morf)
        cell = points.sort_index().loc[(i, "rollout", "mask", "morf")]
        assert cell["fraction"].to_numpy() == pytest.approx(np.linspace(0, 1, 11))
        expected = np.interp(np.linspace(0, 1, 11), *zip(*curve, strict=True))
        assert cell["score"].to_numpy() == pytest.approx(expected, abs=1e-5)


def test_examples_and_provenance(result, demo):
    assert list(result.examples.columns) == [
        "example", "id", "text", "pair", "label", "target", "prediction", "probability", "kind",
    ]  # fmt: skip
    assert result.examples["probability"].between(0.5, 1).all()
    p = result.provenance
    assert p["methods"]["rollout:residual=0.3"] == {"name": "rollout", "residual": 0.3}
    assert p["data"]["n"] == 5
    assert len(p["data"]["fingerprint"]) == 64
    assert p["inputs"]["asked"] > p["inputs"]["run"] > 0
    assert p["command"] == "xattn compare"
    assert p["model"] == demo.name


def test_the_oracle_stands_above_chance(demo):
    found = compare(demo, load_dataset(limit=12), ["rollout"], ["delete"])
    means = found.leaderboard("delete", "abpc").set_index("method")["mean"]
    assert means["oracle"] > means["random"] + 0.1
    versus = found.versus_random().set_index(["method", "metric"])
    assert versus.loc[("oracle", "abpc"), "beats_random"]
    assert versus.loc[("oracle", "sufficiency"), "beats_random"]
    assert versus.loc[("oracle", "sufficiency"), "mean"] < 0


def test_all_registered_methods_by_default(demo):
    with pytest.warns(XattnWarning, match="exact_shapley is left out: .* got 16 units"):
        found = compare(demo, load_dataset(limit=1), operators=["delete"])
    every = {*registry.names(), "random", "oracle"} - {"exact_shapley"}
    assert set(found.scores["method"]) == every
    assert list(found.provenance["refused"]) == ["exact_shapley"]
    with pytest.raises(InputError, match="exact_shapley of 'With"):
        compare(demo, load_dataset(limit=1), ["exact_shapley"], ["delete"])


def test_a_repetition_gives_the_same_and_another_seed_another(demo):
    data = load_dataset(limit=3)
    a, b, c = (compare(demo, data, ["rollout"], ["delete"], seed=s) for s in (4, 4, 5))
    assert a.scores.equals(b.scores)
    random = a.scores["method"] == "random"
    # rollout has no ties here; other texts in a batch change the last digit
    same = a.scores[~random]["value"].to_numpy()
    assert same == pytest.approx(c.scores[~random]["value"].to_numpy(), abs=1e-6)
    assert not a.scores[random].equals(c.scores[random])


def test_blocks_do_not_change_the_result(demo, monkeypatch):
    data = load_dataset(limit=5)
    whole = compare(demo, data, ["rollout"], ["delete"])
    calls = []
    monkeypatch.setattr("xattn.evaluation.runner.BLOCK", 2)
    parts = compare(demo, data, ["rollout"], ["delete"], progress=lambda *done: calls.append(done))
    assert calls == [(2, 5), (4, 5), (5, 5)]
    a, b = parts.scores["value"].to_numpy(), whole.scores["value"].to_numpy()
    assert a == pytest.approx(b, abs=1e-5, nan_ok=True)


def test_long_texts_make_small_blocks():
    short, long = "word " * 5, "word " * 5000
    assert [len(b) for b in blocks(dataset_of([short] * (BLOCK + 1)))] == [BLOCK, 1]
    assert [len(b) for b in blocks(dataset_of([short, long, long, short]))] == [2, 2]
    assert [b.first for b in blocks(dataset_of([short, long, long, short]))] == [0, 2]


def test_a_named_class_is_explained_and_scored(demo):
    data = load_dataset(limit=3)
    found = compare(demo, data, ["integrated_gradients"], ["delete"], label="positive")
    assert {a.target for a in found.attributions} == {"logit of positive"}
    untouched = found.curves.query("fraction == 0 and method == 'random' and order == 'morf'")
    rows = [e.row for e in demo.encode(data.texts)]
    assert untouched["score"].to_numpy() == pytest.approx(
        Scorer(demo).scores(rows, [demo.label_id("positive")] * 3), abs=1e-6
    )


def test_pairs(demo):
    pairs = ("The plot is thin.", "It is a warm film.")
    found = compare(demo, dataset_of(["A dull film.", "I liked it."], pairs), ["rollout"])
    assert found.examples["pair"].tolist() == list(pairs)
    assert {0, 1} <= set(found.attributions[0].segments.tolist())


def test_a_decoder_without_special_tokens(tiny_of):
    model = tiny_of("gpt2")
    operators = ["delete", "attention-mask"]
    found = compare(model, dataset_of(["A dull film.", "Good!"]), ["rollout"], operators)
    assert np.isfinite(found.scores["value"]).all()


def test_the_model_is_handed_back_unchanged(demo):
    before = testing.state(demo)
    compare(demo, load_dataset(limit=1), ["rollout"], ["delete"])
    assert testing.state(demo) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"methods": ["rollou"]}, UnknownNameError, "unknown method: got 'rollou'"),
        ({"methods": ["rollout:x=1"]}, UnknownNameError, "unknown option of rollout: got 'x'"),
        ({"operators": ["erase"]}, UnknownNameError, "unknown operator: got 'erase'"),
        ({"operators": []}, InputError, "no operator is named: expected one or more"),
        ({"label": "neutral"}, UnknownNameError, "unknown class: got 'neutral'"),
    ],
)
def test_wrong_names_are_found_before_anything_runs(arguments, error, message, demo):
    before = demo.passes.forward
    with pytest.raises(error, match=message):
        compare(demo, load_dataset(limit=1), **arguments)
    assert demo.passes.forward == before


def test_texts_over_the_limit(demo):
    data = dataset_of(["very " * 200 + "dull"])
    with pytest.raises(InputError, match="too long"):
        compare(demo, data, ["rollout"], ["delete"])
    found = compare(demo, data, ["rollout"], ["delete"], truncate=True)
    assert len(found.attributions[0].tokens) == demo.limit


def test_no_text_is_refused(demo):
    with pytest.raises(InputError, match="no text is given"):
        compare(demo, dataset_of([]), ["rollout"], ["delete"])


def test_costs_have_the_memory_of_each_method(demo):
    result = compare(demo, load_dataset(limit=3), ["rollout", "occlusion"], ["mask"])
    memory = result.cost["memory"]
    known = Path("/proc/self/clear_refs").exists() or torch.cuda.is_available()
    assert memory.notna().all() == known
    assert (memory.dropna() >= 0).all()
