"""A picture side by side: as the model sees it, then stained by the scores of each method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xattn import render
from xattn.picture import Picture
from xattn.report.sheet import INK, MARGIN, SOFT, WIDTH, write
from xattn.types import Attribution

ACROSS, GAP = 5, 0.2
"""The most panels in a row, and the inches between two."""
LARGEST = 1.95
"""Inches that a panel's longer side has at most."""
CAPTION = 0.68
"""Inches under a panel for its name and its scale."""


def height(items: Sequence[Attribution]) -> float:
    """Return how many inches the panels of one picture take; 0 for a text alone."""
    picture = items[0].picture
    if picture is None:
        return 0.0
    rows, across = _grid(items)
    return rows * (_size(picture, across)[1] + CAPTION)


def draw(figure: Figure, items: Sequence[Attribution], top: float) -> None:
    """Draw the panels of one picture; their upper edge is `top` inches above the sheet's lower."""
    picture = items[0].picture
    if picture is None:
        return
    columns = _grid(items)[1]
    wide, high = _size(picture, columns)
    panels = [(picture.pixels, picture.name, ["as the model sees it"])]
    panels += [(picture.heat(item.patches), item.method, _scale(item)) for item in items]
    for number, (pixels, name, notes) in enumerate(panels):
        row, column = divmod(number, columns)
        left = MARGIN + column * (_side(columns) + GAP)
        low = top - row * (high + CAPTION) - high
        axes = _axes(figure, left, low, wide, high)
        small = max(picture.size) < 160
        axes.imshow(pixels, interpolation="nearest" if small else "antialiased")
        write(figure, left, low - 0.17, _fitting(name), INK, size=9)
        for line, note in enumerate(notes):
            write(figure, left, low - 0.32 - 0.14 * line, note, SOFT, size=7.5)


def legend(figure: Figure, up: float) -> None:
    """Draw the scale of colours at the right border, `up` inches above the lower edge."""
    wide, high = 1.1, 0.1
    left = WIDTH - MARGIN - wide - 0.2
    colours = np.array([[render.rgb(score, 1.0) for score in np.linspace(-1, 1, 101)]])
    axes = _axes(figure, left, up, wide, high)
    axes.imshow(colours.astype(np.uint8), aspect="auto", interpolation="nearest")
    write(figure, left - 0.06, up + 0.015, "against", SOFT, size=7.5, side="right")
    write(figure, left + wide + 0.06, up + 0.015, "for", SOFT, size=7.5)


def _axes(figure: Figure, left: float, low: float, wide: float, high: float) -> Axes:
    """Return empty axes at a place given in inches."""
    whole = figure.get_size_inches()[1]
    axes = figure.add_axes((left / WIDTH, low / whole, wide / WIDTH, high / whole))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#d8d4cc", linewidth=0.6)
    return axes


def _grid(items: Sequence[Attribution]) -> tuple[int, int]:
    """Return rows and columns: as few rows as do, evenly filled."""
    count = len(items) + 1
    rows = -(-count // ACROSS)
    return rows, -(-count // rows)


def _side(columns: int) -> float:
    """Return the inches of a panel's longer side."""
    return min(LARGEST, (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns)


def _size(picture: Picture, columns: int) -> tuple[float, float]:
    """Return width and height of a panel in inches."""
    width, height = picture.size
    scale = _side(columns) / max(width, height)
    return width * scale, height * scale


def _scale(item: Attribution) -> list[str]:
    """Return what the deepest colour stands for, and what is not in the picture."""
    sign = "±" if item.signed else ""
    notes = [f"deepest {sign}{abs(item.patches).max(initial=0.0):.2g}"]
    total = float(abs(item.scores).sum())
    outside = float(abs(item.scores[item.special]).sum())
    if not item.reads and total > 0 and outside / total >= 0.005:
        notes.append(f"{outside / total:.0%} on added tokens")
    return notes


def _fitting(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"
