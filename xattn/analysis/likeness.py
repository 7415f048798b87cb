"""How alike the maps of a teacher and a student are, and which of their layers and heads match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from xattn.analysis.matching import How, halves, match
from xattn.analysis.similarity import MEASURES
from xattn.analysis.word_maps import Layer
from xattn.types import Floats, Ints


@dataclass(frozen=True, eq=False)
class Likeness:
    """How alike the maps of a teacher and a student are, head by head and text by text."""

    teacher: tuple[Layer, ...]
    student: tuple[Layer, ...]
    values: Floats = field(repr=False)
    """``[measure, text, teacher's head, student's head]``, heads of all layers in a row."""
    layers: How = "best"
    heads: How = "best"

    @cached_property
    def by_layer(self) -> Floats:
        """``[measure, text, teacher's layer, student's layer]``: the mean of matched heads.

        Heads are matched on other texts than they are compared on; see `halves`.
        """
        kept = np.full((*self.values.shape[:2], len(self.teacher), len(self.student)), np.nan)
        for fit, use in halves(self.values.shape[1]):
            for t, s in np.ndindex(kept.shape[2:]):
                pairs = self.matched_heads(t, s, fit)
                if pairs:
                    block = self._block(t, s)[:, use]
                    kept[:, use, t, s] = block[..., list(pairs.values()), list(pairs)].mean(-1)
        return kept

    @cached_property
    def by_student_layer(self) -> Floats:
        """``[measure, text, student's layer]``: against the layer it belongs to, matched likewise.

        Nan for layers that are left over.
        """
        kept = np.full((*self.values.shape[:2], len(self.student)), np.nan)
        for fit, use in halves(self.values.shape[1]):
            for s, t in self.matched_layers(fit).items():
                kept[:, use, s] = self.by_layer[:, use, t, s]
        return kept

    @property
    def whole(self) -> Floats:
        """``[measure, text]``: the mean of the student's layers that belong to one."""
        known = ~np.isnan(self.by_student_layer).all((0, 1))
        found: Floats = self.by_student_layer[:, :, known].mean(-1)
        return found

    def matched_heads(self, t: int, s: int, texts: Ints | None = None) -> dict[int, int]:
        """Return the teacher's head for each of the student's, in two layers; on all texts."""
        if self.teacher[t].stack != self.student[s].stack:
            return {}
        return match(self._cost(self._block(t, s), texts), self.heads)

    def matched_layers(self, texts: Ints | None = None) -> dict[int, int]:
        """Return the teacher's layer for each of the student's, on all texts; within stacks."""
        costs = self._cost(self.by_layer, texts)
        if not isinstance(self.layers, str):
            return match(costs, self.layers)
        found = {}
        for stack in dict.fromkeys(layer.stack for layer in self.student):
            rows, columns = (
                [i for i, layer in enumerate(side) if layer.stack == stack]
                for side in (self.teacher, self.student)
            )
            if rows:
                pairs = match(costs[np.ix_(rows, columns)], self.layers)
                found.update({columns[s]: rows[t] for s, t in pairs.items()})
        return found

    def _block(self, t: int, s: int) -> Floats:
        """Return ``[measure, text, head, head]`` of two layers."""
        first, last = _places(self.teacher)[t]
        start, stop = _places(self.student)[s]
        return self.values[:, :, first:last, start:stop]

    @staticmethod
    def _cost(values: Floats, texts: Ints | None) -> Floats:
        """Return the mean Jensen-Shannon divergence over texts."""
        js = values[MEASURES.index("js")]
        chosen: Floats = (js if texts is None else js[texts]).mean(0)
        return chosen


def _places(layers: Sequence[Layer]) -> list[tuple[int, int]]:
    ends = np.cumsum([layer.heads for layer in layers]).tolist()
    return [(end - layer.heads, end) for layer, end in zip(layers, ends, strict=True)]
