"""Kernel SHAP: Shapley values by a weighted regression on coalitions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from xattn.draw import generator
from xattn.errors import InputError
from xattn.kinds import Complete
from xattn.methods.occlusion import Removal, check_operator
from xattn.model import Model
from xattn.model.game import games, scattered, worth
from xattn.model.scorer import Scorer
from xattn.registry import register
from xattn.types import Batch, Bools, Floats, Target


def sampled_coalitions(
    players: int, samples: int, draw: np.random.Generator
) -> tuple[Bools, Floats]:
    """Return coalitions and their weights in the regression, without the empty and the full one.

    The kernel puts ``(n − 1) / (s (n − s))`` on all coalitions of size s together (theorem 2).
    Sizes whose coalitions are few enough are taken whole, the smallest and largest first; of the
    others coalitions are drawn, each together with its complement.

    Parameters
    ----------
    players : int
    samples : int
        Coalitions at most; all of them if there are no more.
    draw : numpy.random.Generator

    Returns
    -------
    bool array
        ``[coalition, player]``.
    float array
        ``[coalition]``, summing to 1.
    """
    sizes = np.arange(1, players)
    mass = 1 / (sizes * (players - sizes))
    mass /= mass.sum()
    chosen: dict[bytes, tuple[Bools, float]] = {}
    left = samples
    open_sizes = list(sizes)
    while open_sizes:
        low, high = open_sizes[0], open_sizes[-1]
        pair = {low, high}
        count = sum(comb(players, int(size)) for size in pair)
        share = mass[[low - 1, high - 1][: len(pair)]].sum() / mass[np.array(open_sizes) - 1].sum()
        if count > left or (count > left * share and samples < 2**players - 2):
            break
        for size in sorted(pair):
            for members in combinations(range(players), int(size)):
                coalition = np.isin(np.arange(players), members)
                weight = mass[size - 1] / comb(players, int(size))
                chosen[coalition.tobytes()] = coalition, weight
        left -= count
        open_sizes = open_sizes[1:-1] if low != high else []
    if open_sizes and left > 1:
        rest = mass[np.array(open_sizes) - 1]
        each = rest.sum() / (2 * (left // 2))
        for size in draw.choice(open_sizes, size=left // 2, p=rest / rest.sum()):
            one = np.zeros(players, dtype=bool)
            one[draw.choice(players, size=int(size), replace=False)] = True
            for coalition in (one, ~one):
                known = chosen.get(coalition.tobytes(), (coalition, 0.0))[1]
                chosen[coalition.tobytes()] = coalition, known + each
    coalitions = np.array([c for c, _ in chosen.values()]).reshape(-1, players)
    weights = np.array([w for _, w in chosen.values()])
    return coalitions, weights / weights.sum()


def regression(coalitions: Bools, weights: Floats, values: Floats, total: float) -> Floats:
    """Return the values ``[player]`` that fit best and sum to `total` exactly.

    Parameters
    ----------
    coalitions : bool array
        ``[coalition, player]``.
    weights : float array
        ``[coalition]``.
    values : float array
        ``[coalition]``: the worth of each above that of the empty one.
    total : float
        The worth of the full one above that of the empty one.
    """
    design = coalitions.astype(np.float64)
    players = design.shape[1]
    # Lagrange's conditions of the least squares under the constraint, as one linear system
    system = np.zeros((players + 1, players + 1))
    system[:players, :players] = design.T @ (weights[:, None] * design)
    system[:players, players] = system[players, :players] = 1
    right = np.append(design.T @ (weights * values), total)
    found: Floats = np.linalg.lstsq(system, right)[0][:players]
    # too few coalitions leave directions open, in which the least solution may miss the sum
    found += (total - found.sum()) / players
    return found


@register(
    "kernel_shap",
    signed=True,
    total="difference",
    citation="Lundberg & Lee 2017, A Unified Approach to Interpreting Model Predictions; paired "
    "draws by Covert & Lee 2021, Improving KernelSHAP",
)
@dataclass(frozen=True)
class KernelShap(Complete):
    """Shapley values of the units, estimated by a weighted linear regression on coalitions.

    ``φ`` minimises ``Σ_S k(S) (y(S) − y(∅) − Σ_{i ∈ S} φ_i)²`` with the Shapley kernel ``k``
    (theorem 2), under ``Σ φ = y(x) − y(∅)``. With all ``2ⁿ − 2`` coalitions the result is exact;
    with fewer it is an estimate without bias whose error falls with their number. Scores are
    signed, in the target's unit, and sum to ``y(x) − y(∅)``.

    Attributes
    ----------
    samples : int
        Coalitions at most, beside the empty and the full one.
    operator : {"auto", "delete", "mask", "pad", "unknown", "attention-mask", ...}
        As in `occlusion`.
    seed : int
        Together with the text it decides the draws.
    """

    samples: int = 256
    operator: Removal = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_operator("kernel_shap", self.operator)
        if not (isinstance(self.samples, int) and self.samples >= 2):
            raise InputError("samples of kernel_shap", got=repr(self.samples), expected="2 or more")

    def attribute(self, model: Model, batch: Batch, target: Target) -> tuple[Tensor, Tensor]:
        """Return scores ``[batch, token]`` and ``y(x) − y(∅)``, ``[batch]``."""
        played = games(model, batch, target, self.operator)
        asked, weights = [], []
        for game in played:
            draw = generator(game.encoding, self.seed)
            coalitions, weight = sampled_coalitions(len(game), self.samples, draw)
            ends = np.array([[False] * len(game), [True] * len(game)])
            asked.append(np.concatenate([ends, coalitions]))
            weights.append(weight)
        found, differences = [], []
        for own, weight, values in zip(
            asked, weights, worth(Scorer(model), played, asked), strict=True
        ):
            differences.append(values[1] - values[0])
            gains = values[2:] - values[0]
            found.append(regression(own[2:], weight, gains, differences[-1]))
        total = torch.tensor(differences, dtype=torch.float32, device=target.label.device)
        return scattered(batch, played, found), total
