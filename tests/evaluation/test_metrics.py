"""Metrics against the slow reference, closed forms, captum, planted answers and properties."""

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from sklearn.metrics import auc, f1_score, precision_recall_curve

from xattn.errors import InputError, XattnError
from xattn.evaluation import Bounds, Case, Scorer, metrics
from xattn.evaluation.measures.deletion import lerf, morf
from xattn.evaluation.measures.sampled import retention
from xattn.evaluation.metric import Metric, register
from xattn.model.game import Worths

TEXTS = [
    "Dull!",
    "A warm and very funny film.",
    "It begins slowly, but the last hour is a wonder: warm, funny and beautifully acted.",
]
CLASSIC = ("comprehensiveness", "sufficiency", "aopc_morf", "aopc_lerf", "abpc")


def case_of(game, order):
    scores = np.zeros(len(game))
    scores[order] = np.arange(len(game), 0, -1)
    return Case(game, scores)


# ------------------------------------------------------------------- the slow reference


@pytest.mark.parametrize("pairs", [None, ["It was long.", "So they say.", "Yes."]])
@pytest.mark.parametrize("operator", ["delete", "mask", "pad", "unknown", "attention-mask"])
def test_metrics_equal_the_slow_reference(operator, pairs, demo, reference, played, value):
    rng = np.random.default_rng(1)
    for encoding in demo.encode(TEXTS, pairs):
        game = played(demo, encoding, operator, 1)
        order = rng.permutation(len(game))
        positions = encoding.removable[order].tolist()
        expected = reference.metrics(demo, encoding, operator, 1, positions)
        case, worths = case_of(game, order), Worths(Scorer(demo))
        found = {name: value(case, name, worths) for name in CLASSIC}
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("operator", ["delete", "attention-mask"])
def test_metrics_without_special_tokens(operator, tiny_of, reference, played, value):
    model = tiny_of("gpt2")
    [encoding] = model.encode([TEXTS[1]])
    game = played(model, encoding, operator, 2)
    order = np.random.default_rng(2).permutation(len(game))
    expected = reference.metrics(model, encoding, operator, 2, encoding.removable[order].tolist())
    found = {name: value(case_of(game, order), name) for name in CLASSIC}
    assert found == pytest.approx(expected, abs=1e-5)


# ------------------------------------------------------------------------ closed forms

WORTH = {10: 0.4, 11: 0.2, 12: 0.1, 13: 0.05}


@pytest.fixture
def additive(toy):
    return toy(lambda ids: 0.1 + sum(WORTH.get(i, 0.0) for i in ids))


@pytest.mark.parametrize("operator", ["delete", "mask", "unknown", "attention-mask"])
def test_additive_scores_in_closed_form(operator, additive, encoded, played, value):
    # four tokens worth 0.4, 0.2, 0.1, 0.05 above 0.1; k = 1, 1, 1, 1, 2 of 4
    game = played(additive, encoded([11, 10, 13, 12]), operator)
    case = Case(game, np.array([0.2, 0.4, 0.05, 0.1]))
    worths = Worths(Scorer(additive))
    first, last = worths.play([(game, morf(case)), (game, lerf(case))])
    assert first.score == pytest.approx([0.85, 0.45, 0.25, 0.15, 0.1])
    assert last.score == pytest.approx([0.85, 0.8, 0.7, 0.5, 0.1])
    grid = 0.85 - np.array([0.45] * 2 + [0.25] * 3 + [0.15] * 2 + [0.1] * 3)
    expected = {
        "comprehensiveness": (4 * 0.4 + 0.6) / 5,
        "comprehensiveness:fractions=grid": grid.mean(),
        "sufficiency": (4 * 0.35 + 0.15) / 5,
        "aopc_morf": 0.85 - (0.475 + 0.45 + 0.25 + 0.15) / 4,
        "aopc_lerf": 0.85 - (0.475 + 0.8 + 0.7 + 0.5) / 4,
        "abpc": (0.8 + 0.7 + 0.5 - 0.45 - 0.25 - 0.15) / 4,
        "deletion": (0.475 + 0.45 + 0.25 + 0.15) / 4,
        "insertion": (0.475 + 0.8 + 0.7 + 0.5) / 4,
        "leave_one_out": 1.0,
        "monotonicity": 1.0,
        "infidelity": 0.0,
        "flip": 0.25,  # 0.45 < 0.5
    }
    for name, wanted in expected.items():
        assert value(case, name, worths) == pytest.approx(wanted, abs=1e-6), name
    backwards = Case(game, -case.scores)
    assert value(backwards, "leave_one_out", worths) == -1
    assert value(backwards, "monotonicity", worths) == 1  # every token helps
    assert value(backwards, "flip", worths) == 1.0  # 0.85, 0.8, 0.7, 0.5 and then 0.1


