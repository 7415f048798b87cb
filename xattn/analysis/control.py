"""Control: what becomes of a classifier when attention to some passages is suppressed.

Suppressed passages are still read by themselves, but nobody looks at them. Whether that does what
it promises is told by two controls: suppressing other passages of the same length, drawn at random,
and deleting the passages from the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from xattn import units
from xattn.errors import InputError, ModelError
from xattn.evaluation.statistics import Interval, interval, paired_difference
from xattn.explanations import explain
from xattn.finding import Dot, Dots, Finding, Table
from xattn.model import Model, Suppress, mark
from xattn.types import Bools, Encoding, Floats

Span = tuple[int, int]
Spans = Sequence[Sequence[Span]]
LOOKING = ("attention", "rollout", "integrated_gradients", "cp_lrp", "occlusion")
"""Methods that say where the model looks, unless others are asked for."""
MARK = "suppressed"
DRAWS = 5
"""How often passages of the same length are drawn at random."""


@dataclass(frozen=True, eq=False)
class Condition:
    """How a model does under one condition."""

    name: str
    right: Floats
    """``[text]``: whether the answer is right, 0 or 1; a mean over draws in between."""
    probability: Floats
    """``[text]``: of the right answer."""

    @property
    def accuracy(self) -> Interval:
        """Share of right answers, with its interval."""
        return interval(self.right, seed=0)


@dataclass(frozen=True, eq=False)
class Control:
    """What suppressing passages does to a classifier."""

    model: str
    conditions: Mapping[str, Condition]
    """``before``, ``suppressed``, ``found`` (if spans were found by the tool), ``random``,
    ``deleted``."""
    looks: Mapping[str, Interval]
    """By method: the share of its absolute scores that lies on the passages."""
    size: Interval
    """The passages' share of the tokens: what even scores would have."""
    overlap: tuple[float, float] | None = None
    """Precision and recall of the tokens that the tool found; None where it did not look."""

    def gain(self, name: str, over: str = "before") -> Interval:
        """Return how much more often the answer is right than under another condition."""
        one, other = self.conditions[name], self.conditions[over]
        return paired_difference(one.right, other.right, seed=0)

    def p(self, name: str, over: str = "before") -> float:
        """Return McNemar's exact p that both conditions are right equally often.

        Of conditions that are averaged over draws, answers count as right by majority.
        """
        one, other = (self.conditions[n].right > 0.5 for n in (name, over))
        better, worse = int((one & ~other).sum()), int((other & ~one).sum())
        return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each condition: accuracy, its interval, and the gain over before."""
        rows = []
        for name, condition in self.conditions.items():
            gain = self.gain(name)
            rows.append((name, *condition.accuracy[:3], *gain[:3], self.p(name)))
        columns = ["condition", "accuracy", "low", "high", "gain", "gain_low", "gain_high", "p"]
        return pd.DataFrame(rows, columns=columns)

    def finding(self) -> Finding:
        """Return what reports show of it."""
        accuracy = {name: condition.accuracy for name, condition in self.conditions.items()}
        before, after = accuracy["before"], accuracy["suppressed"]
        gain, against = self.gain("suppressed"), self.gain("suppressed", "random")
        deleted = self.gain("suppressed", "deleted")
        called = {
            "before": "nothing changed", "suppressed": "attention to the passages suppressed",
            "found": "attention to passages found by the tool suppressed",
            "random": "to random passages of that length", "deleted": "the passages deleted",
        }  # fmt: skip
        works = gain.low > 0 and against.low > 0
        says = (
            f"With attention to the passages suppressed {self.model} is right on {after.mean:.1%} "
            f"of {after.n} texts instead of {before.mean:.1%} (gain {gain.mean:+.1%}, 95 % "
            f"interval {gain.low:+.1%} to {gain.high:+.1%}); with random passages of that length "
            f"{accuracy['random'].mean:.1%}, with the passages deleted "
            f"{accuracy['deleted'].mean:.1%}. "
            + ("Suppressing them works" if works else "That suppressing them helps is not shown")
            + (
                ", and as well as deleting them."
                if deleted.low <= 0 <= deleted.high
                else f"; deleting them does {'worse' if deleted.mean > 0 else 'better'}."
            )
        ).replace("-", "−")
        cautions = ["Suppressed tokens are hidden from others, not from their own position."]
        if not works:
            cautions.append("The gain, or the gain over random passages, may be chance.")
        if self.overlap is not None:
            precision, recall = self.overlap
            cautions.append(
                f"Of the tokens that the tool found {precision:.0%} are in the given passages, and "
                f"it found {recall:.0%} of these."
            )
        return Finding(
            "control",
            "Suppressing attention to passages",
            says,
            (
                Dots(
                    "Accuracy",
                    tuple(Dot(called[name], *found[:3]) for name, found in accuracy.items()),
                    x_label="share of right answers",
                ),
                Dots(
                    "Where the model looks before",
                    tuple(Dot(name, *share[:3]) for name, share in self.looks.items()),
                    x_label="share of absolute scores on the passages",
                    level=self.size.mean,
                    note="The dashed line is the passages' share of the tokens.",
                ),
                Table(
                    "Tests",
                    ("condition", "accuracy", "gain", "low", "high", "McNemar's p"),
                    tuple(
                        (called[str(row[0])], *map(float, (row[1], row[4], row[5], row[6], row[7])))
                        for row in self.to_dataframe().itertuples(index=False)
                    ),
                ),
            ),
            tuple(cautions),
        )

    def _repr_html_(self) -> str:
        return self.finding()._repr_html_()


def control(
    model: Model,
    texts: Sequence[str],
    labels: Sequence[str | int],
    spans: Spans,
    *,
    found: Spans | None = None,
    layers: Sequence[int] | None = None,
    methods: Sequence[str] = LOOKING,
    seed: int = 0,
) -> Control:
    """Suppress the attention to passages, and see whether the model does better.

    Parameters
    ----------
    model : Model
        That classifies texts.
    texts : sequence of str
    labels : sequence of str or int
        The right class of each.
    spans : sequence of sequence of (int, int)
        For each text the passages: first and one-past-last character; at least one each.
    found : sequence of sequence of (int, int), optional
        Passages that were found without knowing these labels; see `find_misleading`.
    layers : sequence of int, optional
        Where attention is suppressed; everywhere by default.
    methods : sequence of str
        That say where the model looks before.
    seed : int
        Of the random passages.

    Raises
    ------
    InputError
        If the numbers of texts, labels and passages differ, a passage is empty or outside its text,
        or nothing of a text is left without them.
    ModelError
        If the model does not classify texts.
    """
    if model.task.name != "classify" or model.link == "identity":
        raise ModelError(
            "control needs a model that classifies texts", got=f"task {model.task.name}"
        )
    if not len(texts) or not len(texts) == len(labels) == len(spans):
        raise InputError(
            "texts, labels and passages",
            got=f"{len(texts)}, {len(labels)} and {len(spans)}",
            expected="one or more, and as many of each",
        )
    encodings = model.encode(list(texts))
    marked = marked_spans(encodings, spans)
    flags = [row.row[f"mark:{MARK}"].astype(bool) for row in marked]
    looks = _looks(model, texts, flags, methods)
    wanted = [model.label_id(label) for label in labels]
    edit = Suppress(MARK, layers=layers)
    drawn = np.random.default_rng(seed)
    random = [
        _answers(model, _elsewhere(encodings, flags, drawn), wanted, edit) for _ in range(DRAWS)
    ]
    without = model.encode([_without(text, some) for text, some in zip(texts, spans, strict=True)])
    conditions = {
        "before": _answers(model, encodings, wanted),
        "suppressed": _answers(model, marked, wanted, edit),
    }
    overlap = None
    if found is not None:
        picked = marked_spans(encodings, found)
        conditions["found"] = _answers(model, picked, wanted, edit)
        guess = np.concatenate([row.row[f"mark:{MARK}"].astype(bool) for row in picked])
        truth = np.concatenate(flags)
        both = float((guess & truth).sum())
        overlap = both / guess.sum(), both / truth.sum()
    mean = tuple(np.mean([part[i] for part in random], axis=0) for i in (0, 1))
    conditions["random"] = (mean[0], mean[1])
    conditions["deleted"] = _answers(model, without, wanted)
    return Control(
        model.name,
        {name: Condition(name, *answers) for name, answers in conditions.items()},
        looks,
        interval(np.array([f.mean() for f in flags]), seed=0),
        overlap,
    )


def marked_spans(encodings: Sequence[Encoding], spans: Spans) -> list[Encoding]:
    """Return the texts with their passages marked as `MARK`.

    Raises
    ------
    InputError
        If a text has no passage, or one that is empty or outside the text; the text is named.
    """
    marked = []
    for number, (encoding, some) in enumerate(zip(encodings, spans, strict=True)):
        try:
            marked.append(mark(encoding, MARK, spans=some))
        except InputError as error:
            raise InputError(f"passages of text {number}: {error}") from None
    return marked


def _answers(
    model: Model, encodings: Sequence[Encoding], wanted: Sequence[int], edit: Suppress | None = None
) -> tuple[Floats, Floats]:
    """Return whether each text is answered rightly, and the probability of the right answer."""
    right, probability = np.empty(len(encodings)), np.empty(len(encodings))
    with nullcontext() if edit is None else model.edit(edit):
        for positions, batch in model.batches(encodings):
            logits = model.logits(batch.inputs)
            chances = (logits.sigmoid() if model.link == "sigmoid" else logits.softmax(-1)).cpu()
            for row, position in enumerate(positions):
                right[position] = float(int(chances[row].argmax()) == wanted[position])
                probability[position] = float(chances[row, wanted[position]])
    return right, probability


def _looks(
    model: Model, texts: Sequence[str], flags: Sequence[Bools], methods: Sequence[str]
) -> dict[str, Interval]:
    """Return the share of each method's absolute scores that lies on the passages."""
    shares: dict[str, list[float]] = {method: [] for method in methods}
    for group, here in zip(explain(model, list(texts), methods).by_text(), flags, strict=True):
        for method, item in zip(methods, group, strict=True):
            scores = np.abs(item.scores.astype(np.float64))
            shares[method].append(float(scores[here].sum() / max(scores.sum(), 1e-300)))
    return {method: interval(np.array(values), seed=0) for method, values in shares.items()}


