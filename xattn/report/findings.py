"""Findings as files: a page each, and a section in the report of the run they are kept with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from xattn import charts, files
from xattn.errors import InputError
from xattn.finding import Finding
from xattn.report.assets import asset, environment

FOLDER = "findings"
"""Where findings stand in the folder of a run; the report of the run shows them."""


def render_findings(title: str, findings: Sequence[Finding]) -> str:
    """Return findings as one HTML page that needs nothing else, not even a network."""
    return (
        environment()
        .get_template("findings.html.j2")
        .render(title=title, findings=findings, css=asset("report.css") + Markup(charts.CSS))
    )


def write_finding(finding: Finding, directory: Path) -> Path:
    """Write a finding into a folder, as a page and for the report of a run that is kept there.

    Parameters
    ----------
    finding : Finding
    directory : Path
        Made if it is not there.

    Returns
    -------
    Path
        The page, ``NAME.html``.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    kept = json.dumps(finding.to_dict(), indent=1, ensure_ascii=False)
    files.write_text(directory / FOLDER / f"{finding.name}.json", kept)
    page = directory / f"{finding.name}.html"
    files.write_text(page, render_findings(finding.title, [finding]))
    return page


def read_findings(directory: Path) -> list[Finding]:
    """Return the findings that were written into a folder, by name.

    Raises
    ------
    InputError
        For a file that holds none.
    """
    found = []
    for path in sorted((directory / FOLDER).glob("*.json")):
        try:
            found.append(Finding.from_dict(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} holds no finding", got=str(error), remedy="remove it, or write it again"
            ) from None
    return found
