"""Attributions as a picture or a small page: one strip of coloured tokens for each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath

from xattn import files, render
from xattn.types import Attribution

WIDTH, MARGIN, GUTTER = 9.0, 0.3, 1.75
"""Inches: the picture, its border, and the column of the methods' names."""
LINE, AFTER_STRIP, AFTER_TEXT = 0.27, 0.13, 0.3
"""Inches: height of a line, and the space after a strip and between two texts."""
FONT, SIZE = "DejaVu Sans", 10.5
PAD = 0.035
"""Inches of colour around a token."""
INK, SOFT = "#1d1c1a", "#66635d"


@dataclass(frozen=True)
class Placed:
    """A token, and where its left edge stands, in inches; `line` counts from 0."""

    token: int
    text: str
    left: float
    width: float
    line: int


def render_attributions_html(attributions: Sequence[Attribution]) -> str:
    """Return a self-contained page with the attributions; hovering a token shows its score."""
    title = attributions[0].prediction if attributions else "no attributions"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>xattn: {escape(title)}</title><style>"
        "body{font:16px/1.5 system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:#1d1c1a;"
        "background:#fff;max-width:62rem;margin:2.5rem auto;padding:0 1.2rem}"
        "td{vertical-align:top;padding-top:.2em;padding-bottom:.2em;overflow-wrap:anywhere}"
        "p{color:#66635d;font-size:.85rem}</style></head>"
        f"<body>{render.table(item.line() for item in attributions)}"
        "<p>Blue speaks for what is explained, orange against it; depth is relative to each "
        "method’s largest score.</p></body></html>"
    )


def render_attributions_png(attributions: Sequence[Attribution], path: Path) -> None:
    """Write the attributions as a picture, one strip a method, whole or not at all.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    strips = [layout(item) for item in attributions]
    tops, height = _tops(attributions, strips)
    figure = Figure(figsize=(WIDTH, height), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    for item, strip, top in zip(attributions, strips, tops, strict=True):
        _draw(figure, item, strip, height - top)
    previous = None
    for item, top in zip(attributions, tops, strict=True):
        if (item.text, item.pair) != previous:
            previous = (item.text, item.pair)
            words = f"{item.verdict}, explained: {item.target}"
            _write(figure, MARGIN, height - top + LINE * 1.15, words, INK, weight="bold")
    note = "blue speaks for what is explained, orange against; depth within each method"
    _write(figure, MARGIN, 0.2, note, SOFT, size=8)
    with files.whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _tops(
    attributions: Sequence[Attribution], strips: Sequence[list[Placed]]
) -> tuple[list[float], float]:
    """Return how far below the upper edge each strip's first line stands, and the full height."""
    tops, down, previous = [], MARGIN, None
    for item, strip in zip(attributions, strips, strict=True):
        if (item.text, item.pair) != previous:
            down += LINE * 1.5 + (AFTER_TEXT if previous else 0)
            previous = (item.text, item.pair)
        tops.append(down)
        down += LINE * (strip[-1].line + 1 if strip else 1) + AFTER_STRIP
    return tops, down + 0.45


def layout(attribution: Attribution) -> list[Placed]:
    """Return the tokens broken into lines that fit the picture."""
    left, line, placed = 0.0, 0, []
    room = WIDTH - 2 * MARGIN - GUTTER
    for piece in attribution.pieces():
        if piece.token is None:
            left += measured("n n") - measured("nn") if piece.text else 0.0
            continue
        text = _shown(piece.text)
        width = measured(text) + 2 * PAD
        if left + width > room and left > 0:
            left, line = 0.0, line + 1
        placed.append(Placed(piece.token, text, left, width, line))
        left += width
    return placed


def measured(text: str) -> float:
    """Return the width of `text` in inches."""
    if not text.strip():
        return 0.04
    plain = text.replace("$", r"\$")  # an unescaped dollar would begin a formula
    path = TextPath((0, 0), plain, prop=FontProperties(family=FONT, size=SIZE))
    return float(path.get_extents().width) / 72


def _shown(text: str) -> str:
    """Return a token as one line."""
    return " ".join(text.split()) or "·"


def _draw(figure: Figure, item: Attribution, strip: Sequence[Placed], up: float) -> None:
    """Draw one strip whose first line stands `up` inches above the lower edge."""
    height = figure.get_size_inches()[1]
    largest = float(abs(item.scores).max(initial=0.0))
    right = MARGIN + GUTTER - 0.2
    _write(figure, right, up, item.method, SOFT, size=9, side="right")
    for placed in strip:
        score = float(item.scores[placed.token])
        left, low = MARGIN + GUTTER + placed.left, up - placed.line * LINE
        box = FancyBboxPatch(
            (left / WIDTH, (low - 0.06) / height),
            placed.width / WIDTH,
            0.215 / height,
            boxstyle="square,pad=0",
            facecolor=tuple(channel / 255 for channel in render.rgb(score, largest)),
            edgecolor="white",
            linewidth=0.6,
            transform=figure.transFigure,
        )
        figure.add_artist(box)
        ink = "white" if render.dark(score, largest) else INK
        _write(figure, left + PAD, low, placed.text, ink)


def _write(
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
