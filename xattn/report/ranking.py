"""Who is most faithful: the methods in order of the area between the deletion curves (ABPC)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from xattn.evaluation import Comparison, Interval, paired_difference
from xattn.evaluation.design import LEADING, YARDSTICKS
from xattn.report.series import contenders

Verdict = Literal["beats random", "not better than random", "worse than random", "yardstick"]


@dataclass(frozen=True)
class Place:
    """One line of the ranking."""

    method: str
    metrics: dict[str, Interval]
    verdict: Verdict

    @property
    def area(self) -> Interval:
        """The metric that decides the order."""
        return self.metrics[LEADING]

    @property
    def yardstick(self) -> bool:
        """Whether this is random or oracle."""
        return self.method in YARDSTICKS


def ranking(comparison: Comparison, operator: str) -> list[Place]:
    """Return the methods and yardsticks from the most faithful to the least; NaN comes last."""
    table: dict[str, dict[str, Interval]] = {}
    for metric in dict.fromkeys(comparison.scores["metric"]):
        for method, found in comparison.intervals(operator, str(metric)).items():
            table.setdefault(method, {})[str(metric)] = found
    judged = verdicts(comparison, operator)
    places = [Place(method, cells, judged[method]) for method, cells in table.items()]
    return sorted(places, key=lambda place: (math.isnan(place.area.mean), -place.area.mean))


def verdicts(comparison: Comparison, operator: str) -> dict[str, Verdict]:
    """Return on which side of random each method lies, by the interval of the difference."""
    table: dict[str, Verdict] = dict.fromkeys(YARDSTICKS, "yardstick")
    table |= dict.fromkeys(contenders(comparison), "not better than random")
    versus = comparison.versus_random()
    chosen = versus[(versus["operator"] == operator) & (versus["metric"] == LEADING)]
    for row in chosen.itertuples():
        method, low, high = str(row.method), float(row.low), float(row.high)  # type: ignore[arg-type]
        if method in YARDSTICKS:
            continue
        if low > 0:
            table[method] = "beats random"
        elif high < 0:
            table[method] = "worse than random"
    return table


def paired(scores: pd.DataFrame, operator: str, first: str, second: str) -> Interval:
    """Return how far `first` lies above `second` in ABPC on the same texts; nan with one text."""
    chosen = scores[(scores["operator"] == operator) & (scores["metric"] == LEADING)]
    values = chosen.set_index(["method", "example"])["value"]
    both = pd.DataFrame({"first": values.loc[first], "second": values.loc[second]}).dropna()
    return paired_difference(both["first"].to_numpy(), both["second"].to_numpy(), seed=0)


def level_with_best(
    comparison: Comparison, places: list[Place], operator: str
) -> tuple[Place | None, list[Place]]:
    """Return the best method, and those that cannot be told apart from it on these texts."""
    real = [place for place in places if not place.yardstick]
    if not real:
        return None, []
    best, *others = real
    return best, [
        other
        for other in others
        if not paired(comparison.scores, operator, best.method, other.method).low > 0
    ]
