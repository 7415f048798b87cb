"""The unit of work: a block of texts, what is known of it, and what was found out about it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from xattn.data import Span
from xattn.types import Attribution


@dataclass(frozen=True)
class Block:
    """Texts that are worked on together."""

    first: int
    """The number of the first text in its data set."""
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None = None
    rationales: tuple[tuple[Span, ...], ...] | None = None
    pool: tuple[str, ...] = ()
    """Texts of the whole data set, the same for all its blocks, to draw tokens from."""

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, part: slice) -> Block:
        """Return some of the texts."""
        start, _, _ = part.indices(len(self))
        return Block(
            self.first + start,
            self.texts[part],
            None if self.pairs is None else self.pairs[part],
            None if self.rationales is None else self.rationales[part],
            self.pool,
        )


Worth = tuple[int, int, str, str]
"""Text, aim, operator, quantity: which game."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a block before it is measured."""

    attributions: Mapping[tuple[int, int, str], Attribution] = field(default_factory=dict)
    """By text, aim and method."""
    worths: Mapping[Worth, Mapping[bytes, float]] = field(default_factory=dict)
    """Of each game the worths by the packed bits of their coalitions."""


NOTHING = Known()


@dataclass(eq=False)
class Findings:
    """What was found out about a block: rows of tables, plain values."""

    examples: list[tuple[int, int, str, str, float | None]] = field(default_factory=list)
    """text, aim, target in words, prediction, its probability"""
    attributions: list[tuple[int, int, Attribution]] = field(default_factory=list)
    """text, aim, explanation, which has the method's name in results"""
    scores: list[tuple[int, int, str, str, str, float]] = field(default_factory=list)
    """text, aim, method, operator, metric, value"""
    curves: list[tuple[int, int, str, str, str, float, float]] = field(default_factory=list)
    """text, aim, method, operator, order, fraction, score"""
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    """text, method or nothing, what went wrong"""
    worths: list[tuple[int, int, str, str, bytes, bytes]] = field(default_factory=list)
    """text, aim, operator, quantity; coalitions as packed bits and their worths as float64"""
    asked: int = 0
    """Coalitions that were asked for."""
    run: int = 0
    """Inputs that went through the model."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: Findings) -> None:
        """Take over what was found out about other texts."""
        for name in ("examples", "attributions", "scores", "curves", "failures", "worths"):
            getattr(self, name).extend(getattr(other, name))
        self.asked, self.run = self.asked + other.asked, self.run + other.run
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
