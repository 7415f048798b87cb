"""The sheet that attributions are drawn on: its measures in inches, its inks, and how to write."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

WIDTH, MARGIN = 9.0, 0.3
"""Inches: the sheet and its border."""
FONT, SIZE = "DejaVu Sans", 10.5
INK, SOFT = "#1d1c1a", "#66635d"


def write(
    figure: Figure,
    across: float,
    up: float,
    text: str,
    ink: str,
    *,
    size: float = SIZE,
    weight: str = "normal",
    side: str = "left",
) -> None:
    """Write a line; `across` and `up` are inches from the lower left corner to its baseline."""
    font = FontProperties(family=FONT, size=size, weight=weight)
    figure.text(
        across / WIDTH, up / figure.get_size_inches()[1], text, color=ink,
        fontproperties=font, ha=side, va="baseline", parse_math=False,
    )  # fmt: skip
