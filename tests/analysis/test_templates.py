"""Counterfactual pairs: filled from templates, and read from published sets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xattn.analysis.schemas import read_pairs, read_statistics
from xattn.analysis.templates import (
    PROFESSIONS,
    PRONOUNS,
    TEMPLATES,
    Groups,
    expand,
    read_lines,
)
from xattn.errors import InputError, XattnError, XattnWarning

DATA = Path(os.environ.get("XATTN_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
LINES = (
    "The {profession} said that {subject} was late.",
    "We gave the {profession} {possessive} coat and told {object} the way.",
    "{Subject} is a good {profession}.",
)
FEW = ("nurse", "pilot", "bus driver")


def test_the_projects_own_set_is_large_enough_and_fills():
    templates, professions = read_lines(TEMPLATES), read_lines(PROFESSIONS)
    assert len(templates) >= 10
    assert len(professions) >= 40
    pairs = expand()
    assert len(pairs) == len(templates) * len(professions)
    for pair in pairs:
        assert "{" not in pair.first.text + pair.second.text
        for side, forms in zip((pair.first, pair.second), PRONOUNS.pairs[0], strict=True):
            assert side.text[slice(*side.profession)] == pair.profession
            assert {side.text[slice(*span)].lower() for span in side.swapped} <= set(forms.values())


@pytest.mark.parametrize("template", LINES)
def test_nothing_but_the_swapped_words_differs(template):
    for pair in expand([template], FEW):
        rest = []
        for side in (pair.first, pair.second):
            text = side.text
            for start, end in reversed(side.swapped):
                text = f"{text[:start]}_{text[end:]}"
            rest.append(text)
        assert rest[0] == rest[1]
        assert len(pair.first.units) == len(pair.second.units)


def test_names_are_swapped_one_for_one_and_units_stay_side_by_side():
    groups = Groups.parse(["name=Emma,Mary Ann/Aisha,Li", "object=her,her/him,him"])
    assert groups.names == ("Emma, …", "Aisha, …")
    pairs = expand(["{name}, a {profession}, took it with {object}."], ["nurse"], groups)
    assert [pair.words for pair in pairs] == ["emma her/aisha him", "mary ann her/li him"]
    for pair in pairs:
        assert len(pair.first.units) == len(pair.second.units) == 7
    first = pairs[1].first
    assert [first.text[slice(*unit)] for unit in first.units][:2] == ["Mary Ann,", "a"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("The {profession} slept.", "lacks a slot: got {profession}, expected"),
        ("{Subject} slept.", "lacks a slot: got {subject}"),
        ("Nobody slept.", "lacks a slot: got none"),
        ("The {profession} and the {profession} saw {object}.", "{profession} once"),
        ("The {profession} saw {objekt}.", "did you mean 'object'?"),
    ],
)
def test_templates_without_a_slot_are_refused(template, said):
    with pytest.raises(XattnError) as error:
        expand([LINES[0], template], FEW)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_groups_take_the_projects_own_templates_that_they_can_fill():
    pairs = expand(None, FEW, Groups.parse(["subject=he/she"]))
    assert 3 <= len({pair.template for pair in pairs}) < len(read_lines(TEMPLATES))
    assert {pair.words for pair in pairs} == {"he/she"}
    with pytest.raises(InputError, match=r"got name, expected subject, object.*--templates"):
        expand(None, FEW, Groups.parse(["name=Emma/Aisha"]))


@pytest.mark.parametrize(
    "given",
    [[], ["name=Al"], ["name"], ["name=Al,Bo/Cy"], ["name=/Cy"], ["name=Al/Al"], ["profession=a/b"],
     ["a=b/c", "a=d/e"], ["name=a/b/c"], ["first=a/b", "last=a,b/c,d"]],
)  # fmt: skip
def test_groups_that_are_none_are_refused(given):
    with pytest.raises(InputError):
        Groups.parse(given)


def test_files_of_lines(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("# a comment\n\n nurse \npilot\nnurse\n", encoding="utf-8")
    assert read_lines(file) == ("nurse", "pilot")
    file.write_text("# nothing\n\n", encoding="utf-8")
    with pytest.raises(InputError, match="lists nothing"):
        read_lines(file)
    with pytest.raises(InputError, match="No such file"):
        read_lines(tmp_path / "none.txt")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_lines(file)


WINOGENDER = """sentid\tsentence
potter.guest.0.male.txt\tThe potter gave the guest a bowl that he had made.
potter.guest.0.female.txt\tThe potter gave the guest a bowl that she had made.
potter.guest.0.neutral.txt\tThe potter gave the guest a bowl that they had made.
potter.guest.1.male.txt\tThe potter gave the guest a bowl that he had broken.
potter.guest.1.female.txt\tThe potter gave the guest a bowl that she had broken.
potter.someone.0.male.txt\tThe potter gave someone a bowl that he had made.
potter.someone.0.female.txt\tThe potter gave someone a bowl that she had made.
miller.guest.0.male.txt\tThe guest thanked the miller for his flour.
miller.guest.0.female.txt\tThe guest thanked the miller for her flour.
weaver.guest.0.male.txt\tThe guest paid the weaver and thanked him.
"""
OWN_TEMPLATES = """occupation(0)\tother-participant(1)\tanswer\tsentence
potter\tguest\t0\tThe $OCCUPATION gave the $PARTICIPANT a bowl that $NOM_PRONOUN had made.
potter\tguest\t1\tThe $OCCUPATION gave the $PARTICIPANT a bowl that $NOM_PRONOUN had broken.
miller\tguest\t0\tThe $PARTICIPANT thanked the $OCCUPATION for $POSS_PRONOUN flour.
"""
PRO = """1 [The potter] told the guest that [he] had made the bowl.
2 The guest thanked [the weaver] and paid [her].
3 [The miller] lost [his] sack.
"""
ANTI = """1 [The potter] told the guest that [she] had made the bowl.
2 The guest thanked [the weaver] and paid [him].
"""


def test_winogender_is_read(tmp_path):
    (tmp_path / "all_sentences.tsv").write_text(WINOGENDER, encoding="utf-8")
    with pytest.warns(XattnWarning, match="without a partner, and left out: weaver.guest.0$"):
        pairs = read_pairs(tmp_path)
    assert [(pair.profession, pair.template, pair.words) for pair in pairs] == [
        ("potter", "potter.0", "he/she"),
        ("potter", "potter.0", "he/she"),
        ("miller", "miller.0", "his/her"),
    ]
    assert pairs[2].second.text[slice(*pairs[2].second.profession)] == "miller"


def test_winogenders_templates_give_its_sentences(tmp_path):
    (tmp_path / "templates.tsv").write_text(OWN_TEMPLATES, encoding="utf-8")
    pairs = read_pairs(tmp_path)
    assert [pair.first.text for pair in pairs] == [
        "The potter gave the guest a bowl that he had made.",
        "The potter gave someone a bowl that he had made.",
        "The guest thanked the miller for his flour.",
        "Someone thanked the miller for his flour.",
    ]
    assert len({pair.template for pair in pairs}) == 2


def test_winobias_is_read_with_its_other_half(tmp_path):
    pro = tmp_path / "pro_stereotyped_type1.txt.dev"
    pro.write_text(PRO, encoding="utf-8")
    with pytest.raises(InputError, match="no anti_stereotyped_type1"):
        read_pairs(pro)
    (tmp_path / "anti_stereotyped_type1.txt.dev").write_text(ANTI, encoding="utf-8")
    for source in (pro, tmp_path, tmp_path / "anti_stereotyped_type1.txt.dev"):
        with pytest.warns(XattnWarning, match="without a partner, and left out: 3$"):
            pairs = read_pairs(source)
        assert [(pair.profession, pair.words) for pair in pairs] == [
            ("potter", "he/she"),
            ("weaver", "him/her"),
        ]
    assert pairs[1].first.text == "The guest thanked the weaver and paid him."


@pytest.mark.parametrize(
    "text", ["", "nothing of the kind\n", "1 no brackets here\n", "sentid\tsentence\na.b\tc\n"]
)
def test_files_of_another_form_are_refused(text, tmp_path):
    file = tmp_path / "pro_stereotyped.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        read_pairs(file)
    with pytest.raises(InputError, match="holds no sentences"):
        read_pairs(tmp_path / "..")


@pytest.mark.skipif(not (DATA / "winogender").is_dir(), reason="needs ../shared/data/winogender")
def test_the_real_winogender():
    folder = DATA / "winogender"
    sentences, filled = (
        {(pair.profession, pair.first.text, pair.second.text) for pair in read_pairs(file)}
        for file in (folder, folder / "templates.tsv")
    )
    assert sentences == filled
    assert len(sentences) == 120
    figures = read_statistics(folder)
    assert {len(values) for values in figures.values()} == {60}
    assert figures["bls_pct_female"]["nurse"] > 80 > 20 > figures["bls_pct_female"]["engineer"]


def test_statistics_are_the_columns_that_speak_of_women(tmp_path):
    file = tmp_path / "figures.csv"
    file.write_text("job,share of women,year\nNurse,88,2015\nPilot,5,2015\nclown,,2015\n")
    assert read_statistics(file) == {"share of women": {"nurse": 88.0, "pilot": 5.0}}
    file.write_text("job,pay\nnurse,3.5\n")
    assert read_statistics(file) == {"pay": {"nurse": 3.5}}
    file.write_text("job,pay\nnurse,little\n")
    with pytest.raises(InputError, match="no column of numbers"):
        read_statistics(file)
