"""`Problem`: texts, a model, and what each token truly contributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.metrics import average_precision_score

from xattn.errors import InputError
from xattn.model import Model
from xattn.types import Attribution, Floats

Measure = Literal["AUPRC", "correlation"]
"""How scores are held against the truth: as a detector of the tokens that matter, or as numbers
that ought to be in proportion to it."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, texts, and what each of their tokens truly contributes to the predicted class."""

    name: str
    meaning: str
    """One line for a reader who has not seen the problem before."""
    measure: Measure
    model: Model
    texts: tuple[str, ...]
    truth: tuple[Floats, ...]
    """For each text ``[removable token]``, in any unit. For AUPRC what is not 0 is evidence."""
    pairs: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def judged(self, number: int, item: Attribution) -> float:
        """Return how near an explanation of a text comes to the truth, at most 1.

        Parameters
        ----------
        number : int
            Which text.
        item : Attribution

        Returns
        -------
        float
            Average precision, or Pearson's correlation; 0 for constant scores, which tell nothing
            apart, by the latter.

        Raises
        ------
        InputError
            If the explanation has another number of tokens.
        """
        scores, truth = item.scores[~item.special].astype(np.float64), self.truth[number]
        if scores.shape != truth.shape:
            raise InputError(
                f"text {number} of {self.name}",
                got=f"scores of {len(scores)} tokens",
                expected=str(len(truth)),
            )
        if self.measure == "AUPRC":
            return float(average_precision_score(truth != 0, scores))
        if np.ptp(scores) == 0:
            return 0.0
        return float(np.corrcoef(scores, truth)[0, 1])


def one_of_each(count: int, places: Sequence[int]) -> Floats:
    """Return 1 at some of `count` places and 0 elsewhere.

    Examples
    --------
    >>> one_of_each(3, [1])
    array([0., 1., 0.])
    """
    flags = np.zeros(count)
    flags[list(places)] = 1.0
    return flags
