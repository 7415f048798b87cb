"""The scorer: every input goes through the model once, however often it is asked for.

Removing tokens by different methods, orders and fractions leads to the same inputs again and
again. They are told apart by their content, not by where they came from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xattn.model import Model
from xattn.model.batching import buckets
from xattn.types import Row, Target


class Scorer:
    """Scores inputs and remembers them until `clear`.

    Parameters
    ----------
    model : Model

    Attributes
    ----------
    asked : int
        Inputs that were asked for so far.
    run : int
        Inputs that went through the model so far.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.asked = 0
        self.run = 0
        self.clear()

    def clear(self) -> None:
        """Forget all inputs; the counts stay."""
        self._known: dict[bytes, int] = {}
        """Content of an input -> its row in the table of logits."""
        self._logits = torch.empty(0, len(self.model.labels))

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Return ``[input, class]`` float32 on the CPU.

        Parameters
        ----------
        rows : sequence of Row
            All with the same keys.
        """
        names = sorted(rows[0]) if rows else []
        known = self._known
        positions = np.empty(len(rows), dtype=np.int64)
        missing: list[Row] = []
        for i, row in enumerate(rows):
            # All arrays of a row have one length, so their joined bytes cannot be ambiguous.
            key = b"".join([row[name].tobytes() for name in names])
            position = known.get(key)
            if position is None:
                position = known[key] = len(known)
                missing.append(row)
            positions[i] = position
        self.asked += len(rows)
        if missing:
            try:
                fresh = self.forward(missing)
            except BaseException:
                self.clear()  # the keys are noted already, but nothing stands behind them
                raise
            self._logits = torch.cat([self._logits, fresh])
            self.run += len(missing)
        return self._logits[torch.from_numpy(positions)]

    def scores(self, rows: Sequence[Row], labels: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the probability of each input's label, ``[input]``, 0..1.

        Parameters
        ----------
        rows : sequence of Row
        labels : sequence of int
            The class of each input.
        """
        target = Target(
            torch.tensor(labels, dtype=torch.int64),
            quantity="probability",
            link=self.model.link,
        )
        return target(self.logits(rows)).double().numpy()

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Run inputs through the model in groups of similar length; ``[input, class]``."""
        lengths = [len(row["input_ids"]) for row in rows]
        table = torch.empty(len(rows), len(self.model.labels))
        for group in buckets(lengths, self.model.budget):
            inputs = self.model.collate([rows[i] for i in group])
            table[torch.from_numpy(group)] = self.model.logits(inputs).cpu()
        return table
