"""Curves and areas equal those of ferret, interpreto and Quantus where definitions coincide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import xattn
from xattn.evaluation import Comparison, Dataset, compare, load_dataset
from xattn.model import Model
from xattn.types import Floats

harness = pytest.importorskip("metric_rivals")  # in benchmarks/; see .ci/rivals
METHOD = "input_x_gradient"


@pytest.fixture(scope="module")
def model() -> Model:
    return xattn.load()


def data(model: Model, lengths: range) -> Dataset:
    """Return reviews of so many tokens."""
    every = load_dataset()
    encodings = model.encode(every.texts)
    chosen = [t for t, e in zip(every.texts, encodings, strict=True) if len(e.removable) in lengths]
    return replace(
        every, texts=tuple(chosen), labels=None, rationales=None, kinds=None,
        ids=tuple(map(str, range(len(chosen)))),
    )  # fmt: skip


def survives(model: Model, text: str, scores: Floats) -> bool:
    """Whether every text of a curve is read again as the tokens that it was joined from."""
    ids, order = model.tokenizer(text, add_special_tokens=False)["input_ids"], np.argsort(-scores)
    parts = [np.sort(part) for k in range(len(ids)) for part in (order[:k], order[k:])]
    joined = [[ids[i] for i in part] for part in parts]
    texts = model.tokenizer.batch_decode(joined)
    return bool(model.tokenizer(texts, add_special_tokens=False)["input_ids"] == joined)


def given(result: Comparison, number: int) -> tuple[Floats, int]:
    """Return the scores of a text, and the class that is explained."""
    items = [a for a in result.attributions if a.method == METHOD]
    item = items[number]
    scores: Floats = item.scores[~item.special].astype(np.float64)
    assert len(np.unique(scores)) == len(scores)
    return scores, xattn.load().label_id(item.prediction)


def test_comprehensiveness_and_sufficiency_are_those_of_ferret(model: Model) -> None:
    pytest.importorskip("ferret")
    dataset = data(model, range(10, 11))
    names = ("comprehensiveness:fractions=grid", "sufficiency:fractions=grid")
    result = compare(model, dataset, [METHOD], ["delete"], metrics=names)
    exact, apart = 0, []
    for number, text in enumerate(dataset.texts):
        scores, label = given(result, number)
        theirs = harness.ferret(model, text, scores, label)
        ours = [float(result.table("delete", name)[METHOD].iloc[number]) for name in names]
        if survives(model, text, scores):
            exact += 1
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        else:
            apart.append(np.abs(np.subtract(ours, theirs)).max())
    assert exact >= 2
    assert max(apart) > 0.01  # joined and read again, other texts are scored


@pytest.mark.parametrize(("kind", "metric"), [("Deletion", "deletion"), ("Insertion", "insertion")])
def test_areas_are_those_of_interpreto(model: Model, kind: str, metric: str) -> None:
    pytest.importorskip("interpreto")
    dataset = data(model, range(4, 11))
    result = compare(model, dataset, [METHOD], ["mask"], metrics=[metric])
    for number, text in enumerate(dataset.texts):
        scores, label = given(result, number)
        area, _ = harness.interpreto(model, text, scores, label, kind)
        ours = float(result.table("mask", metric)[METHOD].iloc[number])
        assert ours == pytest.approx(area, abs=1e-5)


def test_curves_are_those_of_quantus(model: Model) -> None:
    harness.pretend("torchvision")  # it is imported for pictures, and may be of another torch
    pytest.importorskip("quantus")
    dataset = data(model, range(10, 11))
    result = compare(model, dataset, [METHOD], ["mask"], metrics=["deletion"])
    curves = result.curves[(result.curves["method"] == METHOD) & (result.curves["order"] == "morf")]
    for number, text in enumerate(dataset.texts):
        scores, label = given(result, number)
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        theirs = harness.quantus(model, ids, scores, label)
        own = curves[curves["example"] == number].sort_values("fraction")["score"].to_numpy()
        np.testing.assert_allclose(own[1:], theirs, atol=1e-5)
