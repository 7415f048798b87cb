"""Tests between methods: against theory, planted differences, brute force, and the corners."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare, kendalltau, wilcoxon

from xattn.errors import InputError
from xattn.evaluation import significance
from xattn.evaluation.agreement import agreement, rank_correlation, top_overlap
from xattn.evaluation.significance import Pair, concordance, letters, needed, pairwise, ranks


def table_of(**columns):
    return pd.DataFrame({name: np.array(values, dtype=float) for name, values in columns.items()})


def test_pairs_are_wilcoxons_with_holms_correction():
    rng = np.random.default_rng(0)
    base = rng.normal(size=40)
    table = table_of(a=base + 0.5, b=base + rng.normal(size=40) * 0.1, c=rng.normal(size=40))
    found = pairwise(table)
    raw = [wilcoxon(table[p.first] - table[p.second]).pvalue for p in found]
    assert [p.p for p in found] == pytest.approx(raw)
    order = np.argsort(raw)
    expected, highest = np.empty(3), 0.0
    for place, i in enumerate(order):  # Holm by hand
        highest = max(highest, min(1.0, raw[i] * (3 - place)))
        expected[i] = highest
    assert [p.adjusted for p in found] == pytest.approx(expected)
    gap = (table["a"] - table["b"]).to_numpy()
    assert found[0].effect == pytest.approx(gap.mean() / gap.std(ddof=1))


def test_chance_is_found_as_rarely_as_it_says():
    """Four methods that are alike: some pair is called different in 5 % of all runs, not more."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        table = pd.DataFrame(rng.normal(size=(30, 4)), columns=list("abcd"))
        wrong += any(pair.adjusted < 0.05 for pair in pairwise(table))
    assert wrong <= 20  # 10 expected at most


def test_what_is_missing_is_left_out_by_pair():
    table = table_of(a=[1, 2, 3, np.nan], b=[0, 0, 0, 0], c=[np.nan] * 4)
    by_pair = {(p.first, p.second): p for p in pairwise(table)}
    assert by_pair["a", "b"].n == 3
    assert by_pair["a", "b"].difference == 2
    assert by_pair["a", "c"].n == 0
    assert by_pair["a", "c"].p == 1
    assert pairwise(table_of(a=[1, 2])) == []


def test_equal_methods_are_equal():
    [pair] = pairwise(table_of(a=[1, 2, 3], b=[1, 2, 3]))
    assert (pair.p, pair.difference) == (1, 0)
    assert math.isnan(pair.effect)
    assert math.isnan(pair.needed)


def test_texts_needed_find_the_difference_in_four_of_five_runs():
    n, rng = int(needed(0.4)), np.random.default_rng(2)
    hits = np.mean([wilcoxon(rng.normal(0.4, 1, n)).pvalue < 0.05 for _ in range(300)])
    assert 0.7 < hits < 0.9
    assert needed(0.2) > needed(0.4) > needed(1.0) >= significance.FEW


def test_ranks_by_hand():
    table = table_of(a=[3, 3, 3, 1], b=[2, 2, 2, 2], c=[1, 1, 1, 3])
    found = ranks(table, higher_is_better=True)
    assert found.average == {"a": 1.5, "b": 2.0, "c": 2.5}
    assert ranks(table, higher_is_better=False).average == {"a": 2.5, "b": 2.0, "c": 1.5}
    assert found.p == pytest.approx(friedmanchisquare(*table.to_numpy().T).pvalue)
    # Demšar 2006, table 5 a: q of 3 classifiers at the 5 % level is 2.343
    assert found.critical == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 4)), rel=1e-3)


def test_the_published_critical_difference():
    """Demšar 2006, section 3.2.2: four classifiers on 14 data sets, q = 2.569, CD = 1.25."""
    table = pd.DataFrame(np.random.default_rng(0).random((14, 4)), columns=list("abcd"))
    assert ranks(table, higher_is_better=True).critical == pytest.approx(1.25, abs=0.005)


def test_letters_say_who_cannot_be_told_apart():
    rng = np.random.default_rng(3)
    for _ in range(50):
        names = list("abcdef")
        apart = {pair for pair in itertools.combinations(names, 2) if rng.random() < 0.4}
        pairs = [
            Pair(x, y, 0.0, 0.0, 0.0, 0.01 if (x, y) in apart else 0.5, 9)
            for x, y in itertools.combinations(names, 2)
        ]
        found = letters(names, pairs)
        assert all(found.values())
        for x, y in itertools.combinations(names, 2):
            assert bool(set(found[x]) & set(found[y])) == ((x, y) not in apart)
        assert found["a"][0] == "a"


def test_concordance_by_hand():
    same = pd.DataFrame({"x": [1.0, 2, 3, 4], "y": [10.0, 20, 30, 40]})
    assert concordance(same) == 1
    opposite = pd.DataFrame({"x": [1.0, 2, 3, 4], "y": [4.0, 3, 2, 1]})
    assert concordance(opposite) == 0
    rng = np.random.default_rng(0)
    for _ in range(5):  # with two raters W is (ρ + 1) / 2 of Spearman's ρ
        frame = pd.DataFrame(rng.random((6, 2)))
        rho = frame.corr("spearman").iloc[0, 1]
        assert concordance(frame) == pytest.approx((rho + 1) / 2)
    assert math.isnan(concordance(same[["x"]]))


def test_agreement(comparison_of):
    scores = {"a": [3.0, 2.0, 1.0, 0.0], "b": [3.0, 2.0, 0.0, 1.0], "c": [0.0] * 4}
    texts = [{name: comparison_of(values) for name, values in scores.items()} for _ in range(5)]
    del texts[4]["b"]  # a method that failed on a text
    table = agreement(texts, k=2).set_index(["first", "second"])
    expected = kendalltau(scores["a"], scores["b"]).statistic
    assert table.loc[("a", "b"), "tau"] == pytest.approx(expected)
    assert table.loc[("a", "b"), "overlap"] == 1.0
    assert table.loc[("a", "b"), "n"] == 4
    assert table.loc[("a", "c"), "n"] == 0
    other = {"a": comparison_of([1.0, 2.0, 3.0]), "b": comparison_of([1.0, 2.0])}
    with pytest.raises(InputError, match="a and b do not explain the same text 0"):
        agreement([other])
    assert math.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
    assert math.isnan(top_overlap(np.arange(2.0), np.arange(2.0), 2))


@pytest.fixture
def comparison_of():
    from xattn.types import Attribution

    def make(scores):
        count = len(scores)
        return Attribution(
            text="a b c d", pair=None, tokens=tuple("abcd")[:count],
            offsets=np.zeros((count, 2), int),
            segments=np.zeros(count, int), word_ids=np.arange(count),
            scores=np.array(scores, dtype=np.float32), method="m", parameters={}, target="t",
            prediction="p", probability=0.5,
        )  # fmt: skip

    return make
