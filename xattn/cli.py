"""The command line: explain, compare, maps, methods."""

from __future__ import annotations

import functools
import json as jsonlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from xattn import files, render
from xattn.errors import InputError, XattnError
from xattn.evaluation import Comparison, compare, load_dataset
from xattn.explanations import DEFAULT_METHODS, explain
from xattn.model import load
from xattn.picture import Picture
from xattn.registry import defaults
from xattn.registry import methods as registry
from xattn.report import maps as map_pages
from xattn.report import page, tokens
from xattn.types import Attribution, Quantity

# Attention in the first layer beside the last: the report says if the result turns on the choice.
COMPARED = (*DEFAULT_METHODS, "attention:layer=0")
EXAMPLE = "The plot is thin and the jokes are old, but the two leads are a constant delight."

app = typer.Typer(
    name="xattn",
    help="Explain the predictions of transformer models and measure how far to trust it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

TextArgument = Annotated[
    str,
    typer.Argument(
        help="The text to explain; for models of pictures, the file of one.", show_default=False
    ),
]
PictureOption = Annotated[
    Path | None,
    typer.Option("--picture", help="The picture that the text is matched with (match)."),
]
PairOption = Annotated[
    str | None,
    typer.Option("--pair", help="The second text: of a pair, the passage, or the continuation."),
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--methods",
        "--method",
        "-m",
        help="Methods by name, with options as NAME:field=value; separated by commas or given "
        "several times; 'all' for every registered one.",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Folder or Hub name.", show_default="the demo model")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, mps or auto.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Of a model on the Hub.")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="classify, tag, answer, fill, generate, image or match.",
        show_default="what the model was made for",
    ),
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        help="Where the prediction is read: a word (tag); start, end or span (answer); the number "
        "of a mask (fill); next, each, whole or a number of a token (generate).",
    ),
]
ChatOption = Annotated[
    bool, typer.Option("--chat", help="Put the text into the model's chat template.")
]
NewTokensOption = Annotated[
    int, typer.Option("--new-tokens", help="Tokens to generate where no --pair continues the text.")
]
LabelOption = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="Class or token to explain, or each.",
        show_default="the predicted one",
    ),
]
AgainstOption = Annotated[str | None, typer.Option("--against", help="Class to compare it with.")]
TruncateOption = Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


Command = TypeVar("Command", bound=Callable[..., None])


def command(name: str) -> Callable[[Command], Command]:
    """Return a decorator that adds a command whose errors are one line and an exit code.

    2 for what xattn refuses, with a traceback only if ``--debug`` is given; 130 for Ctrl-C.
    """

    def add(function: Command) -> Command:
        @functools.wraps(function)
        def guarded(**options: Any) -> None:
            try:
                function(**options)
            except XattnError as error:
                if options["debug"]:
                    raise
                print(f"xattn: {error}", file=sys.stderr)
                raise typer.Exit(2) from None
            except (OSError, UnicodeError) as error:  # the terminal or a pipe, not our files
                if options["debug"]:
                    raise
                print(f"xattn: the output cannot be written: {error}", file=sys.stderr)
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                print("xattn: interrupted; nothing half-written is left", file=sys.stderr)
                raise typer.Exit(130) from None

        app.command(name)(guarded)
        return function

    return add


def chosen_methods(options: list[str] | None, default: Sequence[str]) -> list[str]:
    """Return the method specs that ``--methods`` asks for; `default` without it.

    Examples
    --------
    >>> chosen_methods(["attention,rollout:residual=0.3", "flow"], [])
    ['attention', 'rollout:residual=0.3', 'flow']
    """
    if not options:
        return list(default)
    # a comma followed by "field=" separates options of one method, not methods
    specs = [s.strip() for o in options for s in re.split(r",(?!\s*\w+\s*=)", o) if s.strip()]
    if not specs:
        raise InputError("no method is named", expected="one or more", remedy="see xattn methods")
    chosen = [name for s in specs for name in (registry.names() if s == "all" else [s])]
    return list(dict.fromkeys(chosen))


