"""Marks: named sets of tokens that travel with an encoding, so that edits find them in any batch.

A mark is one more ``[token]`` array of an encoding's row, 1 where a token is meant and 0 elsewhere.
Whatever pads, cuts, permutes or repeats the model's own arrays does the same to the mark, so it
stays right where positions would not. The network never sees it: only the arrays that its
``forward`` names are handed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xattn.errors import InputError
from xattn.types import Bools, Encoding

PREFIX = "mark:"
"""What the names of marks begin with among the arrays of a row. In an encoder-decoder, marks of
the target text begin with ``decoder_mark:``, as its ids are called ``decoder_input_ids``."""


def names(row: Mapping[str, Any], side: str = "") -> list[str]:
    """Return the names of the marks in a row (or batch of inputs), sorted."""
    prefix = side + PREFIX
    return sorted(name.removeprefix(prefix) for name in row if name.startswith(prefix))


def mark(
    encoding: Encoding,
    name: str,
    *,
    words: str | Iterable[str] | None = None,
    spans: Iterable[tuple[int, int]] | None = None,
    positions: Iterable[int] | None = None,
    segment: int | None = None,
    whole: bool = True,
    ignore_case: bool = False,
) -> Encoding:
    """Return the encoding with some of its tokens marked; a mark of the same name is replaced.

    What is chosen in several ways at once is united.

    Parameters
    ----------
    encoding : Encoding
    name : str
        What interventions call these tokens.
    words : str or iterable of str, optional
        Words or phrases; every occurrence counts, overlapping ones too.
    spans : iterable of (int, int), optional
        First and one-past-last character; a token counts if it shares a character with a span.
    positions : iterable of int, optional
        Places of tokens in the encoding, special ones included; negative ones count from its end.
    segment : {0, 1}, optional
        The text or its pair. Alone: all tokens of that segment. With `words`: look only there (in
        both by default). With `spans`: the text that the characters are counted in (0 by default).
    whole : bool
        Whether `words` must stand by themselves ("art" is not in "party").
    ignore_case : bool
        Whether `words` match in upper and lower case alike.

    Raises
    ------
    InputError
        If nothing is chosen, or something chosen is outside the text, empty, not found, or hits
        no token.

    Examples
    --------
    >>> import xattn
    >>> [encoding] = xattn.load().encode(["Dull, dull, DULL!"])
    >>> encoding = mark(encoding, "dull", words="dull")
    >>> [t for t, m in zip(encoding.tokens, encoding.row["mark:dull"]) if m]
    ['dull']
    """
    if not name or not isinstance(name, str):
        raise InputError("a mark needs a name", got=repr(name))
    if segment not in (None, 0, 1) or (segment == 1 and encoding.pair is None):
        raise InputError(
            f"the segment of mark {name!r}",
            got=repr(segment),
            expected="0" if encoding.pair is None else "0 or 1",
        )
    chosen = np.zeros(len(encoding), dtype=bool)
    if words is not None:
        for phrase in (words,) if isinstance(words, str) else words:
            chosen |= _phrase(encoding, name, phrase, segment, whole, ignore_case)
    if spans is not None:
        for span in spans:
            chosen |= _span(encoding, name, span, segment or 0)
    if positions is not None:
        for position in positions:
            chosen[_position(encoding, name, position)] = True
    if words is None and spans is None and positions is None and segment is not None:
        chosen = encoding.segments == segment
    if not chosen.any():
        raise InputError(
            f"mark {name!r} chooses no token",
            expected="words, spans, positions or a segment that hold one",
        )
    flags = chosen.astype(np.int64)
    row = {**encoding.row, PREFIX + name: flags[encoding.streams == 0]}
    if len(encoding.widths) > 1:
        row[f"decoder_{PREFIX}{name}"] = flags[encoding.streams == 1]
    return replace(encoding, row=row)


def _phrase(
    encoding: Encoding, name: str, phrase: str, segment: int | None, whole: bool, ignore_case: bool
) -> Bools:
    """Return the tokens of all occurrences of a phrase, ``[token]``."""
    if not isinstance(phrase, str) or not phrase.strip():
        raise InputError(f"a word of mark {name!r} is empty", got=repr(phrase))
    literal = re.escape(phrase.strip())
    inside = rf"(?=({literal}))"  # looking ahead finds occurrences that overlap, too
    pattern = rf"(?<!\w)(?=({literal})(?!\w))" if whole else inside
    flags = re.IGNORECASE if ignore_case else 0
    texts = [(0, encoding.text), *([] if encoding.pair is None else [(1, encoding.pair)])]
    texts = [(s, text) for s, text in texts if segment in (None, s)]
    found = [
        (s, (match.start(1), match.end(1)))
        for s, text in texts
        for match in re.finditer(pattern, text, flags)
    ]
    if not found:
        remedies = {
            "match parts of words, too (whole=False)": whole
            and any(re.search(inside, text, flags) for _, text in texts),
            "match upper and lower case alike (ignore_case=True)": not ignore_case
            and any(re.search(pattern, text, flags | re.IGNORECASE) for _, text in texts),
        }
        raise InputError(
            f"mark {name!r}: {phrase!r} is not in the text",
            got=repr(texts[0][1][:60]),
            remedy=next((remedy for remedy, helps in remedies.items() if helps), ""),
        )
    hits = [_overlap(encoding, s, span) for s, span in found]
    if not any(hit.any() for hit in hits):
        raise _without_token(name, phrase)
    together: Bools = np.any(hits, axis=0)
    return together


def _span(encoding: Encoding, name: str, span: tuple[int, int], segment: int) -> Bools:
    """Return the tokens that share a character with a span, ``[token]``."""
    text = encoding.text if segment == 0 else encoding.pair or ""
    start, end = span
    if not 0 <= start < end <= len(text):
        raise InputError(
            f"a span of mark {name!r} "
            + ("is empty" if start == end else "is outside the text or runs backwards"),
            got=f"({start}, {end})",
            expected=f"0 <= start < end <= {len(text)}",
        )
    hit = _overlap(encoding, segment, span)
    if not hit.any():
        raise _without_token(name, text[start:end])
    return hit


def _overlap(encoding: Encoding, segment: int, span: tuple[int, int]) -> Bools:
    starts, ends = encoding.offsets[:, 0], encoding.offsets[:, 1]
    shared: Bools = np.minimum(ends, span[1]) > np.maximum(starts, span[0])
    shared &= encoding.segments == segment
    return shared


def _without_token(name: str, characters: str) -> InputError:
    return InputError(
        f"mark {name!r}: no token of the model holds these characters",
        got=repr(characters),
        remedy="choose characters that are not white space and were not cut off",
    )


def _position(encoding: Encoding, name: str, position: int) -> int:
    count = len(encoding)
    if not -count <= position < count:
        raise InputError(
            f"a position of mark {name!r} is outside the text",
            got=str(position),
            expected=f"{-count} to {count - 1}",
        )
    return position


def check_same(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows that differ in their marks: a batch would drop or invent them.

    Raises
    ------
    InputError
    """
    for row in rows:
        if row.keys() != rows[0].keys():
            raise InputError(
                "the texts of a batch must carry the same marks",
                got=f"{sorted(rows[0])} and {sorted(row)}",
                remedy="mark all of them, or run them one by one",
            )
