"""The result in one or two plain sentences, composed from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xattn.evaluation import Comparison, Interval
from xattn.report.ranking import Place, level_with_best


def answer(comparison: Comparison, places: list[Place], operator: str) -> str:
    """Return what the comparison found, claiming no more than its intervals carry."""
    count = len(comparison.examples)
    best, level = level_with_best(comparison, places, operator)
    if best is None:
        return f"No explanation method was compared on {texts(count)}."
    area = best.area
    numbers = f"ABPC {number(area.mean)}"
    if area.low == area.low:
        numbers += f", 95 % interval {number(area.low)} to {number(area.high)}"
    real = [place for place in places if not place.yardstick]
    if best.verdict != "beats random":
        first = (
            f"On {texts(count)}, no method can be told apart from random scores; "
            f"the highest is {best.method} ({numbers})"
        )
        worse = [p.method for p in real if p.verdict == "worse than random"]
        return first + (f"; {listed(worse)} {verb(worse)} even worse." if worse else ".")
    if not level:
        title = "the most faithful method" if len(real) > 1 else "more faithful than random scores"
        first = f"On {texts(count)}, {best.method} was {title} ({numbers})"
    else:
        first = (
            f"On {texts(count)}, {best.method} scored highest ({numbers}), but "
            f"{listed([p.method for p in level])} cannot be told apart from it"
        )
    return first + _against_random(real) + "."


def _against_random(real: Sequence[Place]) -> str:
    """Return what is to be said of the methods that do not beat random scores."""
    level = [place.method for place in real if place.verdict == "not better than random"]
    worse = [place.method for place in real if place.verdict == "worse than random"]
    parts = []
    if level:
        parts.append(f"{listed(level)} cannot be told apart from random scores")
    if worse:
        parts.append(f"{listed(worse)} {verb(worse)} worse than random scores")
    return "".join(f"; {part}" for part in parts)


def number(value: float) -> str:
    """Return a metric with two decimals and a true minus; "–" where there is none.

    Examples
    --------
    >>> number(-0.125), number(-0.001), number(float("nan"))
    ('−0.12', '0.00', '–')
    """
    return "–" if value != value else f"{value:z.2f}".replace("-", "−")


def texts(count: int) -> str:
    """Return "1 text", "2 texts"."""
    return f"{count:,} text{'s' * (count != 1)}"


def verb(names: Sequence[str]) -> str:
    """Return "is" for one name, "are" for several."""
    return "is" if len(names) == 1 else "are"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them.

    Examples
    --------
    >>> listed(["attention", "flow", "rollout"])
    'attention, flow and rollout'
    """
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def between(interval: Interval) -> str:
    """Return an interval in brackets; nothing where one text gives none."""
    if math.isnan(interval.low):
        return ""
    return f"[{number(interval.low)}, {number(interval.high)}]"
