"""The commands of the harness: compare, report, agreement, metrics."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from xattn import files
from xattn.application import command
from xattn.errors import InputError
from xattn.evaluation import OPERATORS, Comparison, metrics
from xattn.evaluation.agreement import between_runs
from xattn.evaluation.comparison import load as load_comparison
from xattn.evaluation.store import STUDY
from xattn.evaluation.study import Study
from xattn.explanations import DEFAULT_METHODS, expanded
from xattn.options import (
    AtOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    LabelOption,
    MemoryOption,
    MethodsOption,
    ModelOption,
    RevisionOption,
    TaskOption,
    TruncateOption,
    chosen_methods,
    one_of,
)
from xattn.registry import defaults
from xattn.registry import methods as registry
from xattn.report import page
from xattn.report.findings import read_findings
from xattn.terminal import console, show_leaderboard
from xattn.types import Quantity, Unit

# Attention in the first layer beside the last: the report says if the result turns on the choice.
COMPARED = (*DEFAULT_METHODS, "attention:layer=0")
FAILED = 3
"""Exit code of a comparison in which some text failed."""


@command("compare")
def compare_command(
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="A finished run, for --add-method and --add-metric.", show_default=False
        ),
    ] = None,
    methods: MethodsOption = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            help="Metrics by name, with options as NAME:field=value; see xattn metrics.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="CSV, TSV, JSONL or Parquet file, or the name of a data set as NAME:SPLIT.",
            show_default="the demo reviews",
        ),
    ] = None,
    text_column: Annotated[str | None, typer.Option("--text-column")] = None,
    pair_column: Annotated[str | None, typer.Option("--pair-column")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column")] = None,
    rationale_column: Annotated[
        str | None,
        typer.Option(
            "--rationale-column",
            help="What people found decisive: characters as 12-19;30-40, or the passage itself.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Use the first N texts.")] = None,
    operators: Annotated[
        str | None,
        typer.Option(
            "--operators",
            help="How tokens are removed: " + ", ".join(OPERATORS) + ".",
            show_default="delete,mask",
        ),
    ] = None,
    unit: Annotated[
        str, typer.Option("--unit", help="What is removed at a time: token, word or sentence.")
    ] = "token",
    quantity: Annotated[
        str,
        typer.Option(
            "--quantity", help="What is watched: probability, logit, log_probability, lead."
        ),
    ] = "probability",
    model: ModelOption = None,
    task: TaskOption = None,
    at: AtOption = None,
    label: LabelOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the run and its report.")] = Path(
        "xattn-report"
    ),
    study: Annotated[
        Path | None,
        typer.Option("--study", help="YAML or TOML file that says all of this; see study.yaml."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out where it stopped.")
    ] = False,
    add_method: Annotated[
        list[str] | None,
        typer.Option("--add-method", help="Add methods to the run in DIRECTORY; score the new."),
    ] = None,
    add_metric: Annotated[
        list[str] | None,
        typer.Option("--add-metric", help="Add metrics to the run in DIRECTORY."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes.")] = 1,
    beam: Annotated[
        int, typer.Option("--beam", min=1, help="Width of the search for the best order.")
    ] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="For ties and bootstrap.")] = 0,
    truncate: TruncateOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    memory: MemoryOption = None,
    debug: DebugOption = False,
) -> None:
    """Compare methods by what happens when words go, on a data set, and write a report."""
    one_of("--unit", unit, ("token", "word", "sentence"))
    one_of("--quantity", quantity, get_args(Quantity))
    if add_method or add_metric:
        if directory is None:
            raise InputError("no run to add to", expected="its folder: --add-method NAME DIRECTORY")
        more = chosen_methods(add_method, ()), _names(add_metric) or ()
        _check(*more)
        chosen = Study.read(directory / STUDY).adding(*more)
        out, resume = directory, True
    elif directory is not None:
        raise InputError("a folder", got=str(directory), expected="--add-method, or --out FOLDER")
    elif study is not None:
        chosen = Study.read(study)
    else:
        chosen = Study(
            model=model,
            task=task,
            device=device,
            dtype=dtype,
            revision=revision,
            memory=memory,
            data=data,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            rationale_column=rationale_column,
            limit=limit,
            methods=tuple(chosen_methods(methods, COMPARED)),
            metrics=_names(metrics),
            operators=None
            if operators is None
            else tuple(name.strip() for name in operators.split(",")),
            unit=cast(Unit, unit),
            quantity=cast(Quantity, quantity),
            label=label,
            at=at,
            seed=seed,
            truncate=truncate,
            beam=beam,
        )
    _check(chosen.methods or (), chosen.metrics or ())
    files.require_writable(out)
    result = _run(chosen, out, resume=resume, jobs=jobs)
    result.save(out, {"report.html": page.render_report(result, read_findings(out))})
    show_leaderboard(result)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True, markup=False)
    if len(result.failures):
        _say_failures(result)
        raise typer.Exit(FAILED)


def _names(options: Sequence[str] | None) -> tuple[str, ...] | None:
    return tuple(chosen_methods(list(options), ())) if options else None


def _check(methods: Sequence[str], measured: Sequence[str]) -> None:
    """Build everything that is named: a misspelt name shall cost no time."""
    for spec in expanded(methods):
        registry.build(spec)
    for spec in measured:
        metrics.build(spec)


def _run(study: Study, out: Path, **options: Any) -> Comparison:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("texts, time left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("comparing", total=None)
        return study.run(
            out,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            command=shlex.join(["xattn", *sys.argv[1:]]),
            **options,
        )


def _say_failures(result: Comparison) -> None:
    count = result.failures["id"].nunique()
    first = result.failures.iloc[0]
    where = f" under {first['method']}" if first["method"] else ""
    print(
        f"xattn: {count} of the texts failed, for example {first['id']}{where}: {first['error']}",
        file=sys.stderr,
    )


@command("report")
def report_command(
    directory: Annotated[Path, typer.Argument(help="Folder that xattn compare has written.")],
    html: Annotated[
        Path | None, typer.Option("--html", help="The page.", show_default="report.html in it")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Draw the report of a comparison again, without a model."""
    result = load_comparison(directory)
    path = directory / "report.html" if html is None else html
    page.write_report(result, path, read_findings(directory))
    show_leaderboard(result)
    console.print(f"report: {path}", soft_wrap=True, markup=False)


