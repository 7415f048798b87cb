"""How a student beside its teacher is shown: sentences, tables and charts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from xattn.analysis.matching import HALVES
from xattn.analysis.similarity import MEASURES
from xattn.errors import InputError
from xattn.evaluation.statistics import Interval, interval, mean_known, paired_difference
from xattn.finding import Cell, Dot, Dots, Finding, Heatmap, Table, shown
from xattn.types import Floats

if TYPE_CHECKING:
    from xattn.analysis.distillation import Distillation

JS = MEASURES.index("js")
SHOWN = 8
"""Texts that are shown."""
SAME = 0.9
"""Share of same answers from which on it is worth saying that the reasons are others."""
UNLIKE = 0.5
"""Rank correlation below which they are."""
UNITS = {"kl": "KL, nats", "js": "Jensen-Shannon, bits", "cosine": "cosine", "rank": "Spearman’s ρ"}


def finding(found: Distillation) -> Finding:
    """Return what one student has of its teacher."""
    return Finding(
        f"distillation-{slug(found.student)}",
        f"Does {found.student} look at what {found.teacher} looks at?",
        says(found),
        (_alike(found), _by_comparison(found), _layers(found), _heads(found), _texts(found)),
        cautions(found),
    )


def slug(name: str) -> str:
    """Return the last part of a name, as files can be called."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-").lower() or "student"


def says(found: Distillation) -> str:
    """Return what was found, in a few sentences."""
    said = f"On {len(found.texts)} texts"
    if found.answers:
        said += (
            f" {found.student} gives the answer of {found.teacher} in "
            f"{_share(found.agreement)} of them, and"
        )
    maps, floor = found.consistency(), float(mean_known(found.floor.whole[JS]))
    said += (
        f" the maps of matched layers of {found.student} and {found.teacher} differ by a "
        f"Jensen-Shannon divergence of {_between(maps)} bits (0 is the same, 1 nothing in common; "
        f"with the parameters of the student shuffled {shown(floor)})."
    )
    told = [f"by {name} {_rank(found, name)}" for name in found.scores]
    if told:
        said += f" Their explanations rank the words alike: {'; '.join(told)}."
    return said


def _rank(found: Distillation, name: str) -> str:
    """Return how alike a method ranks words for both."""
    alike = found.consistency(name, "rank")
    return (
        "for no text, as one has no order" if not alike.n else f"by a correlation of {alike.said}"
    )


def _share(value: Interval) -> str:
    if np.isnan(value.low):
        return f"{value.mean:.0%}"
    return f"{value.mean:.0%} (95 % interval {value.low:.0%} to {value.high:.0%})"


def _between(value: Interval) -> str:
    if np.isnan(value.low):
        return shown(value.mean)
    return f"{shown(value.mean)} (95 % interval {shown(value.low)} to {shown(value.high)})"


def known(values: Floats) -> Interval:
    """Return the mean of what is not nan, with its interval."""
    return interval(values[np.isfinite(values)], seed=0)


def cautions(found: Distillation) -> tuple[str, ...]:
    """Return what limits the finding."""
    said = []
    last = list(found.scores)[-1:]
    others = [n for n in last if found.consistency(n, "rank").mean < UNLIKE]
    if found.answers and found.agreement.mean >= SAME and others:
        said.append(
            f"The answers are the same, the reasons are not: {others[0]} ranks the words "
            f"otherwise for the student. Do not explain the teacher by explaining the student."
        )
    if mean_known(found.floor.whole[JS]) < found.consistency().mean:
        said.append(
            "The maps of the student are further from the teacher's than those of the student with "
            "its parameters shuffled. Shuffled networks look about evenly, and what is even is not "
            "far from anything: see the rank correlations."
        )
    if found.kept < SAME:
        said.append(
            f"{1 - found.kept:.0%} of the attention falls on tokens that only one of the models "
            "has, and is left out."
        )
    if len(found.texts) < HALVES:
        said.append(
            "With so few texts, layers and heads are matched on the texts that they are compared "
            f"on, which flatters. Give {HALVES} or more."
        )
    left = [
        layer.name
        for s, layer in enumerate(found.maps.student)
        if s not in found.maps.matched_layers()
    ]
    if left:
        said.append(f"Layers of the student that belong to none: {', '.join(left)}.")
    said.append(
        "Maps that are alike do not show that one model has learnt from the other, nor that the "
        "predictions rest on them: see what another student gives, and what the attribution "
        "methods say."
    )
    return tuple(said)


def _alike(found: Distillation) -> Table:
    table = found.to_dataframe()
    rows: list[tuple[Cell, ...]] = []
    for what in dict.fromkeys(table["what"]):
        cells: list[Cell] = [_named(str(what))]
        for measure in MEASURES:
            row = table[(table["what"] == what) & (table["measure"] == measure)].iloc[0]
            cells += [float(row["mean"]), float(row["shuffled"])]
        rows.append(tuple(cells))
    headings = [name for m in MEASURES for name in (UNITS[m], "shuffled")]
    return Table(
        "How alike",
        ("", *headings),
        tuple(rows),
        "Means over texts; beside each what the student has with its parameters shuffled. "
        "Divergences are 0 for the same, cosine and correlation 1.",
    )


