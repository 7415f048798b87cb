"""Three mistakes that readers of attention make, looked for in the very explanation they read.

Attention rests on tokens that mean nothing; attention and gradients tell different stories; and
what attention says turns on the head, the layer, or the way in which they are put together.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xattn.caution import Caution, kind
from xattn.errors import InputError, ModelError, XattnWarning
from xattn.evaluation.agreement import rank_correlation
from xattn.evaluation.statistics import Interval, interval, signed
from xattn.explanations import Explanations, explain_aims
from xattn.model import Model
from xattn.model.reduction import WHOLE, Reduction, column_sums
from xattn.model.trace import Request
from xattn.registry import family
from xattn.types import Aim, Attribution, Bools, Encoding, Floats

HALF = 0.5
"""Share of the attention on tokens that mean nothing from which on it is worth a word; share of
heads that must have the same favourite word for it to be the heads' own."""
AGREE = 0.3
"""Kendall's τ below which two orders of the same tokens tell different stories."""
NAMED = 3
"""Tokens, words and methods that are named."""
PARTNER = "integrated_gradients"
"""What attention is held against where the explanation has no gradients of its own."""
AGGREGATIONS = ("attention", "rollout", "flow")
"""The last layer, its heads averaged; all layers as a chain; all layers as a network of pipes."""

Case = tuple[Encoding, Aim]
Texts = Sequence[Mapping[str, Attribution]]
"""For each text its explanations, by method."""


@dataclass(frozen=True, eq=False)
class Looks:
    """Where the place that a prediction is read from looks, head by head."""

    layers: tuple[str, ...]
    """Stack and number of each layer."""
    shares: Floats
    """``[layer, head, token]``: rows sum to 1, but where attention sinks take a share."""


def looks(model: Model, cases: Sequence[Case]) -> list[Looks]:
    """Return for each case the attention of its readout in every head.

    The row of the place, or the mix of rows of the places, that the prediction is read from (see
    `Model.trace`); in encoder-decoders the decoder's rows, over its own text and over the source.

    Parameters
    ----------
    model : Model
    cases : sequence of (Encoding, Aim)

    Raises
    ------
    AttentionError
        If the model has no attention that can be read.
    """
    found: dict[int, Looks] = {}
    for positions, batch in model.batches([encoding for encoding, _ in cases]):
        target = model.target_of([cases[i][1] for i in positions])
        readout = model.record(batch, target, Request()).readout
        one = len(batch.widths) == 1
        kept: Reduction = column_sums(readout) if one else WHOLE
        trace = model.record(batch, target, Request((kept,), readout=False))
        read = [i for i in range(len(trace.links)) if bool(readout[:, trace.queries(i)].any())]
        heads = max(trace.kept[kept][i].shape[1] for i in read)
        shares = np.zeros((len(batch), len(read), heads, batch.shape[1]))
        for row, number in enumerate(read):
            part = trace.kept[kept][number].float()
            if not one:
                weights = readout[:, None, None, trace.queries(number)].to(part.device)
                part = (weights @ part)[:, :, 0]
            shares[:, row, : part.shape[1], trace.keys(number)] = part.cpu().numpy()
        names = tuple(
            f"{stack} {place}" if len(trace.layers()) > 1 else str(place)
            for stack, numbers in trace.layers().items()
            for place, number in enumerate(numbers)
            if number in read
        )
        for row, position in enumerate(positions):
            found[position] = Looks(names, shares[row][..., batch.columns(row)])
    return [found[i] for i in range(len(cases))]


def cautions(model: Model, explanations: Explanations) -> list[Caution]:
    """Return what the reader of explanations by attention should be warned of.

    Costs a few passes a text: the attention of every head, `AGGREGATIONS`, and a gradient method
    where the explanations have none.

    Parameters
    ----------
    model : Model
        That `explanations` are of.
    explanations : Explanations
        As `xattn.explain` returned them. Without a method that reads attention there is no such
        mistake to be made.

    Returns
    -------
    list of Caution
        Each with its evidence and what to do next; empty where nothing is found.

    Warns
    -----
    XattnWarning
        If the model refuses one of the methods that would be held against the explanations.
    """
    told = explanations.by_token
    texts: Texts = list(told.by_method())
    families = {family(name) for name in texts[0]}
    if "attention" not in families:
        return []
    if "gradients" not in families:
        texts = _joined(texts, model, told, PARTNER)
    together = texts
    for name in AGGREGATIONS:
        together = _joined(together, model, told, name)
    found = [
        rests_on_marks(texts),
        tells_another_story(texts),
        flips(looks(model, told.cases), together),
    ]
    return [caution for caution in found if caution is not None]


