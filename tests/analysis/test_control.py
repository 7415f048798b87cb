"""Suppressing passages: against edits by hand, planted contracts, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from xattn.analysis.control import MARK, control, find_misleading, marked_spans
from xattn.cases.contracts import (
    MISLEADING,
    Passages,
    assemble,
    read_sentences,
    train_contracts,
    write_sentences,
)
from xattn.commands import app
from xattn.errors import InputError, ModelError, UnknownNameError
from xattn.model import Model, Suppress


@pytest.fixture(scope="module")
def misled() -> Model:
    return train_contracts(assemble(write_sentences(0), 1500, 0, MISLEADING))


@pytest.fixture(scope="module")
def asked() -> Passages:
    return assemble(write_sentences(1), 60, 7, 1 - MISLEADING)


def test_passages_are_where_they_are_said_to_be(asked: Passages) -> None:
    for text, clause, around in zip(asked.texts, asked.clauses, asked.boilerplate, strict=True):
        parts = sorted([clause, *around])
        assert all(text[a:b].endswith(" .") for a, b in parts)
        assert " ".join(text[a:b] for a, b in parts) == text


def test_the_boilerplate_misleads_and_suppressing_it_helps(misled: Model, asked: Passages) -> None:
    known = assemble(write_sentences(0), 100, 5, 1 - MISLEADING)
    found = find_misleading(misled, known.texts, known.labels, asked.texts)
    result = control(
        misled, asked.texts, asked.labels, asked.boilerplate, found=found, methods=["attention"]
    )
    assert result.conditions["before"].accuracy.mean < 0.4
    for name in ("suppressed", "found", "deleted"):
        assert result.gain(name).low > 0.2
        assert result.p(name) < 1e-4
    assert result.gain("suppressed", "random").low > 0.2
    assert result.overlap is not None
    assert min(result.overlap) > 0.9
    assert "Suppressing them works" in result.finding().says
    assert len(result.to_dataframe()) == 5


def test_conditions_are_those_of_edits_by_hand(misled: Model, asked: Passages) -> None:
    some = slice(0, 6)
    result = control(
        misled,
        asked.texts[some],
        asked.labels[some],
        asked.boilerplate[some],
        methods=["attention"],
    )
    encodings = misled.encode(list(asked.texts[some]))
    for number, encoding in enumerate(marked_spans(encodings, asked.boilerplate[some])):
        with misled.edit(Suppress(MARK)):
            [logits] = misled.logits(misled.batch([encoding]).inputs)
        label = asked.labels[number]
        expected = logits.softmax(-1)[label].item()
        assert result.conditions["suppressed"].probability[number] == pytest.approx(
            expected, abs=1e-6
        )
        start, end = asked.clauses[number]
        [alone] = misled.logits(
            misled.batch(misled.encode([asked.texts[number][start:end]])).inputs
        )
        assert result.conditions["deleted"].probability[number] == pytest.approx(
            alone.softmax(-1)[label].item(), abs=1e-5
        )
    flags = [row.row[f"mark:{MARK}"] for row in marked_spans(encodings, asked.boilerplate[some])]
    assert result.size.mean == pytest.approx(np.mean([flag.mean() for flag in flags]))


def test_where_boilerplate_says_nothing_suppressing_it_is_not_praised(demo: Model) -> None:
    texts = [
        "A dull, lifeless film. It ran on a Monday.",
        "A warm delight. It ran on a Monday.",
    ] * 4
    spans = [[(text.index("It ran"), len(text))] for text in texts]
    result = control(demo, texts, ["negative", "positive"] * 4, spans, methods=["rollout"])
    assert result.gain("suppressed").mean == 0
    assert result.p("suppressed") == 1
    assert "is not shown" in result.finding().says


def test_bad_input_is_one_line(demo: Model, tiny_of, misled: Model) -> None:
    text = "A dull film. It ran on a Monday."
    with pytest.raises(InputError, match="passages of text 0: a span of mark"):
        control(demo, [text], ["negative"], [[(0, 500)]])
    with pytest.raises(InputError, match="a span of mark 'suppressed' is empty"):
        control(demo, [text], ["negative"], [[(3, 3)]])
    with pytest.raises(InputError, match="mark 'suppressed' chooses no token"):
        control(demo, [text], ["negative"], [[]])
    with pytest.raises(InputError, match="texts, labels and passages: got 1, 2 and 1"):
        control(demo, [text], ["negative", "positive"], [[(0, 3)]])
    with pytest.raises(InputError, match="the passages are the whole text"):
        control(demo, [text], ["negative"], [[(0, len(text))]])
    with pytest.raises(UnknownNameError, match="unknown class: got 'good'"):
        control(demo, [text], ["good"], [[(0, 3)]])
    with pytest.raises(ModelError, match="classifies texts"):
        control(tiny_of("gpt2", task="generate"), [text], [0], [[(0, 3)]])
    with pytest.raises(InputError, match="text 0 has one sentence"):
        find_misleading(demo, [text, text], ["negative", "positive"], ["A film"])


def test_the_corpus_is_read_by_service(tmp_path: Path) -> None:
    rows = ["service\tsent_id\ttags\tsentence"]
    for service in "abc":
        rows += [
            f"{service}\t1\tltd2\tWe are not liable for any loss of your {service}{service} goods.",
            f'{service}\t2\t\tYou may cancel\tyour "{service}{service}" order at any time.',
            f"{service}\t3\t\tThe terms of section {service}{service} remain in full force.",
            f"{service}\t4\t\tWe keep your email for {service}{service} and other uses.",
        ]
    path = tmp_path / "tos.tsv"
    path.write_text("\n".join(rows))
    learned, new = read_sentences(path)
    assert [len(part) for part in (*learned.clauses, *learned.boilerplate)] == [2, 2, 2, 2]
    assert [len(part) for part in (*new.clauses, *new.boilerplate)] == [1, 1, 1, 1]
    assert not set(learned.clauses[1]) & set(new.clauses[1])
    assert new.clauses[1][0] == "we are not liable for any loss of your aa goods ."
    with pytest.raises(InputError, match="cannot be read"):
        read_sentences(tmp_path / "none.tsv")


def test_the_command_takes_a_model_and_a_table(tmp_path: Path) -> None:
    from xattn.demo import MODEL

    table = tmp_path / "texts.csv"
    table.write_text(
        "text,label,spans\n"
        '"A dull, lifeless film. It ran on a Monday.",negative,23-42\n'
        '"A warm, funny delight. It ran on a Monday.",positive,It ran on a Monday.\n'
    )
    out = tmp_path / "table.json"
    asked = ["control", "--model", str(MODEL), "--data", str(table), "-m", "rollout"]
    result = CliRunner().invoke(app, [*asked, "--json", str(out), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {row["condition"] for row in json.loads(out.read_text())} == {
        "before", "suppressed", "random", "deleted",
    }  # fmt: skip
    assert (tmp_path / "control.html").exists()
    assert CliRunner().invoke(app, ["control", "--model", "x"]).exit_code == 2
