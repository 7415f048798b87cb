"""Every input is run once, and its score is what the model says."""

import numpy as np
import pytest

from xattn.evaluation import Scorer

TEXTS = ["Dull!", "A warm and funny film.", "Dull!", "It drags, and then it drags some more."]


def test_scores_are_the_models_probabilities(demo, reference):
    rows = [e.row for e in demo.encode(TEXTS)]
    labels = [0, 1, 1, 0]
    expected = [reference.probability(demo, r, c) for r, c in zip(rows, labels, strict=True)]
    assert Scorer(demo).scores(rows, labels) == pytest.approx(expected, abs=1e-6)


def test_equal_inputs_run_once(demo):
    rows = [e.row for e in demo.encode(TEXTS)]
    scorer, before = Scorer(demo), demo.passes.forward
    scorer.scores(rows, [0] * 4)
    scorer.scores(rows[::-1], [1] * 4)
    assert (scorer.asked, scorer.run) == (8, 3)
    assert demo.passes.forward - before == 3


def test_inputs_that_differ_in_one_array_are_not_mixed_up(demo):
    [encoding] = demo.encode(["A warm film"], ["A dull one"])
    hidden = {**encoding.row, "attention_mask": encoding.row["attention_mask"].copy()}
    hidden["attention_mask"][6] = 0
    flat = {**encoding.row, "token_type_ids": np.zeros_like(encoding.row["token_type_ids"])}
    scorer = Scorer(demo)
    scores = scorer.scores([encoding.row, hidden, flat], [0, 0, 0])
    assert scorer.run == 3
    assert len(set(scores.tolist())) == 3


def test_clear_forgets_but_counts_on(demo):
    rows = [e.row for e in demo.encode(TEXTS)]
    scorer = Scorer(demo)
    first = scorer.scores(rows, [0] * 4)
    scorer.clear()
    assert scorer.scores(rows, [0] * 4) == pytest.approx(first)
    assert (scorer.asked, scorer.run) == (8, 6)


def test_nothing_is_remembered_of_a_failed_run(demo, monkeypatch):
    rows = [e.row for e in demo.encode(TEXTS)]
    scorer = Scorer(demo)
    expected = Scorer(demo).scores(rows, [0] * 4)
    with monkeypatch.context() as patch:
        patch.setattr(demo, "logits", lambda inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scorer.scores(rows, [0] * 4)
    assert scorer.scores(rows, [0] * 4) == pytest.approx(expected)
