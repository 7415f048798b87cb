"""How alike two readers look at the same words: four measures of rows of attention or of scores.

``kl``
    Kullback-Leibler divergence of the second from the first, nats; shares under `FLOOR` count as
    that much. What MiniLM trains on (Wang et al. 2020, equation 3).
``js``
    Jensen-Shannon divergence, bits: 0 for the same shares, 1 if they have no word in common.
``cosine``
    Cosine of the angle between them, −1..1.
``rank``
    Spearman's rank correlation, ties by their mean; −1..1.
"""

from __future__ import annotations

import numpy as np
from scipy.special import entr
from scipy.stats import rankdata

from xattn.evaluation.agreement import FEWEST
from xattn.types import Floats

MEASURES = ("kl", "js", "cosine", "rank")
FLOOR = 1e-6
"""Attention in half precision has nothing smaller to say."""


def divergences(p: Floats, q: Floats) -> Floats:
    """Return ``[2, n, m]``: ``kl`` and ``js`` of each of ``p [n, word]`` and ``q [m, word]``.

    Rows are shares, and sum to 1.

    Examples
    --------
    >>> p, q = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> divergences(p, q).round(2).tolist()
    [[[13.82, 0.0]], [[1.0, 0.0]]]
    """
    kl = -entr(p).sum(-1)[:, None] - p @ np.log(np.maximum(q, FLOOR)).T
    mixed = entr((p[:, None] + q) / 2).sum(-1)
    js = (mixed - (entr(p).sum(-1)[:, None] + entr(q).sum(-1)) / 2) / np.log(2)
    return np.stack([np.maximum(kl, 0), np.clip(js, 0, 1)])


def likeness(one: Floats, other: Floats) -> Floats:
    """Return ``[2, n, m]``: ``cosine`` and ``rank`` of each of ``[n, word]`` and ``[m, word]``.

    Nan where one of them is 0 throughout, and for ranks where one is constant or has fewer than
    `FEWEST` words.

    Examples
    --------
    >>> likeness(np.array([[1.0, 2.0, 3.0]]), np.array([[3.0, 2.0, 1.0]])).round(2).tolist()
    [[[0.71]], [[-1.0]]]
    """
    ranks = [rankdata(part, axis=-1) - (part.shape[-1] + 1) / 2 for part in (one, other)]
    if one.shape[-1] < FEWEST:
        ranks = [np.zeros_like(part) for part in ranks]
    return np.stack([_unit(one) @ _unit(other).T, _unit(ranks[0]) @ _unit(ranks[1]).T])


def _unit(vectors: Floats) -> Floats:
    """Return vectors of length 1; nan for those of no length."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: Floats = np.full(vectors.shape, np.nan)
    np.divide(vectors, length, out=found, where=length > 0)
    return found


def compare_maps(one: Floats, other: Floats) -> Floats:
    """Return how alike maps are, pair by pair: the mean over those who look.

    A row counts for the words that any of the maps looks at there: those a causal mask hides are
    no finding. Rows with a single such word are left out, as they are 1 for every model.

    Parameters
    ----------
    one, other : array
        ``[n, word, word]`` and ``[m, word, word]``: who looks, at whom. Rows are brought to sum 1;
        those that sum to 0 do not count.

    Returns
    -------
    array
        ``[measure, n, m]`` in the order of `MEASURES`; nan where no row counts.
    """
    sums = np.zeros((len(MEASURES), len(one), len(other)))
    counts = np.zeros_like(sums)
    for row in range(one.shape[1]):
        rows = one[:, row], other[:, row]
        seen = (rows[0] > 0).any(0) | (rows[1] > 0).any(0)
        if seen.sum() < 2:
            continue
        p, q = (_shares(part[:, seen]) for part in rows)
        found = np.concatenate([divergences(p, q), likeness(p, q)])
        known = np.isfinite(found)
        sums += np.where(known, found, 0)
        counts += known
    mean: Floats = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=mean, where=counts > 0)
    return mean


def compare_scores(one: Floats, other: Floats) -> Floats:
    """Return how alike two explanations ``[word]`` are, ``[measure]``.

    Divergences are of the shares of their absolute values, as scores with signs are no shares;
    nan where an explanation is 0 throughout.
    """
    p, q = (_shares(np.abs(part)[None]) for part in (one, other))
    found = np.concatenate([divergences(p, q), likeness(one[None], other[None])])
    return found[:, 0, 0]


def _shares(rows: Floats) -> Floats:
    whole = rows.sum(-1, keepdims=True)
    found: Floats = np.full(rows.shape, np.nan)
    np.divide(rows, whole, out=found, where=whole > 0)
    return found
