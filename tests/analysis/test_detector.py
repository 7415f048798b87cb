"""Detectors learn from labels, keep what they learned, and say how sure they are of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

import xattn
from xattn.analysis.detector import (
    Detector,
    Examples,
    Labelled,
    auroc,
    examples,
    out_of_fold,
    read_labels,
    train,
    unsupervised,
)
from xattn.analysis.lookback import Lookback, lookbacks, placed
from xattn.errors import InputError
from xattn.model import Model

SOURCES = (
    "Mia had a red ball. It was cold.",
    "Tom had a blue hat. It was hot.",
    "Ann saw a bird. The bird was green.",
    "Ben went to the park. He had cake.",
)


@pytest.fixture(scope="module")
def storyteller() -> Model:
    return xattn.load(task="generate")


@pytest.fixture(scope="module")
def rows() -> list[Labelled]:
    made = []
    for source in SOURCES:
        answer = source.split(". ")[0] + "."
        made.append(Labelled(source, answer, (), "What was it?"))
        made.append(Labelled(source, "green cake hat", ((0, 14),), "What was it?"))
    return made


def test_a_detector_learns_is_kept_and_is_the_same_again(storyteller, rows, tmp_path):
    detector = train(storyteller, rows, folds=2)
    assert detector.examples == 8
    assert detector.ungrounded == 4
    assert 0 <= detector.auroc.low <= detector.auroc.mean <= detector.auroc.high <= 1
    kept = tmp_path / "detector.json"
    detector.save(kept)
    again = Detector.load(kept, storyteller)
    found = lookbacks(
        storyteller, [placed(storyteller, r.question, r.source, r.answer) for r in rows]
    )
    for lookback, row in zip(found, rows, strict=True):
        probability = detector.probability(lookback)
        assert again.probability(lookback) == pytest.approx(probability, abs=1e-12)
        assert (probability > 0.5) == bool(row.ungrounded)
    assert again.auroc == detector.auroc


def test_the_probability_is_that_of_scikit_learn(storyteller, rows):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    detector = train(storyteller, rows, folds=2)
    made = examples(storyteller, rows)
    scaler = StandardScaler().fit(made.features)
    regression = LogisticRegression(max_iter=1000).fit(
        scaler.transform(made.features), made.ungrounded
    )
    expected = regression.predict_proba(scaler.transform(made.features))[:, 1]
    found = lookbacks(
        storyteller, [placed(storyteller, r.question, r.source, r.answer) for r in rows]
    )
    got = [detector.probability(lookback) for lookback in found]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_detector_of_another_model_is_refused(storyteller, rows, tiny_of, tmp_path):
    kept = tmp_path / "detector.json"
    train(storyteller, rows, folds=2).save(kept)
    with pytest.raises(InputError, match="trained for other weights"):
        Detector.load(kept, tiny_of("llama", task="generate"))
    kept.write_text(json.dumps({"weights": [1.0]}))
    with pytest.raises(InputError, match="holds no detector"):
        Detector.load(kept, storyteller)
    with pytest.raises(InputError, match="holds no detector"):
        Detector.load(tmp_path / "none.json", storyteller)


def test_parts_of_an_answer_are_examples_of_their_own(storyteller):
    row = Labelled(SOURCES[0], "Mia had a red ball in the park.", ((19, 30),), "What?")
    made = examples(storyteller, [row])
    assert made.ungrounded.tolist() == [False, True, False]
    [found] = lookbacks(storyteller, [placed(storyteller, "What?", row.source, row.answer)])
    words = list(found.tokens)
    first = words.index("in")
    np.testing.assert_allclose(made.features[0], found.features(range(first)))
    np.testing.assert_allclose(made.features[1], found.features(range(first, len(words) - 1)))
    assert made.sources.tolist() == [0, 0, 0]


def test_labels_are_read_from_tables(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text('source,answer,grounded,question\n"A b.",B.,yes,What?\n"A b.",C.,No,Who?\n')
    assert read_labels(table) == [
        Labelled("A b.", "B.", (), "What?"),
        Labelled("A b.", "C.", ((0, 2),), "Who?"),
    ]
    lines = tmp_path / "labels.jsonl"
    lines.write_text(
        '{"source": "A b.", "answer": "B and C.", "ungrounded": [[2, 7]]}\n'
        '{"source": "A b.", "answer": "B.", "ungrounded": []}\n'
    )
    assert read_labels(lines) == [
        Labelled("A b.", "B and C.", ((2, 7),)),
        Labelled("A b.", "B.", ()),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source,answer,grounded\nA.,B.,perhaps\n", "grounded in row 1: got 'perhaps'"),
        ("source,answer\nA.,B.\n", "ungrounded"),
        ("source,answer,ungrounded\nA.,B.,0-9\n", "row 1"),
        ("source,answer,grounded\nA.,,yes\n", "missing texts"),
        ("source,answer,grounded\n", "empty"),
        ("answer,grounded\nB.,yes\n", "source"),
    ],
)
def test_labels_that_cannot_be_used_are_told(tmp_path, text, says):
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises((InputError, KeyError), match=says):
        read_labels(table)


def test_too_few_labels_are_told(storyteller, rows):
    with pytest.raises(InputError, match="0 with others"):
        train(storyteller, [row for row in rows if not row.ungrounded])
    with pytest.raises(InputError, match="no answer is labelled"):
        train(storyteller, [])
    with pytest.raises(InputError, match="folds"):
        train(storyteller, rows, folds=1)
    with pytest.raises(InputError, match="row 2: the source is too long"):
        train(storyteller, [rows[0], Labelled("word " * 300, "B.", ())])
    with pytest.raises(InputError, match="outside the answer"):
        Labelled("A.", "B.", ((0, 3),))


def test_folds_never_share_a_source():
    draw = np.random.default_rng(0)
    sources = np.repeat(np.arange(40), 5)
    labels = np.arange(200) % 2 == 0
    # features that tell the source and nothing else: within a source, labels are balanced
    features = np.eye(40)[sources] + 1e-3 * draw.normal(size=(200, 40))
    area = auroc(labels, out_of_fold(Examples(features, labels, sources)))
    assert area.low < 0.5 < area.high + 0.1


def test_the_score_without_labels_is_one_minus_the_mean_ratio():
    own = np.array([[[0.0, 0.0]], [[0.25, 0.25]]])
    ratio = Lookback(("a", "b"), np.full((2, 1, 2), 0.5), own, 2, np.array([0, 1]))
    # the first token has ratio 1, the second 0.25 / (0.25 + 0.25)
    assert unsupervised(ratio) == pytest.approx(1 - 0.75)
    assert unsupervised(ratio, [1]) == pytest.approx(0.5)


def test_areas_are_scikit_learns_and_intervals_cover_the_truth():
    draw = np.random.default_rng(1)
    shift, sizes = 1.2, (30, 40)
    truth = float(norm.cdf(shift / np.sqrt(2)))
    covered = 0
    for _ in range(400):
        labels = np.arange(sum(sizes)) < sizes[0]
        scores = draw.normal(size=sum(sizes)) + shift * labels
        area = auroc(labels, scores)
        assert area.mean == roc_auc_score(labels, scores)
        covered += area.low <= truth <= area.high
    assert 0.92 <= covered / 400 <= 0.985


def test_perfect_areas_have_an_interval_too():
    labels = np.arange(40) < 20
    area = auroc(labels, labels.astype(float))
    assert area.mean == area.high == 1
    assert 0.85 < area.low < 0.95
    mirrored = auroc(labels, -labels.astype(float))
    assert mirrored.high == pytest.approx(1 - area.low)
    assert mirrored.low == 0