def test_soft_metrics_in_closed_form(additive, encoded, played, value):
    """Probabilities of staying and the additive worth give the expectation."""
    game = played(additive, encoded([10, 11, 12, 13]))
    case = Case(game, np.array([1.0, 0.5, 0.25, 0.0]))
    worth = np.array(list(WORTH.values()))
    for name, importance in (("soft_sufficiency", case.scores),
                             ("soft_comprehensiveness", 1 - case.scores)):  # fmt: skip
        stays = retention(importance, 0.5)
        assert stays.mean() == pytest.approx(0.5)
        found = value(case, f"{name}:samples=4000")
        assert found == pytest.approx(((1 - stays) * worth).sum(), abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.05, 0.95))
@settings(max_examples=100, deadline=None)
def test_all_keep_alike_much(importance, share):
    values = np.array(importance)
    stays = retention(values, share)
    assert stays.mean() == pytest.approx(share, abs=1e-6)
    assert ((stays >= 0) & (stays <= 1 + 1e-12)).all()
    order = np.argsort(values)
    assert (np.diff(stays[order]) >= -1e-9).all()


def test_normalised_aopc_equals_the_exhaustive_reference(toy, encoded, played, value):
    """Every order of five tokens is tried."""
    import itertools

    rng = np.random.default_rng(0)
    table = rng.random(32) * 0.98 + 0.01
    model = toy(lambda seen: table[sum(1 << (i - 10) for i in seen if i >= 10)])
    game, worths = played(model, encoded([10, 11, 12, 13, 14])), Worths(Scorer(model))
    every = [
        value(case_of(game, list(order)), "aopc_morf", worths)
        for order in itertools.permutations(range(5))
    ]
    from xattn.model.search import search

    orders = worths.play([(game, search(5, np.arange(6), order, 1)) for order in ("morf", "lerf")])
    case = case_of(game, [3, 1, 4, 0, 2])
    case = Case(game, case.scores, bounds=Bounds(*orders))
    own = value(case, "aopc_morf", worths)
    expected = (own - min(every)) / (max(every) - min(every))
    assert value(case, "normalised_aopc", worths) == pytest.approx(expected, abs=1e-5)
    best = Case(game, case.scores, bounds=case.bounds, own=case.bounds)
    assert value(best, "normalised_aopc", worths) == pytest.approx(1)


def test_a_text_that_does_not_matter_has_no_normalised_area(toy, encoded, played, value):
    game = played(toy(lambda seen: 0.5), encoded([10, 11]))
    bounds = Bounds(np.array([0, 1]), np.array([1, 0]))
    assert np.isnan(value(Case(game, np.array([1.0, 0.0]), bounds=bounds), "normalised_aopc"))


# ------------------------------------------------------------------ established libraries


@pytest.mark.parametrize("scaled", [True, False])
def test_infidelity_equals_captums(scaled, demo, played, value):
    [encoding] = demo.encode([TEXTS[1]])
    game = played(demo, encoding, "mask", 1)
    case, worths = Case(game, np.random.default_rng(0).normal(size=len(game))), Worths(Scorer(demo))
    drawn = (case.draw.random((16, len(game))) < 0.5).astype(np.float32)
    rows = iter(drawn)

    def forward(present):
        return torch.from_numpy(worths([(game, present.numpy() > 0.5)])[0])

    def perturb(present):
        kept = torch.from_numpy(np.stack([next(rows) for _ in range(len(present))]))
        return present - kept, kept

    expected = captum_infidelity(
        forward, perturb, torch.ones(1, len(game)), torch.from_numpy(case.scores)[None].float(),
        n_perturb_samples=16, normalize=scaled,
    )  # fmt: skip
    case = Case(game, case.scores)  # with its random numbers at the start again
    found = value(case, f"infidelity:samples=16,scaled={scaled}", worths)
    assert found == pytest.approx(float(expected), rel=1e-3)


def marked(game, scores, rationale):
    return Case(game, np.array(scores, dtype=float), rationale=np.array(rationale, dtype=bool))


