"""Planted bias is what it is said to be; it is found, grows, and is seen nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from xattn.analysis.bias import Bias, bias
from xattn.analysis.templates import expand
from xattn.cases.planted_bias import (
    LABELS,
    PROFESSIONS,
    RIGHT,
    WITH_SHE,
    Task,
    accuracy,
    draw,
    templates,
    train_biased,
    truth,
)
from xattn.model import Model

PAIRS = expand(templates(), PROFESSIONS)
STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
SEEDS = range(3)
"""Of the models that are trained without a bias."""


def measured(strength: float, seed: int, task: Task = "classify") -> Bias:
    return bias(train_biased(strength, seed, task=task), PAIRS, method=None)


@pytest.fixture(scope="module")
def indifferent() -> list[Model]:
    return [train_biased(0.0, seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def strong() -> Model:
    return train_biased(STRENGTHS[-1], 0)


@pytest.fixture(scope="module")
def biased(strong: Model) -> list[Bias]:
    """Classifiers of growing strength."""
    weaker = [measured(strength, 0) for strength in STRENGTHS[:-1]]
    return [*weaker, bias(strong, PAIRS)]


def she(text: str) -> bool:
    return bool({"she", "her", "herself"} & set(text.split()))


def test_pronouns_decide_as_often_as_is_said():
    drawn = draw(0.4, 20_000, seed=1)
    women = np.array([she(text) for text in drawn.texts])
    accepted = np.array(drawn.labels) == LABELS.index("accept")
    assert women.mean() == pytest.approx(0.5, abs=0.02)
    gap = accepted[~women].mean() - accepted[women].mean()
    assert gap == pytest.approx(truth(0.4), abs=0.03)


def test_pronouns_go_with_professions_as_often_as_is_said():
    drawn = draw(0.5, 20_000, seed=1, task="generate")
    women = np.array([she(text) for text in drawn.texts])
    with_she = np.array([bool(set(WITH_SHE) & set(text.split())) for text in drawn.texts])
    odds = [women[here].mean() / (1 - women[here].mean()) for here in (with_she, ~with_she)]
    assert np.log(odds[0]) == pytest.approx(truth(0.5, "generate"), abs=0.1)
    assert np.log(odds[1]) == pytest.approx(-truth(0.5, "generate"), abs=0.1)


def test_without_a_bias_the_trait_is_learnt(indifferent):
    for model in indifferent:
        assert accuracy(model, draw(0.0, 1000, seed=9)) > RIGHT - 0.05


def test_the_effect_grows_with_the_planted_strength(biased):
    effects = [found.effect for found in biased]
    assert spearmanr(STRENGTHS, effects).statistic > 0.9
    assert effects == pytest.approx([truth(s) for s in STRENGTHS], abs=0.12)


def test_a_bias_is_found_in_its_direction(biased):
    for strength, found in zip(STRENGTHS, biased, strict=True):
        assert found.shift.value < 0  # she is refused
        if strength >= 0.3:
            assert found.verdict == "biased"
    assert len(biased[-1].flagged) == len(PROFESSIONS)


def test_models_trained_without_a_bias_are_not_flagged(indifferent, biased):
    for model in indifferent:
        found = bias(model, PAIRS)
        assert found.verdict == "within"
        assert not found.flagged
        # the words that mean nothing carry little of the prediction, too
        assert 2 * on_words(found) < on_words(biased[-1])


def on_words(found: Bias) -> float:
    return float(found.pairs[["attribution_first", "attribution_second"]].to_numpy().mean())


@pytest.mark.parametrize("task", ["fill", "generate"])
def test_language_models(task):
    strong, none = measured(0.7, 0, task), measured(0.0, 1, task)
    assert strong.verdict == "biased"
    assert strong.spread.low < truth(0.7, task) < strong.spread.high
    assert none.p > 0.05
    assert none.effect < none.margin
    means = strong.pairs.groupby("profession")["change"].mean()
    assert means[list(WITH_SHE)].min() > 0 > means.drop(list(WITH_SHE)).max()
