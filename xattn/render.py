"""Scores as colours: the token strips of notebooks, reports and terminals.

Blue speaks for the target, orange against it; both stay apart for colour-blind readers. Strength is
relative to the largest absolute score of the same method, so strips of different methods compare
in order, not in size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from xattn.types import Attribution

FOR = (33, 102, 172)
AGAINST = (230, 111, 28)


class Piece(NamedTuple):
    """A stretch of the text in reading order: a token, or what stands between two tokens."""

    text: str
    token: int | None
    """The token's position, or None for what stands between two tokens."""


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


def pieces(attribution: Attribution) -> Iterator[Piece]:
    """Yield the text of an attribution as tokens and the gaps between them, in order."""
    position, segment = 0, 0
    for index, token in enumerate(attribution.tokens):
        here = int(attribution.segments[index])
        if here < 0:
            yield Piece(token, index)
            continue
        if here != segment:
            position, segment = 0, here
        source = (attribution.text, attribution.pair or "")[here]
        start, end = (int(x) for x in attribution.offsets[index])
        if start > position:
            yield Piece(source[position:start], None)
        # Tokens that share characters (bytes of one emoji) show them once, in the first of them.
        shown = source[max(start, position) : end]
        yield Piece(shown or "·", index)
        position = max(position, end)


def tokens_html(attribution: Attribution) -> str:
    """Return one line of coloured tokens; hovering a token shows its score."""
    largest = float(abs(attribution.scores).max(initial=0.0))
    parts = []
    for text, index in pieces(attribution):
        if index is None:
            parts.append(escape(text))
            continue
        score = float(attribution.scores[index])
        ink = "#fff" if dark(score, largest) else "#1a1a1a"
        size = "font-size:.72em;opacity:.75;" if attribution.segments[index] < 0 else ""
        parts.append(
            f'<span class="xattn-token" title="{escape(text)}: {score:+.4g}" style="{size}'
            f"background:rgb{rgb(score, largest)};color:{ink};border-radius:.2em;"
            f'padding:.08em .12em">{escape(text)}</span>'
        )
    return "".join(parts)


def page_fragment(attributions: Sequence[Attribution]) -> str:
    """Return the attributions of one or more texts as a table, one line a method."""
    rows, previous = [], None
    for item in attributions:
        key = (item.text, item.pair)
        if key != previous:
            rows.append(
                '<tr><td colspan="2" style="text-align:left;padding-top:.8em">'
                f"<b>{escape(item.prediction)}</b> ({item.probability:.1%}), "
                f"explained: {escape(item.target)}</td></tr>"
            )
            previous = key
        gap = "" if item.gap is None else f"; completeness gap {item.gap:+.2g}"
        rows.append(
            f'<tr><td style="text-align:right;white-space:nowrap;color:#666;padding-right:.8em"'
            f' title="{escape(str(dict(item.parameters)))}{gap}">{escape(item.method)}</td>'
            f'<td style="text-align:left;line-height:1.9">{tokens_html(item)}</td></tr>'
        )
    return f'<table style="border-collapse:collapse">{"".join(rows)}</table>'
