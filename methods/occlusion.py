"""Occlusion: what the target loses when a unit goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from xattn.errors import InputError
from xattn.model import Model
from xattn.model.game import games, scattered, worth
from xattn.model.operators import OPERATORS
from xattn.model.scorer import Scorer
from xattn.registry import register
from xattn.types import Batch, Target

Removal = str
"""``auto``, or the name of an operator; see `xattn.model.operators.get_operator`."""


def check_operator(method: str, operator: Removal) -> None:
    """Raise `InputError` unless the operator exists."""
    if operator != "auto" and operator.partition(":")[0] not in OPERATORS:
        known = ", ".join(("auto", *OPERATORS))
        raise InputError(f"operator of {method}", got=repr(operator), expected=f"one of {known}")


@register(
    "occlusion",
    signed=True,
    total="free",
    citation="Li, Monroe & Jurafsky 2016, Understanding Neural Networks through Representation "
    "Erasure; Zeiler & Fergus 2014",
)
@dataclass(frozen=True)
class Occlusion:
    """What the target loses when a unit goes and all others stay.

    ``s = y(x) − y(x without the unit)``. Units are tokens, or what the text was grouped into: a
    unit's score is spread evenly over its tokens. Scores are signed, in the target's unit; they sum
    to nothing in particular. It costs one forward pass a unit.

    Attributes
    ----------
    operator : {"auto", "delete", "mask", "pad", "unknown", "attention-mask", ...}
        What going means: cut out, replaced by a token, or hidden from attention. ``auto`` is
        ``mask`` where the tokenizer has a mask token (or the input is a picture), else ``delete``.
    """

    operator: Removal = "auto"

    def __post_init__(self) -> None:
        check_operator("occlusion", self.operator)

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        played = games(model, batch, target, self.operator)
        asked = [
            np.concatenate([np.ones((1, len(g)), dtype=bool), ~np.eye(len(g), dtype=bool)])
            for g in played
        ]
        values = worth(Scorer(model), played, asked)
        return scattered(batch, played, [v[0] - v[1:] for v in values])
