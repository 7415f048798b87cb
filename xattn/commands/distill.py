"""The command on teachers and students: distill-check."""

from __future__ import annotations

import json as jsons
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from xattn import files
from xattn.analysis.distillation import METHODS, Distillation, distillations
from xattn.analysis.distillation_finding import side_by_side, slug
from xattn.analysis.matching import How
from xattn.application import command
from xattn.cases.students import KINDS, reviews, train_student
from xattn.data import load_dataset
from xattn.errors import InputError
from xattn.finding import shown
from xattn.model import Model, load
from xattn.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    LimitOption,
    MemoryOption,
    MethodsOption,
    TaskOption,
    TextColumnOption,
    TextsOption,
    chosen_methods,
)
from xattn.terminal import console, say_written, show_finding


@command("distill-check")
def distill_command(
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="Folder or Hub name.", show_default="the demo model"),
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            help="Folder or Hub name; repeatable. Without it, three students of the demo model "
            "that are trained on the spot (half a minute).",
            show_default=False,
        ),
    ] = None,
    task: TaskOption = None,
    data: TextsOption = None,
    text_column: TextColumnOption = None,
    pair_column: Annotated[str | None, typer.Option("--pair-column")] = None,
    limit: LimitOption = 100,
    layers: Annotated[
        str,
        typer.Option(
            "--layers",
            help="Which belong together: best, uniform, or numbers of the student's and the "
            "teacher's as 0:1,1:3.",
        ),
    ] = "best",
    heads: Annotated[str, typer.Option("--heads", help="The same of heads.")] = "best",
    methods: MethodsOption = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are too long for a model.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the shuffled parameters.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for pages.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the numbers.")] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    memory: MemoryOption = None,
    debug: DebugOption = False,
) -> None:
    """Check whether students look at what their teacher looks at: answers, maps, explanations."""
    for place in filter(None, (out, None if json is None else json.parent)):
        files.require_writable(place)
    matching = {"layers": _matching("--layers", layers), "heads": _matching("--heads", heads)}
    chosen = chosen_methods(methods, METHODS)
    if teacher is not None and not student:
        raise InputError("--teacher without --student", remedy="name one student or more")
    reader = partial(load, task=task, device=device, dtype=dtype, memory=memory)
    loaded = reader(teacher)
    if student:
        students = [reader(name) for name in student]
    else:
        with console.status("training three students of the demo model"):
            students = [train_student(kind) for kind in KINDS]
    if data is None and not student:
        texts, pairs = reviews(loaded)[1].texts[:limit], None  # that they have not learnt from
    else:
        dataset = load_dataset(data, text_column=text_column, pair_column=pair_column, limit=limit)
        texts, pairs = dataset.texts, dataset.pairs
    found = distillations(
        loaded, _told_apart(students), texts,
        pairs=pairs, methods=chosen, truncate=truncate, seed=seed, **matching,
    )  # fmt: skip
    for one in found:
        show_distillation(one)
        show_finding(one.finding(), out)
    if len(found) > 1:
        show_finding(side_by_side(found), out)
    if json is not None:
        numbers = {
            one.student: {
                "agreement": list(one.agreement),
                "layers": one.maps.matched_layers(),
                "values": one.to_dataframe().replace({float("nan"): None}).to_dict("records"),
            }
            for one in found
        }
        files.write_text(json, jsons.dumps(numbers, indent=1))
        say_written(json)


def _told_apart(students: list[Model]) -> list[Model]:
    """Return the students by names of their own: those of two checkpoints may be alike."""
    names = [slug(one.name) for one in students]
    for number, one in enumerate(students):
        if names.count(names[number]) > 1:
            one.name = f"{one.name}-{number + 1}"
    return students


def _matching(option: str, given: str) -> How:
    """Return ``best``, ``uniform``, or the numbers that stand as ``0:1,1:3``."""
    if ":" not in given:
        return given
    try:
        pairs = [(int(own), int(other)) for own, other in (p.split(":") for p in given.split(","))]
    except ValueError:
        raise InputError(
            option, got=repr(given), expected="student:teacher as 0:1,1:3, best or uniform"
        ) from None
    if len(dict(pairs)) < len(pairs):
        raise InputError(option, got=repr(given), expected="each of the student's once")
    return dict(pairs)


def show_distillation(found: Distillation) -> None:
    """Print how alike maps and explanations are."""
    table = Table(title=f"{found.student} beside {found.teacher}")
    table.add_column("", no_wrap=True)
    for heading in ("JS, bits", "95 % interval", "shuffled", "ρ", "shuffled"):
        table.add_column(heading, justify="right", no_wrap=True)
    frame = found.to_dataframe().set_index(["what", "measure"])
    for what in frame.index.get_level_values(0).unique():
        js, rank = frame.loc[(what, "js")], frame.loc[(what, "rank")]
        table.add_row(
            what,
            shown(float(js["mean"])),
            f"{shown(float(js['low']))} to {shown(float(js['high']))}",
            shown(float(js["shuffled"])),
            shown(float(rank["mean"])),
            shown(float(rank["shuffled"])),
        )
    console.print(table)
    console.print(
        "JS: Jensen-Shannon divergence, 0 is the same; ρ: Spearman’s rank correlation; shuffled: "
        "the student with its parameters shuffled.",
        style="dim",
        highlight=False,
    )
