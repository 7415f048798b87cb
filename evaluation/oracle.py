"""The greedy oracle: how good or bad a removal order can be, found by trying.

At each step every remaining token is removed by itself, and the one whose removal lowers the score
most goes first (for the MoRF order; raises it most, or lowers it least, for the LeRF order).
Texts of more than `xattn.evaluation.curves.STEPS` tokens lose as many tokens a step as their curve
does: the block of those with the strongest effect alone, the strongest first. The cost is at most
``STEPS · n`` inputs for ``n`` tokens instead of ``n² / 2``.

This is a yardstick, not a bound: a greedy search sees one step ahead, and a method can beat it.
(Edin et al. 2025, Normalized AOPC, use a beam search for the same purpose.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from xattn.evaluation.curves import steps
from xattn.model.operators import Operator
from xattn.model.scorer import Scorer
from xattn.types import Bools, Encoding, Floats, Ints, Row


@dataclass(eq=False)
class Search:
    """The search for one order of one text."""

    encoding: Encoding
    operator: Operator
    label: int
    """The class whose probability is watched."""
    lowest_first: bool
    """True for the MoRF order (lower the score), False for the LeRF order (keep it up)."""
    order: list[int] = field(default_factory=list)
    """Positions in the order found so far."""

    def __post_init__(self) -> None:
        self.remaining: Ints = self.encoding.removable
        self.blocks: Iterator[int] = iter(np.diff(steps(len(self.remaining))).tolist())

    def candidates(self) -> Bools:
        """Return what is kept when one more token goes, for each remaining one: ``[n, token]``."""
        keep = np.ones((len(self.remaining), len(self.encoding)), dtype=bool)
        keep[:, self.order] = False
        keep[np.arange(len(self.remaining)), self.remaining] = False
        return keep

    def advance(self, scores: Floats) -> None:
        """Remove the next block, given the scores ``[n]`` of the candidates."""
        ranked = np.argsort(scores if self.lowest_first else -scores, kind="stable")
        block = ranked[: next(self.blocks)]
        self.order += self.remaining[block].tolist()
        self.remaining = np.delete(self.remaining, block)


def run(scorer: Scorer, searches: Sequence[Search]) -> list[Ints]:
    """Complete all searches, step by step side by side, so that the model gets large batches.

    Parameters
    ----------
    scorer : Scorer
    searches : sequence of Search
        New ones; their `order` is filled.

    Returns
    -------
    list of int arrays
        The order of each search: all removable positions, ``[n]``.
    """
    while active := [s for s in searches if len(s.remaining)]:
        rows: list[Row] = []
        labels: list[int] = []
        for search in active:
            rows += search.operator(scorer.model, search.encoding.row, search.candidates())
            labels += [search.label] * len(search.remaining)
        scores = scorer.scores(rows, labels)
        ends = np.cumsum([len(s.remaining) for s in active])
        for search, part in zip(active, np.split(scores, ends[:-1]), strict=True):
            search.advance(part)
    return [np.array(search.order, dtype=np.int64) for search in searches]
