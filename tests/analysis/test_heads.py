"""What rests on heads, against finite differences, single ablations and a planted head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xattn.analysis.heads import rank_heads
from xattn.errors import InputError
from xattn.model import AblateHeads, Model

TEXTS = ["A dull, lifeless film.", "A warm and funny delight.", "It is what it is."]


def probability(model: Model, text: str, label: str | None = None) -> float:
    batch = model.batch(model.encode([text]))
    return model.score(batch.inputs, model.target(batch, label, quantity="probability")).item()


def test_ablations_are_those_of_single_heads(demo: Model) -> None:
    found = rank_heads(demo, TEXTS)
    assert found.heads == tuple((layer, head) for layer in range(4) for head in range(4))
    for number, text in enumerate(TEXTS):
        batch = demo.batch(demo.encode([text]))
        target = demo.target(batch, quantity="probability")
        whole = demo.score(batch.inputs, target).item()
        for head in ((0, 2), (3, 1)):
            with demo.edit(AblateHeads(heads={head[0]: [head[1]]})):
                without = demo.score(batch.inputs, target).item()
            assert found.ablation[number, found.heads.index(head)] == pytest.approx(
                whole - without, abs=1e-6
            )
    assert found.together[0] == pytest.approx(
        found.ablation[:, found.heads.index(found.ranking[0])], abs=1e-6
    )
    assert found.together[-1] == pytest.approx(found.opposite[-1], abs=1e-6)


def test_gradients_are_the_limit_of_small_ablations(demo: Model) -> None:
    found = rank_heads(demo, TEXTS)
    batch = demo.batch(demo.encode(TEXTS[:1]))
    target = demo.target(batch, quantity="probability")
    for index in (0, 2, 9):
        layer, head = found.heads[index]
        values = []
        for scale in (1.01, 0.99):
            with demo.edit(AblateHeads(scale=scale, heads={layer: [head]})):
                values.append(demo.score(batch.inputs, target).item())
        slope = abs(values[0] - values[1]) / 0.02
        assert found.gradient[0, index] == pytest.approx(slope, abs=2e-4)


def test_the_head_that_everything_rests_on_comes_first(demo: Model) -> None:
    """With all heads but one cut, that one is all there is."""
    others = {layer: [h for h in range(4) if (layer, h) != (1, 2)] for layer in range(4)}
    with demo.edit(AblateHeads(heads=others)):
        found = rank_heads(demo, TEXTS)
    assert found.ranking[0] == (1, 2)
    cut = np.delete(found.ablation, found.heads.index((1, 2)), axis=1)
    assert np.abs(cut).max() < 1e-6
    assert np.abs(found.ablation).max() > 1e-4


def test_labels_say_whose_probability(demo: Model) -> None:
    found = rank_heads(demo, TEXTS, ["negative", "negative", "positive"])
    expected = [
        probability(demo, text, label)
        for text, label in zip(TEXTS, ["negative", "negative", "positive"], strict=True)
    ]
    assert found.whole == pytest.approx(expected, abs=1e-6)


def test_decoders_are_ranked_by_the_next_token(tiny_of) -> None:
    model = tiny_of("gpt2", task="generate")
    found = rank_heads(model, TEXTS[:2])
    assert np.isfinite(found.ablation).all()
    assert torch.is_grad_enabled()


def test_too_little_is_refused(demo: Model) -> None:
    with pytest.raises(InputError, match="texts to rank heads on: got 1"):
        rank_heads(demo, TEXTS[:1])
    with pytest.raises(InputError, match="labels: got 1"):
        rank_heads(demo, TEXTS, ["negative"])


def test_the_finding_says_what_is_lost(demo: Model) -> None:
    found = rank_heads(demo, TEXTS)
    says = found.finding().says
    assert f"loses {found.cost(found.ranking[0]).mean:.3f}" in says
    assert len(found.to_dataframe()) == 16
