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
from functools import cached_property
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
from xattn.evaluation.statistics import Interval, interval, mean_known
from xattn.explanations import ALL, expanded, explain_aims, refusals
from xattn.finding import Finding
from xattn.model import Model
from xattn.registry import Method
from xattn.registry import methods as registry
from xattn.types import Aim, Attribution, Encoding, Floats, Ints

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
        mean = mean_known(np.stack([self.values(what) for what in ("maps", *self.scores)]))
        order: Ints = np.argsort(-mean, kind="stable")  # nan, of which nothing is known, last
        return order

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each comparison and measure: mean, low, high, n and what shuffling has.

        Comparisons are ``maps`` (matched layers), ``layer S:T`` (student's and teacher's layer) and
        the methods.
        """
        return self._table.copy()

    @cached_property
    def _table(self) -> pd.DataFrame:
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
                rows.append((what, measure, *known(values), float(mean_known(floor))))
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
    pairs: Sequence[str] | None = None,
    layers: How = "best",
    heads: How = "best",
    methods: Sequence[str | Method] = METHODS,
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
    pairs : sequence of str, optional
        The second text of each; the continuation, for models that generate.
    layers, heads : str or mapping
        What belongs together: ``best``, ``uniform``, or numbers of the student's and teacher's as
        ``{0: 1, 1: 3}``; see `match`.
    methods : sequence of str or Method
        What else is compared; ``all`` for every method that all the models take. Of classifiers
        both explain the class that the teacher predicts; other models explain what each predicts
        itself.
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
    [found] = distillations(
        teacher,
        [student],
        texts,
        pairs=pairs,
        layers=layers,
        heads=heads,
        methods=methods,
        truncate=truncate,
        seed=seed,
    )
    return found


def distillations(
    teacher: Model,
    students: Sequence[Model],
    texts: Sequence[str],
    *,
    pairs: Sequence[str] | None = None,
    layers: How = "best",
    heads: How = "best",
    methods: Sequence[str | Method] = METHODS,
    truncate: bool = False,
    seed: int = 0,
) -> list[Distillation]:
    """Hold several students against one teacher, which is explained once; see `distillation`."""
    if len(texts) < 2:
        raise InputError("texts", got=str(len(texts)), expected="two or more")
    classes = [common_classes(teacher, student) for student in students]
    ours = teacher.encode(list(texts), pairs, truncate=truncate)
    theirs = [student.encode(list(texts), pairs, truncate=truncate) for student in students]
    words, sides = [], []
    first = layers_of(teacher, ours[0])
    for student, encodings in zip(students, theirs, strict=True):
        words.append([shared_words(a, b) for a, b in zip(ours, encodings, strict=True)])
        sides.append((first, layers_of(student, encodings[0])))
        _check_layers(*sides[-1], layers, heads)
    chosen = _chosen(methods, [(teacher, ours), *zip(students, theirs, strict=True)])
    asked = _aims(teacher, ours)
    told = Reading(teacher, ours, _explained(teacher, ours, asked, chosen))
    found = []
    for number, student in enumerate(students):
        own = _aims(student, theirs[number])
        aims = [
            _same_question(*aim, teacher, classes[number]) for aim in zip(asked, own, strict=True)
        ]
        *_, (_, lost) = shuffled(student, seed)
        said, noise = (
            Reading(m, theirs[number], _explained(m, theirs[number], aims, chosen))
            for m in (student, lost)
        )
        kept, alike = _compare_maps(told, (said, noise), words[number])
        found.append(
            Distillation(
                teacher=teacher.name,
                student=student.name,
                texts=tuple(texts),
                answers=()
                if teacher.link == "identity"
                else _answers(asked, own, student, classes[number]),
                maps=Likeness(*sides[number], alike[0], layers, heads),
                floor=Likeness(*sides[number], alike[1], layers, heads),
                scores=_compare_explained(told, said, words[number]),
                floor_scores=_compare_explained(told, noise, words[number]),
                seen=_seen(told, said, words[number]),
                kept=kept,
            )
        )
    return found


@dataclass(frozen=True, eq=False)
class Reading:
    """A model with texts as it reads them, and how it explains them."""

    model: Model
    encodings: Sequence[Encoding]
    explained: Mapping[str, Sequence[Attribution]]
    """By method, text by text."""


def _chosen(
    methods: Sequence[str | Method], readers: Sequence[tuple[Model, Sequence[Encoding]]]
) -> list[Method]:
    """Return the methods that are named; of ``all`` those that no model refuses."""
    built = [registry.build(m) if isinstance(m, str) else m for m in expanded(methods)]
    built = list(dict.fromkeys(built))
    if ALL in methods:
        for model, encodings in readers:
            refused = refusals(model, encodings, built, at=model.task.first)
            built = [method for method in built if method not in refused]
    return built


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


def _check_layers(
    teacher: Sequence[Layer], student: Sequence[Layer], layers: How, heads: How
) -> None:
    """Raise `InputError` if layers or heads cannot be matched in the way that is asked for."""
    kinds = [list(dict.fromkeys(layer.stack for layer in side)) for side in (teacher, student)]
    if not set(kinds[0]) & set(kinds[1]):
        raise InputError(
            "layers of teacher and student",
            got=" and ".join(", ".join(side) for side in kinds),
            expected="stacks of the same kind",
            remedy="compare models of one architecture: encoders, decoders, or both in one",
        )
    check_matching("layers", layers, len(teacher), len(student))
    check_matching("heads", heads, *(max(layer.heads for layer in s) for s in (teacher, student)))
    for s, t in () if isinstance(layers, str) else layers.items():
        if student[s].stack != teacher[t].stack:
            raise InputError(
                f"layers {s}:{t}",
                got=f"{student[s].name} and {teacher[t].name}",
                expected="layers of the same stack",
            )


def _compare_maps(
    teacher: Reading, others: Sequence[Reading], words: Sequence[list[Word]]
) -> tuple[float, list[Floats]]:
    """Return the share of attention within common words, and for each of the others its likeness.

    The share is of teacher and student, the first of the others. Likeness is ``[measure, text,
    head, head]``.
    """
    kept: list[float] = []
    alike: list[list[Floats]] = [[] for _ in others]
    for start in range(0, len(words), TOGETHER):
        part = slice(start, start + TOGETHER)
        first, second = (
            [[getattr(word, side) for word in text] for text in words[part]]
            for side in ("first", "second")
        )
        ours, shares = word_maps(teacher.model, teacher.encodings[part], first)
        kept += shares
        for other, found in zip(others, alike, strict=True):
            theirs, shares = word_maps(other.model, other.encodings[part], second)
            kept += shares if other is others[0] else []
            found += [compare_maps(a, b) for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean(kept)), [np.stack(found, axis=1) for found in alike]


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
    model: Model, encodings: Sequence[Encoding], aims: Sequence[Aim], methods: Sequence[Method]
) -> dict[str, list[Attribution]]:
    """Return the explanations of each method, text by text."""
    if not methods:
        return {}
    found = explain_aims(model, list(zip(encodings, aims, strict=True)), methods)
    texts = list(found.by_method())
    return {name: [text[name] for text in texts] for name in texts[0]}


def _compare_explained(
    ours: Reading, theirs: Reading, words: Sequence[list[Word]]
) -> dict[str, Floats]:
    """Return by method ``[text, measure]``: how alike explanations are, without special tokens."""
    return {
        name: np.array(
            [
                compare_scores(_by_word(a, text, "first"), _by_word(b, text, "second"))
                for a, b, text in zip(items, theirs.explained[name], words, strict=True)
            ]
        )
        for name, items in ours.explained.items()
    }


def _seen(
    ours: Reading, theirs: Reading, words: Sequence[list[Word]]
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Return the words that the last method puts first for both, text by text."""
    if not ours.explained:
        return (((), ()),) * len(words)
    last = list(ours.explained)[-1]
    return tuple(
        (_first(a, text, "first"), _first(b, text, "second"))
        for a, b, text in zip(ours.explained[last], theirs.explained[last], words, strict=True)
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
