"""`explain`: order, cost, targets, and methods that return nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import xattn
from xattn.errors import InputError, ModelError, UnknownNameError, XattnWarning
from xattn.model import Model
from xattn.registry import Declaration, Registry
from xattn.testing import TEXTS
from xattn.types import Batch, Target


def test_results_are_text_major_in_the_order_given(demo: Model) -> None:
    result = xattn.explain(demo, TEXTS, ["rollout", "random", "rollout:residual=0.1"])
    assert [item.method for item in result] == ["rollout", "random", "rollout"] * 3
    assert [item.text for item in result][::3] == list(TEXTS)
    assert [item.parameters for item in result][2] == {"residual": 0.1}
    assert [len(items) for items in result.by_text()] == [3, 3, 3]


def test_many_texts_equal_one_by_one(demo: Model) -> None:
    texts = [*TEXTS, *(f"{t} Really." for t in TEXTS)]
    together = xattn.explain(demo, texts)
    alone = [item for text in texts for item in xattn.explain(demo, [text])]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_passes_are_counted_without_the_verification(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bert")
    for method in ("rollout", "attention_gradient"):
        item = xattn.explain(model, TEXTS, [method])[0]
        assert (item.forward_passes, item.backward_passes) == (1, 1)
        assert item.seconds > 0


SHARING = ["saliency", "input_x_gradient", "attention_gradient", "generic_attention",
           "attention_cat", "rollout"]  # fmt: skip


def test_methods_that_read_a_trace_share_its_passes(tiny: Model) -> None:
    alone = [xattn.explain(tiny, TEXTS, [method]) for method in SHARING]
    before = tiny.passes.copy()
    together = xattn.explain(tiny, TEXTS, SHARING)
    # one pass finds the predictions, another one forward and one backward serve all methods
    assert tiny.passes.forward - before.forward == 2 * len(TEXTS)
    assert tiny.passes.backward - before.backward == len(TEXTS)
    for group, *singles in zip(together.by_text(), *alone, strict=True):
        assert sum(item.backward_passes for item in group) == pytest.approx(1)
        for item, single in zip(group, singles, strict=True):
            largest = np.abs(single.scores).max()
            np.testing.assert_allclose(item.scores, single.scores, atol=1e-5 * max(1, largest))


@pytest.mark.parametrize(
    ("peaks", "expected"), [((7, 3, 9), [7, 9]), ((0, 0, 0), [0, 0]), ((None,) * 3, [None] * 2)]
)
def test_the_peak_of_a_shared_trace_is_that_of_its_readers(
    peaks: tuple[int | None, ...],
    expected: list[int | None],
    demo: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = iter(peaks)  # the trace, then one reader after the other

    class Peak:
        def __init__(self, device: torch.device) -> None:
            self.bytes = next(left)

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr("xattn.explanations.Peak", Peak)
    found = xattn.explain(demo, TEXTS[:1], ["saliency", "input_x_gradient"])
    assert [item.memory for item in found] == expected


def test_targets(demo: Model) -> None:
    text = ["A dull, lifeless film."]
    by_default = xattn.explain(demo, text, ["attention_gradient"])[0]
    assert by_default.target == "logit of negative"
    other = xattn.explain(demo, text, ["attention_gradient"], label="positive")[0]
    assert other.target == "logit of positive"
    assert np.corrcoef(by_default.scores, other.scores)[0, 1] < 0
    margin = xattn.explain(demo, text, ["attention_gradient"], against="positive")[0]
    assert margin.target == "logit of negative against positive"
    np.testing.assert_allclose(margin.scores, by_default.scores - other.scores, atol=1e-5)
    with pytest.raises(InputError, match="margin needs two classes"):
        xattn.explain(demo, text, ["attention_gradient"], against="negative")
    with pytest.raises(UnknownNameError, match="unknown class: got 'neutral'"):
        xattn.explain(demo, text, label="neutral")


def test_pairs(demo: Model) -> None:
    item = xattn.explain(demo, ["A dull film."], ["rollout"], pairs=["Was it good?"])[0]
    assert item.pair == "Was it good?"
    assert set(item.segments.tolist()) == {-1, 0, 1}


def test_every_family_explains_pairs(tiny: Model) -> None:
    texts, pairs = ["A dull film.", "A warm, slow and lovely film."], ["Was it good?", "Good?"]
    together = xattn.explain(tiny, texts, pairs=pairs)
    alone = [
        item
        for t, p in zip(texts, pairs, strict=True)
        for item in xattn.explain(tiny, [t], pairs=[p])
    ]
    for a, b in zip(together, alone, strict=True):
        assert {0, 1} <= set(a.segments.tolist())
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5 * max(1, abs(b.scores).max()))


def test_frames_and_json(demo: Model) -> None:
    result = xattn.explain(demo, TEXTS, ["rollout", "random"])
    frame = result.to_dataframe()
    assert len(frame) == sum(len(item.tokens) for item in result)
    assert set(frame["example"]) == {0, 1, 2}
    assert len(json.loads(result.to_json())) == 6
    assert result._repr_html_().count("<tr>") == 9


def test_unknown_method_lists_the_known(demo: Model) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown method: got 'rolout'.*did you mean 'roll"):
        xattn.explain(demo, ["A film."], ["rolout"])


def returning(value: Callable[[Batch], Tensor]) -> object:
    @Registry("xattn.methods", "method").registering(Declaration)(
        "nonsense", signed=True, total="free", citation="none"
    )
    @dataclass(frozen=True)
    class Nonsense:
        def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
            return value(batch)

    return Nonsense()


def test_scores_that_are_not_finite_name_the_method(demo: Model) -> None:
    method = returning(lambda batch: torch.full(batch.inputs["input_ids"].shape, float("inf")))
    with pytest.raises(ModelError, match=r"nonsense returned scores that are not finite: got inf"):
        xattn.explain(demo, ["A film."], [method])  # type: ignore[list-item]


def test_scores_of_the_wrong_shape_name_both_shapes(demo: Model) -> None:
    method = returning(lambda batch: torch.zeros(3))
    with pytest.raises(ModelError, match=r"wrong shape: got \[3\], expected \[batch, token\]"):
        xattn.explain(demo, ["A film."], [method])  # type: ignore[list-item]


def test_a_gap_that_stays_open_is_told(tiny_of: Callable[..., Model]) -> None:
    spec = "integrated_gradients:steps=1,max_steps=1"
    with pytest.warns(XattnWarning, match=r"do not sum .* in \d of 3 texts: the widest gap is"):
        items = xattn.explain(tiny_of("bert"), TEXTS, [spec])
    assert max(abs(item.gap or 0) for item in items) > 0.01


def test_scores_that_are_no_numbers_name_the_layer(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bert")
    layer = model.network.bert.encoder.layer[1].output

    class Root(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.sqrt((hidden * 0) ** 2) + hidden

    layer.dense = torch.nn.Sequential(layer.dense, Root())
    message = r"saliency returned scores that are not finite: got nan in .*, arisen in the gradient"
    with pytest.raises(
        ModelError, match=message + r" at the output of bert.encoder.layer.1.output"
    ):
        xattn.explain(model, TEXTS[:1], ["saliency"])