def _joined(texts: Texts, model: Model, told: Explanations, name: str) -> Texts:
    """Return the explanations with those of one method more, if the model takes it."""
    try:
        more = explain_aims(model, told.cases, [name])
    except (InputError, ModelError) as error:  # the explanation is none the worse for it
        warnings.warn(f"cautions go without {name}: {error}", XattnWarning, stacklevel=3)
        return texts
    return [{**text, name: item} for text, item in zip(texts, more, strict=True)]


def rests_on_marks(texts: Texts) -> Caution | None:
    """Warn if attention is mostly on special tokens, punctuation and function words.

    Mostly is more than `HALF`, and more than their share of the tokens, which is what attention
    that is spread evenly has; or a favourite token in half of the texts.
    """
    marked = [_marks(next(iter(text.values()))) for text in texts]
    even = float(np.mean([marks.mean() for marks in marked]))
    heavy, light = [], []
    for name in texts[0]:
        items = [text[name] for text in texts]
        shares = [_share(item, marks) for item, marks in zip(items, marked, strict=True)]
        tops = [
            all(marks[i] for i in _tops(item.scores))
            for item, marks in zip(items, marked, strict=True)
        ]
        share = float(np.mean(shares))
        if family(name) == "gradients":
            light.append(f"{name} {share:.0%}")
        elif family(name) == "attention" and (
            (share >= HALF and share > even) or float(np.mean(tops)) >= HALF
        ):
            heavy.append(f"{name} {share:.0%} ({_named(items, marked)})")
    if not heavy:
        return None
    beside = f" Methods with gradients put there: {', '.join(light[:NAMED])}." if light else ""
    return Caution(
        "Attention rests on tokens that mean little",
        f"On special tokens, punctuation and function words, which are {even:.0%} of the tokens: "
        f"{'; '.join(heavy)}.{beside}",
        "Such tokens are where heads look when nothing else matters. Do not quote them as reasons; "
        "compare the other tokens with each other, or use a method that weighs attention by "
        "gradients (attention_gradient) or vectors (value_norm, decompx).",
    )


def _marks(item: Attribution) -> Bools:
    return np.array([kind(item, i) is not None for i in range(len(item.tokens))])


def _share(item: Attribution, marks: Bools) -> float:
    """Return the share of the absolute scores that stands on marks."""
    scores = np.abs(item.scores.astype(np.float64))
    return float(scores[marks].sum() / scores.sum()) if scores.any() else 0.0


def _named(items: Sequence[Attribution], marked: Sequence[Bools]) -> str:
    """Return the marks that hold most, with the mean over texts of what they hold in one."""
    held: defaultdict[str, float] = defaultdict(float)
    for item, marks in zip(items, marked, strict=True):
        total = float(np.abs(item.scores).sum()) or 1.0
        for i in np.flatnonzero(marks).tolist():
            held[item.tokens[i].strip()] += abs(float(item.scores[i])) / total / len(items)
    most = sorted(held, key=held.__getitem__, reverse=True)[:NAMED]
    return ", ".join(f"{token!r} {held[token]:.0%}" for token in most)


def tells_another_story(texts: Texts) -> Caution | None:
    """Warn if methods that read attention and methods with gradients order the tokens differently.

    By Kendall's τ without special tokens; of signed scores the size counts, since attention has no
    sign. Warned of is a τ under `AGREE`, and one whose interval reaches 0.
    """
    low = []
    pairs = [
        (one, other)
        for one in texts[0]
        for other in texts[0]
        if (family(one), family(other)) == ("attention", "gradients")
    ]
    for one, other in pairs:
        found = agreement([(text[one], text[other]) for text in texts])
        if np.isfinite(found.mean) and (found.mean < AGREE or not found.low > 0):
            low.append((found, f"{one} and {other}"))
    if not low:
        return None
    low.sort(key=lambda pair: pair[0].mean)
    said = "; ".join(f"{names} {found.said}" for found, names in low[:NAMED])
    return Caution(
        "Attention and gradients tell different stories",
        f"{len(low)} of {len(pairs)} pairs have a Kendall’s τ under {AGREE} or one that cannot be "
        f"told from 0; lowest: {said}.",
        "High attention is not importance. Find out which of them this model follows before you "
        "quote either: xattn compare removes the tokens and measures it.",
    )


