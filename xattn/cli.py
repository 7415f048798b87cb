"""The command line: explain, edit, compare, maps, methods."""

from __future__ import annotations

import functools
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xattn import files
from xattn.effects import effect
from xattn.errors import InputError, XattnError
from xattn.evaluation import compare, load_dataset
from xattn.explanations import DEFAULT_METHODS, explain
from xattn.model import AblateHeads, Boost, Scale, Suppress, Uniform, ZeroValues, load, mark
from xattn.model.interventions import Intervenable
from xattn.registry import defaults
from xattn.registry import methods as registry
from xattn.report import maps as map_pages
from xattn.report import page, tokens
from xattn.terminal import (
    console,
    in_unit,
    say_written,
    show_attributions,
    show_effect,
    show_leaderboard,
    spans_of,
    to_json,
)
from xattn.types import Quantity

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
UnitOption = Annotated[
    str,
    typer.Option("--unit", help="token, word, sentence, or spans of characters as 0-12,30-45."),
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
                with warnings.catch_warnings():
                    warnings.showwarning = say_warning
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


def say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without the place in the source."""
    print(f"xattn: note: {message}", file=sys.stderr)


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
    unit: UnitOption = "token",
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
    check_unit(unit)
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


@command("edit")
def edit_command(
    text: TextArgument = EXAMPLE,
    suppress: Annotated[
        list[str] | None,
        typer.Option("--suppress", help="Let no token look at these words; repeatable."),
    ] = None,
    boost: Annotated[
        list[str] | None,
        typer.Option("--boost", help="Multiply the attention to these words; repeatable."),
    ] = None,
    factor: Annotated[float, typer.Option("--factor", help="By how much --boost multiplies.")] = 5,
    emphasize: Annotated[
        list[str] | None,
        typer.Option(
            "--emphasize",
            help="Steer: multiply the attention to everything but these words by 0.01; repeatable.",
        ),
    ] = None,
    zero_values: Annotated[
        list[str] | None,
        typer.Option("--zero-values", help="Let these words hand nothing on; repeatable."),
    ] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="Switch the heads off.")] = False,
    uniform: Annotated[bool, typer.Option("--uniform", help="Look everywhere alike.")] = False,
    after_softmax: Annotated[
        bool, typer.Option("--after-softmax", help="Do not bring rows back to their sum.")
    ] = False,
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="As 4-6 or 0,2,-1.", show_default="all"),
    ] = None,
    heads: Annotated[
        str | None, typer.Option("--heads", help="As 0-3 or 1,5.", show_default="all")
    ] = None,
    stack: Annotated[
        str | None,
        typer.Option("--stack", help="encoder, decoder or cross, of an encoder-decoder."),
    ] = None,
    pair: PairOption = None,
    methods: MethodsOption = None,
    model: ModelOption = None,
    task: TaskOption = None,
    at: AtOption = None,
    label: LabelOption = None,
    against: AgainstOption = None,
    chat: ChatOption = False,
    new_tokens: NewTokensOption = 12,
    unit: UnitOption = "token",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Change attention on one text and show prediction and explanation before and after."""
    specs = chosen_methods(methods, ["attention_gradient", "integrated_gradients"])
    for spec in specs:
        registry.build(spec)
    check_unit(unit)
    where: dict[str, Any] = {
        "layers": numbers("--layers", layers),
        "heads": numbers("--heads", heads),
        "stack": stack,
    }
    keep = not after_softmax
    edits: list[Intervenable] = []
    if suppress:
        edits.append(Suppress("suppress", renormalize=keep, **where))
    if boost:
        edits.append(Boost("boost", factor, renormalize=keep, **where))
    if emphasize:
        edits.append(Scale("emphasize", 0.01, renormalize=keep, others=True, **where))
    if zero_values:
        edits.append(ZeroValues("zero", **where))
    if ablate:
        edits.append(AblateHeads(**where))
    if uniform:
        edits.append(Uniform(**where))
    if not edits:
        raise InputError(
            "no edit is named",
            expected="--suppress, --boost, --emphasize, --zero-values, --ablate or --uniform",
        )
    loaded = load(model, task=task, device=device, dtype=dtype, revision=revision)
    [encoding] = loaded.encode(
        [[{"role": "user", "content": text}] if chat else text], None if pair is None else [pair]
    )
    marks = {"suppress": suppress, "boost": boost, "emphasize": emphasize, "zero": zero_values}
    for name, words in marks.items():
        if words:
            encoding = mark(encoding, name, words=words)
    result = effect(
        loaded,
        encoding,
        edits,
        specs,
        label=label,
        against=against,
        at=at,
        max_new_tokens=new_tokens,
    )
    show_effect(result, unit)


def numbers(option: str, value: str | None) -> list[int] | None:
    """Return the numbers that an option lists, as ``4-6`` or ``0,2,-1``; None without it.

    Examples
    --------
    >>> numbers("--layers", "4-6,0,-1")
    [4, 5, 6, 0, -1]
    """
    if value is None:
        return None
    found: list[int] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise InputError(option, got=repr(value), expected="numbers as 4-6 or 0,2,-1")
        first = int(match[1])
        found += range(first, int(match[2]) + 1) if match[2] else [first]
    return found


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


def check_unit(unit: str) -> None:
    """Raise `InputError` unless `unit` is one that `in_unit` takes."""
    if unit not in ("token", "word", "sentence") and spans_of(unit) is None:
        raise InputError(
            "--unit",
            got=repr(unit),
            expected="one of token, word, sentence, or spans as 0-12,30-45",
        )


def in_range(option: str, value: int | None, count: int) -> None:
    """Raise `InputError` unless `value` counts from 0 to below `count`."""
    if value is not None and not 0 <= value < count:
        raise InputError(option, got=str(value), expected=f"0 to {count - 1}")
