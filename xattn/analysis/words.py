"""The words that two models have in common in a text, whatever pieces their tokenizers cut it in.

Attention is carried from tokens to words as Clark et al. 2019 do (What Does BERT Look at?, section
4.1): attention *to* a word is the sum of that to its tokens, attention *from* a word the mean of
that from its tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from xattn.errors import InputError
from xattn.types import Encoding, Floats
from xattn.units import groups

FEWEST = 2
"""With fewer words than this there is nothing to look at."""


@dataclass(frozen=True)
class Word:
    """A stretch of text that is whole words for both models, or special tokens in one place."""

    name: str
    first: tuple[int, ...]
    """Its tokens in one encoding."""
    second: tuple[int, ...]
    """Its tokens in the other."""
    special: bool
    """Whether it is special tokens."""


def shared_words(first: Encoding, second: Encoding) -> list[Word]:
    """Return the words of a text that two encodings share, in the order of the first.

    Words that overlap without being the same (one tokenizer splits at hyphens) are taken together.
    Special tokens are held against those in the same place: before the text, between text and pair,
    behind. What only one encoding has (special tokens, what the other cuts off) is left out.

    Parameters
    ----------
    first, second : Encoding
        Of the same text, by two tokenizers.

    Raises
    ------
    InputError
        For a picture, or if fewer than `FEWEST` words are shared.
    """
    if first.picture is not None or second.picture is not None:
        raise InputError(
            "words of two models",
            got="a picture",
            expected="a text: patches are aligned by nothing but their place",
        )
    starts = {s: _starts(first, second, s) for s in (0, 1)}
    one, other = (_members(item, starts) for item in (first, second))
    words = []
    for key, tokens in one.items():
        if key in other:
            special = bool(first.segments[tokens[0]] < 0)
            words.append(Word(_name(first, tokens), tuple(tokens), tuple(other[key]), special))
    if sum(not word.special for word in words) < FEWEST:
        raise InputError(
            f"the tokenizers find too little in common in {first.text[:40]!r}",
            got=", ".join(word.name for word in words) or "no word",
            expected=f"{FEWEST} words or more",
            remedy="give longer texts, or models that read the same characters",
        )
    return words


def _starts(first: Encoding, second: Encoding, segment: int) -> list[int]:
    """Return where the common words of a segment begin: words that overlap become one."""
    spans = sorted(
        (int(item.offsets[members, 0].min()), int(item.offsets[members, 1].max()))
        for item in (first, second)
        for members in groups(item, "word")
        if item.segments[members[0]] == segment
        and item.offsets[members, 0].min() < item.offsets[members, 1].max()
    )
    starts: list[int] = []
    end = -1
    for start, stop in spans:
        word = _source(first, segment)[start:stop]
        start += len(word) - len(word.lstrip())  # some tokenizers give words the space before
        if start >= end:
            starts.append(start)
        end = max(end, stop)
    return starts


def _members(item: Encoding, starts: dict[int, list[int]]) -> dict[Hashable, list[int]]:
    """Return the tokens of each common word, and of the special tokens of each place."""
    found: dict[Hashable, list[int]] = {}
    behind = -1  # the segment that the special tokens stand behind
    for token, segment in enumerate(item.segments.tolist()):
        stream = int(item.streams[token])
        if segment < 0:
            found.setdefault(("special", stream, behind), []).append(token)
            continue
        behind = segment
        last = max(int(item.offsets[token, 1]) - 1, int(item.offsets[token, 0]))
        number = int(np.searchsorted(starts[segment], last, side="right"))
        found.setdefault((segment, stream, max(number, 1)), []).append(token)
    return found


def _source(item: Encoding, segment: int) -> str:
    return item.text if segment == 0 else item.pair or ""


def _name(item: Encoding, tokens: list[int]) -> str:
    if item.segments[tokens[0]] < 0:
        return " ".join(item.tokens[i] for i in tokens)
    start, end = item.offsets[tokens, 0].min(), item.offsets[tokens, 1].max()
    return _source(item, int(item.segments[tokens[0]]))[start:end].strip()


def membership(parts: Sequence[tuple[int, ...]], tokens: int) -> Floats:
    """Return ``[word, token]``: 1 where a token belongs to a word.

    Examples
    --------
    >>> membership([(0,), (1, 2)], 4)
    array([[1., 0., 0., 0.],
           [0., 1., 1., 0.]])
    """
    table = np.zeros((len(parts), tokens))
    for row, members in enumerate(parts):
        table[row, list(members)] = 1
    return table
