"""Grounding: whether what a model writes rests on the source that it was given, and on what part.

Three things are said of every token that is written: how much the heads look back at the source
(`xattn.analysis.lookback`), how much of an attribution falls on it, and which sentences carry that
part. Sentences of the answer cite the sentences of the source that they rest on; a detector
(`xattn.analysis.detector`) says which of them rest on nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from xattn.analysis.detector import Detector, unsupervised
from xattn.analysis.lookback import SOURCE, Lookback, Span, lookbacks, placed, watched
from xattn.errors import InputError
from xattn.explanations import explain
from xattn.finding import Cell, Finding, Heatmap, Passage, Quote, Table
from xattn.model import Model
from xattn.model.marks import PREFIX
from xattn.registry import Method
from xattn.types import Attribution, Encoding, Floats, Quantity
from xattn.units import SENTENCE_END, groups

DEFAULT_METHODS = ("occlusion", "attention")
"""The first one cites: what changes when a sentence is taken away."""
CITED = 3
"""Sentences that a part of the answer cites at most."""
DOUBT = 0.5
"""A detector's probability above which a part of the answer is flagged."""
SHOWN = 64
"""Heads that are drawn one by one."""
BESIDE = 0.5
"""A further sentence is cited if its share is at least this part of the first one's."""


@dataclass(frozen=True)
class Citation:
    """A sentence of the source that a part of the answer rests on."""

    sentence: int
    """Which sentence, from 0."""
    share: float
    """Its part of what speaks for these words within the source, 0..1."""


@dataclass(frozen=True)
class Part:
    """A sentence of the answer, and what it rests on."""

    span: Span
    """Its characters in the answer."""
    tokens: tuple[int, ...]
    """Which of the written tokens it is made of."""
    score: float
    """How likely it is that it does not rest on the source, 0..1: the detector's probability; or,
    without one, 1 minus the mean lookback ratio, which is a rank and no probability."""
    flagged: bool
    """Whether the detector finds it ungrounded; never without one."""
    citations: tuple[Citation, ...]
    """The strongest first; none where it is flagged."""


