"""The nouns that every part of xattn speaks in: encodings, batches, targets, attributions, curves.

Each is a frozen dataclass; shape and unit stand under each field and are checked on construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from xattn import render, units
from xattn.errors import InputError, UnknownNameError
from xattn.picture import Picture
from xattn.render import Line, Piece

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating[Any]]
Row = Mapping[str, npt.NDArray[Any]]
"""What the model reads of one input: ``input_ids``, ``attention_mask`` and what else it takes, each
``[token]`` of its stream; pictures as ``pixel_values``."""

Quantity = Literal["logit", "log_probability", "probability", "lead"]
Unit = units.Unit
Link = Literal["softmax", "sigmoid", "identity"]
"""How outputs become probabilities: one class of several, each for itself, or not at all."""


PICTURE = 2
"""The segment of the patches of a picture."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, eq=False)
class Encoding:
    """One text, pair of texts or picture as the model reads it, without padding."""

    text: str
    """The text as it was given; of a picture alone its name."""
    pair: str | None
    """The second text of a pair, or None."""
    row: Row
    """The model's input arrays, each ``[token]``."""
    tokens: tuple[str, ...]
    """The tokens as people read them, cut from the text where the tokenizer says where they are;
    row and column of a patch."""
    special: Bools
    """``[token]``: True for tokens that the tokenizer or the network added (CLS, SEP, BOS ...)."""
    offsets: Ints
    """``[token, 2]``: first and one-past-last character in its text; (0, 0) for specials and
    patches."""
    words: Ints
    """``[token]``: index of the word (or patch) within its segment; -1 for specials."""
    segments: Ints
    """``[token]``: 0 for tokens of `text`, 1 for tokens of `pair`, 2 (`PICTURE`) for patches, -1
    for specials."""
    streams: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """``[token]``: which sequence of the model a token stands in, increasing: 0, or 1 for what the
    decoder of an encoder-decoder reads. All 0 if not given. In models of texts and pictures the
    text is stream 0 and the picture stream 1."""
    picture: Picture | None = None
    """What the patches are of, in their order."""
    units: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """``[token]``: which unit a token belongs to, counted from 0 in order; methods that remove
    parts of the text remove whole units. Each token is one of its own if not given."""

    def __post_init__(self) -> None:
        count = len(self.tokens)
        if not len(self.streams):
            object.__setattr__(self, "streams", np.zeros(count, dtype=np.int64))
        if not len(self.units):
            object.__setattr__(self, "units", np.arange(count))
        _require(self.units.shape == (count,), f"units: {self.units.shape}, not ({count},)")
        _require(self.special.shape == (count,), f"special: {self.special.shape}, not ({count},)")
        _require(self.offsets.shape == (count, 2), f"offsets: {self.offsets.shape}")
        _require(self.words.shape == (count,), f"words: {self.words.shape}")
        _require(self.segments.shape == (count,), f"segments: {self.segments.shape}")
        _require(self.streams.shape == (count,), f"streams: {self.streams.shape}")
        for name, values in self.row.items():
            _require(
                values.ndim != 1 or len(values) in self.widths,
                f"row[{name!r}]: {values.shape}, not as long as a stream of {self.widths}",
            )
        boxes = 0 if self.picture is None else len(self.picture.boxes)
        patches = int((self.segments == PICTURE).sum())
        _require(patches == boxes, f"{patches} patches, {boxes} boxes of the picture")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def word_ids(self) -> Ints:
        """``[token]``: `words`, as attributions call them."""
        return self.words

    @property
    def widths(self) -> tuple[int, ...]:
        """Tokens of each stream."""
        return tuple(np.bincount(self.streams).tolist())

    @property
    def removable(self) -> Ints:
        """Positions of the tokens that may be deleted: all but the special ones, ``[n]``."""
        return np.flatnonzero(~self.special)

    def in_units(self, unit: Unit | Sequence[tuple[int, int]]) -> Encoding:
        """Return the same text with its tokens grouped.

        Parameters
        ----------
        unit : {"token", "word", "sentence"} or sequence of (int, int)
            Or spans: first and one-past-last character of each in the text; see
            `xattn.units.span_groups`.

        Raises
        ------
        InputError
            For a span that cannot be used.
        """
        return replace(self, units=units.numbered(units.groups(self, unit), len(self)))


