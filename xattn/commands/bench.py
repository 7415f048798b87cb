"""The commands that test the tests: bench."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from xattn import files
from xattn.application import command
from xattn.evaluation.design import RANDOM
from xattn.evaluation.truth import PROBLEMS, Standing, ground_truth
from xattn.options import DebugOption, MethodsOption, chosen_methods, one_of
from xattn.terminal import console

ALL_METHODS = ("all",)
TEST_BEDS = ("ground-truth",)


@command("bench")
def bench_command(
    test_bed: Annotated[str, typer.Argument(help="ground-truth: problems with known answers.")],
    methods: MethodsOption = None,
    problems: Annotated[
        str | None,
        typer.Option("--problems", help=", ".join(PROBLEMS), show_default="all of them"),
    ] = None,
    texts: Annotated[int, typer.Option("--texts", min=2, help="Texts of each problem.")] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of texts, chance, bootstrap.")] = 0,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write all values as a table.")] = None,
    debug: DebugOption = False,
) -> None:
    """Hold methods against problems whose answers are known: methods by problems."""
    one_of("the test bed", test_bed, TEST_BEDS)
    if csv is not None:
        files.require_writable(csv.parent)
    with console.status("making problems") as status:
        found = ground_truth(
            chosen_methods(methods, ALL_METHODS),
            None if problems is None else [name.strip() for name in problems.split(",")],
            texts=texts,
            seed=seed,
            progress=lambda name: status.update(f"{name}: making the problem, running all methods"),
        )
    show_standing(found)
    if csv is not None:
        files.write_text(csv, found.rows.to_csv(index=False))
        console.print(f"values: {csv}", soft_wrap=True, markup=False)


def show_standing(found: Standing) -> None:
    """Print methods by problems; what cannot be told from chance is marked."""
    table = found.table()
    cells = zip(found.rows["method"], found.rows["problem"], found.rows["above"], strict=True)
    told = {(method, problem) for method, problem, above in cells if above}
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # narrow: it has many columns
    shown.add_column("method", overflow="fold", min_width=20)
    for name in table.columns:
        shown.add_column(str(name).replace("_", "\n"), justify="right", no_wrap=True)
    for method, values in zip(table.index, table.to_numpy(), strict=True):
        line = []
        for name, value in zip(table.columns, values.tolist(), strict=True):
            above = method == RANDOM or (method, name) in told
            text = "—" if math.isnan(value) else f"{value:.2f}{' ' if above else '≈'}"
            line.append(Text(text, style="" if above else "dim"))
        shown.add_row(str(method), *line)
    console.print(shown)
    console.print("1: the known answer. ≈: cannot be told from random. —: not taken.", style="dim")
    measures = dict(zip(found.rows["problem"], found.rows["measure"], strict=True))
    for name, meaning in found.meanings.items():
        line_of = f"{name} ({measures[name]}): {meaning}"
        console.print(line_of, style="dim", markup=False, highlight=False)
