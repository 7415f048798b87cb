"""What the pattern of an attention head is called.

Kovaleva et al. 2019 (Revealing the Dark Secrets of BERT) sorted maps by eye into vertical,
diagonal, block and heterogeneous ones; first-token sinks are those of Xiao et al. 2024 (Efficient
Streaming Language Models with Attention Sinks). Here numbers decide, by one rule.
"""

from __future__ import annotations

import numpy as np

from xattn.analysis.looking import NUMBERS
from xattn.types import Floats

NAMES = (
    "diagonal", "previous", "next", "first-token sink", "separator sink", "vertical", "block",
    "mixed", "sparse", "broad",
)  # fmt: skip
HALF = 0.5
"""Share of what even attention leaves over from which on a pattern has a head's name."""
BROAD = 0.75
"""Entropy as a share of the largest possible from which on a head without a pattern is broad."""
_PLACES = {"diagonal": "self", "previous": "previous", "next": "next"}
_SINKS = {"first-token sink": "first", "separator sink": "separator"}


def name(numbers: Floats, even: Floats) -> str:
    """Return what the pattern of a head is called, one of `NAMES`.

    Each share counts by how much of what even attention leaves over it has:
    ``(share − even) / (1 − even)``. A head is called by the place or the sink (in the order of
    these shares) that has `HALF` of it; else vertical if a tenth of the columns has; else block if
    the own sentence has; else mixed if several of these have it together; else sparse if `FEW`
    tokens of each row have; else broad if its entropy is over `BROAD` of the largest possible.
    What is left is mixed.

    Parameters
    ----------
    numbers, even : array
        `NUMBERS` of a head and of even attention, ``[number]``.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        gained = np.nan_to_num((numbers - even) / (1 - even))
    gain = dict(zip(NUMBERS, gained.tolist(), strict=True))
    known = {called: gain[share] for called, share in {**_PLACES, **_SINKS}.items()}
    best = max(known, key=known.__getitem__)
    if known[best] >= HALF:
        return best
    if gain["top columns"] >= HALF:
        return "vertical"
    if gain["block"] >= HALF:
        return "block"
    if sum(max(0.0, share) for share in known.values()) >= HALF:
        return "mixed"
    if gain["top of row"] >= HALF:
        return "sparse"
    return "broad" if numbers[NUMBERS.index("relative entropy")] >= BROAD else "mixed"