@dataclass(frozen=True, eq=False)
class Batch:
    """Encodings collated for the model, each stream padded on the right.

    The token axis of everything that is computed for a batch holds all streams one after the other:
    first what the encoder reads, then what the decoder reads. Most models have one stream only.
    """

    encodings: tuple[Encoding, ...]
    inputs: Mapping[str, Tensor]
    """What the model is called with; each ``[batch, token of its stream]``."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Tokens of each stream, padding counted."""
        return tuple(max(w) for w in zip(*(e.widths for e in self.encodings), strict=True))

    @property
    def shape(self) -> tuple[int, int]:
        """``(batch, token)`` over all streams, padding counted."""
        return len(self.encodings), sum(self.widths)

    @property
    def streams(self) -> tuple[slice, ...]:
        """Where each stream stands on the token axis."""
        ends = np.cumsum(self.widths).tolist()
        return tuple(slice(e - w, e) for e, w in zip(ends, self.widths, strict=True))

    def columns(self, index: int) -> Ints:
        """Return where the tokens of one encoding stand on the token axis, ``[token]``."""
        parts = zip(self.streams, self.encodings[index].widths, strict=True)
        return np.concatenate([np.arange(s.start, s.start + width) for s, width in parts])

    @property
    def real(self) -> Tensor:
        """``[batch, token]`` bool: tokens, not padding."""
        table = np.zeros(self.shape, dtype=np.bool_)
        for i in range(len(self)):
            table[i, self.columns(i)] = True
        return self._tensor(table)

    @property
    def special(self) -> Tensor:
        """``[batch, token]`` bool: special tokens and padding."""
        table = np.ones(self.shape, dtype=np.bool_)
        for i, encoding in enumerate(self.encodings):
            table[i, self.columns(i)] = encoding.special
        return self._tensor(table)

    def _tensor(self, table: Bools) -> Tensor:
        device = next(iter(self.inputs.values())).device
        return torch.from_numpy(table).to(device)

    def __len__(self) -> int:
        return len(self.encodings)


@dataclass(frozen=True)
class Aim:
    """What is explained of one text: a place in the model's output and a class there.

    Several places (the tokens of an answer) add up, or multiply as probabilities.
    """

    label: tuple[int, ...]
    """The class at each place."""
    position: tuple[int, ...]
    """Where in the logits each place is: a token, or 0 for classifiers of whole texts."""
    words: str
    """What it is called, for example ``positive``."""
    prediction: str
    """What the model itself predicts there."""
    probability: float | None
    """Of that prediction, 0..1; None for regression."""
    against: tuple[int, ...] | None = None
    """The class that is subtracted at each place, or None."""
    at: str | int | None = None
    """What to ask for to get to the same place again; see `Model.aims`."""


