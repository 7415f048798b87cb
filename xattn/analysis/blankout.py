"""How well attention, rollout and flow of each layer agree with blank-out and with gradients.

The experiment of Abnar & Zuidema 2020, Quantifying Attention Flow in Transformers. What a word is
worth is measured twice without attention: by the change of the class's probability when the word is
replaced by an unknown one (blank-out), and by the gradient. The scores that attention gives it are
compared with that by Spearman's rank correlation, layer by layer: raw attention of the layer,
rollout and flow from that layer down to the words.

A correlation depends on how it is taken. Their script takes the largest score over *all* positions
for that of a word, ranks densely (equal scores take one rank, and the formula for ranks without
ties follows), and counts special tokens. `PUBLISHED` is that, `CORRECTED` reads where the
prediction is read, ranks ties by their mean, and leaves special tokens out. `RELATIVE` also takes
out what any decoder would show whatever it looks at.

Gradients are taken by their length. The scripts' absolute value of the sum is nothing but rounding
in models whose blocks begin with layer normalisation, such as GPT-2: to add one number to a whole
embedding changes nothing, so the derivatives sum to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from xattn.errors import InputError, ModelError
from xattn.evaluation.statistics import Interval, interval
from xattn.finding import Finding, Line, Lines, Table, shown
from xattn.maxflow import max_flows
from xattn.methods.rollout import MIXTURE
from xattn.model import Model
from xattn.model.operators import get_operator
from xattn.model.scorer import Scorer
from xattn.model.trace import Request
from xattn.types import Bools, Encoding, Floats, Target

MAPS = ("raw", "rollout", "flow")
MEASURES = ("blank-out", "gradients")
FEWEST = 3
"""With fewer tokens than this an order says nothing."""
DECIMALS = 6
"""Flows are exact to that: what differs by less is equal."""


@dataclass(frozen=True)
class Protocol:
    """How scores are read from maps, and how two rankings are compared."""

    name: str
    position: Literal["largest", "readout"]
    """Whose score of a token counts: the largest over all positions, or that of the position that
    the prediction is read from."""
    ranks: Literal["dense", "average"]
    """What equal scores get; see `dense_correlation` and `average_correlation`."""
    special: bool
    """Whether special tokens count."""
    relative: bool = False
    """Whether a score is divided by what it would be if all attention were uniform. In an encoder
    that changes no rank. In a decoder the first tokens are seen by the most others, and rollout and
    flow favour them whatever is looked at; see section 5 of the paper."""


PUBLISHED = Protocol("published", "largest", "dense", special=True)
"""As in the scripts that were published with the paper."""
CORRECTED = Protocol("corrected", "readout", "average", special=False)
RELATIVE = replace(CORRECTED, name="relative to uniform attention", relative=True)


def dense_correlation(one: Floats, other: Floats) -> float:
    """Return ``1 − 6 Σ d² / (n (n² − 1))`` of dense ranks, as the published script does.

    Equal scores take one rank, and the next score the next. The formula holds for ranks without
    ties only: with ties the result is not a correlation.

    Examples
    --------
    >>> dense_correlation(np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0]))
    1.0
    >>> dense_correlation(np.array([1.0, 1.0, 2.0]), np.array([2.0, 1.0, 1.0]))
    0.5
    """
    count = len(one)
    if count < 2:
        return float("nan")
    ranks = [rankdata(scores, method="dense").astype(np.float64) for scores in (one, other)]
    return float(1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (count * (count**2 - 1)))


def average_correlation(one: Floats, other: Floats) -> float:
    """Return Spearman's ρ, equal scores ranked by their mean; nan where one has no order.

    Examples
    --------
    >>> round(average_correlation(np.array([1.0, 1.0, 2.0]), np.array([2.0, 1.0, 1.0])), 6)
    -0.5
    """
    if len(one) < FEWEST or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


@dataclass(frozen=True, eq=False)
class Reading:
    """One text: what attention says of its tokens, and what they are worth."""

    tokens: tuple[str, ...]
    special: Bools
    """``[token]``"""
    readout: Floats
    """``[token]``: where the prediction is read from."""
    maps: Mapping[str, Floats]
    """For each of `MAPS` ``[layer, position, token]``, from each layer down to the tokens."""
    uniform: Mapping[str, Floats]
    """The same, if every position looked at all that it can see alike."""
    blankout: Floats
    """``[token]``: absolute change of the class's probability."""
    gradients: Floats
    """``[token]``: length of the gradient of the class's logit by the embedding."""

    def scores(self, name: str, layer: int, protocol: Protocol) -> Floats:
        """Return what a map says of each token, ``[token]``."""

        def read(table: Floats) -> Floats:
            found: Floats = table.max(0) if protocol.position == "largest" else self.readout @ table
            return found

        scores = read(self.maps[name][layer])
        if not protocol.relative:
            return scores
        expected = read(self.uniform[name][layer])
        ratio = np.divide(scores, expected, out=np.zeros_like(scores), where=expected > 0)
        return ratio.round(DECIMALS)

    def correlation(self, name: str, layer: int, measure: str, protocol: Protocol) -> float:
        """Return how far a map and a measure agree; nan where one has no order."""
        taken = np.ones(len(self.special), np.bool_) if protocol.special else ~self.special
        correlate = dense_correlation if protocol.ranks == "dense" else average_correlation
        scores = self.scores(name, layer, protocol)
        worth = self.blankout if measure == "blank-out" else self.gradients
        return correlate(scores[taken], worth[taken])