@command("explain")
def explain_command(
    text: TextArgument = EXAMPLE,
    pair: PairOption = None,
    picture: PictureOption = None,
    methods: MethodsOption = None,
    model: ModelOption = None,
    task: TaskOption = None,
    at: AtOption = None,
    label: LabelOption = None,
    against: AgainstOption = None,
    chat: ChatOption = False,
    new_tokens: NewTokensOption = 12,
    quantity: Annotated[
        str, typer.Option("--quantity", help="logit, log_probability or probability.")
    ] = "logit",
    unit: Annotated[str, typer.Option("--unit", help="token, word or sentence.")] = "token",
    html: Annotated[Path | None, typer.Option("--html", help="Write a page.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write a picture.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the scores.")] = None,
    truncate: TruncateOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Explain the prediction on one text or picture by one or more methods."""
    specs = chosen_methods(methods, DEFAULT_METHODS)
    for spec in specs:
        registry.build(spec)  # before the model is loaded: a misspelt name shall cost no time
    one_of("--quantity", quantity, get_args(Quantity))
    one_of("--unit", unit, ("token", "word", "sentence"))
    check_outputs(png, html, json)
    loaded = load(model, task=task, device=device, dtype=dtype, revision=revision)
    result = explain(
        loaded,
        [[{"role": "user", "content": text}] if chat else text],
        specs,
        pairs=None if pair is None else [pair],
        pictures=None if picture is None else [picture],
        label=label,
        against=against,
        at=at,
        quantity=cast(Quantity, quantity),
        truncate=truncate,
        max_new_tokens=new_tokens,
    )
    shown = [in_unit(item, unit) for item in result]
    for group in result.by_text():
        show_attributions([in_unit(item, unit) for item in group])
    if html is not None:
        files.write_text(html, tokens.render_attributions_html(shown))
    if png is not None:
        tokens.render_attributions_png(shown, png)
    if json is not None:
        files.write_text(json, to_json(shown))
    say_written(html, png, json)


@command("compare")
def compare_command(
    methods: MethodsOption = None,
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
    limit: Annotated[int | None, typer.Option("--limit", help="Use the first N texts.")] = None,
    operators: Annotated[
        str | None,
        typer.Option(
            "--operators",
            help="How tokens are removed: delete, mask, pad, unknown, attention-mask.",
            show_default="delete,mask",
        ),
    ] = None,
    model: ModelOption = None,
    label: LabelOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path(
        "xattn-report"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="For ties and bootstrap.")] = 0,
    truncate: TruncateOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Compare methods by deletion curves on a data set and write a report."""
    specs = chosen_methods(methods, COMPARED)
    for spec in specs:
        registry.build(spec)
    files.require_writable(out)
    dataset = load_dataset(
        data,
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        limit=limit,
    )
    loaded = load(model, device=device, dtype=dtype, revision=revision)
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
        task = bar.add_task("comparing", total=len(dataset.texts))
        result = compare(
            loaded,
            dataset,
            specs,
            None if operators is None else [name.strip() for name in operators.split(",")],
            label=label,
            seed=seed,
            truncate=truncate,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            command=shlex.join(["xattn", *sys.argv[1:]]),
        )
    result.save(out, {"report.html": page.render_report(result)})
    show_leaderboard(result)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True, markup=False)


