"""What becomes of scores under other circumstances: a little noise, parameters without learning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xattn.errors import InputError, UnknownNameError
from xattn.evaluation.case import Case
from xattn.evaluation.measures.sampled import at_least_two
from xattn.evaluation.metric import register
from xattn.evaluation.randomisation import STAGES, agreement, shuffled
from xattn.model import Model


@register(
    "max_sensitivity",
    label="Max-sensitivity",
    higher_is_better=False,
    bounds=(0.0, np.inf),
    unit="share of the scores' length",
    citation="Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations (NeurIPS)",
    meaning="how far the scores move when the words' embeddings are changed too little to matter",
)
@dataclass(frozen=True)
class MaxSensitivity:
    """``max_δ ‖φ(x + δ) − φ(x)‖ / ‖φ(x)‖`` (Yeh et al. 2019, definition 3.1, as captum scales it).

    δ is drawn evenly from ``[−r, r]`` for every entry of the embeddings; a token has the same δ
    wherever it stands. Nan where all scores are 0.

    Attributes
    ----------
    radius : float
        ``r``, in units of the embeddings' root mean square.
    samples : int
        How many δ are drawn; what they find is a lower bound of the maximum.
    """

    radius: float = 0.05
    samples: int = 10

    def __post_init__(self) -> None:
        at_least_two("max_sensitivity", self.samples)
        if not self.radius > 0:
            raise InputError("radius of max_sensitivity", got=repr(self.radius), expected="above 0")

    def circumstances(self, model: Model, seed: int) -> Iterator[Model]:
        """Yield the model, with other noise in its embeddings each time."""
        for sample in range(self.samples):
            with model.noisy(self.radius, seed + sample):
                yield model

    def __call__(self, case: Case) -> float:
        """Return the largest relative change."""
        length = float(np.linalg.norm(case.scores))
        if not length or not case.elsewhere:
            return float("nan")
        return max(float(np.linalg.norm(o - case.scores)) for o in case.elsewhere) / length


@register(
    "parameter_randomisation",
    label="Parameter randomisation",
    higher_is_better=False,
    bounds=(-1.0, 1.0),
    unit="rank correlation",
    citation="Adebayo et al. 2018, Sanity Checks for Saliency Maps (NeurIPS)",
    meaning="how alike the scores are to those of a network whose parameters were shuffled: what "
    "stays alike is not about what the model has learnt",
)
@dataclass(frozen=True)
class ParameterRandomisation:
    """Spearman's correlation with the scores of a copy of the network with shuffled parameters.

    See `xattn.evaluation.randomisation` for the stages, one by one. Nan where scores have no order.

    Attributes
    ----------
    stage : {"head", "layers", "everything"}
        How far down parameters are shuffled, from the output on.
    cascading : bool
        Whether what is above is shuffled, too; else the stage alone.
    """

    stage: Literal["head", "layers", "everything"] = "everything"
    cascading: bool = True

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise UnknownNameError("stage of parameter_randomisation", self.stage, STAGES)

    def circumstances(self, model: Model, seed: int) -> Iterator[Model]:
        """Yield the copy of the model."""
        for stage, twin in shuffled(model, seed, cascading=self.cascading):
            if stage == self.stage:
                yield twin
                return

    def __call__(self, case: Case) -> float:
        """Return the correlation."""
        if not case.elsewhere or not len(case):
            return float("nan")
        return agreement(case.scores, case.elsewhere[0])
