"""Whether a student looks at what its teacher looks at.

Answers can be distilled without reasons: a student may say what its teacher says and look
elsewhere. So three things are held against each other on the same texts: the answers, the maps of
matched layers and heads, and what rollout and attribution methods make of the whole network. Each
stands beside what the student's own network gives with its parameters shuffled, which is what any
network of that shape has in common with the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from xattn.analysis import distillation_finding
from xattn.analysis.distillation_finding import known
from xattn.analysis.likeness import Likeness
from xattn.analysis.matching import How, check_matching
from xattn.analysis.similarity import MEASURES, compare_maps, compare_scores
from xattn.analysis.word_maps import Layer, layers_of, word_maps
from xattn.analysis.words import Word, shared_words
from xattn.errors import InputError
from xattn.evaluation.randomisation import shuffled
from xattn.evaluation.statistics import Interval, interval
from xattn.explanations import explain_aims
from xattn.finding import Finding
from xattn.model import Model
from xattn.types import Aim, Attribution, Encoding, Floats, Ints

Side = tuple[Model, Sequence[Encoding]]

METHODS = ("rollout", "integrated_gradients")
TOGETHER = 32
"""Texts whose maps are held at a time."""
NAMED = 3
"""Words that are named of an explanation."""
DEFAULT_LABEL = "LABEL_"
"""What classes are called that nobody has named."""


@dataclass(frozen=True, eq=False)
class Distillation:
    """A student beside its teacher, on some texts."""

    teacher: str
    student: str
    texts: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    """What teacher and student predict."""
    maps: Likeness
    floor: Likeness
    """Of the student's network with its parameters shuffled."""
    scores: Mapping[str, Floats] = field(repr=False)
    """By method ``[text, measure]``: how alike explanations are; see `compare_scores`."""
    floor_scores: Mapping[str, Floats] = field(repr=False)
    """The same with parameters shuffled."""
    seen: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = field(repr=False)
    """The words that the last method puts first, for teacher and student."""
    kept: float
    """Share of the attention that stays within the words that both models have."""

    @property
    def agreement(self) -> Interval:
        """How often both predict the same."""
        return interval(np.array([float(a == b) for a, b in self.answers]), seed=0)

    def values(self, what: str, measure: str = "js") -> Floats:
        """Return how alike they are on each text, ``[text]``; nan where nothing can be said.

        Parameters
        ----------
        what : str
            ``maps`` or a method.
        measure : str
            One of `MEASURES`.
        """
        number = MEASURES.index(measure)
        return self.maps.whole[number] if what == "maps" else self.scores[what][:, number]

    def consistency(self, what: str = "maps", measure: str = "js") -> Interval:
        """Return the mean of `values` with its interval, over texts of which something is known."""
        return known(self.values(what, measure))

    @property
    def differences(self) -> Ints:
        """Texts by how differently they are looked at: by the mean of all ``js``, most first."""
        table = np.stack([self.values(what) for what in ("maps", *self.scores)])
        counts = np.isfinite(table).sum(0)
        mean = np.where(np.isfinite(table), table, 0).sum(0) / np.maximum(counts, 1)
        order: Ints = np.argsort(-mean, kind="stable")
        return order

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each comparison and measure: mean, low, high, n and what shuffling has.

        Comparisons are ``maps`` (matched layers), ``layer S:T`` (student's and teacher's layer) and
        the methods.
        """
        rows = []
        for m, measure in enumerate(MEASURES):
            parts = {"maps": (self.maps.whole[m], self.floor.whole[m])}
            for s, t in self.maps.matched_layers().items():
                parts[f"layer {self.maps.student[s].name}:{self.maps.teacher[t].name}"] = (
                    self.maps.by_layer[m, :, t, s],
                    self.floor.by_layer[m, :, t, s],
                )
            for name, table in self.scores.items():
                parts[name] = table[:, m], self.floor_scores[name][:, m]
            for what, (values, floor) in parts.items():
                rows.append((what, measure, *known(values), known(floor).mean))
        columns = ["what", "measure", "mean", "low", "high", "n", "shuffled"]
        return pd.DataFrame(rows, columns=columns)

    def finding(self) -> Finding:
        """Return what reports show of it."""
        return distillation_finding.finding(self)

    def _repr_html_(self) -> str:
        return self.finding()._repr_html_()


def distillation(
    teacher: Model,
    student: Model,
    texts: Sequence[str],
    *,
    layers: How = "best",
    heads: How = "best",
    methods: Sequence[str] = METHODS,
    truncate: bool = False,
    seed: int = 0,
) -> Distillation:
    """Hold a student against its teacher: answers, maps, and explanations.

    Numbers of layers and heads may differ, and so may tokenizers: maps and explanations are
    compared by the words that both have.

    Parameters
    ----------
    teacher, student : Model
        Of the same task, and of texts.
    texts : sequence of str
        Two or more.
    layers, heads : str or mapping
        What belongs together: ``best``, ``uniform``, or numbers of the student's and teacher's as
        ``{0: 1, 1: 3}``; see `match`.
    methods : sequence of str
        What else is compared. Of classifiers both explain the class that the teacher predicts;
        other models explain what each predicts itself.
    truncate : bool
        Cut texts that are too long for a model instead of refusing them.
    seed : int
        Of the shuffled parameters.

    Raises
    ------
    InputError
        If the two cannot be aligned: other tasks, classes, stacks of layers, or no common words.
    AttentionError
        If the attention of one of them cannot be read.

    Examples
    --------
    >>> import xattn
    >>> model = xattn.load()
    >>> same = distillation(model, model, ["A dull film.", "What a joyful, warm little film!"])
    >>> round(same.consistency("maps").mean, 6), same.agreement.mean
    (0.0, 1.0)
    """
    if len(texts) < 2:
        raise InputError("texts", got=str(len(texts)), expected="two or more")
    classes = common_classes(teacher, student)
    encoded = [model.encode(list(texts), truncate=truncate) for model in (teacher, student)]
    words = [shared_words(a, b) for a, b in zip(*encoded, strict=True)]
    sides = layers_of(teacher, encoded[0][0]), layers_of(student, encoded[1][0])
    _check_stacks(*sides)
    check_matching("layers", layers, len(sides[0]), len(sides[1]))
    check_matching("heads", heads, *(max(layer.heads for layer in side) for side in sides))
    *_, (_, lost) = shuffled(student, seed)

    kept, alike = _compare_maps(
        (teacher, encoded[0]), [(student, encoded[1]), (lost, encoded[1])], words
    )
    asked, own = (_aims(m, e) for m, e in zip((teacher, student), encoded, strict=True))
    told = _explained(teacher, encoded[0], asked, methods)
    aims = [_same_question(*pair, teacher, classes) for pair in zip(asked, own, strict=True)]
    said = _explained(student, encoded[1], aims, methods)
    noise = _explained(lost, encoded[1], aims, methods)
    last = methods[-1] if methods else None
    return Distillation(
        teacher=teacher.name,
        student=student.name,
        texts=tuple(texts),
        answers=() if teacher.link == "identity" else _answers(asked, own, student, classes),
        maps=Likeness(*sides, alike[0], layers, heads),
        floor=Likeness(*sides, alike[1], layers, heads),
        scores={m: _compare_scores(told[m], said[m], words) for m in methods},
        floor_scores={m: _compare_scores(told[m], noise[m], words) for m in methods},
        seen=tuple(
            ((), ())
            if last is None
            else (_first(told[last][i], text, "first"), _first(said[last][i], text, "second"))
            for i, text in enumerate(words)
        ),
        kept=kept,
    )


def common_classes(teacher: Model, student: Model) -> tuple[str, ...]:
    """Return what the student's classes are called by the teacher; empty for vocabularies.

    Classes that nobody has named are taken by number.

    Raises
    ------
    InputError
        If the models have other tasks, or other classes.
    """
    if teacher.task.name != student.task.name:
        raise InputError(
            "tasks of teacher and student",
            got=f"{teacher.task.name} and {student.task.name}",
            expected="the same",
            remedy="name it (--task)",
        )
    ours, theirs = teacher.labels, student.labels
    if set(ours) == set(theirs):
        return theirs
    unnamed = any(all(n.startswith(DEFAULT_LABEL) for n in names) for names in (ours, theirs))
    if len(ours) == len(theirs) and unnamed:
        return ours
    raise InputError(
        "classes of teacher and student",
        got=" and ".join(", ".join(names) for names in (ours, theirs)),
        expected="the same names, or as many without names",
        remedy="set id2label in the student's configuration",
    )


def _check_stacks(teacher: Sequence[Layer], student: Sequence[Layer]) -> None:
    kinds = [list(dict.fromkeys(layer.stack for layer in side)) for side in (teacher, student)]
    if not set(kinds[0]) & set(kinds[1]):
        raise InputError(
            "layers of teacher and student",
            got=" and ".join(", ".join(side) for side in kinds),
            expected="stacks of the same kind",
            remedy="compare models of one architecture: encoders, decoders, or both in one",
        )


def _compare_maps(
    teacher: Side, others: Sequence[Side], words: Sequence[list[Word]]
) -> tuple[float, list[Floats]]:
    """Return the share of attention within common words, and for each of the others its likeness.

    Likeness is ``[measure, text, head, head]``.
    """
    kept: list[float] = []
    alike: list[list[Floats]] = [[] for _ in others]
    for start in range(0, len(words), TOGETHER):
        part = slice(start, start + TOGETHER)
        ours, shares = word_maps(*_some(teacher, part), [[w.first for w in t] for t in words[part]])
        kept += shares
        for side, found in zip(others, alike, strict=True):
            parts = [[w.second for w in text] for text in words[part]]
            theirs, shares = word_maps(*_some(side, part), parts)
            kept += shares if side is others[0] else []
            found += [compare_maps(a, b) for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean(kept)), [np.stack(found, axis=1) for found in alike]


def _some(side: Side, part: slice) -> Side:
    return side[0], side[1][part]


def _aims(model: Model, encodings: Sequence[Encoding]) -> list[Aim]:
    """Return what a model predicts of each text, in the first place where it predicts."""
    return [several[0] for several in model.aims(encodings, at=model.task.first)]


def _same_question(asked: Aim, own: Aim, teacher: Model, classes: tuple[str, ...]) -> Aim:
    """Return the student's aim: the class that the teacher predicts, where there are classes."""
    if not classes:
        return own
    label = tuple(classes.index(teacher.labels[number]) for number in asked.label)
    return replace(own, label=label, words=asked.words)


