"""Answers are found to rest on what they rest on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import xattn
from xattn.analysis.detector import Labelled, auroc, train, unsupervised
from xattn.analysis.grounding import ground
from xattn.analysis.lookback import lookbacks, placed
from xattn.cases.stories import Story, answers, draw_stories, draw_twins, train_stories
from xattn.commands import app
from xattn.errors import InputError, UnknownNameError
from xattn.finding import Finding, Passage
from xattn.model import Model

STORY = "Mia had a red ball. She went to the park. It was cold."


@pytest.fixture(scope="module")
def decoder() -> Model:
    return train_stories()


@pytest.fixture(scope="module")
def storyteller() -> Model:
    return xattn.load(task="generate")


@pytest.fixture(scope="module")
def twins() -> list[tuple[Story, Story]]:
    return draw_twins(80, seed=21)


@pytest.fixture(scope="module")
def rows(twins) -> list[Labelled]:
    return [
        Labelled(s.source, s.answer, () if s.grounded else ((0, len(s.answer)),), s.question)
        for pair in twins
        for s in pair
    ]


@pytest.fixture(scope="module")
def detector(decoder, rows):
    return train(decoder, rows)


def test_the_decoder_answers_from_the_story_and_else_from_memory(decoder, twins):
    for side in (0, 1):
        stories = [pair[side] for pair in twins]
        right = [a == s.answer for a, s in zip(answers(decoder, stories), stories, strict=True)]
        assert np.mean(right) >= 0.97


def test_ungrounded_answers_are_told_from_grounded_ones(decoder, rows, detector):
    assert detector.auroc.mean >= 0.95
    assert detector.auroc.low >= 0.9
    found = lookbacks(decoder, [placed(decoder, r.question, r.source, r.answer) for r in rows])
    labels = np.array([bool(row.ungrounded) for row in rows])
    assert auroc(labels, np.array([unsupervised(one) for one in found])).mean >= 0.9


def test_citations_hit_the_supporting_fact(decoder):
    stories = [s for s in draw_stories(60, seed=22, silent=0) if len(s.sentences) > 2][:40]
    hits = dict.fromkeys(("occlusion", "attention", "random"), 0)
    for story in stories:
        found = ground(decoder, story.question, story.source, answer=story.answer, methods=[*hits])
        assert found.sentences == story.sentences
        for name in hits:
            hits[name] += found.cited(range(6), name)[0].sentence == story.fact
    assert max(hits.values()) / len(stories) >= 0.9
    assert hits["occlusion"] / len(stories) >= 0.85
    assert hits["random"] / len(stories) <= 0.5


def test_a_detector_flags_what_is_not_grounded_and_lets_it_cite_nothing(decoder, detector, twins):
    told, silent = twins[0]
    good = ground(decoder, told.question, told.source, detector=detector, max_new_tokens=8)
    bad = ground(decoder, silent.question, silent.source, detector=detector, max_new_tokens=8)
    assert good.answer == told.answer
    assert [part.flagged for part in good.parts] == [False]
    assert good.parts[0].citations[0].sentence == told.fact
    assert bad.answer == silent.answer
    assert [(part.flagged, part.citations) for part in bad.parts] == [(True, ())]
    assert repr(silent.answer) in bad.finding().says


def test_what_is_written_and_what_is_given_are_looked_into_alike(decoder, twins):
    story = twins[1][0]
    written = ground(decoder, story.question, story.source, max_new_tokens=8)
    given = ground(decoder, story.question, story.source, answer=story.answer)
    assert written.answer == given.answer == story.answer
    np.testing.assert_allclose(written.lookback.ratio(), given.lookback.ratio(), atol=1e-5)
    for name in written.credit:
        np.testing.assert_allclose(written.shares(name), given.shares(name), atol=1e-3)


def test_credit_is_what_explain_says_summed_over_sentences(storyteller):
    found = ground(storyteller, "What did Mia have?", STORY, answer="Mia had a ball.",
                   methods=["attention"])  # fmt: skip
    [encoding] = storyteller.encode([f"{STORY}\nWhat did Mia have?"], [" Mia had a ball."])
    items = xattn.explain(storyteller, [encoding], ["attention"], quantity="log_probability")
    ends = [19, 41, 54, len(encoding.text)]
    for row, item in zip(found.credit["attention"], items, strict=True):
        expected = np.zeros(5)
        for score, segment, (start, _) in zip(
            item.scores, item.segments, item.offsets, strict=True
        ):
            if segment >= 0:
                expected[4 if segment else int(np.searchsorted(ends, start, "right"))] += score
        np.testing.assert_allclose(row, expected, atol=1e-6)
    assert found.sentences == tuple(s + "." for s in STORY.rstrip(".").split(". "))
    assert found.question == "What did Mia have?"
    np.testing.assert_allclose(found.shares("attention").sum(1), 1)


def test_the_source_may_be_parts_of_a_chat(storyteller):
    prompt = f"{STORY} What did Mia have? She had it with her."
    second = prompt.index("She had it")
    spans = [(0, 19), (second, len(prompt))]
    found = ground(storyteller, prompt, spans, chat=True, answer="Mia had a ball.")
    assert found.sentences == ("Mia had a red ball.", "She had it with her.")
    assert found.question == "She went to the park. It was cold. What did Mia have?"
    assert found.parts[0].citations[0].sentence == 0


@pytest.mark.parametrize("family", ["bart", "t5", "gpt2"])
def test_other_architectures_are_served(tiny_of, family):
    model = tiny_of(family, task="generate")
    for answer in (None, "It is thin."):
        methods = ["attention", "occlusion", "saliency"]
        found = ground(model, "What?", "The plot is thin. It is old.", answer=answer,
                       methods=methods, max_new_tokens=5)  # fmt: skip
        assert found.sentences == ("The plot is thin.", "It is old.")
        assert list(found.credit) == methods
        assert found.lookback.ratio().shape[0] == len(found.tokens)
        assert sorted(i for part in found.parts for i in part.tokens) == list(
            range(len(found.tokens))
        )


def test_results_are_written_as_findings_and_json(decoder, detector, twins):
    told = twins[2][0]
    found = ground(decoder, told.question, told.source, detector=detector, max_new_tokens=8)
    finding = found.finding()
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding
    [passage] = [part for part in finding.parts if isinstance(part, Passage)]
    assert "".join(quote.text for quote in passage.pieces) == found.answer
    assert passage.pieces[-1].sources == (told.fact,)
    kept = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert kept["parts"][0]["citations"][0]["sentence"] == told.fact
    assert kept["parts"][0]["text"] == told.answer
    frame = found.to_dataframe()
    assert [found.answer[a:b] for a, b in zip(frame["start"], frame["end"], strict=True)] == list(
        found.tokens
    )
    assert "not grounded" not in finding.says
    assert "<h3>" in found._repr_html_()


def test_limits_are_told(storyteller):
    one = ground(storyteller, "What?", "Mia had a ball.", answer="A ball.", methods=["attention"])
    said = " ".join(one.finding().cautions)
    assert "The source is one sentence" in said
    assert "Without a detector" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "new tokens to write: got 0, expected 1 or more"),
        ({"methods": []}, "no method is named"),
        ({"answer": "A.", "do_sample": True}, "leave out answer"),
        ({"source": [(0, 999)]}, "outside the prompt"),
        ({"source": " "}, "the source is empty"),
        ({"source": "word " * 300}, "the source is too long"),
        ({"max_new_tokens": 250}, "250 to be written"),
    ],
)
def test_what_cannot_be_grounded_is_told(storyteller, options, says):
    with pytest.raises(InputError, match=says):
        ground(storyteller, "What?", **{"source": STORY, **options})


def test_unknown_methods_are_told(storyteller):
    with pytest.raises(UnknownNameError, match="atention"):
        ground(storyteller, "What?", STORY, methods=["atention"], max_new_tokens=2)
    found = ground(storyteller, "What?", STORY, methods=["random"], answer="A ball.")
    with pytest.raises(InputError, match="got 'occlusion'"):
        found.shares("occlusion")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["grounding", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["grounding", *arguments])
    assert result.exit_code == 2, result.output
    return result.output


def test_the_command_shows_writes_and_trains(tmp_path: Path):
    said = run("--out", str(tmp_path / "page"), "--json", str(tmp_path / "found.json"))
    assert "cites" in said
    kept = json.loads((tmp_path / "found.json").read_text())
    [best] = [c["sentence"] for c in kept["parts"][0]["citations"][:1]]
    word = kept["answer"].split()[-1].strip(".")
    assert word in kept["sentences"][best]
    assert (tmp_path / "page" / "grounding.html").is_file()
    assert (tmp_path / "page" / "findings" / "grounding.json").is_file()
    labels = tmp_path / "labels.csv"
    lines = ["source,question,answer,grounded"]
    for name in ("Mia", "Tom", "Ann", "Ben"):
        lines += [f"{name} had a ball.,What did {name} have?,{name} had a ball.,yes",
                  f"{name} had a ball.,What did {name} have?,green cake hat,no"]  # fmt: skip
    labels.write_text("\n".join(lines))
    source = tmp_path / "story.txt"
    source.write_text(STORY)
    assert "AUROC" in run("--train", str(labels), "--save", str(tmp_path / "d.json"))
    said = run("What did Mia have?", "--source", str(source), "--answer", "Mia had a ball.",
               "--detector", str(tmp_path / "d.json"), "-m", "attention")  # fmt: skip
    assert "P(not grounded)" in said


def test_the_command_says_what_is_missing(tmp_path: Path):
    assert "--source TEXT or FILE" in refused("Where?")
    assert "cannot be read" in refused("Where?", "--source", "nowhere.txt")
    assert "--train and --save go together" in refused("--save", str(tmp_path / "d.json"))
    assert "--spans" in refused("Where?", "--spans", "all")
    assert "both" in refused("Where?", "--spans", "0-2", "--source", "A.")
    assert "outside the prompt" in refused("Where?", "--spans", "0-99")
    assert "1 or more" in refused("Where?", "--source", "A b. C d.", "--new-tokens", "0")
    assert not list(tmp_path.iterdir())
