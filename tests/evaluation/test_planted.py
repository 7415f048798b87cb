"""Planted words: what decides is known, learnt by a small model, and found by a method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import xattn
from xattn.evaluation.truth.planted import (
    FILLERS,
    KEYS,
    Kind,
    accuracy,
    invariance,
    plant,
    train_planted,
)


def test_the_key_alone_tells_the_class() -> None:
    drawn = plant(200, seed=3)
    assert drawn == plant(200, seed=3)
    assert drawn.texts != plant(200, seed=4).texts
    for text, label, key in zip(drawn.texts, drawn.labels, drawn.keys, strict=True):
        words = text.split()
        assert words[key] in list(KEYS.values())[label]
        assert set(words[:key] + words[key + 1 :]) <= set(FILLERS)
    assert len(set(drawn.keys)) > 10


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_model_learns_it_and_the_key_comes_first(kind: Kind) -> None:
    state = torch.get_rng_state()
    model = train_planted(kind)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = plant(100, seed=1)
    assert accuracy(model, drawn) == 1
    assert invariance(model, drawn) == 1
    explained = xattn.explain(model, drawn.texts, ["rollout", "random"])
    first = np.array(
        [
            [int(item.scores[~item.special].argmax()) == key for item in group]
            for key, group in zip(drawn.keys, explained.by_text(), strict=True)
        ]
    )
    rollout, random = first.mean(0)
    assert rollout >= 0.9
    assert random <= 0.25
