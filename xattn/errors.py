"""The errors that a user sees: one line saying what, got, expected and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class XattnError(Exception):
    """An error whose text is one line: what happened, what was got, what was expected, the remedy.

    Parameters
    ----------
    what : str
        The thing that is wrong, as the user knows it.
    got, expected, remedy : str, optional
        What was found, what would have been right, and what the user can do.

    Examples
    --------
    >>> str(XattnError("the text is empty", got="''", remedy="pass at least one word"))
    "the text is empty: got ''; pass at least one word"
    """

    def __init__(self, what: str, *, got: str = "", expected: str = "", remedy: str = "") -> None:
        facts = ", ".join(
            f"{label} {value}" for label, value in (("got", got), ("expected", expected)) if value
        )
        line = f"{what}: {facts}" if facts else what
        super().__init__(" ".join((f"{line}; {remedy}" if remedy else line).split()))


class XattnWarning(UserWarning):
    """Something that a reader of the result has to know, in one line."""


class InputError(XattnError, ValueError):
    """A text, data set, option or file that cannot be used."""


class ModelError(XattnError, RuntimeError):
    """A model that cannot be loaded, run or explained."""


class AttentionError(ModelError):
    """A model whose attention cannot be reached, or not in the way that was asked for."""


class UnknownNameError(XattnError, KeyError):
    """A name that is not among the known ones; the message lists them and the nearest.

    Parameters
    ----------
    kind : str
        What the name names, for example ``"method"``.
    name : str
        The name that was given.
    known : iterable of str
        The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = get_close_matches(name, known, n=1)
        super().__init__(
            f"unknown {kind}",
            got=repr(name),
            expected="one of " + ", ".join(known) if known else "nothing: none is registered",
            remedy=f"did you mean {near[0]!r}?" if near else "",
        )

    # KeyError prints the repr of its argument, which would quote the whole line.
    __str__ = Exception.__str__
