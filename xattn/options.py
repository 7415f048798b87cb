"""Options that several commands share, and checks of what is given for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from xattn import files
from xattn.errors import InputError
from xattn.terminal import spans_of

REVIEW = "The plot is thin and the jokes are old, but the two leads are a constant delight."
STORY = "Once upon a time"
"""What the demo models are asked about when no text is given."""

TextArgument = Annotated[
    str | None,
    typer.Argument(
        help="The text to explain, an example by default; for models of pictures, the file of one.",
        show_default=False,
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
TextsOption = Annotated[
    str | None,
    typer.Option("--data", help="Texts: a file or data set.", show_default="the demo's own"),
]
TextColumnOption = Annotated[str | None, typer.Option("--text-column")]
LimitOption = Annotated[int, typer.Option("--limit", help="Texts from the top.")]
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
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory",
        help="GiB that the activations of one pass may take; smaller batches follow.",
        show_default="batches of 2048 tokens",
    ),
]
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


def text_or_example(text: str | None, task: str | None) -> str:
    """Return the text that is explained: for the demo models, one of their kind by default."""
    if text is not None:
        return text
    return STORY if task == "generate" else REVIEW


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
    return list(dict.fromkeys(specs))


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
