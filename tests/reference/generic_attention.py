"""Chefer et al. 2021, equations 5 to 11, with whole matrices and nothing clever."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_positive(attention: Tensor, gradient: Tensor) -> Tensor:
    """Equation 5: ``Ā = E_h[(∇A ⊙ A)⁺]`` of one text, ``[query, key]``."""
    total = torch.zeros(attention.shape[1:])
    for head in range(len(attention)):
        total += torch.relu(gradient[head] * attention[head])
    return total / len(attention)


def single(maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Equation 6 through all layers: the relevance of every token to every token."""
    relevance = torch.eye(maps[0].shape[-1])
    for attention, gradient in zip(maps, gradients, strict=True):
        relevance = relevance + mean_positive(attention, gradient) @ relevance
    return relevance


def normalised(relevance: Tensor) -> Tensor:
    """Equations 8 and 9."""
    beyond = relevance - torch.eye(len(relevance))
    for row in beyond:
        if row.sum() > 0:
            row /= row.sum()
    return beyond + torch.eye(len(relevance))


def crossed(
    stacks: Sequence[str], maps: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the relevance of source and target tokens to target tokens, ``R_ts`` and ``R_tt``."""
    sizes = {s: m.shape[-1] for s, m in zip(stacks, maps, strict=True)}
    source, target = torch.eye(sizes["encoder"]), torch.eye(sizes["decoder"])
    across = torch.zeros(sizes["decoder"], sizes["encoder"])
    for stack, attention, gradient in zip(stacks, maps, gradients, strict=True):
        mean = mean_positive(attention, gradient)
        if stack == "encoder":
            source = source + mean @ source
        elif stack == "decoder":
            across = across + mean @ across
            target = target + mean @ target
        else:
            across = across + normalised(target).T @ mean @ normalised(source)
    return across, target
