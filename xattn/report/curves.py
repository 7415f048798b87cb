"""Deletion curves as SVG: a panel for each order of removal, a line and band for each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from xattn.report.series import Style

NORMAL = 1.96
"""Half-width of a 95 % normal interval, in standard errors."""
WIDTH, HEIGHT = 460, 310
LEFT, RIGHT, TOP, BOTTOM = 36, 18, 10, 42
ORDERS = {
    "morf": ("Most relevant first", "A faithful method falls early."),
    "lerf": ("Least relevant first", "A faithful method stays up."),
}


@dataclass(frozen=True)
class Line:
    """One method's curve in a panel, as SVG path data."""

    method: str
    style: Style
    line: str
    band: str
    values: tuple[float, ...]
    """Mean score at each fraction, for the reader who points at the line."""


@dataclass(frozen=True)
class Panel:
    """One order of removal."""

    title: str
    hint: str
    lines: list[Line]
    y_ticks: list[tuple[float, str]]
    """Height in the picture, and what stands beside it."""
    x_ticks: list[tuple[float, str]]


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers from below `low` to above `high`; never fewer than two.

    Examples
    --------
    >>> ticks(0.31, 0.97)
    [0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high - low < 1e-6:
        low, high = low - 0.05, high + 0.05
    values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(value), 10) for value in values]


def mean_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Return mean, low and high over texts by method, order and fraction.

    The band is the pointwise 95 % normal interval of the mean; with one text it has no width.
    """
    groups = curves.groupby(["method", "order", "fraction"], sort=False)["score"]
    table = groups.agg(["mean", "sem"]).reset_index()
    half = NORMAL * table["sem"].fillna(0.0)
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def panels(
    curves: pd.DataFrame, operator: str, methods: Sequence[str], styles: dict[str, Style]
) -> list[Panel]:
    """Return the panels of one operator; `methods` are drawn from last to first, best on top."""
    table = mean_curves(curves[curves["operator"] == operator]).dropna(subset=["mean"])
    if table.empty:
        return []
    marks = ticks(float(table["low"].min()), float(table["high"].max()))
    bottom, top = marks[0], marks[-1]

    def x(fraction: float) -> float:
        return round(LEFT + fraction * (WIDTH - LEFT - RIGHT), 1)

    def y(score: float) -> float:
        return round(TOP + (top - score) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    def draw(method: str, order: str) -> Line | None:
        rows = table[(table["method"] == method) & (table["order"] == order)]
        rows = rows.sort_values("fraction")
        if rows.empty:
            return None
        across = [x(fraction) for fraction in rows["fraction"]]
        middle, low, high = ([y(v) for v in rows[name]] for name in ("mean", "low", "high"))
        edge = [*zip(across, high, strict=True), *reversed([*zip(across, low, strict=True)])]
        return Line(
            method,
            styles[method],
            _path([*zip(across, middle, strict=True)]),
            _path(edge) + "Z",
            tuple(np.round(rows["mean"], 3).tolist()),
        )

    return [
        Panel(
            title,
            hint,
            [line for method in reversed(methods) if (line := draw(method, order))],
            [(y(tick), f"{tick:.3g}".replace("-", "−")) for tick in marks],
            [(x(part), f"{part:.0%}") for part in (0, 0.2, 0.4, 0.6, 0.8, 1)],
        )
        for order, (title, hint) in ORDERS.items()
    ]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{across} {down}" for across, down in points)
