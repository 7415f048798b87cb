"""Findings: kept as JSON, drawn without trusting any text in them, the same in every process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from xattn import charts
from xattn.finding import (
    Dot,
    Dots,
    Finding,
    Heatmap,
    Line,
    Lines,
    Part,
    Passage,
    Quote,
    Table,
    shown,
)

HOSTILE = '<script>alert("1")</script> & $\\frac$ _{a} \n 中 "'
NAN = float("nan")


def every(word: str = "word") -> Finding:
    """Return a finding with one part of each kind, in which a word is wherever one can be."""
    return Finding(
        "demo",
        word,
        word,
        (
            Table(word, (word, "x", "n"), ((word, 0.5, 3), ("b", None, -1)), note=word),
            Heatmap(
                word, (word, "b"), (word, "c", "d"), ((0.1, -0.5, None), (0.0, 1.0, 0.25)),
                unit=word, row_label=word, column_label=word, note=word,
            ),
            Lines(
                word, (0.0, 1.0, 2.0),
                (Line(word, (1.0, None, 2.0)), Line("_b", (1.0, 2.0, 3.0), (0.0,) * 3, (4.0,) * 3)),
                x_label=word, y_label=word, level=1.0, note=word,
            ),
            Dots(
                word, (Dot(word, 0.6, 0.5, 0.7, word), Dot("b", None, group="g")),
                x_label=word, level=0.0, note=word,
            ),
            Passage(
                word, (word, "source"),
                (Quote(word, (0,), 0.9), Quote("b", (0, 1), None, True), Quote("c", (), 2.0)),
                note=word,
            ),
        ),
        (word,),
    )  # fmt: skip


class Read(HTMLParser):
    """What a browser would make of a page: tags, links, ids, and words outside of tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            self.ids += [value or ""] * (name == "id")
            self.links += [value or ""] * (name in ("href", "xlink:href"))
            self.links += re.findall(r"url\((#.*?)\)", value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_finding_is_the_same_when_read_back() -> None:
    finding = every(HOSTILE)
    text = json.dumps(finding.to_dict(), allow_nan=False)
    assert Finding.from_dict(json.loads(text)) == finding


def test_what_is_not_finite_is_kept_as_not_known() -> None:
    finding = Finding(
        "demo", "t", "s",
        (
            Heatmap("h", ("a",), ("b", "c"), ((NAN, 1.0),)),
            Dots("d", (Dot("a", NAN, -float("inf"), float("inf")),)),
            Table("t", ("x",), ((NAN,),)),
        ),
    )  # fmt: skip
    back = Finding.from_dict(json.loads(json.dumps(finding.to_dict(), allow_nan=False)))
    heatmap, dots, table = back.parts
    assert isinstance(heatmap, Heatmap)
    assert heatmap.values == ((None, 1.0),)
    assert isinstance(dots, Dots)
    assert dots.dots == (Dot("a", None, None, None),)
    assert isinstance(table, Table)
    assert table.rows == ((None,),)
    assert "—" in table.markup()


def test_hostile_words_are_words() -> None:
    read = Read(every(HOSTILE)._repr_html_())
    assert "script" not in read.tags
    found = "".join(read.words)
    # twice in each table, passage ..., and on axes and in keys, where a line ends in ↵
    assert found.count('<script>alert("1")</script>') >= 8
    assert found.count('<script>alert("1")') >= 20
    assert "&lt;" not in found
    assert "&amp;" not in found


def test_ids_are_apart_and_every_link_has_its_place() -> None:
    read = Read(every()._repr_html_())
    assert len(read.ids) == len(set(read.ids))
    inside = {link.removeprefix("#") for link in read.links if link.startswith("#")}
    assert len(inside) >= 5
    assert inside <= set(read.ids)


def test_letters_that_no_font_has_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every("中文 🙂 $x")._repr_html_()


def test_markup_is_the_same_in_every_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_finding import every;"
        "first = every()._repr_html_(); assert first == every()._repr_html_(); print(first)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    found = [
        subprocess.run(
            command, check=True, capture_output=True, text=True, encoding="utf-8",
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1]
    assert found[0].strip() == every()._repr_html_()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Table, {"columns": ("a", "b"), "rows": ((1.0,),)}),
        (Heatmap, {"rows": ("a",), "columns": ("b",), "values": ()}),
        (Heatmap, {"rows": ("a",), "columns": ("b",), "values": ((1.0, 2.0),)}),
        (Lines, {"x": (0.0, 1.0), "lines": (Line("a", (1.0,)),)}),
        (Lines, {"x": (0.0,), "lines": (Line("a", (1.0,), (0.0, 1.0)),)}),
        (Passage, {"sources": ("a",), "pieces": (Quote("b", (1,)),)}),
        (Passage, {"sources": ("a",), "pieces": (Quote("b", (-1,)),)}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kind: type, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"cells|rows of values|each row|a value for|sources"):
        kind("title", **fields)


