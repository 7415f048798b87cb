"""How alike explanations are: between methods, seeds, checkpoints, or anything that explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from xattn.errors import InputError
from xattn.evaluation.statistics import interval
from xattn.types import Attribution, Floats


def rank_correlation(one: Floats, other: Floats) -> float:
    """Return Kendall's τ_b of two score vectors; nan if one of them has no order.

    Examples
    --------
    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
    0.33333333333333337
    """
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(kendalltau(one, other).statistic)


def top_overlap(one: Floats, other: Floats, k: int) -> float:
    """Return the share of the `k` highest scores that both have; nan for no more than `k` scores.

    Examples
    --------
    >>> top_overlap(np.array([3.0, 2.0, 1.0]), np.array([3.0, 1.0, 2.0]), k=2)
    0.5
    """
    if len(one) <= k:
        return float("nan")
    tops = [set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (one, other)]
    return len(tops[0] & tops[1]) / k


def agreement(
    explained: Mapping[str, Sequence[Attribution]], k: int = 3, seed: int = 0
) -> pd.DataFrame:
    """Compare explanations of the same texts pair by pair.

    Parameters
    ----------
    explained : mapping of str to sequence of Attribution
        What explained (methods, seeds, checkpoints), and for each its explanation of every text.
    k : int
        How many of the highest scores `overlap` looks at.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        One row for each pair: first, second; tau, low, high (mean Kendall's τ_b over texts with its
        95 % interval), overlap (mean share of the top `k` that both have), n (texts with an order).

    Raises
    ------
    InputError
        If the explanations are not of the same texts.
    """
    rows = []
    for (first, ones), (second, others) in combinations(explained.items(), 2):
        if [a.tokens for a in ones] != [b.tokens for b in others]:
            raise InputError(f"{first} and {second} do not explain the same texts")
        scores = [
            (a.scores[~a.special].astype(float), b.scores[~b.special].astype(float))
            for a, b in zip(ones, others, strict=True)
        ]
        taus = np.array([rank_correlation(a, b) for a, b in scores])
        shared = np.array([top_overlap(a, b, k) for a, b in scores])
        known = interval(taus[~np.isnan(taus)], seed)
        overlap = float(np.nanmean(shared)) if (~np.isnan(shared)).any() else np.nan
        rows.append((first, second, known.mean, known.low, known.high, overlap, known.n))
    return pd.DataFrame(rows, columns=["first", "second", "tau", "low", "high", "overlap", "n"])