@dataclass(frozen=True, eq=False)
class Target:
    """The scalar y that is explained, one per example.

    Examples
    --------
    >>> import torch
    >>> target = Target(label=torch.tensor([1]), against=torch.tensor([0]))
    >>> target(torch.tensor([[0.5, 2.0]]))
    tensor([1.5000])
    """

    label: Tensor
    """``[batch]`` or ``[batch, place]`` int64: the class that is explained."""
    against: Tensor | None = None
    """Like `label`: the class whose value is subtracted (a contrastive margin), or None."""
    quantity: Quantity = "logit"
    """The unit of y."""
    position: Tensor | None = None
    """Like `label`: where in the logits each place is; None for logits ``[batch, class]``."""
    weight: Tensor | None = None
    """Like `label`: 1 for a place, 0 for padding of shorter answers; None for all 1."""
    link: Link = "softmax"

    def __post_init__(self) -> None:
        if self.quantity not in get_args(Quantity):
            raise UnknownNameError("quantity", str(self.quantity), get_args(Quantity))
        if self.link == "identity" and self.quantity != "logit":
            raise InputError(
                "the outputs of a regression are no probabilities",
                got=f"quantity {self.quantity}",
                expected="logit: the output itself",
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """Return y ``[batch]`` from logits ``[batch, class]`` or ``[batch, position, class]``.

        Differentiable. Values of several places are summed; their probabilities are multiplied.
        """
        table = logits[:, None] if logits.ndim == 2 else logits
        if self.position is not None:
            rows = torch.arange(len(table), device=table.device)[:, None]
            table = table[rows, self.position.view(len(table), -1)]
        value = self._value(table, self.label)
        return value if self.against is None else value - self._value(table, self.against)

    def _value(self, table: Tensor, label: Tensor) -> Tensor:
        """Return ``[batch]`` from the logits of every place, ``[batch, place, class]``."""
        chosen = label.view(len(table), -1, 1)
        if self.quantity == "lead":
            return self._lead(table, chosen)
        if self.quantity == "logit":
            values = table.gather(2, chosen)[..., 0]
        elif self.link == "softmax":
            values = table.gather(2, chosen)[..., 0] - table.logsumexp(-1)
        else:
            values = torch.nn.functional.logsigmoid(table.gather(2, chosen)[..., 0])
        if self.weight is not None:
            values = values * self.weight.view(values.shape)
        total = values.sum(-1)
        return total.exp() if self.quantity == "probability" else total

    def _lead(self, table: Tensor, chosen: Tensor) -> Tensor:
        """Return by how much the class leads before all others, at the place where it does least.

        Above 0 the model decides for it. Of several labels at once (sigmoid), each has its own
        decision.
        """
        values = table.gather(2, chosen)[..., 0]
        if self.link == "softmax":
            values = values - table.scatter(2, chosen, -torch.inf).amax(-1)
        if self.weight is not None:
            values = values.masked_fill(self.weight.view(values.shape) == 0, torch.inf)
        return values.amin(-1)

    def __getitem__(self, index: Tensor) -> Target:
        """Return the targets at `index` (an int64 or bool tensor)."""
        return self._each(lambda part: part[index])

    def to(self, device: torch.device | str) -> Target:
        """Return the same targets on a device."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Target:
        def of(part: Tensor | None) -> Tensor | None:
            return None if part is None else change(part)

        return replace(
            self,
            label=change(self.label),
            against=of(self.against),
            position=of(self.position),
            weight=of(self.weight),
        )

    def table(self) -> Ints:
        """Return what tells one target from another, ``[batch, n]`` int64."""
        parts = (self.label, self.against, self.position, self.weight)
        rows = [p.view(len(p), -1).cpu().numpy() for p in parts if p is not None]
        return np.concatenate(rows, axis=1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Attribution:
    """The scores that one method gave to the tokens of one text."""

    text: str
    pair: str | None
    tokens: tuple[str, ...]
    offsets: Ints
    """``[token, 2]``: characters in the token's text (`pair` for segment 1)."""
    segments: Ints
    """``[token]``: 0 text, 1 pair, 2 (`PICTURE`) picture, -1 special."""
    word_ids: Ints
    """``[token]``: word within its segment; -1 for specials."""
    scores: npt.NDArray[np.float32]
    """``[token]`` float32: the higher, the more the token speaks for the target."""
    method: str
    parameters: Mapping[str, Any]
    target: str
    """The explained scalar in words, for example ``logit of positive``."""
    prediction: str
    """What the model predicts."""
    probability: float | None
    """The probability of that, 0..1; None for regression."""
    signed: bool = True
    """Whether a negative score means "speaks against"."""
    gap: float | None = None
    """Sum of the scores minus what they must sum to, in y's unit; None without such an axiom."""
    seconds: float = 0.0
    """Wall time of this text's share of the call."""
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    memory: int | None = None
    """Bytes at the peak of the batch's call above what was held before; None where it is not known.
    On a CPU by the resident memory of the process, which does not see what is used once more."""
    unit: Unit = "token"
    picture: Picture | None = None
    """What the patches are of, in their order."""

    def __post_init__(self) -> None:
        count = len(self.tokens)
        _require(self.scores.shape == (count,), f"scores: {self.scores.shape}, not ({count},)")
        _require(self.scores.dtype == np.float32, f"scores are {self.scores.dtype}, not float32")

    @property
    def special(self) -> Bools:
        """``[token]``: True for the tokens that the tokenizer or the network added."""
        return self.segments < 0

    @property
    def patches(self) -> npt.NDArray[np.float32]:
        """``[patch]``: the scores of the picture's patches; empty for texts."""
        patches: npt.NDArray[np.float32] = self.scores[self.segments == PICTURE]
        return patches

    @property
    def reads(self) -> bool:
        """Whether there is a text to show, not a picture alone."""
        return self.picture is None or bool(np.isin(self.segments, (0, 1)).any())

    @property
    def verdict(self) -> str:
        """The prediction with its probability, for example ``positive (98.1%)``."""
        name = self.prediction
        if name.strip() != name or not name.isprintable() or not name:  # tokens can be blanks
            name = repr(name)
        return name if self.probability is None else f"{name} ({self.probability:.1%})"

    def _grouped(self, groups: Sequence[list[int]], unit: Unit) -> Attribution:
        """Merge tokens into units; a unit's score is the sum of its tokens'."""
        spans, names = [], []
        for members in groups:
            first = members[0]
            if self.segments[first] not in (0, 1):
                spans.append(self.offsets[first])
                names.append(self.tokens[first])
                continue
            start, end = self.offsets[members, 0].min(), self.offsets[members, 1].max()
            source = self.text if self.segments[first] == 0 else self.pair or ""
            start += len(source[start:end]) - len(source[start:end].lstrip())
            spans.append(np.array([start, end], dtype=np.int64))
            names.append(source[start:end])
        heads = [members[0] for members in groups]
        return replace(
            self,
            tokens=tuple(names),
            offsets=np.stack(spans),
            segments=self.segments[heads],
            word_ids=self.word_ids[heads],
            scores=np.array([self.scores[g].sum() for g in groups], dtype=np.float32),
            unit=unit,
        )

    def grouped(self, unit: Unit | Sequence[tuple[int, int]]) -> Attribution:
        """Return the same attribution with one score a unit, which is the sum of its tokens'.

        Parameters
        ----------
        unit : {"token", "word", "sentence"} or sequence of (int, int)
            As in `Encoding.in_units`.
        """
        if unit == "token":
            return self
        name = unit if isinstance(unit, str) else "span"
        return self._grouped(units.groups(self, unit), name)

    def words(self) -> Attribution:
        """Return the same attribution with one score a word (the sum of its tokens')."""
        return self.grouped("word")

    def sentences(self) -> Attribution:
        """Return the same attribution with one score a sentence (the sum of its tokens').

        A sentence ends behind ``.``, ``!``, ``?`` or ``…`` and closing quotes, before white space.
        """
        return self.grouped("sentence")

    def spans(self, spans: Sequence[tuple[int, int]], segment: int = 0) -> Attribution:
        """Return the same attribution with one score a span of characters.

        Tokens that touch a span are summed; those that touch none keep a score of their own.

        Parameters
        ----------
        spans : sequence of (int, int)
            First and one-past-last character of each, in the text (`segment` 0) or pair (1).
        segment : {0, 1}

        Raises
        ------
        InputError
            For a span outside the text, without a token, or that shares a token with another.
        """
        return self._grouped(units.span_groups(self, spans, segment), "span")

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, ready for JSON."""
        return {
            "text": self.text,
            "pair": self.pair,
            "unit": self.unit,
            "tokens": list(self.tokens),
            "offsets": self.offsets.tolist(),
            "segments": self.segments.tolist(),
            "words": self.word_ids.tolist(),
            "scores": [float(s) for s in self.scores],
            "method": self.method,
            "parameters": dict(self.parameters),
            "target": self.target,
            "prediction": self.prediction,
            "probability": self.probability,
            "signed": self.signed,
            **self._boxes(),
            "gap": self.gap,
            "seconds": self.seconds,
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
            "memory": self.memory,
        }

    def _boxes(self) -> dict[str, Any]:
        """Return where each patch is, for JSON."""
        if self.picture is None:
            return {}
        boxes = self.picture.boxes.tolist()
        return {"picture": {"name": self.picture.name, "size": self.picture.size, "boxes": boxes}}

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a token: token, start, end, segment, word, score."""
        return pd.DataFrame(
            {
                "token": self.tokens,
                "start": self.offsets[:, 0],
                "end": self.offsets[:, 1],
                "segment": self.segments,
                "word": self.word_ids,
                "score": self.scores,
            }
        )

    def pieces(self) -> Iterator[Piece]:
        """Yield the text as tokens and the gaps between them, in reading order; no patches."""
        if not self.reads:
            return
        position, segment = 0, 0
        for index, token in enumerate(self.tokens):
            here = int(self.segments[index])
            if here < 0:
                yield Piece(token, index, special=True)
                continue
            if here == PICTURE:
                continue
            if here != segment:
                rest = (self.text, self.pair or "")[segment][position:]
                yield Piece(f"{rest} · ", None)
                position, segment = 0, here
            source = (self.text, self.pair or "")[here]
            start, end = (int(x) for x in self.offsets[index])
            if start > position:
                yield Piece(source[position:start], None)
            # Tokens that share characters (bytes of one emoji) show them once, in the first.
            yield Piece(source[max(start, position) : end] or "·", index)
            position = max(position, end)
        if segment >= 0 and position < len(source := (self.text, self.pair or "")[segment]):
            yield Piece(source[position:], None)

    def line(self) -> Line:
        """Return the coloured tokens as one line of a table; see `xattn.render.table`."""
        gap = "" if self.gap is None else f"; completeness gap {self.gap:+.2g}"
        return Line(
            text=(self.text, self.pair),
            heading=f"<b>{escape(self.verdict)}</b>, explained: {escape(self.target)}",
            name=self.method,
            note=f"{dict(self.parameters)}{gap}",
            strip=render.strip(self.pieces(), self.scores) if self.reads else "",
            picture=None if self.picture is None else self.picture.img(),
            heat=None if self.picture is None else self.picture.svg(self.patches),
        )

    def _repr_html_(self) -> str:
        return render.table([self.line()])


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention of one text in one stack: who looked at whom, in every layer and head."""

    tokens: tuple[str, ...]
    """``[query]``: who looks."""
    maps: npt.NDArray[np.float32]
    """``[layer, head, query, key]``: probabilities; rows sum to 1, or less with sinks."""
    sites: tuple[str, ...]
    """``[layer]``: the module that each map was taken from."""
    readout: npt.NDArray[np.float32]
    """``[query]``: where the prediction is read from; sums to 1 where the stack is read from."""
    keys: tuple[str, ...] = ()
    """``[key]``: who is looked at; the same tokens if not given."""
    stack: str = "self"
    """``self``, or ``encoder``, ``decoder`` and ``cross`` in encoder-decoders, ``text`` and
    ``image`` in models of both."""

    def __post_init__(self) -> None:
        if not self.keys:
            object.__setattr__(self, "keys", self.tokens)
        count, seen = len(self.tokens), len(self.keys)
        _require(
            self.maps.ndim == 4 and self.maps.shape[2:] == (count, seen),
            f"maps: {self.maps.shape}, not [layer, head, {count}, {seen}]",
        )
        _require(
            len(self.sites) == len(self.maps), f"{len(self.sites)} sites, {len(self.maps)} maps"
        )
        _require(self.readout.shape == (count,), f"readout: {self.readout.shape}, not ({count},)")


@dataclass(frozen=True, eq=False)
class Curve:
    """A model's score as more and more tokens are removed.

    Examples
    --------
    >>> Curve(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0])).area
    0.5
    """

    fraction: Floats
    """``[k + 1]``: share of the removable tokens that is removed, from 0 to 1, increasing."""
    score: Floats
    """``[k + 1]``: the target on what is left, from the untouched to the emptied input."""
    unit: Quantity = field(default="probability", kw_only=True)

    def __post_init__(self) -> None:
        _require(self.fraction.shape == self.score.shape, "fraction and score differ in length")
        _require(
            self.fraction.ndim == 1 and len(self.fraction) >= 2, "a curve has two points or more"
        )
        _require(self.fraction[0] == 0 and self.fraction[-1] == 1, "fractions run from 0 to 1")
        _require(bool((np.diff(self.fraction) > 0).all()), "fractions must increase")

    @property
    def area(self) -> float:
        """Area under the curve by trapezoids; the width is 1, so it is a mean score."""
        return float(np.trapezoid(self.score, self.fraction))

    def at(self, fractions: Floats) -> Floats:
        """Return the score at `fractions`, interpolated linearly."""
        return np.interp(fractions, self.fraction, self.score)
