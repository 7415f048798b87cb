"""Two diagrams as SVG geometry: critical differences of ranks, and cost against faithfulness."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xattn.evaluation import Comparison
from xattn.evaluation.design import LEADING, YARDSTICKS
from xattn.report.ranking import Place

WIDTH = 920
MARGIN = 230
"""Room for names on both sides of the axis of ranks."""
ROW, TOP = 20, 46
PARETO_HEIGHT, SIDE, FOOT = 380, 60, 46


@dataclass(frozen=True)
class Label:
    """A method in the diagram of ranks: its place on the axis, and where its name stands."""

    method: str
    x: float
    y: float
    end: float
    anchor: str
    rank: str


@dataclass(frozen=True)
class Ranking:
    """Average ranks on a line; a bar joins methods that cannot be told apart."""

    labels: list[Label]
    bars: list[tuple[float, float, float]]
    """From, to, height."""
    ticks: list[tuple[float, int]]
    critical: float
    """Width of the critical difference."""
    critical_words: str
    p_words: str
    n: int
    height: float


def rank_diagram(comparison: Comparison, operator: str) -> Ranking | None:
    """Return the critical-difference diagram (Demšar 2006, figure 1); None for lack of texts."""
    found = comparison.ranks(operator, LEADING)
    if len(found.average) < 3 or found.n < 2 or math.isnan(found.p):
        return None
    order = sorted(found.average, key=found.average.__getitem__)
    k = len(order)

    def x(rank: float) -> float:
        return round(MARGIN + (rank - 1) / (k - 1) * (WIDTH - 2 * MARGIN), 1)

    groups: list[tuple[float, float]] = []
    for i, name in enumerate(order):
        start = found.average[name]
        last = max(r for m in order[i:] if (r := found.average[m]) - start < found.critical)
        if last > start and not any(a <= start and last <= b for a, b in groups):
            groups.append((start, last))
    bars = [(x(a) - 3, x(b) + 3, TOP + 12.0 + 9 * i) for i, (a, b) in enumerate(groups)]
    below = TOP + 24 + 9 * len(bars)
    half = (k + 1) // 2
    labels = []
    for i, name in enumerate(order):
        left = i < half
        row = i if left else k - 1 - i
        labels.append(
            Label(
                name,
                x(found.average[name]),
                below + ROW * row,
                MARGIN - 14 if left else WIDTH - MARGIN + 14,
                "end" if left else "start",
                f"{found.average[name]:.2f}",
            )
        )
    step = max(1, math.ceil(k / 15))
    return Ranking(
        labels,
        bars,
        [(x(rank), rank) for rank in range(1, k + 1, step)],
        round(x(1 + found.critical) - x(1), 1),
        f"{found.critical:.2f}",
        "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}",
        found.n,
        below + ROW * half + 8,
    )


@dataclass(frozen=True)
class Point:
    """A method in the diagram of costs."""

    method: str
    x: float
    y: float
    front: bool
    """Whether no method is both cheaper and more faithful."""
    name_x: float
    name_y: float
    shown: bool
    """Whether there is room for its name."""


@dataclass(frozen=True)
class Pareto:
    """Milliseconds a text (logarithmic) against the leading metric."""

    points: list[Point]
    front: str
    """SVG path through those that nothing beats."""
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def pareto(comparison: Comparison, places: list[Place]) -> Pareto | None:
    """Return the diagram of cost against faithfulness; None if no time was taken."""
    seconds = comparison.cost.groupby("method")["seconds"].mean()
    known = [
        (place.method, float(seconds[place.method]) * 1000, place.area.mean)
        for place in places
        if place.method not in YARDSTICKS
        and place.method in seconds.index
        and float(seconds[place.method]) > 0
        and not math.isnan(place.area.mean)
    ]
    if not known:
        return None
    low = math.floor(math.log10(min(ms for _, ms, _ in known)) * 2) / 2
    high = math.ceil(math.log10(max(ms for _, ms, _ in known)) * 2) / 2
    high = max(high, low + 1)
    bottom = min(0.0, min(value for *_, value in known))
    top = max(value for *_, value in known) * 1.05 + 1e-9
    bottom, top = math.floor(bottom * 10) / 10, math.ceil(top * 10) / 10

    def x(ms: float) -> float:
        return round(SIDE + (math.log10(ms) - low) / (high - low) * (WIDTH - SIDE - 170), 1)

    def y(value: float) -> float:
        return round(12 + (top - value) / (top - bottom) * (PARETO_HEIGHT - FOOT - 12), 1)

    best, front = -math.inf, []
    for method, _, value in sorted(known, key=lambda item: (item[1], -item[2])):
        if value > best:
            best = value
            front.append(method)
    where = {method: (x(ms), y(value)) for method, ms, value in known}
    names = _names(where, sorted(where, key=lambda method: method not in front))
    points = []
    for method, (across, up) in where.items():
        left, foot = names.get(method, (0.0, 0.0))
        points.append(Point(method, across, up, method in front, left, foot, method in names))
    line = sorted((p.x, p.y) for p in points if p.front)
    ticks = [10.0**e for e in range(math.ceil(low), math.floor(high) + 1)]
    steps = max(1, round((top - bottom) * 10 / 6))
    values = [bottom + i * steps / 10 for i in range(int((top - bottom) * 10 / steps + 1e-6) + 1)]
    return Pareto(
        points,
        "M" + "L".join(f"{a} {b}" for a, b in line),
        [(x(t), f"{t:g} ms") for t in ticks],
        [(y(v), f"{v:.1f}".replace("-", "−")) for v in values],
    )


def _names(
    places: dict[str, tuple[float, float]], order: list[str]
) -> dict[str, tuple[float, float]]:
    """Return where names can stand without lying on another one, the first in `order` first."""
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in places.values()]
    found = {}
    for method in order:
        px, py = places[method]
        wide = 6.4 * len(method)
        for left, foot in ((px + 8, py + 4), (px - 8 - wide, py + 4), (px - wide / 2, py - 9),
                           (px - wide / 2, py + 17), (px + 8, py - 9), (px + 8, py + 17),
                           (px - wide / 2, py - 22), (px - wide / 2, py + 30)):  # fmt: skip
            box = (left, foot - 10, left + wide, foot + 2)
            free = all(box[2] < a or box[0] > c or box[3] < b or box[1] > d for a, b, c, d in taken)
            if free and left > SIDE and box[2] < WIDTH and box[1] > 0:
                taken.append(box)
                found[method] = (round(left, 1), round(foot, 1))
                break
    return found