def _answers(
    asked: Sequence[Aim], own: Sequence[Aim], student: Model, classes: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """Return what teacher and student predict, in the teacher's words."""
    called = dict(zip(student.labels, classes, strict=True))
    return tuple(
        (a.prediction, called.get(b.prediction, b.prediction))
        for a, b in zip(asked, own, strict=True)
    )


def _explained(
    model: Model, encodings: Sequence[Encoding], aims: Sequence[Aim], methods: Sequence[str]
) -> dict[str, list[Attribution]]:
    """Return the explanations of each method, text by text."""
    if not methods:
        return {}
    found = explain_aims(model, list(zip(encodings, aims, strict=True)), methods)
    return {name: list(found[i :: len(methods)]) for i, name in enumerate(methods)}


def _compare_scores(
    ours: Sequence[Attribution], theirs: Sequence[Attribution], words: Sequence[list[Word]]
) -> Floats:
    """Return ``[text, measure]``: how alike explanations are, special tokens left out."""
    return np.array(
        [
            compare_scores(_by_word(a, text, "first"), _by_word(b, text, "second"))
            for a, b, text in zip(ours, theirs, words, strict=True)
        ]
    )


def _by_word(item: Attribution, words: Sequence[Word], side: Literal["first", "second"]) -> Floats:
    tokens = [list(getattr(word, side)) for word in words if not word.special]
    return np.array([item.scores[members].sum(dtype=np.float64) for members in tokens])


def _first(
    item: Attribution, words: Sequence[Word], side: Literal["first", "second"]
) -> tuple[str, ...]:
    """Return the words of the largest scores."""
    names = [word.name for word in words if not word.special]
    order = np.argsort(-np.abs(_by_word(item, words, side)), kind="stable")
    return tuple(names[i] for i in order[:NAMED])
