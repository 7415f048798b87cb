"""All metrics: leaderboards with significance letters, and whether the ranking is stable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from xattn.evaluation import Comparison, Interval
from xattn.evaluation.comparison import declared
from xattn.evaluation.design import LEADING, YARDSTICKS

ARROWS = {True: "↑", False: "↓", None: ""}
ALIKE = 0.9
"""Kendall's W from which on rankings are called nearly the same."""
APART = 0.6
"""Kendall's W below which they are called different."""


@dataclass(frozen=True)
class Standing:
    """One method under one metric."""

    method: str
    interval: Interval
    letters: str
    yardstick: bool


@dataclass(frozen=True)
class Board:
    """The leaderboard of one metric."""

    metric: str
    label: str
    arrow: str
    unit: str
    rows: list[Standing]


@dataclass(frozen=True)
class Stability:
    """How far a metric's ranking is the same under all ways of removing units."""

    metric: str
    concordance: str
    words: str


def metric_label(name: str) -> str:
    """Return what a metric is called, with its options."""
    _, colon, options = name.partition(":")
    label = declared(name).label
    return f"{label} ({options})" if colon else label


def measured(comparison: Comparison) -> list[str]:
    """Return the metrics that have a value somewhere, in their first order."""
    known = comparison.scores.dropna(subset="value")
    return list(dict.fromkeys(str(name) for name in known["metric"]))


def boards(comparison: Comparison, operator: str) -> list[Board]:
    """Return the leaderboard of every metric under one way of removing units."""
    return [board(comparison, operator, metric) for metric in measured(comparison)]


def board(comparison: Comparison, operator: str, metric: str) -> Board:
    """Return the leaderboard of one metric, the best method first."""
    told = comparison.letters(operator, metric)
    rows = [
        Standing(method, found, told.get(method, ""), method in YARDSTICKS)
        for method, found in comparison.intervals(operator, metric).items()
        if found.n
    ]
    about = declared(metric)
    arrow = ARROWS[about.higher_is_better]
    return Board(metric, metric_label(metric), arrow, about.unit, rows)


def stability(comparison: Comparison) -> Iterator[Stability]:
    """Yield for each metric of removal whether its ranking survives the choice of operator."""
    for metric in measured(comparison):
        if "removal" not in declared(metric).needs:
            continue
        w = comparison.concordance(metric)
        if math.isnan(w):
            continue
        words = "nearly the same ranking" if w >= ALIKE else "partly the same ranking"
        words = "different rankings: say which operator is meant" if w < APART else words
        yield Stability(metric_label(metric), f"{w:.2f}", words)


def extremes(comparison: Comparison, operator: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield for each method the texts that it explains best and worst, by the leading metric."""
    table = comparison.table(operator, LEADING)
    texts = comparison.examples.set_index("example")["text"]
    for method in table.columns:
        values = table[method].dropna().sort_values(kind="stable")
        if str(method) in YARDSTICKS or len(values) < 2:
            continue
        ends = [(values.index[-1], values.iloc[-1]), (values.index[0], values.iloc[0])]
        yield (
            str(method),
            [(f"{value:.3f}".replace("-", "−"), str(texts[example])) for example, value in ends],
        )
