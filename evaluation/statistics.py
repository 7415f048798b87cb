"""How sure a mean over examples is: bootstrap intervals, alone and paired."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

from xattn.types import Floats

DRAWS = 10**7
"""Numbers that are drawn at a time; bounds the memory of the bootstrap."""


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float
    n: int
    """Number of examples."""

    @property
    def said(self) -> str:
        """The mean with its interval, as it stands in a sentence."""
        mean = signed(self.mean)
        if np.isnan(self.low):
            return mean
        return f"{mean} (95 % interval {signed(self.low)} to {signed(self.high)})"


def signed(value: float) -> str:
    """Return a number with its sign, as it stands in a sentence.

    Examples
    --------
    >>> signed(-0.123), signed(0.5)
    ('−0.12', '+0.50')
    """
    return f"{value:+z.2f}".replace("-", "−")


def interval(
    values: Floats, seed: int, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """Return the mean of examples and its bootstrap interval.

    Bias-corrected and accelerated (BCa; Efron 1987, Better Bootstrap Confidence Intervals), or of
    percentiles where so many examples are alike that there is nothing to correct by.

    Parameters
    ----------
    values : array
        ``[example]``, finite.
    seed : int
        The same seed gives the same interval.
    confidence : float
        Share of intervals that shall cover the true mean, in (0, 1).
    resamples : int

    Returns
    -------
    Interval
        In the unit of `values`. Equal values give an interval of no width. A single example says
        nothing about its spread: `low` and `high` are nan, as is everything for no example.

    Examples
    --------
    >>> interval(np.array([0.0, 1.0, 0.0, 1.0]), seed=0)
    Interval(mean=0.5, low=0.0, high=1.0, n=4)
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("values must be finite numbers, one an example")
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    if n < 2:
        return Interval(mean, np.nan, np.nan, n)
    if (values == values[0]).all():
        return Interval(mean, mean, mean, n)
    found = _bootstrap("BCa", values, seed, confidence, resamples)
    if np.isnan(found).any():
        found = _bootstrap("percentile", values, seed, confidence, resamples)
    return Interval(mean, *found, n)


def _bootstrap(
    method: Literal["BCa", "percentile"],
    values: Floats,
    seed: int,
    confidence: float,
    resamples: int,
) -> tuple[float, float]:
    """Return low and high; nan where the method has nothing to correct by."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            n_resamples=resamples,
            method=method,
            rng=np.random.default_rng(seed),
            batch=max(1, DRAWS // len(values)),
        ).confidence_interval
    return float(result.low), float(result.high)


def mean_known(values: Floats, axis: int = 0) -> Floats:
    """Return the mean along an axis of what is finite; nan where nothing is.

    Examples
    --------
    >>> mean_known(np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()
    [2.0, nan]
    """
    mean: Floats = np.ma.filled(np.ma.masked_invalid(values).mean(axis), np.nan)
    return mean


def paired_difference(a: Floats, b: Floats, seed: int) -> Interval:
    """Return the mean of ``a − b`` over the same examples, with its interval; see `interval`.

    Examples
    --------
    >>> paired_difference(np.array([3.0, 5.0]), np.array([1.0, 3.0]), seed=0)
    Interval(mean=2.0, low=2.0, high=2.0, n=2)
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values differ in length: {a.shape} and {b.shape}")
    return interval(a - b, seed)