def agreement(pairs: Sequence[tuple[Attribution, Attribution]]) -> Interval:
    """Return the mean of Kendall's τ over texts, with its 95 % interval.

    Of one text by the variance of Fisher's z of τ, ``0.437 / (tokens − 4)`` (Fieller, Hartley &
    Pearson 1957, Tests for Rank Correlation Coefficients I); of several by bootstrap over texts.
    nan where no order is to be compared.
    """
    taus, counts = [], []
    for one, other in pairs:
        real = ~one.special
        a, b = one.scores[real].astype(np.float64), other.scores[real].astype(np.float64)
        if one.signed != other.signed:
            a, b = np.abs(a), np.abs(b)
        taus.append(rank_correlation(a, b))
        counts.append(len(a))
    known = np.array([tau for tau in taus if np.isfinite(tau)])
    if len(pairs) > 1:
        return interval(known, seed=0)
    if not len(known) or counts[0] <= 4:
        return Interval(float(known[0]) if len(known) else np.nan, np.nan, np.nan, len(known))
    z = np.arctanh(np.clip(known[0], -1 + 1e-9, 1 - 1e-9))
    reach = 1.959964 * np.sqrt(0.437 / (counts[0] - 4))
    return Interval(float(known[0]), float(np.tanh(z - reach)), float(np.tanh(z + reach)), 1)


def flips(every: Sequence[Looks], texts: Texts) -> Caution | None:
    """Warn if the token that is looked at most turns on the head, the layer or the aggregation.

    Special tokens are left out. Warned of is that fewer than `HALF` of the heads have the same
    favourite, or that the ways to put layers together have several in at least half of the texts.
    """
    shares, taus, differing = [], [], 0
    first = ""
    for number, (look, text) in enumerate(zip(every, texts, strict=True)):
        real = np.flatnonzero(~next(iter(text.values())).special)
        rows = look.shares[..., real]
        names = [next(iter(text.values())).tokens[i].strip() for i in real.tolist()]
        if len(real) < 2 or rows.shape[0] * rows.shape[1] < 2:
            return None
        heads = rows.reshape(-1, len(real))
        heads = heads[heads.sum(1) > 0]
        favourites = Counter(heads.argmax(1).tolist())
        shares.append(favourites.most_common(1)[0][1] / len(heads))
        taus.append(_mean_tau(heads))
        known = [name for name in AGGREGATIONS if name in text]
        ways = {name: _tops(text[name].scores[real]) for name in known}
        ways["mean of all layers"] = _tops(heads.mean(0))
        ways["largest of all heads"] = _tops(heads.max(0))
        differing += not set.intersection(*ways.values())
        if not number:
            top = ", ".join(
                f"{names[i]!r} in {count}" for i, count in favourites.most_common(NAMED)
            )
            layers = rows.mean(1).argmax(1).tolist()
            by_layer = ", ".join(
                f"{name} {names[i]!r}" for name, i in zip(look.layers, layers, strict=True)
            )
            put = ", ".join(
                f"{name} {names[min(tops)]!r}"
                + (f" and {len(tops) - 1} level with it") * (len(tops) > 1)
                for name, tops in ways.items()
            )
            first = f"{top} of {len(heads)} heads; by layer: {by_layer}; put together: {put}"
    if np.mean(shares) >= HALF and differing < HALF * len(texts):
        return None
    several = (
        f"On average over {len(texts)} texts {np.mean(shares):.0%} of the heads share a favourite, "
        f"and in {differing} of them the ways to put layers together differ. In the first: "
        if len(texts) > 1
        else "Looked at most is "
    )
    return Caution(
        "What attention says turns on the head and the layer",
        f"{several}{first}. Mean Kendall’s τ between heads {signed(float(np.nanmean(taus)))}.",
        "One head is not the model. Name the layer, the heads and the aggregation whenever you "
        "show attention, choose them on other texts, and rank heads by what happens without them "
        "(xattn patterns) before you speak of any.",
    )


def _tops(scores: Floats) -> set[int]:
    """Return the tokens with the largest score; more than one where they are level, as in flow."""
    scores = scores.astype(np.float64)
    return set(np.flatnonzero(np.isclose(scores, scores.max(), rtol=1e-5)).tolist())


def _mean_tau(heads: Floats) -> float:
    """Return the mean of Kendall's τ over pairs of heads: of each with the next, which will do."""
    taus = [rank_correlation(a, b) for a, b in zip(heads, np.roll(heads, 1, axis=0), strict=True)]
    known = [tau for tau in taus if np.isfinite(tau)]
    return float(np.mean(known)) if known else float("nan")