@pytest.mark.parametrize(
    "part",
    [
        Table("t", ("a",), ()),
        Heatmap("h", (), (), ()),
        Heatmap("h", ("a",), ("b",), ((None,),)),
        Lines("l", (), (Line("a", ()),)),
        Lines("l", (0.0,), ()),
        Lines("l", (0.0,), (Line("a", (NAN,)),)),
        Dots("d", ()),
        Dots("d", (Dot("a", None),)),
        Passage("p", (), ()),
    ],
    ids=repr,
)
def test_parts_with_nothing_in_them_say_so(part: Part) -> None:
    assert part.markup() == charts.NOTHING


def texts(part: Part) -> list[str]:
    """Return what is written in a picture."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", part.markup())


def test_long_names_keep_both_ends() -> None:
    names = tuple(f"the {'very ' * 30}long name {number}" for number in range(3))
    part = Dots("d", tuple(Dot(name, 1.0) for name in names))
    drawn = [text for text in texts(part) if "…" in text]
    assert [text[-6:] for text in drawn] == ["name 0", "name 1", "name 2"]
    assert {len(text) for text in drawn} == {charts.LONG}


def test_cells_have_numbers_where_there_is_room() -> None:
    values = ((0.25, -1.0), (None, 0.0))
    assert {"0.25", "−1.00", "0.00"} <= set(texts(Heatmap("h", ("a", "b"), ("c", "d"), values)))
    many = Heatmap("h", ("a",), tuple(map(str, range(90))), ((0.125,) * 90,))
    assert "0.12" not in texts(many)
    named = [int(text) for text in texts(many) if text.isdigit()]
    assert named == list(range(0, 90, named[1]))
    large = Heatmap("h", ("a",), ("b", "c"), ((123456.0, -1.0),))
    assert "1.23e+05" in texts(large)


@pytest.mark.parametrize("rows", [1, 12, 24, 60, 200])
def test_names_of_rows_do_not_meet(rows: int) -> None:
    part = Heatmap("h", tuple(f"r{i}" for i in range(rows)), ("a",) * 70, ((1.0,) * 70,) * rows)
    places = [
        float(y) for y in re.findall(r'"[^"]*" x="[^"]*" y="([\d.]+)"[^>]*>r\d+<', part.markup())
    ]
    assert places == sorted(places)
    assert len(places) == rows or len(places) >= 25
    assert all(b - a >= 9.9 for a, b in pairwise(places))  # points; they have 8


def test_groups_of_dots_have_a_key() -> None:
    dots = (Dot("a", 1.0, group="_first"), Dot("b", 2.0, group="second"))
    assert {"_first", "second"} <= set(texts(Dots("d", dots)))
    alone = texts(Dots("d", dots[:1]))
    assert "_first" not in alone


def test_words_and_numbers_of_a_table_are_set_apart() -> None:
    markup = Table("t", ("a", "b"), (("x", 1.0), (None, 2e9))).markup()
    assert markup.count('<td class="words">') == 2
    assert "<td>1.000</td>" in markup
    assert "<td>2e+09</td>" in markup


@pytest.mark.parametrize(
    ("cell", "expected"),
    [(-0.0, "0.000"), (0.00049, "0.0005"), (-1e-7, "−1e−07"), (99999.0, "99999.000"),
     (-123456.0, "−1.235e+05"), (True, "True"), ("−", "−"), (float("inf"), "inf")],
)  # fmt: skip
def test_cells_are_shown_as_people_read_them(cell: float | str, expected: str) -> None:
    assert shown(cell) == expected
