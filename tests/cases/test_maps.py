"""Patterns that were drawn are named."""

from __future__ import annotations

import numpy as np
import pytest

from xattn.analysis.naming import NAMES
from xattn.cases.maps import confusion, draw


def test_clean_maps_are_named_right() -> None:
    table = confusion(40, noise=0.0)
    assert table.sum() == 40 * len(NAMES)
    assert table.trace() == table.sum()


def test_noisy_maps_are_mostly_named_right() -> None:
    table = confusion(60, noise=0.4, seed=1)
    assert table.trace() / table.sum() >= 0.95
    assert (table.diagonal() / 60 >= 0.9).all()


def test_a_map_of_noise_alone_is_no_pattern() -> None:
    generator = np.random.default_rng(0)
    for causal in (False, True):
        drawn = draw("diagonal", 40, generator, causal=causal, noise=1.0)
        assert drawn.named in ("broad", "sparse", "mixed")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", NAMES)
def test_rows_sum_to_one_and_causal_ones_look_back(pattern: str, causal: bool) -> None:
    drawn = draw(pattern, 24, np.random.default_rng(0), causal=causal, noise=0.3)
    np.testing.assert_allclose(drawn.map.sum(1), 1)
    assert (drawn.map >= 0).all()
    if causal:
        assert not np.triu(drawn.map, 1).any()


def test_what_cannot_be_drawn_is_refused() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="is none of"):
        draw("round", 20, generator, causal=False)
    with pytest.raises(ValueError, match="too few"):
        draw("block", 4, generator, causal=False)