@dataclass(frozen=True, eq=False)
class BlankOut:
    """Texts whose tokens were blanked out, and what attention says of them."""

    model: str
    readings: tuple[Reading, ...] = field(repr=False)
    seed: int = 0

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        return len(self.readings[0].maps["raw"])

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """Those that make a difference: `RELATIVE` does where tokens cannot see all others."""
        masked = any((reading.uniform["raw"] == 0).any() for reading in self.readings)
        return (PUBLISHED, CORRECTED, RELATIVE) if masked else (PUBLISHED, CORRECTED)

    def correlations(self, measure: str, protocol: Protocol) -> Floats:
        """Return ``[text, map, layer]`` correlations; nan where one side has no order.

        Parameters
        ----------
        measure : {"blank-out", "gradients"}
        protocol : Protocol
        """
        if measure not in MEASURES:
            raise InputError("measure", got=repr(measure), expected=" or ".join(MEASURES))
        return np.array(
            [
                [[r.correlation(name, k, measure, protocol) for k in range(self.layers)]
                 for name in MAPS]
                for r in self.readings
            ]
        )  # fmt: skip

    def to_dataframe(self, protocol: Protocol = CORRECTED) -> pd.DataFrame:
        """Return measure, map, layer (from 1), mean, std, low, high, n (texts with an order)."""
        rows = []
        for measure in MEASURES:
            table = self.correlations(measure, protocol)
            for number, name in enumerate(MAPS):
                for layer in range(self.layers):
                    values = table[:, number, layer]
                    known = values[~np.isnan(values)]
                    found = interval(known, self.seed)
                    std = float(known.std()) if len(known) else float("nan")
                    rows.append((measure, name, layer + 1, found.mean, std, *found[1:]))
        columns = ["measure", "map", "layer", "mean", "std", "low", "high", "n"]
        return pd.DataFrame(rows, columns=columns)

    def claims(self, measure: str, protocol: Protocol) -> dict[str, Interval]:
        """Return what the paper says of its tables, each as a difference that should be above 0.

        Differences are taken within each text, where both sides have an order.
        """
        table = self.correlations(measure, protocol)
        raw, rollout, flow = (table[:, number] for number in range(len(MAPS)))
        differences = {
            "rollout over raw attention, last layer": rollout[:, -1] - raw[:, -1],
            "flow over raw attention, last layer": flow[:, -1] - raw[:, -1],
            "raw attention: first layer over the mean of the others": raw[:, 0]
            - raw[:, 1:].mean(1),
            "rollout: last layer over the first": rollout[:, -1] - rollout[:, 0],
            "flow over rollout, mean of the layers": (flow - rollout).mean(1),
        }
        return {
            name: interval(values[~np.isnan(values)], self.seed)
            for name, values in differences.items()
        }

    def choices(self, measure: str) -> pd.DataFrame:
        """Return what each choice makes, from `PUBLISHED` to `CORRECTED` (and on to `RELATIVE`).

        Returns
        -------
        DataFrame
            One row a step: choice, and for each map the mean correlation in the last layer.
        """
        steps = [("as published", PUBLISHED)]
        for said, change in (
            ("where the prediction is read", {"position": CORRECTED.position}),
            ("ties ranked by their mean", {"ranks": CORRECTED.ranks}),
            ("special tokens left out", {"special": CORRECTED.special}),
        ):
            steps.append((said, replace(steps[-1][1], **change)))
        if RELATIVE in self.protocols:
            steps.append((RELATIVE.name, RELATIVE))
        rows = [
            (said, *pd.DataFrame(self.correlations(measure, protocol)[:, :, -1]).mean())
            for said, protocol in steps
        ]
        return pd.DataFrame(rows, columns=["choice", *MAPS])

    def finding(self) -> Finding:
        """Return what reports show of it."""
        frames = {protocol: self.to_dataframe(protocol) for protocol in self.protocols}
        parts: list[Lines | Table] = []
        for measure in MEASURES:
            parts += [self._lines(measure, protocol, frames[protocol]) for protocol in frames]
            columns = ("what the paper says", "protocol", "difference", "low", "high")
            claims = {protocol.name: self.claims(measure, protocol) for protocol in frames}
            rows = tuple(
                (name, protocol, *found[name][:3])
                for name in claims[PUBLISHED.name]
                for protocol, found in claims.items()
            )
            note = "Above 0 where it holds; 95 % intervals over texts."
            parts.append(Table(f"What holds, {measure}", columns, rows, note))
        frame = frames[CORRECTED]
        last = frame[frame["layer"] == self.layers].set_index(["measure", "map"])["mean"]
        said = "; ".join(
            f"{measure}: " + ", ".join(f"{name} {shown(last[measure, name])}" for name in MAPS)
            for measure in MEASURES
        )
        return Finding(
            "blankout",
            "Attention, rollout and flow against blank-out and gradients",
            f"Mean Spearman correlation in the last layer of {self.model} over "
            f"{len(self.readings)} texts, read where the prediction is read. {said}.",
            tuple(parts),
        )

    def _lines(self, measure: str, protocol: Protocol, frame: pd.DataFrame) -> Lines:
        frame = frame[frame["measure"] == measure]
        lines = []
        for name in MAPS:
            own = frame[frame["map"] == name]
            lines.append(
                Line(name, *(tuple(own[part].tolist()) for part in ("mean", "low", "high")))
            )
        layers = tuple(float(layer) for layer in range(1, self.layers + 1))
        title = f"Agreement with {measure}, {protocol.name}"
        return Lines(title, layers, tuple(lines), "layer", "Spearman correlation", level=0.0)

    def _repr_html_(self) -> str:
        return self.finding()._repr_html_()


