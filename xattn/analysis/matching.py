"""Which layers (or heads) of two models belong together: given, spread evenly, or by best fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment

from xattn.errors import InputError
from xattn.types import Floats, Ints

How = str | Mapping[int, int]
"""``best``, ``uniform``, or what of the student belongs to what of the teacher, as numbers."""
WAYS = ("best", "uniform")
HALVES = 4
"""With fewer texts than this there is no half to match on."""


def check_matching(name: str, how: How, teacher: int, student: int) -> None:
    """Raise `InputError` unless `how` is one of `WAYS` or a map between numbers that exist.

    Parameters
    ----------
    name : str
        What is matched, for the message: ``layers`` or ``heads``.
    how : str or mapping
    teacher, student : int
        How many there are.
    """
    if isinstance(how, str):
        if how not in WAYS:
            raise InputError(
                f"matching of {name}",
                got=repr(how),
                expected=f"{' or '.join(WAYS)}, or numbers of the student and teacher as 0:1,1:3",
            )
        return
    wrong = [f"{s}:{t}" for s, t in how.items() if not (0 <= s < student and 0 <= t < teacher)]
    if wrong or not how:
        raise InputError(
            f"matching of {name}",
            got=", ".join(wrong) or "nothing",
            expected=f"student:teacher, of {student} {name} of the student (0 to {student - 1}) "
            f"and {teacher} of the teacher (0 to {teacher - 1})",
        )


def match(costs: Floats, how: How) -> dict[int, int]:
    """Return what of the teacher each of the student's belongs to.

    Parameters
    ----------
    costs : array
        ``[teacher, student]``: how different they are. Only its shape counts unless `how` is best.
    how : str or mapping
        ``best`` is the assignment of least cost in all, each of them used once; so where the
        student has more, some of them are left over. ``uniform`` spreads the student over the
        teacher and ends at its last: ``g(s) = ⌈(s + 1) · teachers / students⌉ − 1``, the rule of
        TinyBERT (Jiao et al. 2020, section 4.1).

    Examples
    --------
    >>> match(np.zeros((12, 4)), "uniform")
    {0: 2, 1: 5, 2: 8, 3: 11}
    >>> match(np.array([[0.0, 0.1], [0.2, 0.9]]), "best")
    {0: 1, 1: 0}
    """
    teacher, student = costs.shape
    if not isinstance(how, str):
        return {s: t for s, t in sorted(how.items()) if s < student and t < teacher}
    if how == "uniform":
        return {s: -(-(s + 1) * teacher // student) - 1 for s in range(student)}
    rows, columns = linear_sum_assignment(costs)
    return dict(sorted(zip(columns.tolist(), rows.tolist(), strict=True)))


def halves(texts: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield on which texts to match and on which to compare: what is fitted flatters.

    Two halves, each matched on the other; with fewer than `HALVES` texts all on themselves.

    Examples
    --------
    >>> [(fit.tolist(), use.tolist()) for fit, use in halves(5)]
    [([1, 3], [0, 2, 4]), ([0, 2, 4], [1, 3])]
    """
    every = np.arange(texts)
    if texts < HALVES:
        yield every, every
        return
    for half in (0, 1):
        yield every[every % 2 != half], every[every % 2 == half]
