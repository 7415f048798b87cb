"""The command on groups of words: bias."""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from xattn import files
from xattn.analysis.bias import METHOD, Bias, bias
from xattn.analysis.schemas import STATISTICS, read_pairs, read_statistics
from xattn.analysis.templates import PRONOUNS, Groups, expand, read_lines
from xattn.application import command
from xattn.errors import InputError
from xattn.finding import shown
from xattn.model import load
from xattn.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    MemoryOption,
    ModelOption,
    RevisionOption,
    TaskOption,
)
from xattn.registry import methods as registry
from xattn.terminal import console, say_written, show_finding

ENDS = 6
"""Professions that are printed from either end."""


@command("bias")
def bias_command(
    model: ModelOption = None,
    task: TaskOption = None,
    templates: Annotated[
        Path | None,
        typer.Option(
            "--templates",
            help="Sentences, one a line, with the slots {profession} and {subject}, {object}, "
            "{possessive} or {reflexive}.",
            show_default="the project's own",
        ),
    ] = None,
    professions: Annotated[
        Path | None,
        typer.Option("--professions", help="One a line.", show_default="the project's own"),
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--groups",
            help="Words to swap, as SLOT=he/she or SLOT=Emma,Paul/Aisha,Omar; repeatable.",
            show_default="he and she in all their forms",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Sentences of Winogender or WinoBias instead: a folder or file."
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            "--statistics",
            help="Figures of real occupations, to correlate with: a table whose first column names "
            "them.",
            show_default="those in --data",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", help="Class to follow.", show_default="the last one"),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin",
            help="The smallest change that would matter: of a probability, or in nats.",
            show_default="0.05 of probability, 0.22 nats",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help="Of the attributions; 'none' for none.")
    ] = METHOD,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the page.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the numbers.")] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    memory: MemoryOption = None,
    debug: DebugOption = False,
) -> None:
    """Swap he for she (or other words) in sentences about professions; show what changes."""
    for place in filter(None, (out, None if json is None else json.parent)):
        files.require_writable(place)
    if method != "none":
        registry.build(method)
    names = PRONOUNS.names
    if data is not None:
        if templates or professions or groups:
            raise InputError(
                "--data brings its own sentences",
                got="--templates, --professions or --groups as well",
                remedy="leave one of the two out",
            )
        pairs = read_pairs(data)
        if statistics is None and (data / STATISTICS).is_file():
            statistics = data
    else:
        words = Groups.parse(groups) if groups else PRONOUNS
        names = words.names
        pairs = expand(
            None if templates is None else read_lines(templates),
            None if professions is None else read_lines(professions),
            words,
        )
    figures = None if statistics is None else read_statistics(statistics)
    loaded = load(model, task=task, device=device, dtype=dtype, revision=revision, memory=memory)
    with console.status(f"measuring {len(pairs)} pairs of sentences"):
        found = bias(
            loaded,
            pairs,
            groups=names,
            label=label,
            margin=margin,
            method=None if method == "none" else method,
            statistics=figures,
        )
    show_bias(found)
    show_finding(found.finding(), out)
    if json is not None:
        files.write_text(json, jsons.dumps(found.to_dict(), indent=1))
        say_written(json)


def show_bias(found: Bias) -> None:
    """Print the professions with the highest and the lowest change."""
    everything = found.professions
    flagged = set(found.flagged)
    table = Table(title=f"{found.groups[0]} → {found.groups[1]}: {found.measure}")
    table.add_column("profession", no_wrap=True)
    names = [name for name in ("attribution", "attention") if name in everything]
    headings = ("change", "95 % interval", "p", *names)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    few = len(everything) <= 2 * ENDS
    chosen = everything if few else everything.iloc[[*range(ENDS), *range(-ENDS, 0)]]
    for number, row in enumerate(chosen.to_dict("records")):
        if number == ENDS and not few:
            table.add_row("…", *[""] * len(headings))
        low, high = shown(row["low"]), shown(row["high"])
        table.add_row(
            str(row["profession"]),
            shown(row["change"]),
            "—" if low == "—" else f"{low} to {high}",
            shown(row["adjusted"]),
            *(shown(row[name]) for name in names),
            style="bold" if row["profession"] in flagged else "",
        )
    console.print(table)
    console.print(
        f"p: no further from 0 than the margin of {found.margin:.2g} (Wilcoxon, Holm)."
        + (" attribution, attention: change of their share on the swapped words." if names else ""),
        style="dim",
        highlight=False,
    )