def blank_out(
    model: Model,
    texts: Sequence[str],
    labels: Sequence[str | int] | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> BlankOut:
    """Blank tokens out one by one, and read attention, rollout and flow of every layer.

    Parameters
    ----------
    model : Model
        A classifier of one stream of tokens, whose tokenizer knows an unknown token.
    texts : sequence of str
    labels : sequence of str or int, optional
        The class of each text, by default the predicted one.
    seed : int
        Of the intervals.
    progress : callable, optional
        Called with the number of texts that were finished.

    Raises
    ------
    InputError
        If there is no text, or not one label a text.
    ModelError
        For a model that does not classify texts, or reads two streams.
    """
    if model.task.name != "classify" or model.paired:
        raise ModelError(
            "tokens are blanked out for classifiers of one stream",
            got=f"{type(model.network).__name__}, task {model.task.name}",
        )
    if not len(texts) or (labels is not None and len(labels) != len(texts)):
        raise InputError(
            "texts to blank out",
            got=f"{len(texts)} texts" + ("" if labels is None else f", {len(labels)} labels"),
            expected="one or more, with a label each or none",
        )
    if len(model.links()) < 2:
        raise ModelError("layers to compare", got=str(len(model.links())), expected="2 or more")
    numbers = None if labels is None else torch.tensor([model.label_id(label) for label in labels])
    encodings = model.encode(texts)
    readings: dict[int, Reading] = {}
    scorer = Scorer(model)
    for places, batch in model.batches(encodings):
        if numbers is None:
            label = model.logits(batch.inputs).argmax(-1)
        else:
            label = numbers[places].to(model.device)
        asked = Request((MIXTURE,), embeddings=True)
        trace = model.record(batch, Target(label, link=model.link), asked)
        maps = torch.stack([kept.double() for kept in trace.kept[MIXTURE]], 1).cpu().numpy()
        readout = trace.readout.double().cpu().numpy()
        assert trace.embeddings is not None
        slopes = trace.embeddings[1].double().cpu().numpy()
        for row, place in enumerate(places):
            columns = batch.columns(row)
            means = maps[row][:, columns][:, :, columns]
            readings[place] = Reading(
                encodings[place].tokens,
                encodings[place].special,
                readout[row, columns],
                followed(means),
                followed(uniform(means)),
                _blanked(scorer, encodings[place], label[row]),
                np.linalg.norm(slopes[row, columns], axis=1),
            )
        scorer.clear()
        if progress is not None:
            progress(len(readings))
    return BlankOut(model.name, tuple(readings[i] for i in range(len(texts))), seed)


def uniform(means: Floats) -> Floats:
    """Return maps that look alike at all that these look at, ``[layer, query, key]``."""
    seen = (means > 0).astype(np.float64)
    even: Floats = seen / seen.sum(-1, keepdims=True)
    return even


def followed(means: Floats) -> dict[str, Floats]:
    """Return `MAPS` from each layer down to the tokens, ``[layer, position, token]`` each.

    Parameters
    ----------
    means : array
        ``[layer, query, key]``: the mean of the heads, rows summing to 1.
    """
    own = np.eye(means.shape[1])
    mixtures = 0.5 * own + 0.5 * means
    rolled, flows = [mixtures[0]], []
    for mixture in mixtures[1:]:
        rolled.append(mixture @ rolled[-1])
    for depth in range(1, len(mixtures) + 1):
        flow = max_flows(mixtures[:depth], own)
        # their script divides so; where one position is read it changes no rank
        flows.append((flow / flow.sum(1, keepdims=True)).round(DECIMALS))
    return {"raw": means, "rollout": np.stack(rolled), "flow": np.stack(flows)}


def _blanked(scorer: Scorer, encoding: Encoding, label: Tensor) -> Floats:
    """Return the absolute change of a class's probability without each token, ``[token]``."""
    count = len(encoding)
    keep = np.concatenate([np.ones((1, count), np.bool_), ~np.eye(count, dtype=np.bool_)])
    rows = get_operator("unknown")(scorer.model, encoding.row, keep)
    target = Target(label.expand(len(rows)), quantity="probability", link=scorer.model.link)
    values = scorer.values(rows, target)
    found: Floats = np.abs(values[0] - values[1:])
    return found
