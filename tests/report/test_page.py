import re
from html.parser import HTMLParser

import numpy as np
import pytest

from xattn.errors import InputError
from xattn.report import render_report, write_report
from xattn.report.answer import number
from xattn.report.page import axis
from xattn.report.ranking import ranking

VOID = {"meta", "input", "br", "hr", "img", "link"}


class Balanced(HTMLParser):
    """Complains about tags that are not closed in order; notes what a page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [values[name] for name in ("src", "href") if values.get(name)]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def cell(page, operator, method, metric):
    table = page.split(f'<table class="ranking by-op op-{operator}">')[1].split("</table>")[0]
    row = table.split(f'data-method="{method}"')[1].split("</tr>")[0]
    return re.search(rf'data-metric="{metric}"[^>]*>([^ <]+)', row)[1]


def test_page_is_well_formed_and_loads_nothing(planted):
    parser = Balanced()
    parser.feed(render_report(planted()))
    assert parser.open == []
    assert parser.loads == []
    assert len(parser.ids) == len(set(parser.ids))
    sections = {"ranking", "curves", "cost", "examples", "meaning", "provenance"}
    assert sections <= set(parser.ids)


def test_numbers_on_the_page_are_those_of_the_summary(planted):
    comparison = planted()
    page = render_report(comparison)
    for row in comparison.summary().itertuples():
        operator = ["delete", "mask"].index(row.operator)
        assert cell(page, operator, row.method, row.metric) == number(row.mean)


def test_the_answer_names_winner_interval_and_the_losers(planted):
    page = render_report(
        planted(areas={"integrated_gradients": 0.4, "rollout": 0.2, "attention": 0.0})
    )
    answer = re.search(r'id="answer">([^<]*)<', page)[1]
    assert "On 40 texts, integrated_gradients was the most faithful method (ABPC 0.4" in answer
    assert "attention cannot be told apart from random scores" in answer
    assert "rollout" not in answer


def test_the_answer_claims_no_winner_among_equals(planted):
    page = render_report(planted(areas={"flow": 0.3, "rollout": 0.3}, spread=0.1))
    assert "cannot be told apart from it" in page
    assert "most faithful" not in page


def test_ranking_goes_down_and_says_who_beats_random(planted):
    places = ranking(planted(areas={"flow": -0.2, "rollout": 0.3}), "delete")
    assert [place.method for place in places] == ["oracle", "rollout", "random", "flow"]
    assert [p.verdict for p in places] == [
        "yardstick", "beats random", "yardstick", "worse than random",
    ]  # fmt: skip


def test_all_marks_lie_on_the_axis(planted):
    marks = axis(ranking(planted(), "delete")).marks
    for mark in marks.values():
        assert 0 <= mark.low <= mark.mean <= mark.low + mark.width + 0.01 <= 100.02


def test_texts_are_shown_and_never_run(planted):
    text = '<script>alert(1)</script> "quoted" & <img/src=x/onerror=alert(2)> \' end'
    page = render_report(planted(text=text))
    assert page.count("<script>") == 1  # the page's own
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize("fields", [{"count": 1}, {"count": 2, "spread": 0}, {"constant": True}])
def test_a_single_text_and_constant_scores_give_a_page_without_nan(planted, fields):
    page = render_report(planted(**fields))
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_a_metric_that_is_nan_is_shown_as_missing(planted):
    comparison = planted()
    scores = comparison.scores
    gone = (scores["method"] == "rollout") & (scores["metric"] == "abpc")
    scores.loc[gone, "value"] = np.nan
    assert cell(render_report(comparison), 0, "rollout", "abpc") == "–"


def test_tokens_carry_the_scores_of_every_method(planted):
    comparison = planted(count=1)
    page = render_report(comparison)
    strip = page.split('class="strip" data-method="integrated_gradients"')[1].split("</div>")[0]
    shown = [float(s.replace("−", "-")) for s in re.findall(r'data-score="([^"]+)"', strip)]
    expected = comparison.attributions[0].scores
    np.testing.assert_allclose(shown, expected, atol=6e-4)


def test_two_renderings_are_the_same(planted):
    assert render_report(planted()) == render_report(planted())


def test_a_page_that_fails_leaves_the_old_one_and_no_other(planted, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(planted(), path)
    before = path.read_text()

    def broken(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", broken)
    with pytest.raises(InputError, match="No space left"):
        write_report(planted(count=3), path)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
