"""Heat maps, lines and dots as SVG that follows the colours of the page it stands in."""

from __future__ import annotations

import io
import re
from itertools import count
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from xattn import render

if TYPE_CHECKING:
    from xattn.finding import Dots, Heatmap, Lines

INK, SOFT, GRID = "#1d1c1a", "#66635d", "#d9d5cd"
HUES = ("#0072b2", "#c8500a", "#00845f", "#b0508a", "#a87400", "#6b4fbb", "#3d93c8")
"""Apart for colour-blind readers; those of the report."""
MASS = LinearSegmentedColormap.from_list("mass", ["#fbfaf7", "#5b96c8", "#123f73"])
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [tuple(c / 255 for c in hue) for hue in (render.AGAINST, (251, 250, 247), render.FOR)]
)
WIDTH = 8.6
"""Inches of a chart."""
NAMED = 32
"""Ticks that an axis has room for."""
CSS = """
.passage { line-height: 1.9 } .passage a { text-decoration: none; padding: 0 .12em }
.piece { background: color-mix(in srgb, var(--for) calc(var(--s) * 60%), transparent) }
.flagged { border-bottom: 2px solid var(--against) }
.sources { font-size: .9em } .sources li:target { outline: 2px solid var(--for) }
figure svg { max-width: 100%; height: auto; width: auto }
"""
"""What the markup of findings needs of a page beside its colours."""

_numbers = count()


def heatmap(part: Heatmap) -> str:
    """Return a heat map; cells carry their numbers where there is room."""
    values = np.array(part.values, dtype=np.float64).reshape(len(part.rows), len(part.columns))
    known = values[np.isfinite(values)]
    low, high = part.low, part.high
    signed = bool(known.size and known.min() < 0) if low is None else low < 0
    reach = float(np.abs(known).max()) if known.size else 1.0
    low = (-reach if signed else 0.0) if low is None else low
    high = max(reach, 1e-12) if high is None else high
    labels = max((len(name) for name in part.rows), default=1)
    room = WIDTH - 1.6 - 0.075 * labels
    cell = min(0.62, room / max(1, len(part.columns)))
    across = cell * len(part.columns)
    tall = min(cell, 0.34) * len(part.rows)
    figure, axes = _sheet(tall + 1.2, left=0.55 + 0.075 * labels, width=across)
    scale = Normalize(low, high)
    colours = SIGNED if signed else MASS
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=scale, edgecolors="none")
    axes.invert_yaxis()
    _names(axes, part.columns, part.rows, cell)
    axes.set_xlabel(part.column_label, fontsize=8.5, color=SOFT)
    axes.set_ylabel(part.row_label, fontsize=8.5, color=SOFT)
    if cell >= 0.36:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = sum(colours(scale(value))[:3]) < 1.7
                text = f"{value:z.2f}".replace("-", "−")
                axes.text(
                    column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7,
                    color="#fffffe" if dark else "#1d1c1b",
                )  # fmt: skip
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(scale, colours), ax=axes, fraction=0.09 / across, pad=0.12 / across
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5, colors=SOFT, length=2)
    bar.set_label(part.unit, fontsize=8, color=SOFT)
    return _svg(figure)


def lines(part: Lines) -> str:
    """Return lines with their bands and a key."""
    figure, axes = _sheet(3.1, left=0.75, width=WIDTH - 2.9)
    x = np.array(part.x, dtype=np.float64)
    for number, line in enumerate(part.lines):
        hue = HUES[number % len(HUES)]
        dashes = ("-", "--", ":", "-.")[number // len(HUES) % 4]
        y = np.array(line.y, dtype=np.float64)
        axes.plot(x, y, color=hue, linestyle=dashes, lw=1.8, label=line.name, marker="o", ms=3)
        if line.low and line.high:
            low, high = (np.array(part, dtype=np.float64) for part in (line.low, line.high))
            axes.fill_between(x, low, high, color=hue, alpha=0.13, lw=0)
    if part.level is not None:
        axes.axhline(part.level, color=SOFT, lw=1, ls="--")
    axes.grid(axis="y", color=GRID, lw=0.7)
    if len(x) <= NAMED // 2 and (x == x.round()).all():
        axes.set_xticks(x)
    axes.set_xlabel(part.x_label, fontsize=8.5, color=SOFT)
    axes.set_ylabel(part.y_label, fontsize=8.5, color=SOFT)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=8, labelcolor=INK
    )
    return _svg(figure)


def dots(part: Dots) -> str:
    """Return dots with whiskers, the first on top."""
    labels = max((len(dot.name) for dot in part.dots), default=1)
    left = 0.5 + 0.075 * labels
    figure, axes = _sheet(0.27 * len(part.dots) + 0.75, left=left, width=WIDTH - left - 0.4)
    groups = list(dict.fromkeys(dot.group for dot in part.dots))
    for place, dot in enumerate(part.dots):
        hue = HUES[groups.index(dot.group) % len(HUES)]
        if dot.value is None:
            continue
        if dot.low is not None and dot.high is not None:
            axes.plot([dot.low, dot.high], [place, place], color=hue, lw=1.8)
        axes.plot([dot.value], [place], "o", color=hue, ms=6)
    if part.level is not None:
        axes.axvline(part.level, color=SOFT, lw=1, ls="--")
    axes.set_yticks(range(len(part.dots)), [dot.name for dot in part.dots])
    axes.set_ylim(len(part.dots) - 0.4, -0.6)
    axes.tick_params(axis="y", colors=INK)
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.set_xlabel(part.x_label, fontsize=8.5, color=SOFT)
    return _svg(figure)


def _sheet(height: float, left: float, width: float) -> tuple[Figure, Axes]:
    """Return a figure and axes of some inches; what stands outside them is measured when drawn."""
    wide, foot = left + width + 0.6, 0.5
    figure = Figure(figsize=(wide, height))
    axes = figure.add_axes((left / wide, foot / height, width / wide, 1 - (foot + 0.1) / height))
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(labelsize=8, colors=SOFT, length=0, pad=3)
    axes.set_axisbelow(True)
    return figure, axes


def _names(axes: Axes, columns: tuple[str, ...], rows: tuple[str, ...], cell: float) -> None:
    """Name columns (`cell` inches wide) and rows; only some where there is no room for all."""
    step = -(-len(columns) // NAMED)
    places = range(0, len(columns), step)
    long = max((len(columns[i]) for i in places), default=0) * 0.08 > cell * step
    axes.set_xticks([i + 0.5 for i in places], [columns[i] for i in places], rotation=90 * long)
    step = -(-len(rows) // (2 * NAMED))
    places = range(0, len(rows), step)
    axes.set_yticks([i + 0.5 for i in places], [rows[i] for i in places])
    axes.tick_params(colors=INK, labelsize=8)


def _svg(figure: Figure) -> str:
    """Return a figure as an SVG element whose inks are those of the page."""
    stream = io.StringIO()
    # ids must differ between the pictures of a page, and be the same in every run
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": str(next(_numbers)), "text.parse_math": False,
        "font.family": ["sans-serif"],
    }  # fmt: skip
    with mpl.rc_context(settings):
        FigureCanvasSVG(figure)
        figure.savefig(
            stream, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for colour, name in ((INK, "ink"), (SOFT, "soft"), (GRID, "grid")):
        drawn = drawn.replace(colour, f"var(--{name}, {colour})")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    return drawn.replace("<svg ", '<svg role="img" ', 1)
