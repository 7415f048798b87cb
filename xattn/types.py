"""The nouns that every part of xattn speaks in: encodings, batches, targets, attributions, curves.

Each is a frozen dataclass; shape and unit stand under each field and are checked on construction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from xattn import render
from xattn.errors import UnknownNameError
from xattn.render import Line, Piece

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating[Any]]
Row = Mapping[str, Ints]
"""What the model reads of one input: ``input_ids``, ``attention_mask`` and what else it takes,
each ``[token]``."""

Quantity = Literal["logit", "log_probability", "probability"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, eq=False)
class Encoding:
    """One text (or pair of texts) as the model reads it, without padding."""

    text: str
    """The text as it was given."""
    pair: str | None
    """The second text of a pair, or None."""
    row: Row
    """The model's input arrays, each ``[token]``."""
    tokens: tuple[str, ...]
    """The tokens as people read them, cut from the text where the tokenizer says where they are."""
    special: Bools
    """``[token]``: True for tokens that the tokenizer added (CLS, SEP, BOS ...)."""
    offsets: Ints
    """``[token, 2]``: first and one-past-last character in its text; (0, 0) for specials."""
    words: Ints
    """``[token]``: index of the word within its segment; -1 for specials."""
    segments: Ints
    """``[token]``: 0 for tokens of `text`, 1 for tokens of `pair`, -1 for specials."""

    def __post_init__(self) -> None:
        count = len(self.tokens)
        _require(self.special.shape == (count,), f"special: {self.special.shape}, not ({count},)")
        _require(self.offsets.shape == (count, 2), f"offsets: {self.offsets.shape}")
        _require(self.words.shape == (count,), f"words: {self.words.shape}")
        _require(self.segments.shape == (count,), f"segments: {self.segments.shape}")
        for name, values in self.row.items():
            _require(values.shape == (count,), f"row[{name!r}]: {values.shape}, not ({count},)")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def removable(self) -> Ints:
        """Positions of the tokens that may be deleted: all but the special ones, ``[n]``."""
        return np.flatnonzero(~self.special)


