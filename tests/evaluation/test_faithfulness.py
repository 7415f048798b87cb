"""Metrics against the slow reference, closed forms and planted answers."""

import numpy as np
import pytest

from xattn.evaluation import METRICS, OPERATORS, Scorer, get_operator
from xattn.evaluation.curves import order
from xattn.evaluation.deletion import Deletion, measure

TEXTS = [
    "Dull!",
    "A warm and very funny film.",
    "It begins slowly, but the last hour is a wonder: warm, funny and beautifully acted.",
]


def measured(model, encoding, morf, operator="delete", label=0):
    deletion = Deletion(encoding, get_operator(operator), label, morf, morf[::-1])
    [result] = measure(Scorer(model), [deletion])
    return result


def values(measurement):
    return {name: metric(measurement) for name, metric in METRICS.items()}


@pytest.mark.parametrize("pairs", [None, ["It was long.", "So they say.", "Yes."]])
@pytest.mark.parametrize("operator", OPERATORS)
def test_metrics_equal_the_slow_reference(operator, pairs, demo, reference):
    rng = np.random.default_rng(1)
    encodings = demo.encode(TEXTS, pairs)
    orders = [rng.permutation(e.removable) for e in encodings]
    chosen = get_operator(operator)
    deletions = [Deletion(e, chosen, 1, o, o[::-1]) for e, o in zip(encodings, orders, strict=True)]
    for deletion, result in zip(deletions, measure(Scorer(demo), deletions), strict=True):
        expected = reference.metrics(demo, deletion.encoding, operator, 1, deletion.morf.tolist())
        assert values(result) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("operator", ["delete", "attention-mask"])
def test_metrics_without_special_tokens(operator, tiny_of, reference):
    model = tiny_of("gpt2")
    [encoding] = model.encode([TEXTS[1]])
    morf = np.random.default_rng(2).permutation(encoding.removable)
    expected = reference.metrics(model, encoding, operator, 2, morf.tolist())
    assert values(measured(model, encoding, morf, operator, 2)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("operator", ["delete", "mask", "unknown", "attention-mask"])
def test_additive_scores_in_closed_form(operator, toy, encoded):
    # four tokens worth 0.4, 0.2, 0.1, 0.05 above 0.1; k = 1, 1, 1, 1, 2 of 4
    worth = {10: 0.4, 11: 0.2, 12: 0.1, 13: 0.05}
    model = toy(lambda ids: 0.1 + sum(worth.get(i, 0.0) for i in ids))
    result = measured(model, encoded([11, 10, 13, 12]), np.array([2, 1, 4, 3]), operator)
    assert result.morf.score == pytest.approx([0.85, 0.45, 0.25, 0.15, 0.1])
    assert result.lerf.score == pytest.approx([0.85, 0.8, 0.7, 0.5, 0.1])
    assert values(result) == pytest.approx(
        {
            "comprehensiveness": (4 * 0.4 + 0.6) / 5,
            "sufficiency": (4 * 0.35 + 0.15) / 5,
            "aopc_morf": 0.85 - (0.475 + 0.45 + 0.25 + 0.15) / 4,
            "aopc_lerf": 0.85 - (0.475 + 0.8 + 0.7 + 0.5) / 4,
            "abpc": (0.8 + 0.7 + 0.5 - 0.45 - 0.25 - 0.15) / 4,
        }
    )


def test_scores_without_information_give_no_area_on_average(toy, encoded):
    worth = dict(zip(range(10, 16), (0.3, 0.2, 0.1, 0.1, 0.05, 0.05), strict=True))
    model = toy(lambda ids: 0.1 + sum(worth.get(i, 0.0) for i in ids))
    encoding = encoded(sorted(worth))
    constant = np.ones(len(encoding))
    areas = [
        METRICS["abpc"](measured(model, encoding, order(constant, encoding.removable, seed)))
        for seed in range(300)
    ]
    best = METRICS["abpc"](measured(model, encoding, np.arange(1, 7)))
    assert best > 0.25
    assert abs(np.mean(areas)) < 4 * np.std(areas) / np.sqrt(300)


def test_curves_start_untouched_and_end_empty(demo):
    [encoding] = demo.encode([TEXTS[2]])
    removable = encoding.removable
    a = measured(demo, encoding, removable)
    b = measured(demo, encoding, np.random.default_rng(0).permutation(removable))
    for curve in (a.morf, a.lerf, b.morf, b.lerf):
        assert curve.score[[0, -1]] == pytest.approx(a.morf.score[[0, -1]], abs=1e-7)
    assert not np.allclose(a.morf.score, b.morf.score)
    bare = demo.encode([TEXTS[2]])[0]
    cut = {name: v[bare.special] for name, v in bare.row.items()}
    assert a.morf.score[-1] == pytest.approx(Scorer(demo).scores([cut], [0])[0], abs=1e-6)


def test_every_metric_says_how_to_read_it():
    for metric in METRICS.values():
        assert metric.bounds == (-1.0, 1.0)
        assert metric.citation
        assert metric.meaning
        assert metric.function.__doc__
