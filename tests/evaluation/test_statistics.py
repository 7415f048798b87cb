"""Bootstrap intervals against theory and in the corners."""

import numpy as np
import pytest

from xattn.evaluation import interval, paired_difference


def test_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 500)
    half = 1.96 * values.std() / np.sqrt(500)
    found = interval(values, seed=1)
    assert found.mean == pytest.approx(values.mean())
    assert found.n == 500
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    found = [interval(rng.random(60), seed=i, resamples=400) for i in range(200)]
    covered = sum(f.low <= 0.5 <= f.high for f in found)
    assert 178 <= covered <= 199  # 190 expected


def test_more_confidence_is_wider():
    values = np.random.default_rng(0).random(40)
    narrow, wide = interval(values, 0, confidence=0.5), interval(values, 0, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_seed_decides():
    values = np.random.default_rng(0).random(40)
    assert interval(values, 3) == interval(values, 3)
    assert interval(values, 3) != interval(values, 4)


def test_corners():
    assert interval(np.full(5, 0.25), 0) == (0.25, 0.25, 0.25, 5)
    one = interval(np.array([0.7]), 0)
    assert (one.mean, one.n) == (0.7, 1)
    assert np.isnan([one.low, one.high]).all()
    assert np.isnan(interval(np.array([]), 0)[:3]).all()


@pytest.mark.parametrize("values", [[0.0, np.nan], [np.inf, 0.0], [[0.0], [1.0]]])
def test_unusable_values_are_refused(values):
    with pytest.raises(ValueError, match="finite numbers"):
        interval(np.array(values), 0)


def test_pairing_sees_what_the_spread_hides():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, 80)
    a, b = hard + 0.2 + rng.normal(0, 0.1, 80), hard
    assert interval(a, 0).low < interval(b, 0).high
    assert paired_difference(a, b, 0).low > 0.1
    assert paired_difference(b, a, 0).high < -0.1


def test_pairs_must_match():
    with pytest.raises(ValueError, match="differ in length"):
        paired_difference(np.zeros(3), np.zeros(4), 0)