@command("agreement")
def agreement_command(
    directories: Annotated[
        list[Path], typer.Argument(help="Two or more folders that xattn compare has written.")
    ],
    debug: DebugOption = False,
) -> None:
    """Show how alike each method's scores are in several runs: seeds, checkpoints, precisions."""
    folders = [folder.resolve() for folder in directories]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in directories if folders.count(folder.resolve()) > 1)
        raise InputError(f"{twice} is named twice", expected="folders of different runs")
    top = os.path.commonpath([folder.parent for folder in folders])
    runs = {os.path.relpath(f, top): load_comparison(f).attributions for f in folders}
    found = between_runs(runs)
    table = Table(
        title="Kendall's τ of the scores, mean over texts", title_justify="left",
        box=None, padding=(0, 1, 0, 0), pad_edge=False,  # narrow: names of folders are long
    )  # fmt: skip
    for column in ("method", "first", "second"):
        table.add_column(column, overflow="fold")
    for column in ("τ", "95 % interval", "top 3 shared", "texts"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.to_dict("records"):
        low, high = row["low"], row["high"]
        table.add_row(
            *(str(row[name]) for name in ("method", "first", "second")),
            f"{row['tau']:.2f}",
            "-" if low != low else f"{low:.2f} to {high:.2f}",
            f"{row['overlap']:.0%}",
            str(row["n"]),
        )
    console.print(table)


@command("metrics")
def metrics_command(debug: DebugOption = False) -> None:
    """List the registered metrics with their options, direction and sources."""
    arrows = {True: "higher is better", False: "lower is better", None: "neither is better"}
    for name in metrics.names():
        cls = metrics.get(name)
        declared = cls.declaration
        options = ", ".join(f"{key}={value}" for key, value in defaults(cls).items())
        low, high = declared.bounds
        console.print(f"[bold]{name}[/bold]  {options}", highlight=False)
        console.print(f"  {declared.meaning}", highlight=False, markup=False)
        console.print(
            f"  {arrows[declared.higher_is_better]}; {declared.unit}, {low:g} to {high:g}",
            highlight=False,
            markup=False,
        )
        console.print(f"  source: {declared.citation}", highlight=False, style="dim", markup=False)
