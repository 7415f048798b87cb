"""The command on heads: patterns."""

from __future__ import annotations

import json as jsons
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from xattn import files
from xattn.analysis.heads import rank_heads
from xattn.analysis.induction import induction
from xattn.analysis.patterns import Patterns, patterns
from xattn.application import command
from xattn.cases.repetition import train_repetition
from xattn.data import load_dataset
from xattn.demo.stories import stories
from xattn.errors import InputError
from xattn.model import load
from xattn.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    LimitOption,
    MemoryOption,
    ModelOption,
    RevisionOption,
    TaskOption,
    TextColumnOption,
    TextsOption,
)
from xattn.terminal import console, say_written, show_finding


@command("patterns")
def patterns_command(
    model: ModelOption = None,
    task: TaskOption = None,
    data: TextsOption = None,
    text_column: TextColumnOption = None,
    limit: LimitOption = 100,
    importance: Annotated[
        bool,
        typer.Option("--importance/--no-importance", help="Also rank heads by what rests on them."),
    ] = True,
    induct: Annotated[
        bool,
        typer.Option(
            "--induction",
            help="Look for induction heads instead; without --model, in a decoder that is trained "
            "to have them (20 seconds).",
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for pages.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the numbers.")] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    memory: MemoryOption = None,
    debug: DebugOption = False,
) -> None:
    """Describe and name what every attention head does, and rank heads by what rests on them."""
    for place in filter(None, (out, None if json is None else json.parent)):
        files.require_writable(place)
    options = {"device": device, "dtype": dtype, "revision": revision, "memory": memory}
    if induct:
        if model is None and task is None:
            with console.status("training a decoder on sequences that repeat themselves"):
                found = induction(train_repetition())
        else:
            found = induction(load(model, task=task or "generate", **options))  # type: ignore[arg-type]
        show_finding(found.finding(), out)
        if json is not None:
            numbers = {"prefix": found.prefix.mean(0).tolist(), "heads": found.heads}
            files.write_text(json, jsons.dumps(numbers, indent=1))
            say_written(json)
        return
    loaded = load(model, task=task, **options)  # type: ignore[arg-type]
    if data is None and loaded.task.name == "generate":
        texts = [story.text for story in islice(stories(0), limit)]
    else:
        texts = list(load_dataset(data, text_column=text_column, limit=limit).texts)
    if importance and len(texts) < 2:
        raise InputError("texts", got="1", expected="two or more", remedy="or --no-importance")
    named = patterns(loaded, texts)
    show_patterns(named)
    show_finding(named.finding(), out)
    if importance:
        show_finding(rank_heads(loaded, texts).finding(), out)
    if json is not None:
        files.write_text(json, named.to_dataframe().to_json(orient="records", indent=1))
        say_written(json)


def show_patterns(found: Patterns) -> None:
    """Print the names of heads, layers by heads."""
    table = Table(title="what heads do")
    table.add_column("layer")
    for head in range(max(map(len, found.names))):
        table.add_column(f"head {head}")
    for layer, names in zip(found.layers, found.names, strict=True):
        table.add_row(layer, *names)
    console.print(table)
