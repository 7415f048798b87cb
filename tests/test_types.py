"""The nouns: closed forms, units, and fields that are checked on construction."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import xattn
from xattn.errors import InputError, UnknownNameError
from xattn.model import Model
from xattn.types import Attribution, Curve, Encoding, Target


def attribution(
    text: str, spans: list[tuple[int, int]], words: list[int], scores: list[float]
) -> Attribution:
    return Attribution(
        text=text, pair=None, tokens=tuple(text[a:b] for a, b in spans),
        offsets=np.array(spans), segments=np.zeros(len(spans), dtype=np.int64),
        word_ids=np.array(words), scores=np.array(scores, dtype=np.float32), method="m",
        parameters={}, target="logit of a", prediction="a", probability=0.9,
    )  # fmt: skip


def test_target_quantities() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]])
    label, other = torch.tensor([2, 0]), torch.tensor([1, 2])
    probability = torch.softmax(logits, -1)
    assert Target(label)(logits).tolist() == [3, 2]
    assert Target(label, other)(logits).tolist() == [2, 2]
    torch.testing.assert_close(
        Target(label, quantity="probability")(logits), probability[[0, 1], [2, 0]]
    )
    torch.testing.assert_close(
        Target(label, other, "log_probability")(logits), torch.tensor([2.0, 2.0])
    )


def test_unknown_quantity() -> None:
    with pytest.raises(UnknownNameError, match="unknown quantity: got 'prob'"):
        Target(torch.tensor([0]), quantity="prob")  # type: ignore[arg-type]


def test_targets_can_be_picked() -> None:
    target = Target(torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2]))[torch.tensor([2, 0])]
    assert target.label.tolist() == [1, 2]
    assert target.against is not None
    assert target.against.tolist() == [2, 0]


def test_words_sum_their_tokens() -> None:
    text = "heartless bore"
    whole = attribution(text, [(0, 5), (5, 9), (10, 14)], [0, 0, 1], [1.0, 2.0, -0.5]).words()
    assert whole.tokens == ("heartless", "bore")
    assert whole.scores.tolist() == [3.0, -0.5]
    assert whole.offsets.tolist() == [[0, 9], [10, 14]]


def test_sentences_sum_their_tokens() -> None:
    text = "It drags. Truly! But the end is fine"
    spans = [
        (0, 2),
        (3, 8),
        (8, 9),
        (10, 15),
        (15, 16),
        (17, 20),
        (21, 24),
        (25, 28),
        (29, 31),
        (32, 36),
    ]
    item = attribution(text, spans, list(range(10)), [1.0] * 10).sentences()
    assert item.tokens == ("It drags.", "Truly!", "But the end is fine")
    assert item.scores.tolist() == [3, 2, 5]


@pytest.mark.parametrize("unit", ["words", "sentences"])
def test_units_keep_the_total_and_the_specials(demo: Model, unit: str) -> None:
    texts, pairs = ["Unbelievably heartless. A bore!"], ["Is it good? No."]
    item = xattn.explain(demo, texts, ["rollout"], pairs=pairs)[0]
    merged = getattr(item, unit)()
    assert merged.scores.sum() == pytest.approx(item.scores.sum(), abs=1e-6)
    assert merged.special.sum() == 3
    assert merged.tokens[0] == "[CLS]"
    assert {"words": "heartless", "sentences": "Is it good?"}[unit] in merged.tokens


def test_attribution_as_plain_data(demo: Model) -> None:
    item = xattn.explain(demo, ["A dull film."], ["integrated_gradients"])[0]
    again = json.loads(json.dumps(item.to_dict()))
    assert again["tokens"] == list(item.tokens)
    assert again["parameters"]["steps"] == 8
    frame = item.to_dataframe()
    assert frame["score"].tolist() == item.scores.tolist()
    assert "dull" in item._repr_html_()


def test_curve_area_and_interpolation() -> None:
    curve = Curve(np.array([0.0, 0.25, 1.0]), np.array([1.0, 0.5, 0.0]))
    assert curve.area == pytest.approx(0.25 * 0.75 + 0.75 * 0.25)
    assert curve.at(np.array([0.125]))[0] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("fraction", "score", "message"),
    [
        ([0.0, 1.0], [1.0], "differ in length"),
        ([0.0], [1.0], "two points"),
        ([0.1, 1.0], [1.0, 0.0], "run from 0 to 1"),
        ([0.0, 0.5, 0.5, 1.0], [1.0, 0.5, 0.5, 0.0], "must increase"),
    ],
)
def test_curves_are_checked(fraction: list[float], score: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curve(np.array(fraction), np.array(score))


def test_encodings_are_checked() -> None:
    with pytest.raises(ValueError, match="special"):
        Encoding("a", None, {}, ("a",), np.zeros(2, bool), np.zeros((1, 2), int), np.zeros(1, int),
                 np.zeros(1, int))  # fmt: skip


def test_spans_are_summed_and_keep_the_total(demo: Model) -> None:
    text = "A dull, lifeless film."
    [item] = xattn.explain(demo, [text], ["integrated_gradients"])
    spans = item.spans([(2, 6), (8, 21)])
    assert spans.unit == "span"
    assert [t for t, s in zip(spans.tokens, spans.segments, strict=True) if s >= 0] == [
        "A", "dull", ",", "lifeless film", ".",
    ]  # fmt: skip
    assert float(spans.scores.sum()) == pytest.approx(float(item.scores.sum()), abs=1e-5)
    inside = (item.offsets[:, 0] >= 8) & (item.offsets[:, 1] <= 21)
    assert float(spans.scores[4]) == pytest.approx(float(item.scores[inside].sum()), abs=1e-5)
    for wrong, message in (((5, 99), "a part of the 22"), ((6, 6), "a part"), ((7, 8), "no token")):
        with pytest.raises(InputError, match=message):
            item.spans([wrong])
    with pytest.raises(InputError, match="another span"):
        item.spans([(2, 6), (4, 12)])
