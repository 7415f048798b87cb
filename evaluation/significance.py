"""Which differences between methods are more than chance.

Methods are compared on the same texts: pairs by Wilcoxon's signed-rank test with Holm's correction
(Holm 1979), all together by Friedman's test, with the critical difference of average ranks of
Nemenyi's test (Demšar 2006, Statistical Comparisons of Classifiers over Multiple Data Sets).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from xattn.types import Floats

LEVEL = 0.05
POWER = 0.8
FEW = 6
"""Below so many texts Wilcoxon's test cannot find anything at the 5 % level."""


class Pair(NamedTuple):
    """Two methods on the same texts."""

    first: str
    second: str
    difference: float
    """Mean of first minus second, in the metric's unit."""
    effect: float
    """The difference in standard deviations of itself (Cohen's d_z); nan where it never varies."""
    p: float
    """Two-sided, of Wilcoxon's signed-rank test; 1 where all texts are alike."""
    adjusted: float
    """After Holm's correction for all pairs."""
    n: int

    @property
    def needed(self) -> float:
        """Texts that a difference of this size needs to be found; see `needed`."""
        return needed(self.effect)


def pairwise(table: pd.DataFrame) -> list[Pair]:
    """Test every pair of columns of a table ``[text, method]``.

    Rows that lack a value of a pair are left out for that pair.

    Examples
    --------
    >>> table = pd.DataFrame({"a": np.arange(8) + 1.0, "b": np.arange(8) * 0.5})
    >>> pairwise(table)[0].adjusted < 0.05
    True
    """
    found = []
    for first, second in combinations(table.columns, 2):
        both = table[[first, second]].dropna()
        gaps = (both[first] - both[second]).to_numpy(dtype=np.float64)
        found.append((str(first), str(second), *_test(gaps), len(gaps)))
    if not found:
        return []
    adjusted = multipletests([p for *_, p, _ in found], method="holm")[1]
    return [
        Pair(first, second, difference, effect, p, float(corrected), n)
        for (first, second, difference, effect, p, n), corrected in zip(
            found, adjusted, strict=True
        )
    ]


def _test(gaps: Floats) -> tuple[float, float, float]:
    """Return the mean of differences, its effect size and p."""
    if not len(gaps):
        return np.nan, np.nan, 1.0
    difference = float(gaps.mean())
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    effect = difference / spread if spread > 0 else np.nan
    p = 1.0 if not gaps.any() else float(wilcoxon(gaps).pvalue)
    return difference, effect, p


def needed(effect: float) -> float:
    """Return how many texts tell an effect (Cohen's d_z) from none: 80 % power at the 5 % level.

    Infinite for no effect, nan for one that is not known.

    Examples
    --------
    >>> needed(0.5), needed(0.0)
    (34.0, inf)
    """
    if math.isnan(effect):
        return np.nan
    if abs(effect) < 1e-3:  # millions of texts
        return np.inf
    if abs(effect) > 5:  # the smallest number that a test takes
        return float(FEW)
    found = TTestPower().solve_power(abs(effect), alpha=LEVEL, power=POWER)
    return float(max(FEW, math.ceil(float(np.max(found)))))


class Ranks(NamedTuple):
    """All methods on the same texts."""

    average: dict[str, float]
    """The mean rank of each method over texts, 1 for the best, ties shared."""
    p: float
    """Of Friedman's test that all methods are alike; nan with fewer than three."""
    critical: float
    """Average ranks that differ by less cannot be told apart (Nemenyi, 5 % level)."""
    n: int


def ranks(table: pd.DataFrame, higher_is_better: bool) -> Ranks:
    """Rank the columns of a table ``[text, method]`` on every complete row.

    Examples
    --------
    >>> ranks(pd.DataFrame({"a": [3.0, 4.0], "b": [1.0, 2.0]}), True).average
    {'a': 1.0, 'b': 2.0}
    """
    values = table.dropna().to_numpy(dtype=np.float64)
    n, k = values.shape
    if not n or not k:
        return Ranks({}, np.nan, np.nan, n)
    order = rankdata(-values if higher_is_better else values, axis=1)
    average = dict(zip(map(str, table.columns), order.mean(axis=0).tolist(), strict=True))
    p = np.nan
    if k > 2 and n > 1 and (order != order[:, :1]).any():
        p = float(friedmanchisquare(*values.T).pvalue)
    quantile = float(studentized_range.ppf(1 - LEVEL, k, np.inf)) / np.sqrt(2) if k > 1 else 0.0
    return Ranks(average, p, float(quantile * np.sqrt(k * (k + 1) / (6 * n))), n)


def letters(order: Sequence[str], pairs: Sequence[Pair]) -> dict[str, str]:
    """Return letters such that methods that share one cannot be told apart at the 5 % level.

    Insert and absorb (Piepho 2004, An Algorithm for a Letter-Based Representation of All-Pairwise
    Comparisons): a group of all is split at each significant pair; groups within others go.

    Parameters
    ----------
    order : sequence of str
        The methods, the best first; it gets the first letters.
    pairs : sequence of Pair

    Examples
    --------
    >>> far = Pair("a", "c", 1.0, 1.0, 0.001, 0.003, 30)
    >>> letters(["a", "b", "c"], [far])
    {'a': 'a', 'b': 'ab', 'c': 'b'}
    """
    groups = [frozenset(order)]
    for pair in pairs:
        if not pair.adjusted < LEVEL:
            continue
        both = {pair.first, pair.second}
        split = []
        for group in groups:
            split += [group - {pair.first}, group - {pair.second}] if both <= group else [group]
        groups = [g for g in dict.fromkeys(split) if not any(g < other for other in split)]
    groups.sort(key=lambda group: sorted(order.index(name) for name in group))
    return {
        name: "".join(_letter(i) for i, group in enumerate(groups) if name in group)
        for name in order
    }


def _letter(number: int) -> str:
    """Return a, b ... z, and A, B ... for more."""
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return alphabet[number] if number < len(alphabet) else f"({number})"


def concordance(table: pd.DataFrame) -> float:
    """Return how alike raters order things: Kendall's W, 0 (not at all) to 1 (the same), with ties.

    Parameters
    ----------
    table : DataFrame
        ``[thing, rater]``.

    Examples
    --------
    >>> concordance(pd.DataFrame({"delete": [1.0, 2.0, 3.0], "mask": [10.0, 20.0, 30.0]}))
    1.0
    """
    values = table.dropna().to_numpy(dtype=np.float64)
    n, m = values.shape
    if n < 2 or m < 2:
        return float("nan")
    order = rankdata(values, axis=0)
    spread = ((order.sum(axis=1) - m * (n + 1) / 2) ** 2).sum()
    ties = sum(
        float((sizes**3 - sizes).sum())
        for column in order.T
        for sizes in [np.unique(column, return_counts=True)[1]]
    )
    largest = m**2 * (n**3 - n) - m * ties
    return float(12 * spread / largest) if largest > 0 else float("nan")
