"""Mean and spread of changes: against textbooks, a bootstrap, and planted tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway, ttest_1samp
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from xattn.analysis.bias import beyond
from xattn.analysis.components import Components


def table(seed: int = 0, professions: int = 6, sentences: int = 5) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (
        0.3
        + draw.normal(0, 1.0, (professions, 1))
        + draw.normal(0, 0.7, (1, sentences))
        + draw.normal(0, 0.5, (professions, sentences))
    )


def test_mean_squares_are_those_of_the_analysis_of_variance():
    values = table()
    frame = pd.DataFrame(values).melt(ignore_index=False).reset_index()
    reference = anova_lm(ols("value ~ C(index) + C(variable)", frame).fit())
    found = Components(tuple(values), crossed=True)
    assert [square for square, _ in found.squares] == pytest.approx(reference["mean_sq"].tolist())
    assert [free for _, free in found.squares] == reference["df"].tolist()
    assert found.spread(0.0).p == pytest.approx(reference.loc["C(index)", "PR(>F)"])


def test_nested_tables_have_the_one_way_tests():
    rows = tuple(table(1))
    found = Components(rows, crossed=False)
    assert found.spread(0.0).p == pytest.approx(f_oneway(*rows).pvalue)
    shift, test = found.shift(0.0), ttest_1samp([row.mean() for row in rows], 0)
    assert shift.p == pytest.approx(test.pvalue)
    interval = test.confidence_interval()
    assert (shift.low, shift.high) == pytest.approx((interval.low, interval.high))


def test_the_interval_agrees_with_a_bootstrap_of_rows_and_columns():
    """Owen 2007, The Pigeonhole Bootstrap: a little wider, since it counts the rest thrice."""
    values = table(2, professions=40, sentences=30)
    draw = np.random.default_rng(0)
    means = []
    for _ in range(2000):
        rows, columns = draw.integers(40, size=40), draw.integers(30, size=30)
        means.append(values[np.ix_(rows, columns)].mean())
    shift = Components(tuple(values), crossed=True).shift(0.0)
    low, high = np.percentile(means, [2.5, 97.5])
    assert shift.high - shift.low == pytest.approx(high - low, rel=0.1)
    assert (shift.low, shift.high) == pytest.approx((low, high), abs=0.05)


def test_errors_are_as_rare_as_they_are_said_to_be():
    draw, margin, tables = np.random.default_rng(0), 0.05, 400
    wrong, covered = np.zeros((2, 2)), np.zeros(2)
    for _ in range(tables):
        values = margin + draw.normal(0, margin, (12, 1)) + draw.normal(0, 0.05, (1, 8))
        found = Components(tuple(values + draw.normal(0, 0.05, (12, 8))), crossed=True)
        both = found.shift(margin), found.spread(margin)
        wrong += [[e.p < 0.05, max(-e.low, e.high) < margin] for e in both]
        covered += [e.low <= margin <= e.high for e in both]
    chance = 3 * math.sqrt(0.05 * 0.95 / tables)
    assert (wrong / tables <= 0.05 + chance).all()
    assert covered / tables == pytest.approx(0.95, abs=chance)


def test_changes_that_are_all_alike():
    found = Components((np.full(3, 0.25), np.full(3, 0.25)), crossed=True)
    assert found.shift(0.1)[:3] == pytest.approx((0.25, 0.25, 0.25))
    assert found.shift(0.1).p < 1e-9
    assert found.shift(0.3).p == 1
    assert found.spread(0.1) == (0, 0, 0, 1)
    single = Components((np.array([0.1]), np.array([0.3])), crossed=False)
    assert np.isnan(single.spread(0.0).value)
    assert single.shift(0.0).value == pytest.approx(0.2)
    same = Components((np.array([0.1]), np.array([0.3])), crossed=True)
    assert np.isnan(same.shift(0.0).value)
    with pytest.raises(ValueError, match="two professions"):
        Components((np.ones(3),), crossed=True)


def test_a_profession_is_tested_against_the_margin():
    values = np.array([0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18])
    assert beyond(values, 0.1) == beyond(-values, 0.1) == pytest.approx(2 / 2**8)
    assert beyond(values, 0.3) == 1
    assert beyond(np.zeros(8), 0.0) == 1
