"""Mean and spread of changes over professions, where sentences are a sample as well.

Every change is measured in some sentence about some profession. Both are drawn from more that could
have been written, and a mean that holds for other sentences too must count both as random (Clark
1973, The Language-as-Fixed-Effect Fallacy). The variance is taken apart accordingly: professions,
sentences, and what is left (Searle, Casella & McCulloch 1992, Variance Components, chapters 3-4).

A trained network is never exactly indifferent, and with enough sentences any difference is found to
be other than 0. So estimates are held against a margin, the smallest change of interest: the
null hypothesis is "no larger than the margin" (Murphy & Myors 1999, Testing the Hypothesis That
Treatments Have Negligible Effects). That a change is smaller is shown by an interval that lies
inside the margin (Lakens 2017, Equivalence Tests).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from xattn.types import Floats


class Estimate(NamedTuple):
    """A mean or spread, held against a margin; nan for what the design cannot tell."""

    value: float
    low: float
    high: float
    """95 % interval."""
    p: float
    """Of "no larger than the margin"."""


UNKNOWN = Estimate(np.nan, np.nan, np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Components:
    """The mean squares of a table of changes, and what follows from them.

    Examples
    --------
    >>> found = Components((np.array([0.1, 0.2]), np.array([0.3, 0.4])), crossed=True)
    >>> round(found.mean, 3), round(found.spread(margin=0.0).value, 3)
    (0.25, 0.141)
    """

    rows: tuple[Floats, ...]
    """For each profession the changes in its sentences, finite."""
    crossed: bool
    """Whether all professions stand in the same sentences, in the same order; otherwise each has
    sentences of its own (nested)."""

    def __post_init__(self) -> None:
        if len(self.rows) < 2 or not all(len(row) for row in self.rows):
            raise ValueError("two professions or more are needed, each with a change")
        if self.crossed and len({len(row) for row in self.rows}) > 1:
            raise ValueError("crossed professions stand in the same number of sentences")

    @cached_property
    def means(self) -> Floats:
        """``[profession]``: the mean over its sentences."""
        return np.array([row.mean() for row in self.rows])

    @property
    def mean(self) -> float:
        """Over professions, each counting the same."""
        return float(self.means.mean())

    @cached_property
    def squares(self) -> tuple[tuple[float, int], tuple[float, int], tuple[float, int]]:
        """Mean square and degrees of freedom of professions, sentences, and the rest.

        Sentences have none of their own where they are nested; the rest has none where each
        profession stands in one sentence only.
        """
        count, each = len(self.rows), self.each
        professions = each * float(self.means.var(ddof=1)), count - 1
        if not self.crossed:
            free = sum(map(len, self.rows)) - count
            rest = sum(float(((row - row.mean()) ** 2).sum()) for row in self.rows)
            return professions, (0.0, 0), (rest / free if free else np.nan, free)
        table = np.stack(self.rows)
        width = table.shape[1]
        if width == 1:
            return professions, (0.0, 0), (np.nan, 0)
        by_sentence = table.mean(0)
        left = table - table.mean(1, keepdims=True) - by_sentence + table.mean()
        free = (count - 1) * (width - 1)
        return (
            professions,
            (count * float(by_sentence.var(ddof=1)), width - 1),
            (float((left**2).sum()) / free, free),
        )

    @property
    def each(self) -> float:
        """Sentences a profession; where they differ, their harmonic mean.

        That makes the variance of unweighted means (Searle et al. 1992, section 3.6).
        """
        return len(self.rows) / sum(1 / len(row) for row in self.rows)

    def shift(self, margin: float) -> Estimate:
        """Return the mean change over professions, held against ``±margin``.

        The variance of the mean is that of three mean squares; its degrees of freedom are
        Satterthwaite's (1946). Components that come out negative count 0.

        Returns
        -------
        Estimate
            Unknown where all professions stand in one and the same sentence, which says nothing of
            others.
        """
        if self.crossed and len(self.rows[0]) == 1:
            return UNKNOWN
        (a, free_a), (b, free_b), (rest, free) = self.squares
        parts = [(a, free_a)]
        if free_b:
            parts = [(square, n) for square, n in ((a, free_a), (b, free_b)) if square > rest]
            parts.append(((1 - len(parts)) * rest, free))
        together = sum(square for square, _ in parts)
        weight = sum(square**2 / n for square, n in parts)
        size = abs(self.mean)
        if not weight > 0:  # every change is the same
            return Estimate(self.mean, self.mean, self.mean, float(size <= margin))
        known = t_distribution(together**2 / weight)
        error = float(np.sqrt(together / (len(self.rows) * self.each)))
        reach = float(known.ppf(0.975)) * error
        return Estimate(
            self.mean,
            self.mean - reach,
            self.mean + reach,
            min(1.0, 2 * float(known.sf((size - margin) / error))),
        )

    def spread(self, margin: float) -> Estimate:
        """Return the standard deviation between professions, free of that within them.

        Held against a margin by the F test of "the standard deviation is m": the mean square of
        professions over ``rest + each · m²``, whose degrees of freedom are Satterthwaite's. For
        ``m = 0`` it is the F test of the analysis of variance. The interval holds every m that it
        does not reject.

        Returns
        -------
        Estimate
            Unknown where each profession stands in one sentence only.
        """
        (a, free_a), _, (rest, free) = self.squares
        if not free:
            return UNKNOWN
        if a == 0 or (rest == 0 and a < 1e-24):
            return Estimate(0.0, 0.0, 0.0, 1.0)

        def exceeded(m: float) -> float:
            """Return the probability of more, if the standard deviation is m."""
            expected = rest + self.each * m**2
            if expected == 0:
                return 0.0
            denominator = free * (expected / rest) ** 2 if rest else np.inf
            return float(f_distribution.sf(a / expected, free_a, min(denominator, 1e12)))

        value = float(np.sqrt(max(0.0, a - rest) / self.each))
        return Estimate(
            value,
            _crossing(exceeded, 0.025),
            _crossing(exceeded, 0.975),
            exceeded(margin),
        )


def _crossing(rising: Callable[[float], float], level: float) -> float:
    """Return where a rising function reaches a level; 0 if it is above it from the start."""
    if rising(0.0) >= level:
        return 0.0
    high = 1e-6
    while rising(high) < level:
        high *= 2
    return float(brentq(lambda x: rising(x) - level, 0.0, high, xtol=1e-9))
