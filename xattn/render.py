"""Scores as colours: the token strips of notebooks, reports and terminals.

Blue speaks for the target, orange against it; both stay apart for colour-blind readers. Strength is
relative to the largest absolute score of the same method, so strips of different methods compare
in order, not in size.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
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
    """HTML of the coloured tokens."""


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
    """Return strips of one or more texts as an HTML table, one line a method."""
    rows: list[str] = []
    previous: tuple[str, str | None] | None = None
    for text, heading, name, note, tokens in lines:
        if text != previous:
            rows.append(
                f'<tr><td colspan="2" style="text-align:left;padding-top:.8em">{heading}</td></tr>'
            )
            previous = text
        rows.append(
            '<tr><td style="text-align:right;white-space:nowrap;color:#666;padding-right:.8em"'
            f' title="{escape(note)}">{escape(name)}</td>'
            f'<td style="text-align:left;line-height:1.9">{tokens}</td></tr>'
        )
    return f'<table style="border-collapse:collapse">{"".join(rows)}</table>'