def _named(what: str) -> str:
    if not what.startswith("layer "):
        return what
    student, teacher = what.removeprefix("layer ").split(":")
    return f"student’s layer {student}, teacher’s {teacher}"


def _by_comparison(found: Distillation) -> Dots:
    dots = []
    table = found.to_dataframe()
    for row in table[table["measure"] == "js"].to_dict("records"):
        name = _named(str(row["what"]))
        mean, low, high = (_none(row[column]) for column in ("mean", "low", "high"))
        dots.append(Dot(name, mean, low, high, "student"))
        dots.append(Dot(f"{name}, shuffled", _none(row["shuffled"]), group="parameters shuffled"))
    return Dots(
        "How different",
        tuple(dots),
        x_label="Jensen-Shannon divergence, bits",
        level=0.0,
        note="With 95 % intervals over texts.",
    )


def _none(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def _layers(found: Distillation) -> Heatmap:
    values = mean_known(found.maps.by_layer[JS])
    pairs = found.maps.matched_layers()
    named = ", ".join(
        f"{found.maps.student[s].name} with {found.maps.teacher[t].name}" for s, t in pairs.items()
    )
    return Heatmap(
        "Layer by layer",
        tuple(layer.name for layer in found.maps.student),
        tuple(layer.name for layer in found.maps.teacher),
        tuple(tuple(_none(v) for v in row) for row in values.T),
        unit="bits",
        row_label="student’s layer",
        column_label="teacher’s layer",
        low=0.0,
        note=f"Jensen-Shannon divergence of matched heads. Layers that belong together: {named}.",
    )


def _heads(found: Distillation) -> Table:
    js = mean_known(found.maps.values[JS])
    rows = []
    for s, t in found.maps.matched_layers().items():
        for own, head in found.maps.matched_heads(t, s).items():
            first = sum(layer.heads for layer in found.maps.teacher[:t]) + head
            second = sum(layer.heads for layer in found.maps.student[:s]) + own
            names = found.maps.student[s].name, own, found.maps.teacher[t].name, head
            rows.append((*names, float(js[first, second])))
    return Table(
        "Heads that belong together",
        ("student’s layer", "head", "teacher’s layer", "head", "Jensen-Shannon, bits"),
        tuple(rows),
        "Matched on all texts, by the least divergence in all.",
    )


def _texts(found: Distillation) -> Table:
    names = ["maps", *found.scores]
    rows: list[tuple[Cell, ...]] = []
    for i in found.differences[:SHOWN].tolist():
        answers = found.answers[i] if found.answers else (None, None)
        measured = (_none(found.values(name)[i]) for name in names)
        rows.append((found.texts[i], *answers, *measured, *map(", ".join, found.seen[i])))
    last = list(found.scores)[-1:] or ["no method"]
    return Table(
        "Texts that are looked at most differently",
        ("text", "teacher", "student", *names, "teacher looks at", "student looks at"),
        tuple(rows),
        f"Jensen-Shannon divergence, bits; what both look at by {last[0]}.",
    )


def side_by_side(found: Sequence[Distillation]) -> Finding:
    """Return how several students of one teacher compare, the most alike first.

    Raises
    ------
    InputError
        If they were not compared with one teacher on the same texts.
    """
    if len({(one.teacher, one.texts) for one in found}) != 1:
        raise InputError(
            "students side by side",
            got="other teachers or texts",
            expected="one teacher and the same texts for all",
        )
    order = sorted(found, key=lambda one: one.consistency().mean)
    names = [name for name in order[0].scores if all(name in one.scores for one in order)]
    said = []
    for near, far in pairwise(order):
        both = np.isfinite(far.values("maps")) & np.isfinite(near.values("maps"))
        apart = paired_difference(far.values("maps")[both], near.values("maps")[both], seed=0)
        verdict = "looks more like it than" if apart.low > 0 else "cannot be told from"
        said.append(
            f"{near.student} {verdict} {far.student} (difference of the Jensen-Shannon divergence "
            f"of maps {_between(apart)} bits)"
        )
    dots = tuple(
        Dot(one.student, *one.consistency(what)[:3], group=what)
        for what in ("maps", *names)
        for one in order
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            one.student,
            one.agreement.mean,
            one.consistency().mean,
            float(mean_known(one.floor.whole[JS])),
            *(one.consistency(name, "rank").mean for name in names),
        )
        for one in order
    )
    return Finding(
        "distillation",
        f"Students of {order[0].teacher}",
        f"On {len(order[0].texts)} texts: {'; '.join(said) or order[0].student + ' alone'}.",
        (
            Table(
                "Students, the most alike first",
                ("student", "same answers", "maps, bits", "shuffled", *(f"{n}, ρ" for n in names)),
                rows,
                "Jensen-Shannon divergence of maps (0 is the same), and Spearman’s correlation of "
                "explanations.",
            ),
            Dots(
                "How different",
                dots,
                x_label="Jensen-Shannon divergence, bits",
                level=0.0,
                note="With 95 % intervals over texts.",
            ),
        ),
        ("Differences are paired: the same texts for all students.",),
    )