def test_plausibility_equals_scikit_learn(toy, encoded, played, value):
    game = played(toy(lambda seen: 0.5), encoded(list(range(10, 18))))
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, truth = rng.random(8), rng.random(8) < 0.4
        if truth.all() or not truth.any():
            continue
        case = marked(game, scores, truth)
        top = np.zeros(8, dtype=bool)
        top[np.argsort(-scores)[: truth.sum()]] = True
        assert value(case, "token_f1") == pytest.approx(f1_score(truth, top))
        precision, recall, _ = precision_recall_curve(truth, scores)
        # the step-wise area; trapezoids are too kind
        step = -np.sum(np.diff(recall) * precision[:-1])
        assert value(case, "auprc") == pytest.approx(step)
        assert abs(auc(recall, precision) - step) < 0.5
        assert value(case, "pointing") == truth[scores.argmax()]
        assert value(case, "evidence_mass") == pytest.approx(scores[truth].sum() / scores.sum())
        best = truth[np.argsort(-scores)[:3]].sum() / truth.sum()
        assert value(case, "recall_at_k:k=3") == pytest.approx(best)


def test_iou_f1_by_hand(toy, encoded, played, value):
    game = played(toy(lambda seen: 0.5), encoded(list(range(10, 18))))
    truth = [1, 1, 1, 0, 0, 1, 1, 0]
    # top five: 0 1 | 3 4 5; the first has 2 of 3 of a passage, the second 1 of 4 of the other
    case = marked(game, [9, 8, 0, 7, 6, 5, 0, 0], truth)
    assert value(case, "iou_f1") == pytest.approx(0.5)
    assert value(marked(game, truth, truth), "iou_f1") == 1


def test_without_a_rationale_nothing_is_said(toy, encoded, played, value):
    game = played(toy(lambda seen: 0.5), encoded([10, 11]))
    for name in ("auprc", "token_f1", "iou_f1", "pointing", "evidence_mass", "recall_at_k"):
        assert np.isnan(value(Case(game, np.array([1.0, 0.5])), name))
        assert np.isnan(value(marked(game, [1.0, 0.5], [1, 1]), name))


def test_leave_one_out_is_kendalls(demo, played, value):
    [encoding] = demo.encode([TEXTS[2]])
    game, worths = played(demo, encoding, "delete", 1), Worths(Scorer(demo))
    scores = np.random.default_rng(3).normal(size=len(game))
    n = len(game)
    [y] = worths([(game, np.concatenate([np.ones((1, n), bool), ~np.eye(n, dtype=bool)]))])
    expected = kendalltau(scores, y[0] - y[1:]).statistic
    assert value(Case(game, scores), "leave_one_out", worths) == pytest.approx(expected)


@pytest.mark.parametrize(("scores", "entropy", "gini"), [
    ([1, 1, 1, 1], 1.0, 0.0), ([0, 0, -3, 0], 0.0, 0.75), ([1, 1, 0, 0], 0.5, 0.5),
])  # fmt: skip
def test_how_concentrated(scores, entropy, gini, toy, encoded, played, value):
    case = Case(played(toy(lambda seen: 0.5), encoded([10, 11, 12, 13])), np.array(scores, float))
    assert value(case, "entropy") == pytest.approx(entropy)
    assert value(case, "gini") == pytest.approx(gini)


# --------------------------------------------------------------------------- properties


def test_scores_without_information_give_no_area_on_average(toy, encoded, played, value):
    worth = dict(zip(range(10, 16), (0.3, 0.2, 0.1, 0.1, 0.05, 0.05), strict=True))
    model = toy(lambda ids: 0.1 + sum(worth.get(i, 0.0) for i in ids))
    game, worths = played(model, encoded(sorted(worth))), Worths(Scorer(model))
    areas = [value(Case(game, np.ones(6), (seed,)), "abpc", worths) for seed in range(300)]
    assert value(Case(game, np.arange(6, 0, -1.0)), "abpc", worths) > 0.25
    assert abs(np.mean(areas)) < 4 * np.std(areas) / np.sqrt(300)


def test_curves_start_untouched_and_end_empty(demo, played):
    [encoding] = demo.encode([TEXTS[2]])
    game, worths = played(demo, encoding), Worths(Scorer(demo))
    cases = [Case(game, np.random.default_rng(seed).random(len(game))) for seed in (0, 1)]
    curves = worths.play([(game, which(case)) for case in cases for which in (morf, lerf)])
    for curve in curves:
        assert curve.score[[0, -1]] == pytest.approx(curves[0].score[[0, -1]], abs=1e-7)
    cut = {name: v[encoding.special] for name, v in encoding.row.items()}
    assert curves[0].score[-1] == pytest.approx(Scorer(demo).scores([cut], [0])[0], abs=1e-6)


