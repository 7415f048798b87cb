"""The command that suppresses passages on a whole data set: control."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.table import Table

from xattn import files
from xattn.analysis.control import LOOKING, Control, Spans, control, find_misleading
from xattn.analysis.emphasis import Emphasis, emphasis
from xattn.application import command
from xattn.cases.contracts import (
    MISLEADING,
    Passages,
    assemble,
    read_sentences,
    train_contracts,
    write_sentences,
)
from xattn.cases.instructions import draw_instructions, train_instructions
from xattn.data import load_dataset
from xattn.errors import InputError
from xattn.model import Model, load
from xattn.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    MethodsOption,
    ModelOption,
    RevisionOption,
    TaskOption,
    chosen_methods,
    numbers,
)
from xattn.terminal import console, say_written, show_finding

LEARNED, KNOWN, ASKED = 1500, 150, 200
"""Passages of the demonstration: learned from, labelled to find what misleads, and asked about."""


@command("control")
def control_command(
    model: ModelOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Texts with labels and passages; see --spans-column. Without it, contracts.",
            show_default=False,
        ),
    ] = None,
    spans_column: Annotated[
        str,
        typer.Option(
            "--spans-column",
            help="Column of the passages: characters as 12-19;30-40, or the passages themselves.",
        ),
    ] = "spans",
    clauses: Annotated[
        Path | None,
        typer.Option(
            "--clauses",
            help="unfair_tos_en.tsv of UNFAIR-ToS for the contracts, in place of our own clauses.",
        ),
    ] = None,
    task: TaskOption = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="Where, as 4-6 or 0,-1.", show_default="everywhere"),
    ] = None,
    methods: MethodsOption = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Texts from the top.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of random passages.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the page.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the table.")] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Suppress attention to passages and see whether the model does better, against two controls.

    Bare it is a demonstration: contracts whose boilerplate misleads a model that is trained on the
    spot (half a minute). With --task generate passages are emphasised instead, and the labels are
    what they ask for.
    """
    for place in filter(None, (out, None if json is None else json.parent)):
        files.require_writable(place)
    if (data is None) != (model is None):
        raise InputError(
            "--model and --data", got="one of them", expected="both, or none for the demonstration"
        )
    if task == "generate":
        emphasised = _emphasise(model, data, spans_column, limit, seed, device, dtype, revision)
        show_finding(emphasised.finding(), out)
        if json is not None:
            files.write_text(json, emphasised.to_dataframe().to_json(orient="records", indent=1))
            say_written(json)
        return
    looking = chosen_methods(methods, LOOKING)
    found: Spans | None = None
    if data is None:
        with console.status("training a classifier that boilerplate misleads"):
            loaded, asked, found = demonstration(clauses, limit or ASKED)
        texts, labels, spans = asked.texts, asked.labels, asked.boilerplate
    else:
        dataset = load_dataset(data, rationale_column=spans_column, limit=limit)
        if dataset.labels is None or dataset.rationales is None:
            raise InputError(f"{data} has no labels", remedy="add a column label")
        loaded = load(model, device=device, dtype=dtype, revision=revision)
        texts, labels, spans = dataset.texts, dataset.labels, dataset.rationales  # type: ignore[assignment]
    result = control(
        loaded, texts, labels, spans,
        found=found, layers=numbers("--layers", layers), methods=looking, seed=seed,
    )  # fmt: skip
    show_control(result)
    show_finding(result.finding(), out)
    if json is not None:
        frame: pd.DataFrame = result.to_dataframe()
        files.write_text(json, frame.to_json(orient="records", indent=1))
        say_written(json)


def _emphasise(
    model: str | None,
    data: str | None,
    spans_column: str,
    limit: int | None,
    seed: int,
    device: str,
    dtype: str,
    revision: str | None,
) -> Emphasis:
    """Return what emphasis does: to a decoder of our own that prefers the last instruction."""
    if data is None:
        with console.status("training a decoder that follows the last of two instructions"):
            drawn = draw_instructions(limit or 2 * ASKED, seed=9)
            loaded = train_instructions()
        wanted = [first for first, _ in drawn.answers]
        return emphasis(loaded, drawn.prompts, [[s] for s in drawn.first], wanted, seed=seed)
    dataset = load_dataset(data, rationale_column=spans_column, limit=limit)
    if dataset.labels is None or dataset.rationales is None:
        raise InputError(f"{data} has no labels", remedy="add a column label: what is wanted")
    loaded = load(model, task="generate", device=device, dtype=dtype, revision=revision)
    labels = [str(label) for label in dataset.labels]
    return emphasis(loaded, dataset.texts, dataset.rationales, labels, seed=seed)


def demonstration(clauses: Path | None, count: int) -> tuple[Model, Passages, Spans]:
    """Return a misled classifier, passages that mislead it, and what the tool finds in them.

    Parameters
    ----------
    clauses : Path, optional
        UNFAIR-ToS; our own clauses otherwise.
    count : int
        Passages that are asked about.
    """
    if clauses is None:
        learned, new = write_sentences(seed=0), write_sentences(seed=1)
    else:
        learned, new = read_sentences(clauses)
    model = train_contracts(assemble(learned, LEARNED, 0, MISLEADING))
    known = assemble(learned, KNOWN, 5, 1 - MISLEADING)
    asked = assemble(new, count, 7, 1 - MISLEADING)
    return model, asked, find_misleading(model, known.texts, known.labels, asked.texts)


def show_control(result: Control) -> None:
    """Print accuracy under every condition."""
    table = Table(title="attention to passages")
    for column in ("condition", "accuracy", "95 % interval", "gain", "p"):
        table.add_column(column, justify="left" if column == "condition" else "right")
    for row in result.to_dataframe().itertuples(index=False):
        name, accuracy, low, high, gain, _, _, p = row
        table.add_row(
            str(name), f"{accuracy:.1%}", f"{low:.1%} to {high:.1%}", f"{gain:+.1%}", f"{p:.2g}"
        )
    console.print(table)
    shares = ", ".join(f"{name} {share.mean:.0%}" for name, share in result.looks.items())
    console.print(f"on the passages ({result.size.mean:.0%} of the tokens): {shares}")
