"""Effects: what an edit does is what the model says under it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import xattn
from xattn.effects import effect
from xattn.errors import InputError
from xattn.model import AblateHeads, Model, Scale, Suppress, mark

Tiny = Callable[..., Model]
TEXT = "The plot is thin and the jokes are old, but the two leads are a constant delight."
METHODS = ["attention", "integrated_gradients"]


def test_before_and_after_are_what_explain_says(demo: Model) -> None:
    [encoding] = demo.encode([TEXT])
    encoding = mark(encoding, "praise", words="constant delight")
    edit = Suppress("praise")
    result = effect(demo, encoding, [edit], METHODS)
    before = xattn.explain(demo, [TEXT], METHODS)
    with demo.edit(edit):
        after = xattn.explain(demo, [encoding], METHODS, label="positive")
    for got, expected in zip((*result.before, *result.after), (*before, *after), strict=True):
        assert got.target == expected.target == "logit of positive"
        assert (got.prediction, got.probability) == (expected.prediction, expected.probability)
        assert abs(got.scores - expected.scores).max() < 1e-6
    assert result.changed  # without the praise the text is negative
    assert result.before[0].prediction == "positive"
    assert result.after[0].prediction == "negative"
    sure = {name: (a, b) for name, a, b in result.probabilities}
    assert sure["positive"][0] == pytest.approx(result.before[0].probability)
    assert sure["negative"][1] == pytest.approx(result.after[0].probability)
    # what nobody looks at gets no attention
    hidden = [i for i, t in enumerate(result.after[0].tokens) if t in ("constant", "delight")]
    assert result.after[0].scores[hidden].max() == 0
    assert "<th>after</th>" in result._repr_html_()
    assert "attention, after" in result._repr_html_()


@pytest.mark.parametrize(("family", "task", "texts", "pair", "at"), [
    ("bert", "tag", "A clumsy film.", None, "each"),
    ("bert", "answer", "What is dull?", "The film is dull.", None),
    ("roberta", "fill", "A <mask> film.", None, None),
    ("gpt2", "generate", "A clumsy", " film", None),
    ("gpt2", "generate", "A clumsy", None, "next"),
    ("llama", "generate", "A clumsy", None, None),
    ("bart", "generate", "A clumsy film", None, None),
])  # fmt: skip
def test_every_task_has_an_effect(
    tiny_of: Tiny, family: str, task: str, texts: str, pair: str | None, at: str | None
) -> None:
    model = tiny_of(family, task=task)
    [encoding] = model.encode([texts], None if pair is None else [pair])
    result = effect(model, encoding, [AblateHeads()], METHODS, at=at, max_new_tokens=4)
    assert len(result.before) == len(result.after) > 0
    if pair is not None or at is not None or task == "fill":
        assert [a.target for a in result.before] == [a.target for a in result.after]
    differences = [
        abs(a.scores - b.scores).max() if a.tokens == b.tokens else 1
        for a, b in zip(result.before, result.after, strict=True)
    ]
    assert max(differences) > 1e-4
    again = effect(model, encoding, [AblateHeads()], METHODS, at=at, max_new_tokens=4)
    for a, b in zip((*result.before, *result.after), (*again.before, *again.after), strict=True):
        assert a.tokens == b.tokens
        assert (a.scores == b.scores).all()


def test_an_edit_that_changes_nothing_has_no_effect(tiny_of: Tiny) -> None:
    model = tiny_of("llama", task="generate")
    [encoding] = model.encode(["A clumsy film"])
    encoding = mark(encoding, "film", words="film")
    result = effect(model, encoding, [Scale("film", 1.0)], ["rollout"], max_new_tokens=5)
    assert not result.changed
    assert abs(result.before[0].scores - result.after[0].scores).max() < 1e-6
    assert all(a == pytest.approx(b, abs=1e-6) for _, a, b in result.probabilities)


def test_what_is_generated_continues_the_prompt(tiny_of: Tiny) -> None:
    for family in ("gpt2", "t5"):
        model = tiny_of(family, task="generate")
        [prompt] = model.encode(["A clumsy film"])
        [written] = model.generate([prompt], 5, eos_token_id=None)
        assert written.text == "A clumsy film"
        assert int((written.segments == 1).sum()) <= 5
        aims = model.aims([written], at="each")[0]
        for aim in aims:  # greedy: every token is the most probable one
            assert aim.prediction == model.class_name(aim.label[0])
        with pytest.raises(InputError, match="has a continuation already"):
            model.generate([written], 5)