@pytest.mark.parametrize("name", metrics.names())
def test_permuting_the_units_permutes_the_result(name, additive, encoded, played, value):
    """Where tokens stand means nothing to a model that adds them up, and so to no metric."""
    ids, scores = np.array([10, 11, 12, 13]), np.array([0.3, 0.25, 0.1, -0.2])
    truth = np.array([True, True, False, False])
    found = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):  # neighbours stay neighbours
        game = played(additive, encoded(ids[order].tolist()))
        bounds = Bounds(np.argsort(ids[order]), np.argsort(-ids[order]))
        elsewhere = (np.array([0.1, 0.3, -0.2, 0.4])[order],)
        case = Case(game, scores[order], (0,), bounds, truth[order], 0.1, elsewhere)
        spec = (
            f"{name}:samples=2000" if "samples" in metrics.get(name).__dataclass_fields__ else name
        )
        found.append(value(case, spec))
    assert found[0] == pytest.approx(found[1], abs=0.02 if ":samples" in spec else 1e-6)


@pytest.mark.parametrize("name", metrics.names())
def test_every_metric_keeps_to_what_it_declares(name, demo, played, value):
    declared = metrics.get(name).declaration
    assert declared.citation
    assert declared.meaning
    assert declared.unit
    assert metrics.get(name).__doc__
    low, high = declared.bounds
    [encoding] = demo.encode([TEXTS[1]])
    game, worths = played(demo, encoding, "mask", 1), Worths(Scorer(demo))
    from xattn.model.search import search

    bounds = Bounds(*worths.play(
        [(game, search(len(game), np.arange(len(game) + 1), o, 1)) for o in ("morf", "lerf")]
    ))  # fmt: skip
    rng = np.random.default_rng(0)
    for _ in range(5):
        truth = np.arange(len(game)) < 3
        scores, other = rng.normal(size=(2, len(game)))
        case = Case(game, scores, (0,), bounds, truth, 0.2, (other,))
        found = value(case, name, worths)
        assert low - 1e-6 <= found <= high + 1e-6
        assert value(case, name, worths) == found or "sampl" in metrics.get(name).__module__


def test_a_text_without_units(toy, encoded, played, value):
    """Nothing can be removed: no metric may fall over, and none may claim anything."""
    game = played(toy(lambda seen: 0.7), encoded([]))
    bounds = Bounds(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    for name in metrics.names():
        case = Case(game, np.empty(0), (0,), bounds, np.empty(0, dtype=bool))
        found = value(case, name)
        assert np.isnan(found) or found == pytest.approx(0) or name in ("deletion", "insertion")


# -------------------------------------------------------------------------------- plug-ins


def test_a_metric_of_ones_own(toy, encoded, played):
    from dataclasses import dataclass

    @register("keep_half", label="keep half", higher_is_better=False, bounds=(-1, 1),
              unit="probability", citation="none", meaning="what half of the words do")  # fmt: skip
    @dataclass(frozen=True)
    class KeepHalf:
        share: float = 0.5

        def __call__(self, case):
            full, half = yield case.only([len(case), round(self.share * len(case))])
            return float(full - half)

    try:
        metric: Metric = metrics.build("keep_half:share=0.25")
        game = played(
            toy(lambda seen: 0.2 + 0.1 * sum(i > 9 for i in seen)), encoded([10, 11, 12, 13])
        )
        [found] = Worths(Scorer(game.model)).play([(game, metric(Case(game, np.arange(4.0))))])
        assert found == pytest.approx(0.3)
        with pytest.raises(XattnError, match="two metrics are called 'abpc'"):
            register("abpc", label="", higher_is_better=True, bounds=(0, 1), unit="", citation="",
                     meaning="")(KeepHalf)  # fmt: skip
    finally:
        del metrics._classes["keep_half"]


@pytest.mark.parametrize(("spec", "message"), [
    ("comprehensiveness:fractions=all", "fractions of comprehensiveness: got 'all'"),
    ("abpc:ordering=size", "ordering of abpc: got 'size'"),
    ("infidelity:samples=1", "samples of infidelity: got 1, expected 2 or more"),
    ("soft_sufficiency:share=1.0", "share of soft_sufficiency: got 1.0"),
    ("recall_at_k:k=0", "k of recall_at_k: got 0"),
    ("evidence_mass:ordering=signed", "ordering of evidence_mass: got 'signed'"),
    ("area", "unknown metric: got 'area'"),
])  # fmt: skip
def test_options_that_make_no_sense(spec, message):
    with pytest.raises((InputError, XattnError), match=message):
        metrics.build(spec)
