"""How far methods agree on the order of a text's tokens: Kendall's τ over the ordinary ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import pandas as pd
from scipy.stats import kendalltau

from xattn.types import Attribution

FEWEST = 3
"""With fewer tokens than this an order says nothing."""


def pairwise(texts: Sequence[Mapping[str, Attribution]]) -> pd.DataFrame:
    """Return Kendall's τ of every pair of methods on every text.

    Special tokens are left out: several methods give them a fixed share.

    Parameters
    ----------
    texts : sequence of mapping
        For each text, its attributions by label.

    Returns
    -------
    DataFrame
        Columns example, first, second, tau; τ is NaN where a method gave all tokens the same score.
    """
    rows = []
    for example, attributions in enumerate(texts):
        for (first, one), (second, other) in combinations(attributions.items(), 2):
            kept = ~one.special
            if kept.sum() >= FEWEST:
                tau = float(kendalltau(one.scores[kept], other.scores[kept]).statistic)
                rows.append((example, first, second, tau))
    return pd.DataFrame(rows, columns=["example", "first", "second", "tau"])
