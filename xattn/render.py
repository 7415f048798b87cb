"""Scores as colours: the token strips of notebooks, reports and terminals.

Blue speaks for the target, orange against it; both stay apart for colour-blind readers. Strength is
relative to the largest absolute score of the same method, so strips of different methods compare
in order, not in size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FOR = (33, 102, 172)
AGAINST = (230, 111, 28)


class Piece(NamedTuple):
    """A stretch of a text in reading order: a token, or what stands between two tokens."""

    text: str
    token: int | None
    """The token's position, or None for what stands between two tokens."""
    special: bool = False
    """Whether the tokenizer added it."""


class Line(NamedTuple):
    """One method's strip in a table of strips."""

    text: tuple[str, str | None]
    """The text, or the pair, that the strip shows."""
    heading: str
    """HTML over the strips of one text, shown once."""
    name: str
    note: str
    """What the name shows when it is pointed at."""
    strip: str
    """HTML of the coloured tokens; nothing for a picture alone."""
    picture: str | None = None
    """HTML of the picture, shown once."""
    heat: str | None = None
    """HTML of the picture's coloured patches."""


def strength(score: float, largest: float) -> float:
    """Return how deep the colour is, 0..1."""
    return min(1.0, abs(score) / largest) if largest > 0 else 0.0


def rgb(score: float, largest: float) -> tuple[int, int, int]:
    """Return the background of a token as red, green, blue, mixed with white.

    Examples
    --------
    >>> rgb(0.0, 1.0)
    (255, 255, 255)
    >>> rgb(1.0, 1.0) == FOR
    True
    """
    part = strength(score, largest)
    hue = FOR if score >= 0 else AGAINST
    red, green, blue = (round(255 + (channel - 255) * part) for channel in hue)
    return red, green, blue


def dark(score: float, largest: float) -> bool:
    """Return whether light text reads better on this token's background."""
    return score >= 0 and strength(score, largest) > 0.75  # orange is never dark enough


def strip(pieces: Iterable[Piece], scores: npt.NDArray[np.float32]) -> str:
    """Return one line of coloured tokens as HTML; hovering a token shows its score."""
    largest = float(abs(scores).max(initial=0.0))
    parts = []
    for text, token, special in pieces:
        if token is None:
            parts.append(escape(text))
            continue
        score = float(scores[token])
        ink = "#fff" if dark(score, largest) else "#1a1a1a"
        size = "font-size:.72em;opacity:.75;" if special else ""
        parts.append(
            f'<span class="xattn-token" title="{escape(text)}: {score:+.4g}" style="{size}'
            f"background:rgb{rgb(score, largest)};color:{ink};border-radius:.2em;"
            f'padding:.08em .12em">{escape(text)}</span>'
        )
    return "".join(parts)


def table(lines: Iterable[Line]) -> str:
    """Return strips of one or more texts as an HTML table, one line a method.

    Pictures stand side by side: first as it is, then as each method sees it.
    """
    rows: list[str] = []
    for (_, heading), group in groupby(lines, key=lambda line: (line.text, line.heading)):
        several = list(group)
        rows.append(
            f'<tr><td colspan="2" style="text-align:left;padding-top:.8em">{heading}</td></tr>'
        )
        panels = [panel for line in several for panel in _panels(line, line is several[0])]
        if panels:
            rows.append(
                '<tr><td colspan="2" style="text-align:left"><div style="display:flex;'
                f'flex-wrap:wrap;gap:.9em;padding:.5em 0">{"".join(panels)}</div></td></tr>'
            )
        rows += [
            '<tr><td style="text-align:right;white-space:nowrap;color:#666;padding-right:.8em"'
            f' title="{escape(line.note)}">{escape(line.name)}</td>'
            f'<td style="text-align:left;line-height:1.9">{line.strip}</td></tr>'
            for line in several
            if line.strip
        ]
    return f'<table style="border-collapse:collapse">{"".join(rows)}</table>'


def _panels(line: Line, first: bool) -> Iterator[str]:
    """Yield the figures of one line: the picture with the first, and its coloured patches."""
    if line.heat is None:
        return
    caption = '<figcaption style="color:#666;padding-top:.2em"'
    if first:
        yield f'<figure style="margin:0">{line.picture}{caption}>as the model sees it</figcaption>'
        yield "</figure>"
    yield f'<figure style="margin:0">{line.heat}{caption} title="{escape(line.note)}">'
    yield f"{escape(line.name)}</figcaption></figure>"
