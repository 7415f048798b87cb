"""What every attention head of a model does on some texts, and what such patterns are called."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from torch import Tensor

from xattn.analysis.looking import NUMBERS, SUMS, Held, Strings, Tokens, measure, numbers_of
from xattn.analysis.naming import name
from xattn.errors import InputError
from xattn.evaluation.statistics import interval, mean_known
from xattn.finding import Finding, Heatmap, Line, Lines, Table
from xattn.model import Model
from xattn.model.reduction import WHOLE, Reduction, total
from xattn.model.trace import Request
from xattn.types import Aim, Batch, Encoding, Floats

LISTED = 10
"""Strings that are kept of what a head looks at."""


@dataclass(frozen=True, eq=False)
class Patterns:
    """What every head of a model does on some texts."""

    model: str
    layers: tuple[str, ...]
    """Stack and number of each layer, in the order of computation."""
    numbers: Floats
    """``[text, layer, head, number]``: `NUMBERS`; nan where a text has no such token."""
    even: Floats
    """``[text, layer, number]``: of attention spread evenly over what the layer may look at."""
    columns: tuple[tuple[dict[str, float], ...], ...]
    """``[layer][head]``: the share of its attention that each string gets, most first."""

    @cached_property
    def means(self) -> Floats:
        """``[layer, head, number]``: the mean over texts."""
        return mean_known(self.numbers)

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """``[layer][head]``: what the pattern of each head is called; see `name`."""
        level = mean_known(self.even)
        return tuple(
            tuple(name(head, even) for head in heads if not np.isnan(head).all())
            for heads, even in zip(self.means, level, strict=True)
        )

    def top(self, layer: int, head: int, count: int = 3) -> str:
        """Return the strings that a head looks at most, with their shares."""
        most = list(self.columns[layer][head].items())[:count]
        return ", ".join(f"{token} {share:.0%}" for token, share in most)

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each head and number: its mean, 95 % interval, and even attention's."""
        level = mean_known(self.even)
        rows = []
        for i, layer in enumerate(self.layers):
            for head, called in enumerate(self.names[i]):
                for j, number in enumerate(NUMBERS):
                    values = self.numbers[:, i, head, j]
                    found = interval(values[np.isfinite(values)], seed=0)
                    spread = (found.mean, found.low, found.high, level[i, j])
                    rows.append((layer, head, called, number, *spread, found.n))
        columns = ("layer", "head", "pattern", "number", "mean", "low", "high", "even", "texts")
        return pd.DataFrame(rows, columns=columns)

    def finding(self) -> Finding:
        """Return what reports show of it."""
        counts = Counter(called for names in self.names for called in names)
        heads = max(len(names) for names in self.names)
        total_heads = counts.total()
        said = ", ".join(f"{count} {called}" for called, count in counts.most_common())
        return Finding(
            "patterns",
            "What the attention heads do",
            f"On {len(self.numbers)} texts the {total_heads} heads of {self.model} are: {said}.",
            (
                Table(
                    "Names",
                    ("layer", *(f"head {head}" for head in range(heads))),
                    tuple(
                        (layer, *names, *[None] * (heads - len(names)))
                        for layer, names in zip(self.layers, self.names, strict=True)
                    ),
                    "A name needs half of the attention that evenly spread attention leaves over.",
                ),
                *(self._map(number) for number in ("relative entropy", "distance", "first")),
                self._progress(),
                Table(
                    "What each head looks at most",
                    ("layer", "head", "pattern", "tokens"),
                    tuple(
                        (layer, head, called, self.top(i, head))
                        for i, layer in enumerate(self.layers)
                        for head, called in enumerate(self.names[i])
                    ),
                ),
            ),
            (
                "A pattern says where a head looks, not that the prediction rests on it: "
                "see how the heads rank without it.",
            ),
        )

    def _map(self, number: str) -> Heatmap:
        values = self.means[..., NUMBERS.index(number)]
        return Heatmap(
            {"first": "Attention to the first token"}.get(number, number.capitalize()),
            self.layers,
            tuple(str(head) for head in range(values.shape[1])),
            tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in values),
            unit="tokens" if number == "distance" else "share",
            row_label="layer",
            column_label="head",
            low=0.0,
            high=None if number == "distance" else 1.0,
        )

    def _progress(self) -> Lines:
        """Return how shares change from layer to layer, with intervals over texts."""
        lines = []
        for number in ("self", "previous", "next", "first", "separator", "top columns"):
            values = mean_known(self.numbers[..., NUMBERS.index(number)], axis=2)
            found = [interval(v[np.isfinite(v)], seed=0) for v in values.T]
            if any(np.isfinite(f.mean) for f in found):
                parts = ([f.mean for f in found], [f.low for f in found], [f.high for f in found])
                y, low, high = (tuple(None if np.isnan(v) else v for v in p) for p in parts)
                lines.append(Line(number, y, low, high))
        return Lines(
            "Through the layers",
            tuple(float(i) for i in range(len(self.layers))),
            tuple(lines),
            x_label="layer",
            y_label="share of attention, mean of heads",
            note="Bands are 95 % intervals over texts.",
        )

    def _repr_html_(self) -> str:
        return self.finding()._repr_html_()


