"""Beginnings of sentences have the number that they are said to have, and the model learns it."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from xattn.cases.agreement import (
    CONSTRUCTIONS,
    Prefix,
    draw_prefixes,
    read_prefixes,
    right,
    split,
    train_agreement,
)
from xattn.errors import InputError

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("XATTN_DATA", ROOT / ".." / "shared" / "data")) / (
    "agreement_marvin_linzen"
)


def nouns(text: str) -> list[str]:
    """Return the nouns: what stands behind ``the`` and an adjective, if any."""
    return re.findall(r"the (?:(?:old|quiet|tall|young|famous|tired) )?(\w+)", text)


def test_the_noun_that_decides_has_the_number_of_the_verb():
    prefixes = draw_prefixes(2000, seed=1)
    assert Counter(p.construction for p in prefixes).keys() == CONSTRUCTIONS.keys()
    for prefix in prefixes:
        found = nouns(prefix.text)
        last = prefix.construction in ("complement", "within the relative")
        decides = found.pop(-1 if last else 0)
        assert decides.endswith("s") == prefix.plural
        assert prefix.attractor == any(n.endswith("s") != prefix.plural for n in found)


def test_verbs_within_agree_with_their_subjects():
    for prefix in draw_prefixes(2000, seed=2):
        verb = re.search(r"\b(follow|visit|praise|ignore|hear|greet)(s?)\b", prefix.text)
        assert bool(verb) == (prefix.construction in ("subject relative", "object relative"))
        if verb:
            first, second = nouns(prefix.text)
            subject = first if prefix.construction == "subject relative" else second
            assert subject.endswith("s") != bool(verb[2])


def test_draws_repeat_and_differ():
    drawn = draw_prefixes(300, seed=3)
    assert drawn == draw_prefixes(300, seed=3)
    assert len({prefix.text for prefix in drawn}) == 300
    assert {p.text for p in drawn} != {p.text for p in draw_prefixes(300, seed=4)}
    assert 0.4 < np.mean([prefix.plural for prefix in drawn]) < 0.6


def test_a_template_is_the_same_for_all_numbers():
    texts = ["the judges near the boat", "the judge near the boats", "the judges near the boats"]
    assert len({Prefix(text, True, "phrase", False).template for text in texts}) == 1
    assert (
        Prefix("the judge hears", True, "", False).template
        != Prefix("the judge greets", True, "", False).template
    )


def test_what_is_asked_was_not_learned_in_any_number():
    prefixes = draw_prefixes(3000, seed=5)
    learned, asked = split(prefixes, seed=1, asked=0.25)
    assert len(learned) + len(asked) == len(prefixes)
    assert not {p.template for p in learned} & {p.template for p in asked}
    assert 0.2 < len(asked) / len(prefixes) < 0.3
    assert split(prefixes, seed=2)[1] != split(prefixes, seed=1)[1]
    with pytest.raises(InputError, match="share to ask about"):
        split(prefixes, asked=1.0)


HEADER = "condition\tgrammatical\tungrammatical\n"


def test_pairs_are_read_up_to_the_verb(tmp_path: Path):
    lines = ["plur_A_sing_B\tthe cooks near the cat sing\tthe cooks near the cat sings",
             "plur_A_sing_B\tthe cooks near the cat are old\tthe cooks near the cat is old",
             "sing_A_V\tthe cook is old\tthe cook are old"]  # fmt: skip
    (tmp_path / "near.tsv").write_text(HEADER + "\n".join(lines))
    (tmp_path / "reflexive.tsv").write_text("no verb differs here")
    assert read_prefixes(tmp_path) == [
        Prefix("the cooks near the cat", True, "near", True),
        Prefix("the cook", False, "near", False),
    ]


@pytest.mark.parametrize(
    "content",
    ["a\tb\n", "", HEADER + "sing\tthe cook sings", HEADER + "sing\tthe cook\tthe cook",
     HEADER + "none\tthe cook sings\tthe cook sing"],
)  # fmt: skip
def test_what_cannot_be_read_is_told(tmp_path: Path, content: str):
    (tmp_path / "near.tsv").write_text(content)
    with pytest.raises(InputError, match=r"near\.tsv"):
        read_prefixes(tmp_path)
    with pytest.raises(InputError, match="holds no sentences"):
        read_prefixes(tmp_path / "elsewhere")


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no {FOLDER}")
def test_published_pairs_have_the_number_of_their_verb():
    prefixes = {prefix.text: prefix for prefix in read_prefixes(FOLDER)}
    assert len(prefixes) > 10_000
    checked = 0
    for path in FOLDER.glob("*.tsv"):
        if path.stem.startswith("reflexive"):
            continue
        for line in path.read_text(encoding="utf-8").splitlines()[1::7]:
            good, bad = (cell.split() for cell in line.split("\t")[1:])
            place = next(
                i for i, pair in enumerate(zip(good, bad, strict=True)) if len({*pair}) > 1
            )
            singular = {"is": "are", "has": "have"}
            one, other = good[place], bad[place]
            expected = one in singular.values() or other.startswith(one)  # laugh, laughs
            assert prefixes[" ".join(good[:place])].plural == expected, line
            checked += 1
    assert checked > 10_000


def test_training_repeats_and_leaves_the_random_numbers_alone():
    prefixes = draw_prefixes(50, seed=6)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = (train_agreement(prefixes, width=16, steps=2) for _ in range(2))
    assert torch.rand(3).equal(expected)
    for name, weight in one.network.state_dict().items():
        assert weight.equal(two.network.state_dict()[name])


@pytest.mark.parametrize("causal", [True, False])
def test_the_number_is_read_from_the_token_that_was_added(causal: bool):
    model = train_agreement(draw_prefixes(50, seed=6), causal=causal, width=16, steps=2)
    batch = model.batch(model.encode(["the old judge", "the judges near the boat"]))
    trace = model.trace(batch, model.target(batch))
    added = batch.inputs["input_ids"] == model.tokenizer.cls_token_id
    assert trace.readout.gt(0).equal(added)
    assert (len(trace.links), trace.maps[0].shape[1]) == (6, 8)
    seen = trace.maps[0][1] > 0
    assert seen.all().item() is not causal


def test_the_decoder_learns_the_task_and_is_not_fooled_by_attractors():
    learned, asked = split(draw_prefixes(6000, seed=7))
    model = train_agreement(learned, width=64, steps=400)
    found = right(model, asked)
    attractor = np.array([prefix.attractor for prefix in asked])
    assert found.mean() >= 0.95
    assert found[attractor].mean() >= 0.9
