"""Consensus: a fuzzy intersection of two methods."""

from __future__ import annotations

import numpy as np
import pytest

import xattn
from xattn.errors import InputError, UnknownNameError
from xattn.model import Model
from xattn.testing import TEXTS


def shares(scores: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    kept = np.maximum(scores, 0)
    return kept / kept.max() if kept.max() > 0 else kept


@pytest.mark.parametrize("fusion", ["product", "minimum"])
def test_it_is_the_intersection_of_its_parts(demo: Model, fusion: str) -> None:
    specs = ["rollout", "integrated_gradients"]
    named = f"consensus:attention=rollout,gradient=integrated_gradients,fusion={fusion}"
    for one, other, both in xattn.explain(demo, TEXTS, [*specs, named]).by_text():
        parts = shares(one.scores), shares(other.scores)
        expected = parts[0] * parts[1] if fusion == "product" else np.minimum(*parts)
        np.testing.assert_allclose(both.scores, expected, atol=1e-6)
        assert 0 < both.scores.max() <= 1


def test_the_planted_word_comes_first(demo: Model) -> None:
    item = xattn.explain(demo, ["The film was dreadful."], ["consensus"])[0].words()
    assert item.tokens[int(item.scores.argmax())] == "dreadful"


def test_bad_options(demo: Model) -> None:
    with pytest.raises(InputError, match="fusion of consensus"):
        xattn.explain(demo, ["A film."], ["consensus:fusion=union"])
    with pytest.raises(InputError, match="a consensus of itself"):
        xattn.explain(demo, ["A film."], ["consensus:gradient=consensus"])
    with pytest.raises(UnknownNameError, match="rollouts"):
        xattn.explain(demo, ["A film."], ["consensus:attention=rollouts"])
