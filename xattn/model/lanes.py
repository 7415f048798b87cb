"""Lanes: who has a part of a vector, and who gets what is added to a sum of parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Sharing = Literal["absdot", "norm", "equal", "none"]
"""Who gets a constant that is added to a sum of parts: each part by its absolute product with the
constant, by its norm, all parts that are not zero alike; or nobody."""


@dataclass(frozen=True)
class Lanes:
    """Who has a part: each of `count`, then what belongs to none of them."""

    count: int
    sharing: Sharing = "none"
    """Constants are shared among the parts; with ``none`` they have a lane of their own."""
    aside: bool = False
    """Whether what is skipped on purpose has another lane."""

    @property
    def total(self) -> int:
        """How many lanes there are."""
        return self.count + (self.sharing == "none") + self.aside

    def add(self, parts: Tensor, constant: Tensor, *, skipped: bool = False) -> Tensor:
        """Return the parts ``[lane, ..., hidden]`` of a sum with a constant ``[..., hidden]``."""
        if self.sharing != "none":
            return parts + constant * self._shares(parts, constant)
        parts = parts.clone()
        parts[self.count + (self.aside and skipped)] += constant
        return parts

    def _shares(self, parts: Tensor, constant: Tensor) -> Tensor:
        if self.sharing == "absdot":
            weights = torch.einsum("l...d,...d->l...", parts, constant).abs()[..., None]
        else:
            weights = parts.norm(dim=-1, keepdim=True)
            weights = weights if self.sharing == "norm" else (weights > 0).to(parts.dtype)
        total = weights.sum(0, keepdim=True)
        shares: Tensor = weights / torch.where(total > 0, total, torch.ones_like(total))
        return shares