@command("maps")
def maps_command(
    text: TextArgument = EXAMPLE,
    pair: PairOption = None,
    picture: PictureOption = None,
    layer: Annotated[int | None, typer.Option("--layer", help="One layer, from 0.")] = None,
    head: Annotated[int | None, typer.Option("--head", help="One head, from 0.")] = None,
    average: Annotated[bool, typer.Option("--average", help="Average over heads.")] = False,
    stack: Annotated[
        str | None,
        typer.Option(
            "--stack",
            help="encoder, decoder or cross, of an encoder-decoder; text or image, of both.",
        ),
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write a picture.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page.")] = None,
    model: ModelOption = None,
    task: TaskOption = None,
    truncate: TruncateOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Draw the attention maps of one text or picture, layers by heads."""
    if png is None and html is None:
        png, html = Path("xattn-maps.png"), Path("xattn-maps.html")
    check_outputs(png, html)
    loaded = load(model, task=task, device=device, dtype=dtype, revision=revision)
    pairs = None if pair is None else [pair]
    pictures = None if picture is None else [picture]
    encodings = loaded.encode([text], pairs, pictures=pictures, truncate=truncate)
    maps = loaded.attention(encodings, stack)[0]
    layers, heads = maps.maps.shape[:2]
    in_range("--layer", layer, layers)
    in_range("--head", head, heads)
    if average and head is not None:
        raise InputError("--average and --head", got="both", expected="one of them")
    chosen: dict[str, Any] = {
        "layers": None if layer is None else [layer],
        "heads": None if head is None else [head],
        "average": average,
    }
    if png is not None:
        map_pages.render_maps_png(maps, png, **chosen)
    if html is not None:
        files.write_text(html, map_pages.render_maps_html(maps, **chosen))
    console.print(f"{layers} layers, {heads} heads, {len(maps.tokens)} tokens")
    say_written(png, html)


@command("methods")
def methods_command(debug: DebugOption = False) -> None:
    """List the registered methods with their options, properties and sources."""
    totals = {"one": "sum to 1", "difference": "sum to a score difference", "free": "no fixed sum"}
    for name in registry.names():
        cls = registry.get(name)
        declared = cls.declaration
        options = ", ".join(f"{key}={value}" for key, value in defaults(cls).items())
        sign = "signed" if declared.signed else "unsigned"
        needs = f"; needs {' and '.join(sorted(declared.needs))}" if declared.needs else ""
        console.print(f"[bold]{name}[/bold]  {options}", highlight=False)
        console.print(f"  scores: {sign}, {totals[declared.total]}{needs}", highlight=False)
        console.print(f"  source: {declared.citation}", highlight=False, style="dim")


def check_outputs(png: Path | None, *others: Path | None) -> None:
    """Raise `InputError` if a file cannot be written, before any work is done."""
    if png is not None and png.suffix.lower() != ".png":
        raise InputError("--png", got=str(png), expected="a name that ends in .png")
    for path in filter(None, (png, *others)):
        files.require_writable(path.parent)


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `InputError` unless `value` is allowed."""
    if value not in allowed:
        raise InputError(option, got=repr(value), expected="one of " + ", ".join(allowed))


def in_range(option: str, value: int | None, count: int) -> None:
    """Raise `InputError` unless `value` counts from 0 to below `count`."""
    if value is not None and not 0 <= value < count:
        raise InputError(option, got=str(value), expected=f"0 to {count - 1}")


def in_unit(item: Attribution, unit: str) -> Attribution:
    """Return the attribution with one score a token, word or sentence."""
    if unit == "word":
        return item.words()
    return item.sentences() if unit == "sentence" else item


def to_json(items: list[Attribution]) -> str:
    """Return a JSON list, one object a method."""
    return jsonlib.dumps([item.to_dict() for item in items], indent=2)


def show_attributions(items: list[Attribution]) -> None:
    """Print coloured tokens, one line a method."""
    first = items[0]
    console.print(f"[bold]{escape(first.verdict)}[/bold], explained: {escape(first.target)}")
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
    """Print the methods by area between the curves, with intervals."""
    for operator in dict.fromkeys(result.scores["operator"]):
        table = Table(title=f"faithfulness, tokens removed by {operator}")
        table.add_column("method", overflow="fold")
        for column in ("ABPC ↑", "95 % interval", "compreh. ↑", "suffic. ↓"):
            table.add_column(column, justify="right", no_wrap=True)
        summary = result.summary()
        summary = summary[summary["operator"] == operator].set_index(["method", "metric"])
        for method in result.leaderboard(str(operator), "abpc")["method"]:
            area = summary.loc[(method, "abpc")]
            table.add_row(
                str(method),
                f"{area['mean']:.3f}",
                "-" if area["n"] < 2 else f"{area['low']:.3f} to {area['high']:.3f}",
                f"{summary.loc[(method, 'comprehensiveness'), 'mean']:.3f}",
                f"{summary.loc[(method, 'sufficiency'), 'mean']:.3f}",
            )
        console.print(table)


def say_written(*paths: Path | None) -> None:
    """Print the names of the files that were written."""
    for path in filter(None, paths):
        console.print(f"wrote {path}", soft_wrap=True, markup=False)
