"""Known answers: they are what they are said to be, and methods are held against them rightly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import xattn
from xattn.commands import app
from xattn.errors import InputError, UnknownNameError
from xattn.evaluation.truth import PROBLEMS, Problem, ground_truth
from xattn.evaluation.truth.compiled import ANSWERS, DECOYS, PLAIN
from xattn.evaluation.truth.questions import accuracy, draw_questions, train_questions

COMPILED = ("copy", "counting", "induction")


@pytest.fixture(scope="module")
def problems() -> dict[str, Problem]:
    return {name: PROBLEMS[name](150, 3) for name in COMPILED}


@pytest.mark.parametrize("name", COMPILED)
def test_the_truth_is_the_shapley_value_of_the_logit(problems, name):
    problem = problems[name]
    short = [i for i, text in enumerate(problem.texts) if len(text.split()) <= 9][:8]
    assert len(short) >= 5
    exact = xattn.explain(
        problem.model, [problem.texts[i] for i in short], ["exact_shapley:operator=mask"]
    )
    for i, item in zip(short, exact, strict=True):
        np.testing.assert_allclose(item.scores[~item.special], problem.truth[i], atol=2e-5)
        assert problem.judged(i, item) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_model_runs_its_algorithm(problems, name):
    problem = problems[name]
    for text, item in zip(
        problem.texts, xattn.explain(problem.model, problem.texts, ["random"]), strict=True
    ):
        words = text.split()
        if name == "counting":
            expected = "up" if words.count("up") > words.count("down") else "down"
        elif name == "copy":
            [expected] = set(words) & set(ANSWERS)
        else:
            expected = words[words.index(words[-1]) + 1]
        assert item.prediction == expected


@pytest.mark.parametrize("name", COMPILED)
def test_words_without_a_part_change_nothing(problems, name):
    problem, draw = problems[name], np.random.default_rng(0)
    for text, truth in zip(problem.texts[:40], problem.truth, strict=False):
        words = text.split()
        free = sorted(set(PLAIN) - set(words))
        other = [
            word if truth[i] or word in DECOYS else str(draw.choice(free))
            for i, word in enumerate(words)
        ]
        before, after = (
            problem.model.logits(problem.model.batch(problem.model.encode([t])).inputs)
            for t in (text, " ".join(other))
        )
        torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", COMPILED)
def test_the_loud_head_looks_at_what_does_not_matter(problems, name):
    problem = problems[name]
    [text] = [t for t in problem.texts if sum(w in DECOYS for w in t.split()) == 1][:1]
    [maps] = problem.model.attention(problem.model.encode([text]))
    place = 1 + next(i for i, w in enumerate(text.split()) if w in DECOYS)
    for layer in (0, 1):
        assert maps.maps[layer][1, -1, place] > 0.999


def test_questions_are_answered_by_the_last_sentence_about_somebody():
    drawn = draw_questions(300, seed=5)
    for text, pair, truth in zip(drawn.texts, drawn.pairs, drawn.truth, strict=True):
        facts = [s.split() for s in text.split(" . ")]
        asked = pair.split()[2]
        last = [fact for fact in facts if fact[0] == asked][-1]
        words = f"{text} {pair}".split()
        place = [w for w in last if w != "."][-1]
        assert [words[i] for i in np.flatnonzero(truth)] == [asked, place, asked]


def test_a_model_learns_to_answer():
    model = train_questions()
    drawn = draw_questions(300, seed=7)
    assert accuracy(model, drawn) >= 0.99


def test_methods_are_held_against_the_truth():
    told = []
    found = ground_truth(
        ["exact_shapley", "input_x_gradient"], ["counting", "copy"], texts=6, progress=told.append
    )
    assert told == ["counting", "copy"]
    table = found.table()
    assert list(table.columns) == ["counting", "copy"]
    assert set(found.refused["method"]) == {"exact_shapley"}  # texts of more than twelve words
    assert table.loc["input_x_gradient", "counting"] == pytest.approx(1, abs=1e-5)
    row = found.rows.set_index(["method", "problem"]).loc[("input_x_gradient", "counting")]
    assert row["above"]
    assert not found.rows.set_index(["method", "problem"]).loc[("random", "counting"), "above"]


def test_unknown_names_are_told():
    with pytest.raises(UnknownNameError, match="problem: got 'copi'"):
        ground_truth(["random"], ["copi"])
    with pytest.raises(InputError, match="texts"):
        ground_truth(["random"], ["copy"], texts=1)


def test_the_command_prints_methods_by_problems(tmp_path):
    result = CliRunner().invoke(
        app,
        [
            *("bench", "ground-truth", "-m", "attention", "--problems", "copy", "--texts", "5"),
            *("--csv", str(tmp_path / "values.csv")),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "attention" in result.output
    assert "random" in result.output
    assert "copy (AUPRC)" in result.output
    assert (tmp_path / "values.csv").read_text().startswith("method,problem,measure,mean")
