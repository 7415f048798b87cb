"""Attributions as a picture or a small page: one strip of coloured tokens for each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath

from xattn import files, render
from xattn.caution import Caution
from xattn.report import pictures
from xattn.report.sheet import FONT, INK, MARGIN, SIZE, SOFT, WIDTH, write
from xattn.types import Attribution

GUTTER = 1.75
"""Inches: the column of the methods' names."""
LINE, AFTER_STRIP, AFTER_TEXT = 0.27, 0.13, 0.3
"""Inches: height of a line, and the space after a strip and between two texts."""
HEADING = LINE * 1.5
"""Inches of the line that says what is predicted and explained."""
PAD = 0.035
"""Inches of colour around a token."""


@dataclass(frozen=True)
class Placed:
    """A token, and where its left edge stands, in inches; `line` counts from 0."""

    token: int
    text: str
    left: float
    width: float
    line: int


def render_attributions_html(
    attributions: Sequence[Attribution], cautions: Sequence[Caution] = ()
) -> str:
    """Return a self-contained page with the attributions; hovering a token shows its score.

    Parameters
    ----------
    attributions : sequence of Attribution
    cautions : sequence of Caution, optional
        What the reader should be warned of; it stands below.
    """
    title = attributions[0].prediction if attributions else "no attributions"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>xattn: {escape(title)}</title><style>"
        "body{font:16px/1.5 system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:#1d1c1a;"
        "background:#fff;max-width:62rem;margin:2.5rem auto;padding:0 1.2rem}"
        "td{vertical-align:top;padding-top:.2em;padding-bottom:.2em;overflow-wrap:anywhere}"
        "p{color:#66635d;font-size:.85rem} aside{border-left:3px solid #e66f1c;margin:1.2rem 0;"
        "padding:.1rem 1rem;background:#f6f1e6} aside h2{font-size:1rem;margin:.6rem 0 0}"
        "aside p{margin:.3rem 0 .6rem} aside .evidence{color:inherit}</style></head>"
        f"<body>{render.table(item.line() for item in attributions)}"
        "<p>Blue speaks for what is explained, orange against it; depth is relative to each "
        f"method’s largest score.</p>{''.join(map(_aside, cautions))}</body></html>"
    )


def _aside(caution: Caution) -> str:
    return (
        f'<aside><h2>{escape(caution.title)}</h2><p class="evidence">{escape(caution.evidence)}</p>'
        f"<p>{escape(caution.remedy)}</p></aside>"
    )


def render_attributions_png(attributions: Sequence[Attribution], path: Path) -> None:
    """Write the attributions as a picture, one strip a method, whole or not at all.

    Pictures are shown with a heat map for each method; see `xattn.report.pictures`.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    groups = [list(group) for _, group in groupby(attributions, key=_subject)]
    strips = [[layout(item) for item in group] for group in groups]
    heights = [_height(group, lines) for group, lines in zip(groups, strips, strict=True)]
    height = MARGIN + sum(heights) + AFTER_TEXT * max(0, len(groups) - 1) + 0.45
    figure = Figure(figsize=(WIDTH, height), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    up = height - MARGIN
    for group, lines, high in zip(groups, strips, heights, strict=True):
        _draw_group(figure, group, lines, up)
        up -= high + AFTER_TEXT
    note = "blue speaks for what is explained, orange against; depth within each method"
    write(figure, MARGIN, 0.2, note, SOFT, size=8)
    if any(item.picture is not None for item in attributions):
        pictures.legend(figure, 0.18)
    with files.whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _subject(item: Attribution) -> tuple[str, str | None, str]:
    """Return what attributions that stand together have in common."""
    return item.text, item.pair, item.target


def _lines(strip: Sequence[Placed]) -> float:
    """Return the inches that a strip takes; none for a picture alone."""
    return LINE * (strip[-1].line + 1) + AFTER_STRIP if strip else 0.0


def _height(group: Sequence[Attribution], strips: Sequence[Sequence[Placed]]) -> float:
    """Return the inches of a heading, the panels under it, and the strips under these."""
    return HEADING + pictures.height(group) + sum(map(_lines, strips))


def _draw_group(
    figure: Figure, group: Sequence[Attribution], strips: Sequence[Sequence[Placed]], up: float
) -> None:
    """Draw what methods say of one prediction; the upper edge is `up` inches above the lower."""
    words = f"{group[0].verdict}, explained: {group[0].target}"
    write(figure, MARGIN, up - LINE * 0.35, words, INK, weight="bold")
    up -= HEADING
    pictures.draw(figure, group, up)
    up -= pictures.height(group)
    for item, strip in zip(group, strips, strict=True):
        if strip:
            _draw(figure, item, strip, up)
        up -= _lines(strip)


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
    write(figure, right, up, item.method, SOFT, size=9, side="right")
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
        write(figure, left + PAD, low, placed.text, ink)
