"""LIME: a local linear model of what the target does as units go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Ridge
from torch import Tensor

from xattn.draw import generator
from xattn.errors import InputError
from xattn.methods.occlusion import Removal, check_operator
from xattn.model import Model
from xattn.model.game import Game, games, scattered, worth
from xattn.model.scorer import Scorer
from xattn.registry import register
from xattn.types import Batch, Bools, Floats, Target


@register(
    "lime",
    signed=True,
    total="free",
    citation="Ribeiro, Singh & Guestrin 2016, Why Should I Trust You?: Explaining the Predictions "
    "of Any Classifier",
)
@dataclass(frozen=True)
class Lime:
    """The weights of a linear model of the target near the text.

    ``w = argmin Σ_z π(z) (y(z) − w₀ − w · z)² + α ‖w‖²`` (equation 1 with a ridge in place of the
    choice of features), where ``z`` says which units are left: their number that goes is uniform,
    the text itself is among them, and ``π(z) = exp(−½ (100 d(z) / width)²)`` with the cosine
    distance ``d`` from the text. Scores are signed, in the target's unit; they sum to nothing in
    particular.

    Attributes
    ----------
    samples : int
        Perturbed texts.
    width : float
        Of the kernel, in hundredths of cosine distance; 25 is usual for texts.
    alpha : float
        Strength of the ridge.
    operator : {"auto", "delete", "mask", "pad", "unknown", "attention-mask", ...}
        As in `occlusion`.
    seed : int
        Together with the text it decides the draws.
    """

    samples: int = 256
    width: float = 25.0
    alpha: float = 1.0
    operator: Removal = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_operator("lime", self.operator)
        if not (isinstance(self.samples, int) and self.samples >= 2):
            raise InputError("samples of lime", got=repr(self.samples), expected="2 or more")
        for name in ("width", "alpha"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"{name} of lime", got=repr(value), expected="a number above 0")

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        played = games(model, batch, target, self.operator)
        asked = [self._near(game) for game in played]
        values = worth(Scorer(model), played, asked)
        found = [self._fitted(z, y) for z, y in zip(asked, values, strict=True)]
        return scattered(batch, played, found)

    def _near(self, game: Game) -> Bools:
        """Return the text, and the text without a random number of units: ``[sample, player]``."""
        draw, count = generator(game.encoding, self.seed), len(game)
        near = np.ones((self.samples, count), dtype=bool)
        for z in near[1:]:
            z[draw.choice(count, size=int(draw.integers(1, count + 1)), replace=False)] = False
        return near

    def _fitted(self, near: Bools, values: Floats) -> Floats:
        left = near.mean(1)
        distance = 1 - np.sqrt(left)  # of 0/1 vectors from the vector of ones
        kernel = np.exp(-0.5 * (100 * distance / self.width) ** 2)
        model = Ridge(alpha=self.alpha).fit(near.astype(np.float64), values, sample_weight=kernel)
        weights: Floats = model.coef_
        return weights
