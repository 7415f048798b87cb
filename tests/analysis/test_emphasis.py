"""Emphasis against steering by hand, and on a decoder whose habits are known."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from xattn.analysis.emphasis import MARK, emphasis
from xattn.cases.instructions import NOTHING, Instructions, draw_instructions, train_instructions
from xattn.commands import app
from xattn.commands import control as commands
from xattn.errors import InputError, ModelError
from xattn.model import Model, mark, steer


@pytest.fixture(scope="module")
def trained() -> Model:
    return train_instructions(steps=700)


def written(model: Model, drawn: Instructions) -> list[str]:
    found = model.generate(model.encode(list(drawn.prompts)), 1)
    return [(encoding.pair or "").strip() for encoding in found]


def test_the_decoder_follows_the_last_instruction_and_knows_both_places(trained: Model) -> None:
    both = draw_instructions(100, seed=5)
    pairs = zip(written(trained, both), both.answers, strict=True)
    assert np.mean([w == second for w, (_, second) in pairs]) > 0.95
    one = draw_instructions(100, seed=5, alone=1.0)
    assert all(NOTHING in prompt for prompt in one.prompts)
    pairs = zip(written(trained, one), one.answers, strict=True)
    assert np.mean([w == (second or first) for w, (first, second) in pairs]) > 0.95


def test_steering_to_the_first_instruction_works(trained: Model) -> None:
    drawn = draw_instructions(120, seed=9)
    wanted = [first for first, _ in drawn.answers]
    found = emphasis(trained, drawn.prompts, [[span] for span in drawn.first], wanted)
    assert found.success("before").mean < 0.05
    assert found.gain().low > 0.25
    assert found.gain("random passage").low > 0.25
    assert "instead of 0%" in found.finding().says
    # by hand: the second half, with the heads that were chosen
    half = slice(60, 120)
    encodings = [
        mark(encoding, MARK, spans=[span])
        for encoding, span in zip(
            trained.encode(list(drawn.prompts[half])), drawn.first[half], strict=True
        )
    ]
    with trained.edit(steer(MARK, found.heads)):
        texts = [(e.pair or "").strip() for e in trained.generate(encodings, 1)]
    assert found.right["steered"].tolist() == [
        float(text == want) for text, want in zip(texts, wanted[half], strict=True)
    ]


def test_bad_input_is_one_line(trained: Model, demo: Model) -> None:
    drawn = draw_instructions(4, seed=1)
    spans, wanted = [[span] for span in drawn.first], [first for first, _ in drawn.answers]
    with pytest.raises(InputError, match="prompts, passages and what is wanted: got 4, 3 and 4"):
        emphasis(trained, drawn.prompts, spans[:3], wanted)
    with pytest.raises(InputError, match="outside the text"):
        emphasis(trained, drawn.prompts, [[(0, 500)]] * 4, wanted)
    with pytest.raises(InputError, match="max_new_tokens: got 0"):
        emphasis(trained, drawn.prompts, spans, wanted, max_new_tokens=0)
    with pytest.raises(ModelError, match="a model that generates"):
        emphasis(demo, drawn.prompts, spans, wanted)


def test_the_command_shows_it(trained: Model, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(commands, "train_instructions", lambda: trained)
    asked = ["control", "--task", "generate", "--limit", "40", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "does what the emphasised passage asks for" in result.output.replace("\n", " ")
    assert (tmp_path / "emphasis.html").exists()