def _elsewhere(
    encodings: Sequence[Encoding], flags: Sequence[Bools], draw: np.random.Generator
) -> list[Encoding]:
    """Mark as many tokens as the passages have, in runs of their lengths at random places."""
    marked = []
    for encoding, here in zip(encodings, flags, strict=True):
        places = encoding.removable
        runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], here.astype(int), [0]]))))[::2]
        chosen: set[int] = set()
        for length in runs.tolist():
            start = int(draw.integers(0, max(1, len(places) - length + 1)))
            chosen |= set(places[start : start + length].tolist())
        marked.append(mark(encoding, MARK, positions=sorted(chosen)))
    return marked


def _without(text: str, spans: Sequence[Span]) -> str:
    """Return a text without its passages."""
    left, end = "", 0
    for start, stop in sorted(spans):
        left += text[end : max(start, end)]
        end = max(end, stop)
    left = " ".join((left + text[end:]).split())
    if not left:
        raise InputError(
            "the passages are the whole text", got=repr(text[:60]), remedy="leave something to read"
        )
    return left


def find_misleading(
    model: Model,
    known: Sequence[str],
    labels: Sequence[str | int],
    texts: Sequence[str],
    *,
    method: str = "cp_lrp",
) -> list[list[Span]]:
    """Find the sentences of texts that a model had better not look at, without their labels.

    On texts whose labels are known a method says whether each sentence speaks for the right answer
    or against it; how loudly does not count, since what misleads is the loudest. A ridge regression
    on the words of the sentences learns which kinds of sentences do; of each new text it keeps the
    sentence that does most reliably, and the others are what is returned. In
    texts of the kind that the model is to be controlled on, what misleads it speaks for the right
    answer no more often than against it.

    Parameters
    ----------
    model : Model
    known : sequence of str
        Of the same kind as `texts`, a hundred or more; not the texts that the model learned from.
    labels : sequence of str or int
        Their right classes.
    texts : sequence of str
        Of two or more sentences each.
    method : str
        One that is signed.

    Returns
    -------
    list of list of (int, int)
        For each text characters of all sentences but the one that is kept.

    Raises
    ------
    InputError
        If there are fewer than two known texts, or a text of one sentence.
    """
    if len(known) < 2 or len(known) != len(labels):
        raise InputError(
            "known texts and labels", got=f"{len(known)} and {len(labels)}",
            expected="two or more of each",
        )  # fmt: skip
    sentences, speaks = [], []
    for label in dict.fromkeys(labels):
        some = [text for text, right in zip(known, labels, strict=True) if right == label]
        for item in explain(
            model, some, [method], label=label, quantity="log_probability", unit="sentence"
        ):
            inside = np.flatnonzero(item.segments == 0)
            sentences += [item.tokens[i] for i in inside]
            speaks += np.sign(item.scores[inside]).tolist()
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True)
    regression = Ridge(alpha=1.0).fit(vectorizer.fit_transform(sentences), np.array(speaks))
    found = []
    for number, encoding in enumerate(model.encode(list(texts))):
        spans = _sentences(encoding)
        if len(spans) < 2:
            raise InputError(f"text {number} has one sentence", remedy="it is all there is to read")
        said = [encoding.text[a:b] for a, b in spans]
        kept = int(np.argmax(regression.predict(vectorizer.transform(said))))
        found.append([span for i, span in enumerate(spans) if i != kept])
    return found


def _sentences(encoding: Encoding) -> list[Span]:
    """Return the characters of each sentence."""
    spans = []
    for group in units.groups(encoding, "sentence"):
        inside = [i for i in group if encoding.segments[i] == 0]
        if inside:
            spans.append(
                (int(encoding.offsets[inside, 0].min()), int(encoding.offsets[inside, 1].max()))
            )
    return spans
