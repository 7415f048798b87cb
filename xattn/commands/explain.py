"""The commands on single texts: explain, edit, maps, methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from xattn import files
from xattn.analysis.cautions import cautions
from xattn.application import command
from xattn.effects import effect
from xattn.errors import InputError
from xattn.explanations import DEFAULT_METHODS, expanded, explain
from xattn.model import AblateHeads, Boost, Scale, Suppress, Uniform, ZeroValues, load, mark
from xattn.model.interventions import Intervenable
from xattn.options import (
    AgainstOption,
    AtOption,
    ChatOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    LabelOption,
    MemoryOption,
    MethodsOption,
    ModelOption,
    NewTokensOption,
    PairOption,
    PictureOption,
    RevisionOption,
    TaskOption,
    TextArgument,
    TruncateOption,
    UnitOption,
    check_outputs,
    check_unit,
    chosen_methods,
    in_range,
    numbers,
    one_of,
    text_or_example,
)
from xattn.registry import defaults
from xattn.registry import methods as registry
from xattn.report import maps as map_pages
from xattn.report import tokens
from xattn.terminal import (
    console,
    say_written,
    show_attributions,
    show_cautions,
    show_effect,
    spans_of,
    to_json,
)
from xattn.types import Quantity, Unit


@command("explain")
def explain_command(
    text: TextArgument = None,
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
        str, typer.Option("--quantity", help="logit, log_probability, probability or lead.")
    ] = "logit",
    unit: UnitOption = "token",
    html: Annotated[Path | None, typer.Option("--html", help="Write a page.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write a picture.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the scores.")] = None,
    truncate: TruncateOption = False,
    warn: Annotated[
        bool,
        typer.Option(
            "--cautions/--no-cautions",
            help="Look for the mistakes that readers of attention make; a few passes more.",
        ),
    ] = True,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    memory: MemoryOption = None,
    debug: DebugOption = False,
) -> None:
    """Explain the prediction on one text or picture by one or more methods."""
    text = text_or_example(text, task)
    specs = chosen_methods(methods, DEFAULT_METHODS)
    for spec in expanded(specs):
        registry.build(spec)  # before the model is loaded: a misspelt name shall cost no time
    one_of("--quantity", quantity, get_args(Quantity))
    check_unit(unit)
    check_outputs(png, html, json)
    loaded = load(model, task=task, device=device, dtype=dtype, revision=revision, memory=memory)
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
        unit=spans_of(unit) or cast(Unit, unit),
        truncate=truncate,
        max_new_tokens=new_tokens,
    )
    for group in result.by_text():
        show_attributions(group)
    found = cautions(loaded, result) if warn else []
    show_cautions(found)
    if html is not None:
        files.write_text(html, tokens.render_attributions_html(list(result), found))
    if png is not None:
        tokens.render_attributions_png(list(result), png)
    if json is not None:
        files.write_text(json, to_json(list(result)))
    say_written(html, png, json)


@command("edit")
def edit_command(
    text: TextArgument = None,
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
    text = text_or_example(text, task)
    specs = chosen_methods(methods, ["attention_gradient", "integrated_gradients"])
    for spec in expanded(specs):
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


@command("maps")
def maps_command(
    text: TextArgument = None,
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
    text = text_or_example(text, task)
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