@dataclass(frozen=True, eq=False, repr=False)
class Grounding:
    """What an answer rests on."""

    question: str
    """What was asked, without the source."""
    sentences: tuple[str, ...]
    """The source."""
    answer: str
    tokens: tuple[str, ...]
    """``[token]``: what was written, special tokens left out."""
    offsets: tuple[Span, ...]
    """``[token]``: characters in the answer."""
    lookback: Lookback
    credit: Mapping[str, Floats]
    """By method ``[token, sentence + 2]``: what speaks for each token (scores above zero), in the
    sentences of the source, in the rest of the prompt, and in the answer before it. In the unit of
    the method; special tokens are left out."""
    parts: tuple[Part, ...]
    """The sentences of the answer."""
    cites: str
    """The method that the citations are by."""
    model: str
    detector: Detector | None

    def __repr__(self) -> str:
        sentences = f"{len(self.sentences)} sentences"
        return f"Grounding({self.answer!r}, {sentences}, methods={list(self.credit)})"

    def shares(self, method: str) -> Floats:
        """Return the part of each column of `credit`, ``[token, sentence + 2]``; rows sum to 1.

        A row is 0 if nothing speaks for its token.
        """
        if method not in self.credit:
            raise InputError("method", got=repr(method), expected=", ".join(self.credit))
        return _shares(self.credit[method])

    def on_source(self, method: str, tokens: Sequence[int] | None = None) -> float:
        """Return which part of what speaks for tokens (all by default) is in the source, 0..1."""
        credit = self.credit[method] if tokens is None else self.credit[method][list(tokens)]
        return float(_shares(credit.sum(0))[: len(self.sentences)].sum())

    def cited(self, tokens: Sequence[int], method: str | None = None) -> tuple[Citation, ...]:
        """Return the sentences that some tokens rest on, by a method (`cites` by default).

        The strongest, and up to `CITED` in all that come up to `BESIDE` of it.
        """
        credit = self.credit[method or self.cites][list(tokens)].sum(0)
        shares = _shares(credit[: len(self.sentences)])
        order = np.argsort(-shares, kind="stable")[:CITED]
        return tuple(
            Citation(int(i), float(shares[i]))
            for i in order
            if shares[i] > 0 and shares[i] >= BESIDE * shares[order[0]]
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a token: lookback, part of it, and the attribution on the source."""
        part = {token: number for number, p in enumerate(self.parts) for token in p.tokens}
        frame = pd.DataFrame(
            {
                "token": self.tokens,
                "start": [start for start, _ in self.offsets],
                "end": [end for _, end in self.offsets],
                "part": [part[i] for i in range(len(self.tokens))],
                "lookback": self.lookback.ratio().mean((1, 2)),
                "attention_on_source": self.lookback.source.mean((1, 2)),
            }
        )
        count = len(self.sentences)
        shares = {f"{n}_on_source": self.shares(n)[:, :count].sum(1) for n in self.credit}
        return frame.assign(**shares)

    def to_dict(self) -> dict[str, Any]:
        """Return citations and figures as plain values, ready for JSON."""
        return {
            "model": self.model,
            "question": self.question,
            "sentences": list(self.sentences),
            "answer": self.answer,
            "cited_by": self.cites,
            "parts": [
                {"text": self.answer[slice(*part.span)], **asdict(part)} for part in self.parts
            ],
            "tokens": self.to_dataframe().to_dict(orient="records"),
            "lookback_ratio": self.lookback.ratio().tolist(),
            "shares": {name: self.shares(name).tolist() for name in self.credit},
            "detector": None
            if self.detector is None
            else {"examples": self.detector.examples, "auroc": self.detector.auroc._asdict()},
        }

    def finding(self) -> Finding:
        """Return the section of the report."""
        return Finding(
            "grounding",
            "What the answer rests on",
            self._says(),
            (
                self._passage(),
                self._table(),
                self._ratios(),
                Heatmap(
                    f"What speaks for each token, by {self.cites}",
                    (*(f"{i + 1} {s}" for i, s in enumerate(self.sentences)),
                     "rest of the prompt", "answer so far"),
                    tuple(f"{i} {token}" for i, token in enumerate(self.tokens)),
                    tuple(map(tuple, self.shares(self.cites).T.tolist())),
                    unit="share",
                    column_label="token that is written",
                    low=0.0,
                    high=1.0,
                ),
            ),
            self._cautions(),
        )  # fmt: skip

    def _repr_html_(self) -> str:
        return self.finding()._repr_html_()

    def _says(self) -> str:
        on_source = self.on_source(self.cites)
        says = (
            (f"Asked {self.question!r}, " if self.question else "")
            + f"{self.model} writes {self.answer!r}. Its heads look back at the source with a mean "
            f"ratio of {float(self.lookback.ratio().mean()):.2f}, and {on_source:.0%} of what "
            f"speaks for it by {self.cites} is in the source"
        )
        if self.detector is None:
            return f"{says}."
        doubtful = [part for part in self.parts if part.flagged]
        named = ", ".join(repr(self.answer[slice(*part.span)]) for part in doubtful)
        verdict = f"not grounded: {named}" if doubtful else "all of it is grounded"
        return f"{says}. The detector's verdict is: {verdict}."

    def _ratios(self) -> Heatmap:
        """Return lookback ratios by head, or by layer where there are many heads."""
        ratio = self.lookback.ratio()
        layers, heads = ratio.shape[1:]
        many = layers * heads > SHOWN
        rows = (
            [f"layer {i}" for i in range(layers)]
            if many
            else [f"layer {i} head {j}" for i in range(layers) for j in range(heads)]
        )
        values = ratio.mean(2) if many else ratio.reshape(len(ratio), -1)
        return Heatmap(
            f"Lookback ratio by token and {'layer, the mean of its heads' if many else 'head'}",
            tuple(rows),
            tuple(f"{i} {token}" for i, token in enumerate(self.tokens)),
            tuple(map(tuple, values.T.tolist())),
            unit="mean attention to the source / (source + own words)",
            column_label="token that is written",
            low=0.0,
            high=1.0,
            note="The first token has no words of its own before it: its ratio is 1.",
        )

    def _passage(self) -> Passage:
        """Return the answer token by token, coloured by its share on the source, with links."""
        strength = self.shares(self.cites)[:, : len(self.sentences)].sum(1)
        pieces: list[Quote] = []
        position = 0
        for part in self.parts:
            for token in part.tokens:
                start, end = self.offsets[token]
                if start > position:
                    pieces.append(Quote(self.answer[position:start]))
                last = token == part.tokens[-1]
                sources = tuple(c.sentence for c in part.citations) if last else ()
                text = self.answer[max(start, position) : end]
                pieces.append(Quote(text, sources, float(strength[token]), part.flagged))
                position = max(position, end)
        return Passage(
            f"The answer, with the sentences that it cites by {self.cites}",
            self.sentences,
            tuple(pieces),
            note="The stronger the colour, the more of what speaks for a token is in the source."
            + (" What is marked does not rest on it." if self.detector else ""),
        )

    def _table(self) -> Table:
        named = "P(not grounded)" if self.detector else "score (1 − lookback)"
        rows: list[tuple[Cell, ...]] = []
        for part in self.parts:
            on_source = [self.on_source(name, part.tokens) for name in self.credit]
            cited = ", ".join(f"{c.sentence + 1} ({c.share:.0%})" for c in part.citations)
            rows.append((self.answer[slice(*part.span)], part.score, cited or "—", *on_source))
        columns = ("sentence", named, "cites", *(f"{name}: on source" for name in self.credit))
        return Table("Sentences of the answer", columns, tuple(rows))

    def _cautions(self) -> tuple[str, ...]:
        found = []
        if self.detector is None:
            found.append(
                "Without a detector there is no verdict: lookback ratios differ from model to "
                "model, and where to draw the line is learned from labels (--train, --detector)."
            )
        elif self.detector.auroc.low < 0.75:
            area = self.detector.auroc
            found.append(
                f"The detector is weak: its cross-validated AUROC is {area.mean:.2f} "
                f"({area.low:.2f} to {area.high:.2f}) on {area.n} examples. Label more answers."
            )
        if len(self.sentences) == 1:
            found.append(
                "The source is one sentence: it is cited whatever is asked. Give a longer source, "
                "or read the shares."
            )
        tops = {name: self.cited(range(len(self.tokens)), name)[:1] for name in self.credit}
        named = {name: top[0].sentence + 1 for name, top in tops.items() if top}
        if len(set(named.values())) > 1:
            each = ", ".join(f"{name} {number}" for name, number in named.items())
            found.append(
                f"The methods cite different sentences first ({each}): trust a citation where they "
                "agree, or where the answer changes when the sentence is left out."
            )
        return tuple(found)


def ground(
    model: Model,
    prompt: str,
    source: str | Sequence[Span],
    *,
    answer: str | None = None,
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    detector: Detector | None = None,
    quantity: Quantity = "log_probability",
    chat: bool = False,
    max_new_tokens: int = 24,
    **options: Any,
) -> Grounding:
    """Find out what an answer rests on.

    Parameters
    ----------
    model : Model
        That generates: a causal decoder or an encoder-decoder.
    prompt : str
        What is asked.
    source : str or sequence of (int, int)
        What the answer shall rest on: a text, which is put before the prompt; or the characters of
        the prompt that are it.
    answer : str, optional
        An answer to look into; by default the model writes one, and lookback ratios are taken
        meanwhile.
    methods : sequence of str or Method
        Registered methods; the first one cites. Methods that remove parts of the text remove whole
        sentences of the source.
    detector : Detector, optional
        Says which sentences of the answer are not grounded.
    quantity : {"log_probability", "logit", "probability", "lead"}
        What is explained of each token. Log-probabilities add up over tokens to that of the answer,
        so that tokens which were certain anyway count little.
    chat : bool
        Put the prompt into the model's chat template.
    max_new_tokens : int
        1 or more.
    **options
        Of generation; see `xattn.analysis.lookback.watched`.

    Raises
    ------
    InputError
        If the source is empty or too long for the model, a span is outside the prompt, nothing is
        written, or the detector is of another model.
    ModelError
        If the model cannot serve a method.

    Examples
    --------
    >>> import xattn
    >>> model = xattn.load(task="generate")
    >>> story = "Mia had a red ball. She went to the park."
    >>> found = ground(model, f"{story} What did Mia have?", [(0, len(story))], chat=True)
    >>> found.answer, found.parts[0].citations[0].sentence
    ('Mia had a ball.', 0)
    """
    if not methods:
        raise InputError("no method is named", expected="one or more", remedy="see xattn methods")
    if answer is None:
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise InputError("new tokens to write", got=repr(max_new_tokens), expected="1 or more")
        asked = placed(model, prompt, source, chat=chat, room=max_new_tokens)
        written, lookback = watched(model, asked, max_new_tokens, **options)
    elif options:
        raise InputError("options of generation", got=", ".join(options), remedy="leave out answer")
    else:
        written = placed(model, prompt, source, answer, chat=chat)
        [lookback] = lookbacks(model, [written])
    return _grounding(model, written, lookback, methods, detector, quantity)


def _grounding(
    model: Model,
    written: Encoding,
    lookback: Lookback,
    methods: Sequence[str | Method],
    detector: Detector | None,
    quantity: Quantity,
) -> Grounding:
    spans = sentences_of(written)
    rest = _rest(written, spans)
    explained = explain(
        model, [written], methods, at="each", unit=[*spans, *rest], quantity=quantity
    )
    credit: dict[str, list[Floats]] = {}
    for item in explained:
        credit.setdefault(item.method, []).append(_credit(item, spans))
    here = np.flatnonzero(written.segments == 1)
    pair = written.pair or ""
    first = int(written.offsets[here[0], 0])
    offsets = tuple((int(a) - first, int(b) - first) for a, b in written.offsets[here])
    found = Grounding(
        question=_question(written.text, spans),
        sentences=tuple(written.text[start:end] for start, end in spans),
        answer=pair[first : first + max(end for _, end in offsets)],
        tokens=lookback.tokens,
        offsets=offsets,
        lookback=lookback,
        credit={name: np.stack(rows) for name, rows in credit.items()},
        parts=(),
        cites=next(iter(credit)),
        model=model.name,
        detector=detector,
    )
    return replace(found, parts=tuple(_part(found, tokens) for tokens in _parts(found, written)))


def _parts(found: Grounding, written: Encoding) -> list[list[int]]:
    """Return the written tokens of each sentence of the answer."""
    place = {int(token): i for i, token in enumerate(np.flatnonzero(written.segments == 1))}
    parts: list[list[int]] = []
    for members in groups(written, "sentence"):
        tokens = [place[i] for i in members if i in place]
        if not parts or any(found.tokens[i].strip() for i in tokens):
            parts.append(tokens)
        else:  # blanks alone
            parts[-1] += tokens
    return [tokens for tokens in parts if tokens]


def _part(found: Grounding, tokens: Sequence[int]) -> Part:
    score = (
        unsupervised(found.lookback, tokens)
        if found.detector is None
        else found.detector.probability(found.lookback, tokens)
    )
    flagged = found.detector is not None and score > DOUBT
    worded = [found.offsets[i] for i in tokens if found.tokens[i].strip()]
    return Part(
        span=(worded[0][0], max(end for _, end in worded)) if worded else found.offsets[tokens[0]],
        tokens=tuple(tokens),
        score=score,
        flagged=flagged,
        citations=() if flagged else found.cited(tokens),
    )


def sentences_of(encoding: Encoding) -> list[Span]:
    """Return the characters of the sentences of a marked source, those without a token left out.

    A sentence ends behind ``.``, ``!``, ``?`` or ``…`` and closing quotes, before white space.

    Parameters
    ----------
    encoding : Encoding
        With the tokens of the source marked, see `xattn.analysis.lookback.placed`.
    """
    marked = np.zeros(len(encoding), dtype=bool)
    marked[: encoding.widths[0]] = encoding.row[PREFIX + SOURCE].astype(bool)
    ends = np.array([match.end() for match in SENTENCE_END.finditer(encoding.text)], dtype=int)
    spans: list[Span] = []
    previous: tuple[int, int] | None = None
    before = 0
    shown = (encoding.segments == 0) & (encoding.offsets[:, 1] > encoding.offsets[:, 0])
    for place, token in enumerate(np.flatnonzero(shown).tolist()):
        start, end = (int(x) for x in encoding.offsets[token])
        # what no token holds belongs to the next: some tokenizers lose a first character
        held = encoding.text[before:end].lstrip()
        begin, before = max(before, end - len(held)), max(before, end)
        if not marked[token]:
            continue
        number = int(np.searchsorted(ends, start, side="right"))
        if previous == (place - 1, number):  # a gap between marked tokens ends a sentence, too
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((begin, end))
        previous = (place, number)
    return spans


def _rest(encoding: Encoding, spans: Sequence[Span]) -> list[Span]:
    """Return the characters of the prompt between and behind the source that hold tokens."""
    here = encoding.segments == 0
    borders = [0, *(border for span in spans for border in span), len(encoding.text)]
    gaps = zip(borders[::2], borders[1::2], strict=True)
    return [
        (start, end)
        for start, end in gaps
        if start < end
        and bool((here & (encoding.offsets[:, 0] < end) & (encoding.offsets[:, 1] > start)).any())
    ]


def _question(text: str, spans: Sequence[Span]) -> str:
    borders = [0, *(border for span in spans for border in span), len(text)]
    gaps = [text[a:b].strip() for a, b in zip(borders[::2], borders[1::2], strict=True)]
    return " ".join(gap for gap in gaps if gap)


def _credit(item: Attribution, spans: Sequence[Span]) -> Floats:
    """Return what speaks for a target in each sentence, in the rest, and in what was written."""
    scores = np.maximum(item.scores.astype(np.float64), 0)
    ends = [end for _, end in spans]
    credit = np.zeros(len(spans) + 2)
    for score, segment, (start, _) in zip(
        scores.tolist(), item.segments.tolist(), item.offsets.tolist(), strict=True
    ):
        if segment == 0:
            number = bisect_right(ends, start)  # the sentence that it is in, or the one behind it
            inside = number < len(spans) and start >= spans[number][0]
            credit[number if inside else len(spans)] += score
        elif segment == 1:
            credit[-1] += score
    return credit


def _shares(credit: Floats) -> Floats:
    total = credit.sum(-1, keepdims=True)
    shares: Floats = np.divide(credit, total, out=np.zeros_like(credit), where=total > 0)
    return shares
