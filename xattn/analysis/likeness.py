"""How alike the maps of a teacher and a student are, and which of their layers and heads match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from xattn.analysis.matching import How, halves, match
from xattn.analysis.similarity import MEASURES
from xattn.analysis.word_maps import Layer
from xattn.evaluation.statistics import mean_known
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
                    kept[:, use, t, s] = mean_known(
                        block[..., list(pairs.values()), list(pairs)], axis=-1
                    )
        return kept

    @cached_property
    def whole(self) -> Floats:
        """``[measure, text]``: the mean of the student's layers, each against its own.

        Layers are matched as heads are, on other texts. Those that are left over do not count.
        """
        kept = np.full((*self.values.shape[:2], len(self.student)), np.nan)
        for fit, use in halves(self.values.shape[1]):
            for s, t in self.matched_layers(fit).items():
                kept[:, use, s] = self.by_layer[:, use, t, s]
        return mean_known(kept, axis=-1)

    def matched_heads(self, t: int, s: int, texts: Ints | None = None) -> dict[int, int]:
        """Return the teacher's head for each of the student's, in two layers; on all texts.

        None where layers of two stacks, or that read no word, cannot be compared.
        """
        costs = self._costs(t, s, texts)
        return {} if np.isnan(costs).any() else match(costs, self.heads)

    def matched_layers(self, texts: Ints | None = None) -> dict[int, int]:
        """Return the teacher's layer for each of the student's, on all texts; within stacks."""
        costs = np.full((len(self.teacher), len(self.student)), np.nan)
        for t, s in np.ndindex(costs.shape):
            pairs = self.matched_heads(t, s, texts)
            if pairs:
                costs[t, s] = self._costs(t, s, texts)[list(pairs.values()), list(pairs)].mean()
        if not isinstance(self.layers, str):
            return match(costs, self.layers)
        found = {}
        for stack in dict.fromkeys(layer.stack for layer in self.student):
            rows, columns = (
                [i for i, layer in enumerate(side) if layer.stack == stack]
                for side in (self.teacher, self.student)
            )
            block = costs[np.ix_(rows, columns)]
            if rows and not np.isnan(block).any():
                pairs = match(block, self.layers)
                found.update({columns[s]: rows[t] for s, t in pairs.items()})
        return found

    def _costs(self, t: int, s: int, texts: Ints | None) -> Floats:
        """Return the mean Jensen-Shannon divergence of heads over texts, ``[teacher, student]``."""
        js = self._block(t, s)[MEASURES.index("js")]
        if self.teacher[t].stack != self.student[s].stack:
            return np.full(js.shape[1:], np.nan)
        return mean_known(js if texts is None else js[texts])

    def _block(self, t: int, s: int) -> Floats:
        """Return ``[measure, text, head, head]`` of two layers."""
        first, last = _places(self.teacher)[t]
        start, stop = _places(self.student)[s]
        return self.values[:, :, first:last, start:stop]


def _places(layers: Sequence[Layer]) -> list[tuple[int, int]]:
    ends = np.cumsum([layer.heads for layer in layers]).tolist()
    return [(end - layer.heads, end) for layer, end in zip(layers, ends, strict=True)]
