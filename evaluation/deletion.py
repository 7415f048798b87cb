"""One deletion experiment: the inputs that it needs and what their scores say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xattn.evaluation.curves import eraser_counts, kept, steps
from xattn.evaluation.faithfulness import Measurement
from xattn.model import Model
from xattn.model.operators import Operator
from xattn.model.scorer import Scorer
from xattn.types import Curve, Encoding, Floats, Ints, Row


@dataclass(frozen=True, eq=False)
class Deletion:
    """What shall be measured: one text, one operator, one order for each direction."""

    encoding: Encoding
    operator: Operator
    label: int
    """The class whose probability is watched."""
    morf: Ints
    """``[n]``: all removable positions, the most relevant first."""
    lerf: Ints
    """``[n]``: all removable positions, the least relevant first."""

    def inputs(self, model: Model) -> list[Row]:
        """Return the inputs whose scores `measurement` needs."""
        n, length = len(self.morf), len(self.encoding)
        grid, tops = steps(n), eraser_counts(n)
        keep = [
            kept(length, self.morf, np.concatenate([grid, tops])),
            kept(length, self.lerf, np.concatenate([grid, n - tops])),
        ]
        return self.operator(model, self.encoding.row, np.concatenate(keep))

    def measurement(self, scores: Floats) -> Measurement:
        """Return what the scores of `inputs` say."""
        n = len(self.morf)
        grid = steps(n)
        morf, lerf = np.split(scores, 2)
        points = len(grid)
        return Measurement(
            morf=Curve(grid / n, morf[:points]),
            lerf=Curve(grid / n, lerf[:points]),
            without_top=morf[points:],
            only_top=lerf[points:],
        )


def measure(scorer: Scorer, deletions: Sequence[Deletion]) -> list[Measurement]:
    """Score the inputs of all deletions together and return one measurement for each."""
    inputs = [deletion.inputs(scorer.model) for deletion in deletions]
    rows = [row for group in inputs for row in group]
    labels = [d.label for d, group in zip(deletions, inputs, strict=True) for _ in group]
    ends = np.cumsum([len(group) for group in inputs])
    parts = np.split(scorer.scores(rows, labels), ends[:-1])
    return [d.measurement(part) for d, part in zip(deletions, parts, strict=True)]
