"""The command that asks what an answer rests on: grounding."""

from __future__ import annotations

import json as jsons
import re
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from xattn import files
from xattn.analysis.detector import Detector, read_labels, train
from xattn.analysis.grounding import DEFAULT_METHODS, Grounding, ground
from xattn.analysis.lookback import Span
from xattn.application import command
from xattn.demo.stories import stories
from xattn.errors import InputError
from xattn.model import Model, load
from xattn.options import (
    ChatOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    MethodsOption,
    ModelOption,
    NewTokensOption,
    RevisionOption,
    check_outputs,
    chosen_methods,
    one_of,
)
from xattn.registry import methods as registry
from xattn.report.findings import write_finding
from xattn.terminal import console, say_written, spans_of
from xattn.types import Quantity


@command("grounding")
def grounding_command(
    question: Annotated[
        str | None,
        typer.Argument(
            help="What is asked; by default about a story of xattn's own.", show_default=False
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="What the answer shall rest on: a text, or a file of one."),
    ] = None,
    spans: Annotated[
        str | None,
        typer.Option("--spans", help="Or which characters of the question are it, as 0-12,30-45."),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", help="Look into this answer.", show_default="the model's own"),
    ] = None,
    methods: MethodsOption = None,
    detector: Annotated[
        Path | None, typer.Option("--detector", help="Flag what is not grounded, by this detector.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--train",
            help="Train a detector instead: a table with source, answer, grounded (yes or no) or "
            "ungrounded (characters as 0-12,30-45), and question if there is one.",
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Where --train writes it.")] = None,
    quantity: Annotated[
        str,
        typer.Option("--quantity", help="log_probability, logit, probability or lead."),
    ] = "log_probability",
    chat: ChatOption = False,
    new_tokens: NewTokensOption = 24,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a page, and a section of the report there.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write citations, figures.")] = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Say what an answer rests on: lookback, attribution, and the sentences that it cites."""
    specs = chosen_methods(methods, DEFAULT_METHODS)
    for spec in specs:
        registry.build(spec)  # before the model is loaded: a misspelt name shall cost no time
    one_of("--quantity", quantity, get_args(Quantity))
    check_outputs(None, json, save)
    if out is not None:
        files.require_writable(out)
    if (labels is None) != (save is None):
        raise InputError(
            "--train and --save go together", got="one of them", remedy="name labels and a file"
        )
    if labels is not None and save is not None:
        rows = read_labels(labels)
        trained = train(_loaded(model, device, dtype, revision), rows, chat=chat)
        trained.save(save)
        _show_detector(trained)
        say_written(save)
        return
    given: str | list[Span]
    if question is None and source is None and model is None:
        question, given = _example()
        chat = True
    else:
        question, given = question or "", _source(source, spans)
    loaded = _loaded(model, device, dtype, revision)
    found = ground(
        loaded,
        question,
        given,
        answer=answer,
        methods=specs,
        detector=None if detector is None else Detector.load(detector, loaded),
        quantity=cast(Quantity, quantity),
        chat=chat,
        max_new_tokens=new_tokens,
    )
    _show(found)
    if json is not None:
        files.write_text(json, jsons.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    page = None if out is None else write_finding(found.finding(), out)
    say_written(page, json)


def _loaded(model: str | None, device: str, dtype: str, revision: str | None) -> Model:
    return load(model, task="generate", device=device, dtype=dtype, revision=revision)


def _example() -> tuple[str, list[Span]]:
    """Return a story of the demo model's kind with a question, and where the story stands."""
    story, question = next(
        (story, question)
        for story in stories("grounding")
        for question in story.questions
        if len(re.findall(rf"\b{question.word}\b", story.text)) == 1  # one sentence says it
    )
    return f"{story.text} {question.text}", [(0, len(story.text))]


def _source(source: str | None, spans: str | None) -> str | list[Span]:
    """Return the source that the options name."""
    if (source is None) == (spans is None):
        raise InputError(
            "what the answer shall rest on",
            got="nothing" if source is None else "both --source and --spans",
            expected="--source TEXT or FILE, or --spans of the question",
        )
    if spans is not None:
        parsed = spans_of(spans)
        if parsed is None:
            raise InputError("--spans", got=repr(spans), expected="characters as 0-12,30-45")
        return parsed
    text = source or ""
    looks_like_file = re.fullmatch(r"\S+\.[A-Za-z]{2,4}", text) is not None
    if not looks_like_file and not ("\n" not in text and len(text) < 256 and Path(text).is_file()):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"the source {text} cannot be read",
            got=f"{type(error).__name__}: {error}",
            expected="a file in UTF-8, or the text itself",
        ) from None


def _show(found: Grounding) -> None:
    """Print sentences of the answer with what they cite, and the source with numbers."""
    cited = {c.sentence for part in found.parts for c in part.citations}
    for number, sentence in enumerate(found.sentences):
        style = "bold" if number in cited else "dim"
        console.print(Text(f"[{number + 1}] {sentence}", style=style))
    if found.question:
        console.print(Text(found.question))
    named = "P(not grounded)" if found.detector else "1 − lookback"
    table = Table()
    table.add_column("answer", overflow="fold")
    table.add_column(named, justify="right")
    table.add_column(f"cites ({found.cites})")
    for name in found.credit:
        table.add_column(f"{name}\non source", justify="right")
    for part in found.parts:
        links = ", ".join(f"[{c.sentence + 1}] {c.share:.0%}" for c in part.citations)
        mark = " ⚠" if part.flagged else ""
        table.add_row(
            Text(found.answer[slice(*part.span)] + mark, style="red" if part.flagged else ""),
            f"{part.score:.2f}",
            Text(links or "—"),
            *(f"{found.on_source(name, part.tokens):.0%}" for name in found.credit),
        )
    console.print(table)
    finding = found.finding()
    console.print(escape(finding.says))
    for caution in finding.cautions:
        console.print(escape(caution), style="dim")


def _show_detector(trained: Detector) -> None:
    area = trained.auroc
    console.print(
        f"{trained.examples} labelled parts of answers, {trained.ungrounded} of them not grounded; "
        f"AUROC by cross-validation over sources {area.mean:.3f} ({area.low:.3f} to "
        f"{area.high:.3f})",
        highlight=False,
    )
