"""Findings in files: a page each, and a section of the report of the run they stand with."""

import json
import re

import pytest
from typer.testing import CliRunner

from xattn.commands import app
from xattn.errors import InputError
from xattn.finding import Dot, Dots, Finding, Passage, Quote, Table
from xattn.report import render_report
from xattn.report.findings import FOLDER, read_findings, render_findings, write_finding

FINDING = Finding(
    "patterns", "What heads do <b>", "Two of 8 heads look back.",
    (
        Table("Heads", ("head", "share"), (("1.2", 0.5), ("1.3", None))),
        Dots("Mass", (Dot("1.2", 0.5, 0.4, 0.6),)),
        Passage("Answer", ("Mary went home.",), (Quote("Home.", (0,), 0.9),)),
    ),
    ("Few texts: use more.",),
)  # fmt: skip


def test_what_is_written_is_read_back(tmp_path):
    other = Finding("bias", "Another", "Nothing was found.")
    pages = [write_finding(finding, tmp_path / "new" / "run") for finding in (FINDING, other)]
    assert [page.name for page in pages] == ["patterns.html", "bias.html"]
    assert read_findings(tmp_path / "new" / "run") == [other, FINDING]  # by name
    write_finding(FINDING, tmp_path / "new" / "run")  # once more in its place
    assert len(read_findings(tmp_path / "new" / "run")) == 2


def test_a_folder_without_findings_has_none(tmp_path):
    assert read_findings(tmp_path) == []
    assert read_findings(tmp_path / "nowhere") == []


def test_the_page_needs_nothing_else(tmp_path):
    page = write_finding(FINDING, tmp_path).read_text(encoding="utf-8")
    assert page == render_findings(FINDING.title, [FINDING])
    assert "<h1>What heads do &lt;b&gt;</h1>" in page
    assert "default-src 'none'" in page
    assert set(re.findall(r'\b(?:src|href)="([^#])', page)) == set()
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "7", "{}", '{"name": "a"}',
        json.dumps({**FINDING.to_dict(), "parts": [{"kind": "picture"}]}),
        json.dumps({**FINDING.to_dict(), "parts": [{"kind": "table", "title": "t"}]}),
        json.dumps({**FINDING.to_dict(), "parts": ["table"]}),
        json.dumps(
            {**FINDING.to_dict(), "parts": [
                {"kind": "table", "title": "t", "columns": ["a\nb"], "rows": [["\n", 2]]}]}
        ),
    ],
)  # fmt: skip
def test_a_broken_file_is_told_in_one_line(text, tmp_path):
    write_finding(FINDING, tmp_path)
    (tmp_path / FOLDER / "broken.json").write_text(text)
    with pytest.raises(InputError, match=r"broken\.json holds no finding: got .*remove it") as told:
        read_findings(tmp_path)
    assert "\n" not in str(told.value)


def test_bytes_that_are_no_text_are_told(tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "broken.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="holds no finding"):
        read_findings(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_finding(FINDING, tmp_path / "file")


def test_findings_are_sections_of_the_report(planted):
    page = render_report(planted(), [FINDING])
    section = page.split('<section id="finding-patterns" class="finding">')[1].split("</section>")[
        0
    ]
    assert "<h2>What heads do &lt;b&gt;</h2>" in section
    assert "Two of 8 heads look back." in section
    assert "Few texts: use more." in section
    assert section.count("<svg") == 1
    assert "finding-" not in render_report(planted())


def test_the_command_shows_what_stands_with_a_run(planted, tmp_path):
    planted(count=6).save(tmp_path)
    write_finding(FINDING, tmp_path)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "Two of 8 heads look back." in (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / FOLDER / "patterns.json").write_text("{")
    failed = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert failed.exit_code == 2
    assert "patterns.json holds no finding" in " ".join(failed.output.split())
