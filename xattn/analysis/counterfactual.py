"""What a model makes of counterfactual pairs: predictions, attributions and attention.

Each kind of model is asked in its own way.

- Classifiers: the probability of a class, once with the words of either group.
- Masked models: the log-odds of the two words where the text has a mask, less the same log-odds
  where the profession is masked as well (Kurita et al. 2019, Measuring Bias in Contextualized Word
  Representations: the increased log probability). For all professions that is one mask, so that the
  number of their tokens makes no difference. Several swapped words add up.
- Causal models: the log-likelihood of the whole text with either word, as CrowS-Pairs compares
  sentences (Nangia et al. 2020), but of all tokens and from left to right, less the mean of this
  difference over the professions of the same template. What is common to all professions, above all
  how frequent the two words are, drops out; that is the price of causal models, which have no mask.

Attributions and attention are of what stands in the text. Classifiers: the logit of the class.
Causal models: the log-likelihood. Masked models are asked the other way around, since a masked word
cannot be looked at: the profession is masked, and its log-probability explained.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from xattn.analysis.cautions import looks
from xattn.analysis.templates import Pair, Side, Span
from xattn.errors import AttentionError, InputError, ModelError, XattnWarning
from xattn.explanations import explain_aims
from xattn.model import Model, mark
from xattn.model.scorer import Scorer
from xattn.registry import Method
from xattn.types import Aim, Attribution, Bools, Encoding, Floats, Ints, Quantity

SWAPPED, PROFESSION = "swapped", "profession"
"""The marks of the words of the group and of the profession."""
Case = tuple[Encoding, Aim]


def marked(model: Model, sides: Sequence[Side]) -> list[Encoding]:
    """Return the texts as the model reads them, with what was swapped and the profession marked."""
    encodings = model.encode([side.text for side in sides])
    return [
        mark(mark(encoding, SWAPPED, spans=side.swapped), PROFESSION, spans=[side.profession])
        for encoding, side in zip(encodings, sides, strict=True)
    ]


def where(encoding: Encoding, name: str) -> Bools:
    """Return which tokens are marked, ``[token]``."""
    return np.asarray(encoding.row[f"mark:{name}"], dtype=bool)


@dataclass(frozen=True, eq=False)
class Asker(ABC):
    """How a kind of model is asked about marked texts; see the module."""

    model: Model
    measure: str
    """What changes, in words."""
    unit: str
    quantity: Quantity
    """In which what `cases` ask for is explained."""
    margin: float | None
    """The smallest change of interest, by default; None where there is none in general."""

    @property
    def centred(self) -> bool:
        """Whether only differences between professions mean anything."""
        return False

    @abstractmethod
    def changes(
        self, first: Sequence[Encoding], second: Sequence[Encoding]
    ) -> tuple[Floats, Floats]:
        """Return second − first of what the model makes of two texts, as it is and normalised."""

    @abstractmethod
    def cases(self, encodings: Sequence[Encoding]) -> list[Case]:
        """Return the texts with what is explained of each."""

    def _scores(self, cases: Sequence[Case], quantity: Quantity) -> Floats:
        target = self.model.target_of([aim for _, aim in cases], quantity)
        return Scorer(self.model).values([encoding.row for encoding, _ in cases], target)


@dataclass(frozen=True, eq=False)
class Classifier(Asker):
    """The probability of a class; of a regression its output."""

    label: int

    def changes(
        self, first: Sequence[Encoding], second: Sequence[Encoding]
    ) -> tuple[Floats, Floats]:
        """Return the difference of the probabilities, twice."""
        quantity: Quantity = "logit" if self.model.link == "identity" else "probability"
        before, after = (self._scores(self.cases(part), quantity) for part in (first, second))
        return after - before, after - before

    def cases(self, encodings: Sequence[Encoding]) -> list[Case]:
        """Return the texts with the class."""
        aims = self.model.aims(encodings, self.label)
        return [(encoding, aim) for encoding, (aim,) in zip(encodings, aims, strict=True)]


@dataclass(frozen=True, eq=False)
class Masked(Asker):
    """The log-probability of the swapped words behind masks."""

    def changes(
        self, first: Sequence[Encoding], second: Sequence[Encoding]
    ) -> tuple[Floats, Floats]:
        """Return the log-odds of the words, and what the profession adds to them.

        Raises
        ------
        InputError
            Where the number of masks would tell the words of one group from those of the other.
        """
        for pair in zip(first, second, strict=True):
            counts = [int(where(encoding, SWAPPED).sum()) for encoding in pair]
            if counts[0] != counts[1]:
                words = (np.array(e.tokens, dtype=object)[where(e, SWAPPED)] for e in pair)
                raise InputError(
                    "the words that are swapped need different numbers of masks",
                    got=" and ".join("·".join(tokens) for tokens in words),
                    expected="as many tokens for both",
                    remedy="swap other words (--groups), or measure a causal model",
                )
        given, prior = [], []
        for encodings in (first, second):
            asked = [self._behind_masks(encoding) for encoding in encodings]
            unnamed = [self._behind_masks(self._unnamed(encoding)) for encoding in encodings]
            given.append(self._scores(asked, self.quantity))
            prior.append(self._scores(unnamed, self.quantity))
        odds = given[1] - given[0]
        return odds, odds - (prior[1] - prior[0])

    def cases(self, encodings: Sequence[Encoding]) -> list[Case]:
        """Return the texts with the profession masked, which is what is explained."""
        return [self._behind_masks(encoding, PROFESSION) for encoding in encodings]

    def _behind_masks(self, encoding: Encoding, name: str = SWAPPED) -> Case:
        """Mask the marked tokens, and ask for them."""
        here = where(encoding, name)
        ids = encoding.row["input_ids"]
        row = {**encoding.row, "input_ids": np.where(here, self.model.mask_id, ids)}
        return replace(encoding, row=row), _aim(ids[here], np.flatnonzero(here), encoding.text)

    def _unnamed(self, encoding: Encoding) -> Encoding:
        """Put one mask in the place of the profession, however many tokens it has."""
        here = where(encoding, PROFESSION)
        keep = ~here
        keep[np.flatnonzero(here)[0]] = True
        ids = np.where(here, self.model.mask_id, encoding.row["input_ids"])
        row = {**encoding.row, "input_ids": ids}
        return Encoding(
            text=encoding.text,
            pair=None,
            row={name: values[keep] for name, values in row.items()},
            tokens=tuple(t for t, kept in zip(encoding.tokens, keep, strict=True) if kept),
            special=encoding.special[keep],
            offsets=encoding.offsets[keep],
            words=encoding.words[keep],
            segments=encoding.segments[keep],
        )


@dataclass(frozen=True, eq=False)
class Causal(Asker):
    """The log-likelihood of the whole text."""

    @property
    def centred(self) -> bool:
        """True: how frequent the two words are says nothing about professions."""
        return True

    def changes(
        self, first: Sequence[Encoding], second: Sequence[Encoding]
    ) -> tuple[Floats, Floats]:
        """Return the difference of the log-likelihoods, twice: `changes` takes them together."""
        before, after = (self._scores(self.cases(part), self.quantity) for part in (first, second))
        return after - before, after - before

    def cases(self, encodings: Sequence[Encoding]) -> list[Case]:
        """Return the texts with all their tokens but the first, before which nothing stands."""
        ids = [encoding.row["input_ids"] for encoding in encodings]
        return [
            (encoding, _aim(here[1:], np.arange(len(here) - 1), encoding.text))
            for encoding, here in zip(encodings, ids, strict=True)
        ]


def _aim(ids: Ints, places: Ints, text: str) -> Aim:
    """Return the aim of some tokens at some places."""
    return Aim(
        label=tuple(ids.tolist()),
        position=tuple(places.tolist()),
        words="the words",
        prediction=text,
        probability=None,
    )


ODDS = float(np.log(1.25))
"""Odds of 5 to 4, or of 4 to 5: the four-fifths rule of thumb for selection rates, taken to odds
(Uniform Guidelines on Employee Selection Procedures, 29 CFR 1607.4 D)."""
POINTS = 0.05
"""Of probability, about as much as `ODDS` where both classes are as likely."""


def asker(model: Model, label: str | int | None = None) -> Asker:
    """Return how a model is asked.

    Parameters
    ----------
    model : Model
    label : str or int, optional
        Of classifiers, the class whose probability is followed; the last by default.

    Raises
    ------
    InputError
        For models of other kinds, a label that means nothing, and masked models without a mask.
    """
    task = model.task.name
    if task == "classify":
        chosen = model.label_id(len(model.labels) - 1 if label is None else label)
        name = model.class_name(chosen)
        if model.link == "identity":
            return Classifier(model, f"output {name}", "", "logit", None, chosen)
        measure = f"probability of {name!r}"
        return Classifier(model, measure, "", "logit", POINTS, chosen)
    if label is not None:
        raise InputError(f"models of the task {task} have no class", got=f"label {label!r}")
    if task == "fill":
        if model.mask_id < 0:
            raise InputError("the tokenizer has no mask token", remedy="use another model")
        measure = "log-probability of the word, less that without the profession"
        return Masked(model, measure, "nats", "log_probability", ODDS)
    if task == "generate" and not model.paired:
        measure = "log-likelihood of the text (relative to the other professions)"
        return Causal(model, measure, "nats", "log_probability", ODDS)
    raise InputError(
        "the bias of this model cannot be measured",
        got="an encoder-decoder that generates" if model.paired else f"the task {task}",
        expected="a classifier, a masked or a causal model",
        remedy="name another task (--task)",
    )


def changes(
    asker: Asker, pairs: Sequence[Pair], first: Sequence[Encoding], second: Sequence[Encoding]
) -> pd.DataFrame:
    """Return what swapping words changes in predictions.

    Parameters
    ----------
    asker : Asker
    pairs : sequence of Pair
    first, second : sequence of Encoding
        Their texts; see `marked`.

    Returns
    -------
    DataFrame
        One row a pair: profession, template, words, first and second (the texts), lean (second −
        first of what the model makes of them) and change (the same, normalised; see the module).

    Raises
    ------
    InputError
        For words whose masks would tell them apart.
    """
    lean, change = asker.changes(first, second)
    table = pd.DataFrame(
        {
            "profession": [pair.profession for pair in pairs],
            "template": [pair.template for pair in pairs],
            "words": [pair.words for pair in pairs],
            "first": [pair.first.text for pair in pairs],
            "second": [pair.second.text for pair in pairs],
            "lean": lean,
            "change": change,
        }
    )
    if asker.centred:
        shared = table.groupby("template")["profession"].nunique().min() > 1
        common = table.groupby("template")["change"].transform("mean") if shared else None
        table["change"] -= table["change"].mean() if common is None else common
    return table


def shares(
    asker: Asker,
    pairs: Sequence[Pair],
    first: Sequence[Encoding],
    second: Sequence[Encoding],
    method: str | Method,
) -> pd.DataFrame:
    """Return what swapping words changes in attributions and attention.

    Parameters
    ----------
    asker, pairs, first, second
        As in `changes`.
    method : str or Method
        Gives the attributions.

    Returns
    -------
    DataFrame
        One row a pair. attribution_first and attribution_second: the share of the absolute scores
        on the swapped words, 0..1. attention_first and attention_second: the share of the attention
        from where the prediction is read that is on the swapped words, mean of all heads and
        layers. attribution and attention: second − first. moved: the L1 distance of the two texts'
        scores, word by word, each divided by the sum of their sizes; 0 (alike) to 2.

    Warns
    -----
    XattnWarning
        Of attributions or attention that the model does not give, which are left out.
    """
    found: dict[str, Floats] = {}
    scores = []
    for name, encodings in (("first", first), ("second", second)):
        cases = asker.cases(encodings)
        here = [where(encoding, SWAPPED) for encoding in encodings]
        try:
            items = explain_aims(asker.model, cases, [method], asker.quantity)
            found[f"attribution_{name}"] = np.array(
                [_share(item, swapped) for item, swapped in zip(items, here, strict=True)]
            )
            spans = [getattr(pair, name).units for pair in pairs]
            scores.append([_laid(item, units) for item, units in zip(items, spans, strict=True)])
        except ModelError as error:
            warnings.warn(f"attributions are left out: {error}", XattnWarning, stacklevel=3)
        try:
            found[f"attention_{name}"] = np.array(
                [
                    float(look.shares.mean((0, 1))[swapped].sum())
                    for look, swapped in zip(looks(asker.model, cases), here, strict=True)
                ]
            )
        except AttentionError as error:
            warnings.warn(f"attention is left out: {error}", XattnWarning, stacklevel=3)
    for name in ("attribution", "attention"):
        if f"{name}_second" in found:
            found[name] = found[f"{name}_second"] - found[f"{name}_first"]
    if scores:
        distances = [float(np.abs(a - b).sum()) for a, b in zip(*scores, strict=True)]
        found["moved"] = np.array(distances)
    return pd.DataFrame(found, index=range(len(pairs)))


def _share(item: Attribution, here: Bools) -> float:
    sizes = np.abs(item.scores.astype(np.float64))
    return float(sizes[here].sum() / sizes.sum()) if sizes.any() else np.nan


def _laid(item: Attribution, units: Sequence[Span]) -> Floats:
    """Return the scores of units and of special tokens, over the sum of their sizes."""
    real = ~item.special
    ends = [end for _, end in units]
    numbers = np.searchsorted(ends, item.offsets[real, 0], side="right").clip(max=len(ends) - 1)
    scores = item.scores.astype(np.float64)
    together = np.concatenate(
        [np.bincount(numbers, scores[real], minlength=len(ends)), scores[~real]]
    )
    total = np.abs(together).sum()
    laid: Floats = together / total if total > 0 else together
    return laid
