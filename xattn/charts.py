"""Heat maps, lines and dots as SVG that follows the colours of the page it stands in."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Sequence
from html import escape
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
    from xattn.types import Floats

INK, SOFT, GRID = "#1d1c1a", "#66635d", "#d9d5cd"
HUES = ("#0072b2", "#c8500a", "#00845f", "#b0508a", "#a87400", "#6b4fbb", "#3d93c8")
"""Apart for colour-blind readers; those of the report."""
MASS = LinearSegmentedColormap.from_list("mass", ["#fbfaf7", "#5b96c8", "#123f73"])
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [tuple(c / 255 for c in hue) for hue in (render.AGAINST, (251, 250, 247), render.FOR)]
)
WIDTH = 8.6
"""Inches of a chart."""
NAME = 0.15
"""Inches that a name on an axis needs across."""
LONG = 40
"""Letters of a name that are drawn."""
NOTHING = "<p class='hint'>There is nothing to show.</p>"
SETTINGS: Any = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": ["sans-serif"]
}  # fmt: skip
"""They must hold when a text is made, not only when it is drawn: tokens are no formulas."""
CSS = """
figure td.words, figure th.words { text-align: left; white-space: normal }
figure .scroll { overflow-x: auto }
.passage { line-height: 1.9 } .passage a { color: inherit; text-decoration: none; padding: 0 .12em }
.piece { background: color-mix(in srgb, var(--for) calc(var(--s) * 60%), transparent) }
.flagged { border-bottom: 2px solid var(--against) }
.sources { font-size: .9em } .sources li:target { outline: 2px solid var(--for) }
figure svg { max-width: 100%; height: auto; width: auto }
"""
"""What the markup of findings needs of a page beside its colours."""


def key(part: object) -> str:
    """Return letters and digits that belong to a part of a finding, the same in every run.

    Ids within a page are made from it, so that they differ from part to part.
    """
    return "k" + hashlib.blake2b(repr(part).encode(), digest_size=6).hexdigest()


@mpl.rc_context(SETTINGS)
def heatmap(part: Heatmap) -> str:
    """Return a heat map; cells carry their numbers where there is room."""
    values = _array(part.values).reshape(len(part.rows), len(part.columns))
    known = values[np.isfinite(values)]
    if not known.size:
        return NOTHING
    low, high = part.low, part.high
    signed = bool(known.min() < 0) if low is None else low < 0
    reach = float(np.abs(known).max())
    low = (-reach if signed else 0.0) if low is None else low
    high = max(reach, 1e-12) if high is None else high
    rows, columns = [short(name) for name in part.rows], [short(name) for name in part.columns]
    labels = max(map(len, rows))
    room = WIDTH - 1.6 - 0.075 * labels
    cell = min(0.62, room / len(columns))
    # rows are named as far as four inches go; more of them are as high as columns are wide
    line = max(min(cell, 0.34), min(NAME, 4 / len(rows)))
    across, tall = cell * len(columns), max(line * len(rows), 0.6)
    figure, axes = _sheet(tall, left=0.55 + 0.075 * labels, width=across)
    scale = Normalize(low, high)
    colours = SIGNED if signed else MASS
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=scale, edgecolors="none")
    axes.invert_yaxis()
    _names(axes, columns, rows, cell, line)
    axes.set_xlabel(part.column_label, fontsize=8.5, color=SOFT)
    axes.set_ylabel(part.row_label, fontsize=8.5, color=SOFT)
    if cell >= 0.36:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = sum(colours(scale(value))[:3]) < 1.7
                text = (f"{value:z.2f}" if reach < 100 else f"{value:.3g}").replace("-", "−")
                axes.text(
                    column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7,
                    color="#fffffe" if dark else "#1d1c1b",
                )  # fmt: skip
    beside = axes.inset_axes((1 + 0.12 / across, 0, 0.09 / across, 1))
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, colours), cax=beside)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5, colors=SOFT, length=2)
    bar.set_label(part.unit, fontsize=8, color=SOFT)
    return _svg(figure, part)


@mpl.rc_context(SETTINGS)
def lines(part: Lines) -> str:
    """Return lines with their bands and a key."""
    if not np.isfinite(_array([line.y for line in part.lines])).any():
        return NOTHING
    figure, axes = _sheet(2.5, left=0.75, width=WIDTH - 2.9)
    x = _array(part.x)
    for number, line in enumerate(part.lines):
        hue = HUES[number % len(HUES)]
        dashes = ("-", "--", ":", "-.")[number // len(HUES) % 4]
        y = _array(line.y)
        axes.plot(x, y, color=hue, linestyle=dashes, lw=1.8, label=str(number), marker="o", ms=3)
        if line.low and line.high:
            axes.fill_between(x, _array(line.low), _array(line.high), color=hue, alpha=0.13, lw=0)
    if part.level is not None:
        axes.axhline(part.level, color=SOFT, lw=1, ls="--")
    axes.grid(axis="y", color=GRID, lw=0.7)
    if len(x) <= 16 and (x == x.round()).all():
        axes.set_xticks(x)
    axes.set_xlabel(part.x_label, fontsize=8.5, color=SOFT)
    axes.set_ylabel(part.y_label, fontsize=8.5, color=SOFT)
    _key(axes, [line.name for line in part.lines])
    return _svg(figure, part)


@mpl.rc_context(SETTINGS)
def dots(part: Dots) -> str:
    """Return dots with whiskers, the first on top."""
    if not np.isfinite(_array([dot.value for dot in part.dots])).any():
        return NOTHING
    names = [short(dot.name) for dot in part.dots]
    groups = list(dict.fromkeys(dot.group for dot in part.dots))
    left, right = 0.5 + 0.075 * max(map(len, names)), 0.4 if len(groups) == 1 else 2.0
    figure, axes = _sheet(0.27 * len(names) + 0.15, left=left, width=WIDTH - left - right)
    for place, dot in enumerate(part.dots):
        hue = HUES[groups.index(dot.group) % len(HUES)]
        if dot.value is None:
            continue
        if dot.low is not None and dot.high is not None:
            axes.plot([dot.low, dot.high], [place, place], color=hue, lw=1.8)
        axes.plot([dot.value], [place], "o", color=hue, ms=6)
    if len(groups) > 1:
        for number in range(len(groups)):
            axes.plot([], [], "o", color=HUES[number % len(HUES)], label=str(number))
        _key(axes, groups)
    if part.level is not None:
        axes.axvline(part.level, color=SOFT, lw=1, ls="--")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(part.dots) - 0.4, -0.6)
    axes.tick_params(axis="y", colors=INK)
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.set_xlabel(part.x_label, fontsize=8.5, color=SOFT)
    return _svg(figure, part)


def short(name: str) -> str:
    r"""Return a name on one line; of a long one the middle is left out.

    Examples
    --------
    >>> short("\n"), len(short("long " * 20))
    ('↵', 40)
    """
    name = name.replace("\n", "↵")
    return name if len(name) <= LONG else f"{name[: LONG // 2]}…{name[1 - LONG // 2 :]}"


def _array(values: Sequence[Any]) -> Floats:
    """Return numbers as an array; nan stands for what is not known."""
    return np.array(values, dtype=np.float64)


def _sheet(height: float, left: float, width: float) -> tuple[Figure, Axes]:
    """Return a figure, and axes of some inches; what stands outside is measured when drawn."""
    wide, high = left + width + 0.6, height + 0.6
    figure = Figure(figsize=(wide, high))
    axes = figure.add_axes((left / wide, 0.5 / high, width / wide, height / high))
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(labelsize=8, colors=SOFT, length=0, pad=3)
    axes.set_axisbelow(True)
    return figure, axes


def _key(axes: Axes, names: list[str]) -> None:
    """Name what was drawn, in its order; labels would be left out if they began with "_"."""
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=8, labelcolor=INK
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(short(name))


def _names(axes: Axes, columns: list[str], rows: list[str], cell: float, line: float) -> None:
    """Name columns and rows, so many inches wide and high; some where there is no room for all."""
    step = max(1, math.ceil(NAME / cell - 1e-9))
    places = range(0, len(columns), step)
    long = max((len(columns[i]) for i in places), default=0) * 0.08 > cell * step
    axes.set_xticks([i + 0.5 for i in places], [columns[i] for i in places], rotation=90 * long)
    step = max(1, math.ceil(NAME / line - 1e-9))
    places = range(0, len(rows), step)
    axes.set_yticks([i + 0.5 for i in places], [rows[i] for i in places])
    axes.tick_params(colors=INK, labelsize=8)


def _svg(figure: Figure, part: Heatmap | Lines | Dots) -> str:
    """Return a figure as an SVG element whose inks are those of the page."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key(part)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters are those of the page's fonts
        FigureCanvasSVG(figure)
        figure.savefig(
            stream, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    hues = {f"h{number}": hue for number, hue in enumerate(HUES)}
    for name, colour in {"ink": INK, "soft": SOFT, "grid": GRID, **hues}.items():
        drawn = drawn.replace(f": {colour}", f": var(--{name}, {colour})")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", drawn)  # names of groups, again in every picture
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(part.title)}" ', 1)