def patterns(model: Model, texts: Sequence[str] | Sequence[Encoding]) -> Patterns:
    """Describe every head of every layer in numbers, over some texts.

    Maps are measured as they are computed, some rows at a time, in models of one stream; in
    encoder-decoders a batch's maps are held.

    Parameters
    ----------
    model : Model
    texts : sequence of str or Encoding
        One or more; prompts, for models that generate.

    Raises
    ------
    InputError
        Without a text.
    AttentionError
        If the model's attention cannot be read.
    """
    if not len(texts):
        raise InputError("no text to look for patterns in", expected="one or more")
    encodings = [text for text in texts if isinstance(text, Encoding)]
    if len(encodings) < len(texts):
        encodings = model.encode([str(text) for text in texts])
    strings = Strings(encodings)
    found: dict[int, list[Floats]] = {}
    held: Held = defaultdict(lambda: defaultdict(float))
    layers: tuple[str, ...] = ()
    for positions, batch in model.batches(encodings):
        tokens = strings.tokens(batch)
        layers, sums, streams = _read(model, batch, tokens)
        measured = [
            numbers_of(part, tokens[keys]) for part, (keys, _) in zip(sums, streams, strict=True)
        ]
        for row, position in enumerate(positions):
            found[position] = [value[row] for value in measured]
            for layer, (summed, (keys, _)) in enumerate(zip(sums, streams, strict=True)):
                shares = summed[row, :-1, 2 * len(SUMS) :].cpu().numpy()
                strings.add(held, batch, row, layer, shares, keys)
    heads = max(len(part) for part in found[0]) - 1
    values_of = np.full((len(encodings), len(layers), heads, len(NUMBERS)), np.nan)
    even = np.full((len(encodings), len(layers), len(NUMBERS)), np.nan)
    for position, parts in found.items():
        for layer, part in enumerate(parts):
            values_of[position, layer, : len(part) - 1] = part[:-1]
            even[position, layer] = part[-1]
    columns = tuple(
        tuple(_shares(held[layer, head]) for head in range(heads) if (layer, head) in held)
        for layer in range(len(layers))
    )
    return Patterns(model.name, layers, values_of, even, columns)


def _shares(counted: Mapping[str, float]) -> dict[str, float]:
    whole = sum(counted.values()) or 1.0
    most = sorted(counted, key=counted.__getitem__, reverse=True)[:LISTED]
    return {token: counted[token] / whole for token in most}


def _read(
    model: Model, batch: Batch, tokens: Tokens
) -> tuple[tuple[str, ...], list[Tensor], list[tuple[slice, slice]]]:
    """Return the names of the layers, the sums of each, and where its keys and queries stand."""
    one = len(batch.widths) == 1

    def each(maps: Tensor, rows: slice) -> Tensor:
        return measure(maps, tokens, tokens, rows)

    kept = Reduction(each, total) if one else WHOLE
    aims = [Aim((0,), (0,), "", "", None)] * len(batch)  # nothing is asked about the output
    trace = model.record(batch, model.target_of(aims), Request((kept,), readout=False))
    streams = [(trace.keys(i), trace.queries(i)) for i in range(len(trace.links))]
    sums = list(trace.kept[kept])
    if not one:
        sums = [
            measure(maps, tokens[keys], tokens[queries], slice(0, maps.shape[2]))
            for maps, (keys, queries) in zip(sums, streams, strict=True)
        ]
    stacks = trace.layers()
    places = {i: (stack, n) for stack, numbers in stacks.items() for n, i in enumerate(numbers)}
    names = tuple(
        f"{places[i][0]} {places[i][1]}" if len(stacks) > 1 else str(places[i][1])
        for i in range(len(trace.links))
    )
    return names, sums, streams
