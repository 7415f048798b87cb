"""Parameter randomisation: what is shuffled when, and that blind methods are found out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch

from xattn.evaluation import randomisation
from xattn.evaluation.randomisation import agreement, shuffled
from xattn.model import Model
from xattn.testing import TEXTS, network_state


def test_parameters_are_shuffled_from_the_top_down(demo: Model) -> None:
    before = network_state(demo.network)
    original = dict(demo.network.named_parameters())
    changed: dict[str, set[str]] = {}
    for stage, twin in shuffled(demo):
        changed[stage] = set()
        for name, parameter in twin.network.named_parameters():
            old = original[name].flatten()
            assert torch.equal(parameter.flatten().sort().values, old.sort().values)
            if not torch.equal(parameter.flatten(), old):
                changed[stage].add(name.split(".")[1] if "." in name else name)
    assert changed["head"] <= {"pooler", "weight", "bias"}
    assert changed["head"]
    assert changed["layers"] == changed["head"] | {"encoder"}
    assert changed["everything"] == changed["layers"] | {"embeddings"}
    assert network_state(demo.network) == before


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoders_have_the_same_stages(tiny_of: Callable[..., Model], family: str) -> None:
    model = tiny_of(family)
    batch = model.batch(model.encode(TEXTS))
    logits = [twin.logits(batch.inputs) for _, twin in shuffled(model)]
    assert len(logits) == 3
    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[1], logits[2])


def test_a_method_that_ignores_the_network_agrees_with_itself(demo: Model) -> None:
    table = randomisation(demo, TEXTS[:2], ["random", "integrated_gradients"])
    mean = table.set_index(["method", "stage"])["mean"]
    assert (mean["random"] == 1).all()
    assert mean["integrated_gradients", "everything"] < 0.8


def test_agreement_is_by_rank() -> None:
    one = np.array([1.0, 2.0, 5.0])
    assert agreement(one, np.exp(one)) == pytest.approx(1)
    assert agreement(one, -one) == pytest.approx(-1)
    assert np.isnan(agreement(one, np.zeros(3)))


def test_each_stage_can_be_shuffled_by_itself(demo: Model) -> None:
    original = dict(demo.network.named_parameters())
    changed = [
        {name for name, p in twin.network.named_parameters() if not torch.equal(p, original[name])}
        for _, twin in shuffled(demo, cascading=False)
    ]
    assert all(changed)
    assert not any(a & b for a, b in combinations(changed, 2))
    together = [
        {name for name, p in twin.network.named_parameters() if not torch.equal(p, original[name])}
        for _, twin in shuffled(demo)
    ]
    assert together[-1] == set().union(*changed)
