"""Units: tokens grouped into words, sentences, or spans of characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from xattn.errors import InputError

Ints = npt.NDArray[np.int64]
Unit = Literal["token", "word", "sentence", "span"]
Groups = list[list[int]]
"""The tokens of each unit, in order."""
SENTENCE_END = re.compile(r"[.!?…][\"')\]”’]*(?=\s)")


class Tokenized(Protocol):
    """A text in tokens: an encoding or an attribution."""

    @property
    def text(self) -> str:
        """The text."""
        ...

    @property
    def pair(self) -> str | None:
        """The second text of a pair, or None."""
        ...

    @property
    def offsets(self) -> Ints:
        """``[token, 2]``: characters in the token's text."""
        ...

    @property
    def segments(self) -> Ints:
        """``[token]``: 0 text, 1 pair, others for what is neither."""
        ...

    @property
    def word_ids(self) -> Ints:
        """``[token]``: word within its segment."""
        ...


def groups(item: Tokenized, unit: Unit | Sequence[tuple[int, int]]) -> Groups:
    """Return the tokens of each unit.

    Parameters
    ----------
    item : Tokenized
    unit : {"token", "word", "sentence"} or sequence of (int, int)
        Spans of characters of the text otherwise.

    Raises
    ------
    InputError
        For another name, or a span that cannot be used.
    """
    if not isinstance(unit, str):
        return span_groups(item, unit)
    if unit not in ("token", "word", "sentence"):
        raise InputError("unit", got=repr(unit), expected="token, word, sentence or spans")
    count = len(item.segments)
    if unit == "token":
        return [[i] for i in range(count)]
    sentences = _sentence_numbers(item) if unit == "sentence" else np.zeros(count, dtype=np.int64)
    found: Groups = []
    previous: tuple[Any, ...] | None = None
    for i in range(count):
        segment = int(item.segments[i])
        inner = int(sentences[i]) if unit == "sentence" else int(item.word_ids[i])
        # special tokens stand alone; patches are words but belong to no sentence
        alone = segment < 0 or (unit == "sentence" and segment not in (0, 1))
        key = (segment, inner)
        if found and not alone and key == previous:
            found[-1].append(i)
        else:
            found.append([i])
        previous = None if alone else key
    return found


def _sentence_numbers(item: Tokenized) -> Ints:
    """Return how many sentences of its text have ended before each token.

    A sentence ends behind ``.``, ``!``, ``?`` or ``…`` and closing quotes, before white space.
    """
    ends = [
        np.array([match.end() for match in SENTENCE_END.finditer(source)], dtype=np.int64)
        for source in (item.text, item.pair or "")
    ]
    numbers = np.zeros(len(item.segments), dtype=np.int64)
    for segment in (0, 1):
        here = item.segments == segment
        numbers[here] = np.searchsorted(ends[segment], item.offsets[here, 0], side="right")
    return numbers


def span_groups(item: Tokenized, spans: Sequence[tuple[int, int]], segment: int = 0) -> Groups:
    """Return the tokens of each span of characters; those that touch none stay alone.

    Parameters
    ----------
    item : Tokenized
    spans : sequence of (int, int)
        First and one-past-last character of each, in the text (`segment` 0) or pair (1).
    segment : {0, 1}

    Raises
    ------
    InputError
        For a span outside the text, without a token, or that shares a token with another.
    """
    source = (item.text, item.pair or "")[segment]
    owner = np.full(len(item.segments), -1)
    for number, (start, end) in enumerate(spans):
        if not 0 <= start < end <= len(source):
            raise InputError(
                f"span {number}",
                got=f"characters {start} to {end}",
                expected=f"a part of the {len(source)} characters of the text",
            )
        touched = item.segments == segment
        touched &= (item.offsets[:, 0] < end) & (item.offsets[:, 1] > start)
        if not touched.any() or (owner[touched] >= 0).any():
            raise InputError(
                f"span {number}, {source[start:end]!r},",
                got="no token" if not touched.any() else "a token of another span",
                expected="tokens of its own",
            )
        owner[touched] = number
    found: Groups = []
    for i, number in enumerate(owner.tolist()):
        if number >= 0 and found and owner[found[-1][0]] == number:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def numbered(found: Groups, count: int) -> Ints:
    """Return the number of each token's unit, ``[token]``.

    Examples
    --------
    >>> numbered([[0], [1, 2], [3]], 4)
    array([0, 1, 1, 2])
    """
    numbers = np.empty(count, dtype=np.int64)
    for number, members in enumerate(found):
        numbers[members] = number
    return numbers
