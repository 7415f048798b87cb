"""Attention maps whose pattern is known, because it was drawn: what names are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xattn.analysis.looking import Tokens, measure, numbers_of
from xattn.analysis.naming import NAMES, name
from xattn.types import Floats, Ints

PARTS = 5
"""Tokens of a sentence, at least."""
LEAST = 1e-6
"""Share of a row that goes to all visible tokens, as softmax would have it."""
Draw = np.random.Generator


@dataclass(frozen=True, eq=False)
class Drawn:
    """A map with a known pattern, and what its tokens are."""

    pattern: str
    map: Floats
    """``[query, key]``; rows sum to 1."""
    tokens: Tokens

    @property
    def named(self) -> str:
        """What its numbers say it is called."""
        sums = measure(
            torch.from_numpy(self.map)[None, None],
            self.tokens,
            self.tokens,
            slice(0, len(self.map)),
        )
        [(numbers, even)] = numbers_of(sums, self.tokens)
        return name(numbers, even)


def draw(pattern: str, length: int, generator: Draw, *, causal: bool, noise: float = 0.0) -> Drawn:
    """Draw a map.

    Parameters
    ----------
    pattern : str
        One of `xattn.analysis.naming.NAMES`.
    length : int
        Tokens, 8 or more: the first is special, and so is the last unless `causal`.
    generator : Generator
    causal : bool
        Whether tokens look back only.
    noise : float
        Share of each row that goes elsewhere: evenly, or to a few random tokens, as drawn.
    """
    if pattern not in NAMES:
        raise ValueError(f"{pattern!r} is none of {NAMES}")
    if length < 2 * PARTS - 2:
        raise ValueError(f"{length} tokens are too few for two sentences")
    visible = (
        np.tril(np.ones((length, length), bool)) if causal else np.ones((length, length), bool)
    )
    blocks = _sentences(length, generator, closed=not causal)
    separator = np.zeros(length, dtype=np.int64)
    separator[_separators(length, blocks, closed=not causal)] = 1
    wanted = _WAYS[pattern](length, separator, blocks, generator)
    rows = np.where(visible, wanted, 0.0)
    even = visible / visible.sum(1, keepdims=True)
    empty = rows.sum(1, keepdims=True) == 0  # the first token has no previous one: it rests
    rows = np.where(empty, even, rows / np.where(empty, 1, rows.sum(1, keepdims=True)))
    rows = (1 - LEAST) * rows + LEAST * even  # softmax hides no visible token altogether
    if noise:
        scattered = (
            generator.dirichlet(np.full(length, 0.3), size=length) * visible + 1e-9 * visible
        )
        scattered /= scattered.sum(1, keepdims=True)
        share = generator.choice([0.0, 0.5, 1.0])
        rows = (1 - noise) * rows + noise * (share * even + (1 - share) * scattered)
    return Drawn(pattern, rows, _tokens(length, separator, blocks))


def _sentences(length: int, generator: Draw, *, closed: bool) -> Ints:
    """Return the number of the sentence of each token; -1 for specials."""
    blocks = np.full(length, -1)
    first, last = 1, length - closed
    count = max(2, min(6, (last - first) // PARTS))
    borders = np.linspace(first, last, count + 1).round().astype(int)
    for number, (start, end) in enumerate(pairwise(borders)):
        blocks[start:end] = number
    return blocks


def _separators(length: int, blocks: Ints, *, closed: bool) -> list[int]:
    """Return where special tokens stand beside the first: the last, or one that all but few see."""
    if closed:
        return [length - 1]
    place = max(2, length // 10)
    blocks[place] = -1
    return [place]


def _tokens(length: int, separator: Ints, blocks: Ints) -> Tokens:
    flags = np.zeros(length, dtype=np.int64)
    first = flags.copy()
    first[0] = 1
    plain = np.arange(length)
    plain[(first + separator) > 0] = -1

    def row(values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values).astype(np.int64))[None]

    return Tokens(
        real=row(flags + 1), first=row(first), separator=row(separator), punctuation=row(flags),
        function_word=row(flags), rare=row(flags), words=row(plain), strings=row(plain),
        blocks=row(blocks),
    )  # fmt: skip


def _to(columns: Sequence[int] | Ints, length: int) -> Floats:
    wanted = np.zeros((length, length))
    wanted[:, columns] = 1.0
    return wanted


def _vertical(length: int, separator: Ints, blocks: Ints, generator: np.random.Generator) -> Floats:
    """Return attention to one early content token: one that causal rows see, too."""
    inside = np.flatnonzero(blocks >= 0)
    return _to([int(generator.choice(inside[: max(1, len(inside) // 4)]))], length)


def _sparse(length: int, separator: Ints, blocks: Ints, generator: np.random.Generator) -> Floats:
    """Return attention of each row to one or two tokens of its own, not its neighbours."""
    wanted = np.zeros((length, length))
    for row in range(length):
        far = np.flatnonzero((np.abs(np.arange(length) - row) > 1) & (blocks >= 0))
        seen = far[far < row] if len(far[far < row]) else far
        wanted[row, generator.choice(seen, size=min(len(seen), 2), replace=False)] = 1.0
    return wanted


def _mixed(length: int, separator: Ints, blocks: Ints, generator: np.random.Generator) -> Floats:
    """Return a part on the previous token, a part on the first one, and a part everywhere."""
    previous = np.eye(length, k=-1)
    return 0.4 * previous + 0.4 * _to([0], length) + 0.2 / length


_WAYS = {
    "diagonal": lambda length, *_: np.eye(length),
    "previous": lambda length, *_: np.eye(length, k=-1),
    "next": lambda length, *_: np.eye(length, k=1),
    "first-token sink": lambda length, *_: _to([0], length),
    "separator sink": lambda length, separator, *_: _to(np.flatnonzero(separator), length),
    "vertical": _vertical,
    "block": lambda length, separator, blocks, _: (
        1.0 * ((blocks[:, None] == blocks[None]) & (blocks >= 0)[:, None])
    ),
    "mixed": _mixed,
    "sparse": _sparse,
    "broad": lambda length, *_: np.ones((length, length)),
}


def confusion(count: int, noise: float, seed: int = 0) -> Floats:
    """Return how often maps of each pattern are called what, ``[drawn, called]`` as in `NAMES`.

    Parameters
    ----------
    count : int
        Maps of each pattern, half of them causal, of 8 to 128 tokens.
    noise : float
        The largest share of noise; it is drawn evenly from 0 up to that.
    seed : int
    """
    generator = np.random.default_rng(seed)
    table = np.zeros((len(NAMES), len(NAMES)))
    for row, pattern in enumerate(NAMES):
        for number in range(count):
            causal = bool(number % 2) and pattern != "next"
            length = int(generator.integers(8, 129))
            drawn = draw(
                pattern, length, generator, causal=causal, noise=noise * generator.random()
            )
            table[row, NAMES.index(drawn.named)] += 1
    return table
