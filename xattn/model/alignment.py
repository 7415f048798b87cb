"""Where tokens stand in a text, for tokenizers that do not say it.

A tokenizer written in Python ("slow") gives tokens without offsets. Its own way back from tokens to
text says how far each token reaches: decode longer and longer prefixes. What is spelled that way
must be the text, white space aside, exactly or up to case, or up to accents and compatible forms;
unknown tokens stand for what is left between their neighbours. Everything else is refused: an
explanation on wrong words is worse than none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from itertools import groupby, takewhile
from typing import Any, NamedTuple

import numpy as np

from xattn.errors import InputError
from xattn.types import Ints

Fold = Callable[[str], str]


def _bare(character: str) -> str:
    """Return a character as tokenizers compare it: no case, accents, variants, control signs."""
    parts = unicodedata.normalize("NFKD", character.lower())
    return "".join(
        p for p in parts if unicodedata.category(p) != "Mn" and unicodedata.category(p)[0] != "C"
    ).replace("\ufffd", "")


# What tokenizers do to single characters, least first.
FOLDS: tuple[Fold, ...] = (str, str.lower, _bare)


class Piece(NamedTuple):
    """What one token adds to the text, white space left out."""

    text: str | None
    """None for an unknown token, which stands for one character or more."""
    partial: bool = False
    """Whether it is one of the first bytes of the character that comes next."""


def align(tokenizer: Any, tokens: Sequence[str], text: str) -> Ints:
    """Return where each token stands in the text.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
        Only its ``convert_tokens_to_string`` and the names of its special tokens are used.
    tokens : sequence of str
        What ``tokenize`` made of the text, without added special tokens.
    text : str

    Returns
    -------
    Ints
        ``[token, 2]``: first and one-past-last character. Tokens that share a character (its bytes)
        and unknown tokens in a row share their span; tokens of nothing but space have an empty one.

    Raises
    ------
    InputError
        If the tokens do not spell the text, or in more than one way.
    """
    pieces = _pieces(tokenizer, tokens)
    for fold in FOLDS:
        places = [i for i, c in enumerate(text) for _ in _squeezed(fold(c))]
        spans = _spans(pieces, fold, "".join(_squeezed(fold(c)) for c in text))
        if spans is not None:
            ends = [0, *(place + 1 for place in places)]
            return np.array(
                [
                    (places[start] if start < end else ends[start], ends[end])
                    for start, end in spans
                ],
                dtype=np.int64,
            ).reshape(-1, 2)
    raise InputError(
        "the tokens do not spell the text, so where they stand is not known",
        got=" ".join(tokens)[:60],
        expected="the text, up to case, accents and unknown tokens, in one way only",
        remedy="use a fast tokenizer of this model, or leave out unusual characters",
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _agreement(one: str, other: str) -> int:
    """Return how many characters two strings begin with together."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _pieces(tokenizer: Any, tokens: Sequence[str]) -> list[Piece]:
    """Say what each token adds to the text, by decoding longer and longer prefixes."""
    named = set(tokenizer.all_special_tokens)
    pieces: list[Piece] = []
    for name, group in groupby(tokens, key=lambda token: token if token in named else None):
        run = list(group)
        if name is not None:
            pieces += [Piece(None if name == tokenizer.unk_token else _squeezed(name))] * len(run)
            continue

        def spelled(tokens: list[str]) -> str:
            return _squeezed(tokenizer.convert_tokens_to_string(tokens))

        whole, done = spelled(run), 0
        for i in range(len(run)):
            # a prefix may end within a character, which then reads as a replacement sign
            reached = max(done, _agreement(spelled(run[: i + 1]), whole))
            partial = reached == done and spelled(run[:i] + run[i + 1 :]) != whole
            pieces.append(Piece(whole[done:reached], partial))
            done = reached
    return pieces


def _spans(pieces: Sequence[Piece], fold: Fold, whole: str) -> list[tuple[int, int]] | None:
    """Return the span of each piece in the folded text, or None if it does not read that way."""
    folded = ["" if p.text is None else "".join(map(fold, p.text)) for p in pieces]
    blocks: list[list[int]] = [[]]  # spelled tokens, unknown ones, spelled ones, and so on
    for i, piece in enumerate(pieces):
        hidden, inside = piece.text is None, len(blocks) % 2 == 0
        if hidden != inside and (hidden or folded[i]):
            blocks.append([])
        blocks[-1].append(i)
    if len(blocks) % 2 == 0:
        blocks.append([])
    known = ["".join(folded[i] for i in block) for block in blocks[::2]]
    gaps = [sum(pieces[i].text is None for i in block) for block in blocks[1::2]]
    starts = _located(known, gaps, whole)
    if starts is None:
        return None
    spans: list[tuple[int, int]] = []
    for number, block in enumerate(blocks):
        position = starts[number // 2]
        if number % 2:
            begin, end = position + len(known[number // 2]), starts[number // 2 + 1]
            spans += [(begin, begin if pieces[i].text == "" else end) for i in block]
            continue
        for i in block:
            end = position + len(folded[i])
            spans.append((position, min(position + 1, len(whole)) if pieces[i].partial else end))
            position = end
    return spans


def _located(known: list[str], gaps: list[int], whole: str) -> list[int] | None:
    """Return where each known part begins, if there is exactly one way to place them all.

    Parameters
    ----------
    known : list of str
        Parts in order; the first begins the whole and the last ends it.
    gaps : list of int
        The least number of characters between one part and the next.
    whole : str
    """
    last = len(whole) - len(known[-1])
    if not (whole.startswith(known[0]) and whole.endswith(known[-1])):
        return None
    first, final = [0], [last]
    for part, gap in zip(known[1:-1], gaps, strict=False):  # each as early as it can be
        first.append(whole.find(part, first[-1] + len(known[len(first) - 1]) + gap))
        if first[-1] < 0:
            return None
    for part, gap in zip(known[-2:0:-1], gaps[::-1], strict=False):  # each as late as it can be
        final.insert(0, whole.rfind(part, 0, max(0, final[0] - gap)))
    if len(known) == 1:
        return [0] if known[0] == whole else None
    first.append(last)
    final.insert(0, 0)
    room = first[-1] - first[-2] - len(known[-2])
    return first if first == final and room >= gaps[-1] else None