@dataclass(frozen=True, eq=False)
class Batch:
    """Encodings collated for the model, padded on the right."""

    encodings: tuple[Encoding, ...]
    inputs: Mapping[str, Tensor]
    """What the model is called with; each ``[batch, token]``."""
    special: Tensor
    """``[batch, token]`` bool: special tokens and padding."""

    def __post_init__(self) -> None:
        shape = (len(self.encodings), max(map(len, self.encodings)))
        for name, tensor in self.inputs.items():
            _require(tensor.shape == shape, f"{name}: {tuple(tensor.shape)}, not {shape}")
        _require(self.special.shape == shape, f"special: {tuple(self.special.shape)}, not {shape}")

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def input_ids(self) -> Tensor:
        """Token ids, ``[batch, token]``."""
        return self.inputs["input_ids"]

    @property
    def attention_mask(self) -> Tensor:
        """1 for tokens, 0 for padding, ``[batch, token]``."""
        return self.inputs["attention_mask"]


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
    """``[batch]`` int64: the class that is explained."""
    against: Tensor | None = None
    """``[batch]`` int64: the class whose value is subtracted (a contrastive margin), or None."""
    quantity: Quantity = "logit"
    """The unit of y."""

    def __post_init__(self) -> None:
        if self.quantity not in get_args(Quantity):
            raise UnknownNameError("quantity", str(self.quantity), get_args(Quantity))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return y ``[batch]`` from `logits` ``[batch, class]``; differentiable."""
        values = logits if self.quantity == "logit" else logits.log_softmax(-1)
        values = values.exp() if self.quantity == "probability" else values
        picked = values.gather(1, self.label[:, None])[:, 0]
        if self.against is None:
            return picked
        return picked - values.gather(1, self.against[:, None])[:, 0]

    def __getitem__(self, index: Tensor) -> Target:
        """Return the targets at `index` (an int64 or bool tensor)."""
        against = None if self.against is None else self.against[index]
        return replace(self, label=self.label[index], against=against)


@dataclass(frozen=True, eq=False)
class Attribution:
    """The scores that one method gave to the tokens of one text."""

    text: str
    pair: str | None
    tokens: tuple[str, ...]
    offsets: Ints
    """``[token, 2]``: characters in the token's text (`pair` for segment 1)."""
    segments: Ints
    """``[token]``: 0 text, 1 pair, -1 special."""
    word_ids: Ints
    """``[token]``: word within its segment; -1 for specials."""
    scores: npt.NDArray[np.float32]
    """``[token]`` float32: the higher, the more the token speaks for the target."""
    method: str
    parameters: Mapping[str, Any]
    target: str
    """The explained scalar in words, for example ``logit of positive``."""
    prediction: str
    """The class that the model predicts."""
    probability: float
    """The probability of that class, 0..1."""
    signed: bool = True
    """Whether a negative score means "speaks against"."""
    gap: float | None = None
    """Sum of the scores minus what they must sum to, in y's unit; None without such an axiom."""
    seconds: float = 0.0
    """Wall time of this text's share of the call."""
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    unit: Literal["token", "word", "sentence"] = "token"

    def __post_init__(self) -> None:
        count = len(self.tokens)
        _require(self.scores.shape == (count,), f"scores: {self.scores.shape}, not ({count},)")
        _require(self.scores.dtype == np.float32, f"scores are {self.scores.dtype}, not float32")

    @property
    def special(self) -> Bools:
        """``[token]``: True for the tokens that the tokenizer added."""
        return self.segments < 0

    def _grouped(
        self, groups: Sequence[list[int]], unit: Literal["word", "sentence"]
    ) -> Attribution:
        """Merge tokens into units; a unit's score is the sum of its tokens'."""
        spans, names = [], []
        for members in groups:
            first = members[0]
            if self.segments[first] < 0:
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

    def words(self) -> Attribution:
        """Return the same attribution with one score a word (the sum of its tokens')."""
        groups: list[list[int]] = []
        for i in range(len(self.tokens)):
            same = (
                groups
                and self.segments[i] >= 0
                and self.segments[i] == self.segments[i - 1]
                and self.word_ids[i] == self.word_ids[i - 1]
            )
            groups[-1].append(i) if same else groups.append([i])
        return self._grouped(groups, "word")

    def sentences(self) -> Attribution:
        """Return the same attribution with one score a sentence (the sum of its tokens').

        A sentence ends behind ``.``, ``!``, ``?`` or ``…`` and closing quotes, before white space.
        """
        groups: list[list[int]] = []
        previous = (-1, -1)
        for i in range(len(self.tokens)):
            segment = int(self.segments[i])
            source = (self.text, self.pair or "")[segment] if segment >= 0 else ""
            ends = len(
                re.findall(r"[.!?…][\"')\]”’]*(?=\s)", source[: int(self.offsets[i, 0]) + 1])
            )
            key = (segment, ends)
            groups[-1].append(i) if groups and segment >= 0 and key == previous else groups.append(
                [i]
            )
            previous = key
        return self._grouped(groups, "sentence")

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
            "gap": self.gap,
            "seconds": self.seconds,
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
        }

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
        """Yield the text as tokens and the gaps between them, in reading order."""
        position, segment = 0, 0
        for index, token in enumerate(self.tokens):
            here = int(self.segments[index])
            if here < 0:
                yield Piece(token, index, special=True)
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
            heading=f"<b>{escape(self.prediction)}</b> ({self.probability:.1%}), "
            f"explained: {escape(self.target)}",
            name=self.method,
            note=f"{dict(self.parameters)}{gap}",
            strip=render.strip(self.pieces(), self.scores),
        )

    def _repr_html_(self) -> str:
        return render.table([self.line()])


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention of one text: who looked at whom, in every layer and head."""

    tokens: tuple[str, ...]
    maps: npt.NDArray[np.float32]
    """``[layer, head, query, key]``: probabilities; rows sum to 1, or less with sinks."""
    sites: tuple[str, ...]
    """``[layer]``: the module that each map was taken from."""
    readout: npt.NDArray[np.float32]
    """``[token]``: where the prediction is read from; sums to 1."""

    def __post_init__(self) -> None:
        count = len(self.tokens)
        _require(
            self.maps.ndim == 4 and self.maps.shape[2:] == (count, count),
            f"maps: {self.maps.shape}, not [layer, head, {count}, {count}]",
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
