"""PASTA: the formula, and head selection that finds the heads that matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from xattn.errors import InputError
from xattn.model import Edit, Model, Site, mark
from xattn.model.steering import HeadProfile, profile_heads, steer
from xattn.testing import state
from xattn.types import Batch


def batch_of(model: Model) -> Batch:
    texts = ["A dull film with a superb cast.", "The superb cast is lost on a dull plot."]
    return model.batch([mark(e, "praise", words="superb") for e in model.encode(texts)])


def test_steering_is_equation_2_of_the_paper(tiny: Model) -> None:
    batch = batch_of(tiny)
    seen: list[tuple[Site, Tensor]] = []

    def keep(site: Site, p: Tensor) -> Tensor:
        seen.append((site, p))
        return p

    chosen = {0: [1, 3]}
    with tiny.edit(Edit(probabilities=keep)):
        tiny.logits(batch.inputs)
        with tiny.edit(steer("praise", chosen), Edit(probabilities=keep)):
            tiny.logits(batch.inputs)
    plain, steered = seen[0][1], seen[4][1]
    weights = torch.where(batch.inputs["mark:praise"].bool(), 1.0, 0.01)[:, None, None, :]
    weighted = plain * weights
    expected = plain.clone()
    expected[:, chosen[0]] = (weighted / weighted.sum(-1, keepdim=True))[:, chosen[0]]
    real = batch.real  # padding looks at whatever it likes
    torch.testing.assert_close(
        steered.permute(0, 2, 1, 3)[real], expected.permute(0, 2, 1, 3)[real], atol=1e-5, rtol=1e-4
    )


def test_profiling_measures_each_head_alone(demo: Model) -> None:
    batch = batch_of(demo)
    before, label = state(demo), demo.label_id("positive")

    def positive(model: Model) -> float:
        return float(model.logits(batch.inputs).softmax(-1)[:, label].mean())

    def negative(model: Model) -> float:
        return 1 - positive(model)

    profile = profile_heads(demo, [positive, negative], "praise", heads={0: [0, 1], -1: [0]})
    layers = len(demo.layout().heads)
    assert profile.heads == ((0, 0), (0, 1), (layers - 1, 0))
    for column, (layer, head) in enumerate(profile.heads):
        with demo.edit(steer("praise", {layer: [head]})):
            assert profile.scores[:, column].tolist() == [positive(demo), negative(demo)]
    assert profile.unsteered.tolist() == [positive(demo), negative(demo)]
    assert len(np.unique(profile.scores[0])) == 3
    [(layer, [head])] = HeadProfile(profile.heads, profile.scores[:1], np.zeros(1)).top(1).items()
    assert (layer, head) == profile.heads[int(profile.scores[0].argmax())]
    # What is best for one task is worst for the other.
    with pytest.raises(InputError, match="no head is among the best for every task"):
        profile.top(1)
    assert state(demo) == before


def test_heads_are_those_in_the_top_of_every_task() -> None:
    heads = ((0, 0), (0, 1), (1, 0), (1, 1))
    scores = np.array([[0.9, 0.8, 0.1, 0.7], [0.2, 0.6, 0.5, 0.6]])
    profile = HeadProfile(heads, scores, np.zeros(2))
    assert profile.ranks.tolist() == [[0, 1, 3, 2], [3, 0, 2, 1]]
    assert profile.top(2) == {0: [1]}
    assert profile.top(3) == {0: [1], 1: [1]}
    assert profile.top(4) == {0: [0, 1], 1: [0, 1]}
    for count in (0, 5):
        with pytest.raises(InputError, match=f"heads to choose: got {count}, expected 1 to 4"):
            profile.top(count)


def test_profiling_all_heads_by_default(demo: Model) -> None:
    layout = demo.layout()
    profile = profile_heads(demo, [lambda model: 0.0], "praise")
    assert profile.scores.shape == (1, sum(layout.heads.values()))


def test_what_does_not_steer_is_refused(demo: Model) -> None:
    for alpha in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="alpha of steering"):
            steer("praise", {0: [0]}, alpha)
    with pytest.raises(InputError, match="profiling needs a task"):
        profile_heads(demo, [], "praise")
