"""What the commands print: coloured tokens, tables, names of files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from xattn import render
from xattn.caution import Caution
from xattn.effects import Effect
from xattn.evaluation import Comparison
from xattn.evaluation.comparison import declared
from xattn.finding import Finding
from xattn.picture import Picture
from xattn.report.findings import write_finding
from xattn.types import Attribution

SHORT = {"comprehensiveness": "compreh.", "sufficiency": "suffic."}
"""Metrics beside the leading one, as narrow tables call them."""
console = Console()


def spans_of(unit: str) -> list[tuple[int, int]] | None:
    """Return the spans of characters that a unit lists, as ``0-12,30-45``; None if it does not.

    Examples
    --------
    >>> spans_of("0-12,30-45")
    [(0, 12), (30, 45)]
    >>> spans_of("word")
    """
    if not re.fullmatch(r"\d+-\d+(,\d+-\d+)*", unit):
        return None
    return [(int(a), int(b)) for a, b in re.findall(r"(\d+)-(\d+)", unit)]


def in_unit(item: Attribution, unit: str) -> Attribution:
    """Return the attribution with one score a token, word, sentence, or span of characters."""
    if unit == "word":
        return item.words()
    if unit == "sentence":
        return item.sentences()
    spans = spans_of(unit)
    return item if spans is None else item.spans(spans)


def to_json(items: list[Attribution]) -> str:
    """Return a JSON list, one object a method."""
    return json.dumps([item.to_dict() for item in items], indent=2)


def show_attributions(items: Sequence[Attribution], heading: str = "") -> None:
    """Print coloured tokens, one line a method."""
    first = items[0]
    console.print(
        f"{heading}[bold]{escape(first.verdict)}[/bold], explained: {escape(first.target)}"
    )
    width = max(len(item.method) for item in items)
    for item in items:
        line = Text(f"{item.method:>{width}}  ", style="dim")
        largest = float(abs(item.scores).max(initial=0.0))
        for piece in item.pieces():
            if piece.token is None:
                line.append(piece.text)
                continue
            score = float(item.scores[piece.token])
            red, green, blue = render.rgb(score, largest)
            ink = "white" if render.dark(score, largest) else "black"
            line.append(piece.text, style=f"{ink} on rgb({red},{green},{blue})")
        console.print(line)
        if item.picture is not None and console.is_terminal:
            show_patches(item, item.picture, width + 2)
        if item.picture is not None or not console.is_terminal:
            ranked = sorted(zip(item.scores, item.tokens, strict=True), reverse=True)
            best = ", ".join(f"{token} {score:+.3f}" for score, token in ranked[:5])
            # a token such as "[added 0]" is no markup
            console.print(f"{'':>{width}}  {best}", style="dim", markup=False)
        if item.gap is not None:
            console.print(f"{'':>{width}}  completeness gap {item.gap:+.2g}", style="dim")


def show_cautions(cautions: Sequence[Caution]) -> None:
    """Print what a reader should be warned of, with the evidence and what to do next."""
    for caution in cautions:
        console.print()
        console.print(f"[bold yellow]![/] [bold]{escape(caution.title)}[/]", highlight=False)
        console.print(f"  {escape(caution.evidence)}", highlight=False)
        console.print(f"  {escape(caution.remedy)}", highlight=False, style="dim")


def show_finding(finding: Finding, out: Path | None = None) -> None:
    """Print what an analysis found and what limits it; write its page into `out`, if given."""
    console.print(finding.says, markup=False, highlight=False)
    for caution in finding.cautions:
        console.print(caution, style="dim", markup=False, highlight=False)
    if out is not None:
        say_written(write_finding(finding, out))


def show_patches(item: Attribution, picture: Picture, indent: int) -> None:
    """Print a picture's patches as coloured cells, if they fit the terminal."""
    scores, largest = item.patches, float(abs(item.patches).max(initial=0.0))
    rows = [list(row) for _, row in groupby(range(len(scores)), lambda i: picture.boxes[i, 1])]
    if indent + 2 * len(rows[0]) > console.width:
        return
    for row in rows:
        line = Text(" " * indent)
        for patch in row:
            red, green, blue = render.rgb(float(scores[patch]), largest)
            line.append("  ", style=f"on rgb({red},{green},{blue})")
        console.print(line)


def show_leaderboard(result: Comparison) -> None:
    """Print the methods by area between the curves, with intervals and two metrics beside."""
    measured = list(result.scores["metric"].unique())
    beside = [name for name in SHORT if name in measured]
    arrows = {True: " ↑", False: " ↓", None: ""}
    for operator in dict.fromkeys(result.scores["operator"]):
        table = Table(title=f"faithfulness, {result.unit}s removed by {operator}")
        table.add_column("method", overflow="fold")
        headings = [SHORT[n] + arrows[declared(n).higher_is_better] for n in beside]
        for column in ("ABPC ↑", "95 % interval", *headings):
            table.add_column(column, justify="right", no_wrap=True)
        summary = result.summary()
        summary = summary[summary["operator"] == operator].set_index(["method", "metric"])
        for method in result.leaderboard(str(operator), "abpc")["method"]:
            area = summary.loc[(method, "abpc")]
            table.add_row(
                str(method),
                f"{area['mean']:.3f}",
                "-" if area["n"] < 2 else f"{area['low']:.3f} to {area['high']:.3f}",
                *(f"{summary.loc[(method, name), 'mean']:.3f}" for name in beside),
            )
        console.print(table)


def say_written(*paths: Path | None) -> None:
    """Print the names of the files that were written."""
    for path in filter(None, paths):
        console.print(f"wrote {path}", soft_wrap=True, markup=False)


def show_effect(result: Effect, unit: str) -> None:
    """Print predictions and explanations before and after an edit."""
    if result.probabilities:
        table = Table()
        for column in ("", "before", "after"):
            table.add_column(column, justify="right" if column else "left")
        for name, before, after in result.probabilities:
            table.add_row(escape(repr(name)), f"{before:.1%}", f"{after:.1%}")
        console.print(table)
    groups = [list(part.by_text()) for part in (result.before, result.after)]
    for number in range(max(map(len, groups))):
        for heading, part in zip(("before: ", "after:  "), groups, strict=True):
            if number < len(part):
                show_attributions([in_unit(item, unit) for item in part[number]], heading)
    console.print("the prediction changed" if result.changed else "the prediction stayed")
