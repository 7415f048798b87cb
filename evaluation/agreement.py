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

FEWEST = 3
"""With fewer tokens than this an order says nothing."""


def rank_correlation(one: Floats, other: Floats) -> float:
    """Return Kendall's τ_b of two score vectors; nan if one of them has no order.

    Examples
    --------
    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
    0.33333333333333337
    """
    if len(one) < FEWEST or np.ptp(one) == 0 or np.ptp(other) == 0:
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


def agreement_by_text(texts: Sequence[Mapping[str, Attribution]], k: int = 3) -> pd.DataFrame:
    """Compare the explanations of every text pair by pair.

    Special tokens are left out: several methods give them a fixed share.

    Parameters
    ----------
    texts : sequence of mapping
        For each text its explanations, by what explained it (methods, seeds, checkpoints).
    k : int
        How many of the highest scores `overlap` looks at.

    Returns
    -------
    DataFrame
        One row for each text and pair: example, first, second, tau (Kendall's τ_b; nan where one
        has no order) and overlap (the share of the top `k` that both have).

    Raises
    ------
    InputError
        If explanations that stand together are not of the same text.
    """
    rows = []
    for example, explained in enumerate(texts):
        for (first, one), (second, other) in combinations(explained.items(), 2):
            if one.tokens != other.tokens:
                raise InputError(f"{first} and {second} do not explain the same text {example}")
            a, b = (item.scores[~item.special].astype(np.float64) for item in (one, other))
            rows.append((example, first, second, rank_correlation(a, b), top_overlap(a, b, k)))
    return pd.DataFrame(rows, columns=["example", "first", "second", "tau", "overlap"])


def between_runs(
    runs: Mapping[str, Sequence[Attribution]], k: int = 3, seed: int = 0
) -> pd.DataFrame:
    """Compare what each method says in several runs: other seeds, checkpoints, or precisions.

    Parameters
    ----------
    runs : mapping
        By a name of the run its explanations, as in `Comparison.attributions`. Texts and methods
        that two runs do not have in common are left out.
    k, seed
        As in `agreement`.

    Returns
    -------
    DataFrame
        As of `agreement`, with the method in front.

    Raises
    ------
    InputError
        If there are fewer than two runs, or two have no text with a method in common.
    """
    if len(runs) < 2:
        raise InputError("runs to compare", got=str(len(runs)), expected="2 or more")
    known = {
        name: {(a.method, a.text, a.pair, a.target): a for a in items}
        for name, items in runs.items()
    }
    shared = set.intersection(*(set(table) for table in known.values()))
    order = [key for key in next(iter(known.values())) if key in shared]
    if not order:
        raise InputError(
            f"{', '.join(runs)} have no text in common that one method explains for one class",
            remedy="compare runs over the same texts, and name the class with label (--label)",
        )
    tables = []
    for method in dict.fromkeys(method for method, *_ in order):
        texts = [{n: known[n][key] for n in runs} for key in order if key[0] == method]
        table = agreement(texts, k, seed)
        table.insert(0, "method", method)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def agreement(
    texts: Sequence[Mapping[str, Attribution]], k: int = 3, seed: int = 0
) -> pd.DataFrame:
    """Compare explanations pair by pair, over all texts; see `agreement_by_text`.

    Parameters
    ----------
    texts, k
        As in `agreement_by_text`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        One row for each pair: first, second; tau, low, high (mean over texts with its 95 %
        interval), overlap (mean), n (texts with an order).
    """
    rows = []
    pairs = agreement_by_text(texts, k).groupby(["first", "second"], sort=False)
    for (first, second), group in pairs:
        known = interval(group["tau"].dropna().to_numpy(), seed)
        overlap = float(group["overlap"].mean())
        rows.append((first, second, known.mean, known.low, known.high, overlap, known.n))
    return pd.DataFrame(rows, columns=["first", "second", "tau", "low", "high", "overlap", "n"])
