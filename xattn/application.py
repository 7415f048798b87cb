"""The command line as such: how commands are added, and how they answer errors."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

import typer

from xattn.errors import XattnError

app = typer.Typer(
    name="xattn",
    help="Explain the predictions of transformer models and measure how far to trust it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
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
