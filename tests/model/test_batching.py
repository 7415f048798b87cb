"""Padding and bucketing: no score depends on who shares a batch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from xattn.model import Model
from xattn.model.batching import buckets
from xattn.testing import TEXTS


def test_padding_changes_no_logit(tiny: Model) -> None:
    encodings = tiny.encode(TEXTS)
    together = tiny.logits(tiny.batch(encodings).inputs)
    alone = torch.cat([tiny.logits(tiny.batch([e]).inputs) for e in encodings])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_pairs_are_padded_too(tiny: Model) -> None:
    encodings = tiny.encode(["A film.", "A long and winding film."], ["Good?", "Was it any good?"])
    together = tiny.logits(tiny.batch(encodings).inputs)
    alone = torch.cat([tiny.logits(tiny.batch([e]).inputs) for e in encodings])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(1, 200))
def test_buckets_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = buckets(lengths, budget)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert longest * len(group) <= budget or len(group) == 1
