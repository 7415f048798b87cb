"""How much each attention head matters: the gradient of its mask, and what happens without it.

Michel et al. 2019, Are Sixteen Heads Really Better than One? A pattern says where a head looks;
this says what rests on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from xattn.errors import InputError
from xattn.evaluation.statistics import Interval, interval
from xattn.finding import Dot, Dots, Finding, Heatmap, Line, Lines
from xattn.model import AblateHeads, Model
from xattn.model.tap import Edit, Site
from xattn.types import Aim, Encoding, Floats

Head = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of a model by what rests on them, over some texts.

    Everything is in probability of what the model predicts, or of the labels that were given.
    """

    model: str
    heads: tuple[Head, ...]
    """Layer (attention site) and head."""
    gradient: Floats
    """``[text, head]``: size of the derivative by the head's mask at 1 (equation 5 of Michel et al.
    2019, of the probability and not of the loss)."""
    ablation: Floats
    """``[text, head]``: how far the probability falls without the head alone."""
    whole: Floats
    """``[text]``: the probability with all heads."""
    together: Floats
    """``[count, text]``: how far it falls without the first 1, 2, ... heads of the ranking."""
    opposite: Floats
    """``[count, text]``: the same without the last 1, 2, ... of it."""
    layers: Floats
    """``[layer, text]``: how far it falls without a whole layer's heads."""

    @cached_property
    def ranking(self) -> tuple[Head, ...]:
        """Heads by what their own ablation costs on average, the costliest first."""
        return tuple(self.heads[i] for i in np.argsort(-self.ablation.mean(0), kind="stable"))

    @property
    def agreement(self) -> float:
        """Spearman's correlation of both rankings."""
        return float(spearmanr(self.gradient.mean(0), self.ablation.mean(0)).statistic)

    def cost(self, head: Head) -> Interval:
        """Return how far the probability falls without one head, with its interval."""
        return interval(self.ablation[:, self.heads.index(head)], seed=0)

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each head: gradient, ablation with its interval, and rank."""
        rows = []
        for i, (layer, head) in enumerate(self.heads):
            cost = self.cost((layer, head))
            rank = self.ranking.index((layer, head)) + 1
            rows.append((layer, head, self.gradient[:, i].mean(), *cost[:3], rank))
        return pd.DataFrame(
            rows, columns=["layer", "head", "gradient", "ablation", "low", "high", "rank"]
        )

    def finding(self) -> Finding:
        """Return what reports show of it."""
        best = self.ranking[0]
        alone, every = self.cost(best), interval(self.together[-1], seed=0)
        layer = int(np.argmax(self.layers.mean(1)))
        count = sum(self.cost(head).low > 0 for head in self.heads)
        sizes = tuple(float(i + 1) for i in range(len(self.heads)))
        return Finding(
            "heads",
            "What rests on each head",
            f"Without its most important head (layer {best[0]}, head {best[1]}) {self.model} loses "
            f"{alone.mean:.3f} of the probability of its answer on average over {len(self.whole)} "
            f"texts (95 % interval {alone.low:.3f} to {alone.high:.3f}); without all heads "
            f"{every.mean:.3f}; without layer {layer} {self.layers[layer].mean():.3f}. {count} of "
            f"{len(self.heads)} heads cost anything alone. One head is not the model.",
            (
                self._map("Lost without the head alone", self.ablation),
                self._map("Gradient of the head's mask", self.gradient),
                Lines(
                    "Without several heads",
                    sizes,
                    tuple(
                        _line(name, values)
                        for name, values in (
                            ("most important first", self.together),
                            ("least important first", self.opposite),
                        )
                    ),
                    x_label="heads that are cut",
                    y_label="probability lost",
                    level=0.0,
                    note="Ranked by ablation on the same texts, which flatters the order a little.",
                ),
                Dots(
                    "Without a whole layer",
                    tuple(
                        Dot(f"layer {i}", *interval(values, seed=0)[:3])
                        for i, values in enumerate(self.layers)
                    ),
                    x_label="probability lost",
                    level=0.0,
                ),
            ),
            (
                f"Gradient and ablation rank the heads with a Spearman correlation of "
                f"{self.agreement:.2f}: heads stand in for each other, which no gradient sees.",
            ),
        )

    def _map(self, title: str, values: Floats) -> Heatmap:
        layers = sorted({layer for layer, _ in self.heads})
        widest = 1 + max(head for _, head in self.heads)
        means = dict(zip(self.heads, values.mean(0).tolist(), strict=True))
        return Heatmap(
            title,
            tuple(str(layer) for layer in layers),
            tuple(str(head) for head in range(widest)),
            tuple(tuple(means.get((layer, head)) for head in range(widest)) for layer in layers),
            unit="probability",
            row_label="layer",
            column_label="head",
        )

    def _repr_html_(self) -> str:
        return self.finding()._repr_html_()


def _line(name: str, values: Floats) -> Line:
    found = [interval(row, seed=0) for row in values]
    return Line(
        name,
        tuple(f.mean for f in found),
        tuple(f.low for f in found),
        tuple(f.high for f in found),
    )


def rank_heads(
    model: Model,
    texts: Sequence[str] | Sequence[Encoding],
    labels: Sequence[str | int] | None = None,
) -> Heads:
    """Rank the heads of a model by what rests on them.

    Costs a forward and a backward pass a text, and three forward passes a text and head.

    Parameters
    ----------
    model : Model
    texts : sequence of str or Encoding
        Two or more, so that there is a spread.
    labels : sequence of str or int, optional
        The right class of each text; by default what the model predicts.

    Raises
    ------
    InputError
        For fewer than two texts, or another number of labels.
    AttentionError
        If the model's heads cannot be edited.
    """
    if len(texts) < 2:
        raise InputError("texts to rank heads on", got=str(len(texts)), expected="two or more")
    if labels is not None and len(labels) != len(texts):
        raise InputError("labels", got=str(len(labels)), expected=f"one for each of {len(texts)}")
    encodings = [text for text in texts if isinstance(text, Encoding)]
    if len(encodings) < len(texts):
        encodings = model.encode([str(text) for text in texts])
    if model.task.name == "generate" and all(e.pair is None for e in encodings):
        at: str | None = "next"
    else:
        at = None
    named = labels if labels is not None else [None] * len(encodings)
    aims = [
        model.aims([encoding], label, at=at)[0][0]
        for encoding, label in zip(encodings, named, strict=True)
    ]
    heads = [
        (layer, head)
        for layer, count in enumerate(model.layout().heads.values())
        for head in range(count)
    ]
    whole = _probabilities(model, encodings, aims)
    gradient = _gradients(model, encodings, aims, len(heads))

    def lost(cut: Sequence[Head]) -> Floats:
        chosen: dict[int, list[int]] = {}
        for layer, head in cut:
            chosen.setdefault(layer, []).append(head)
        with model.edit(AblateHeads(heads=chosen)):
            return whole - _probabilities(model, encodings, aims)

    ablation = np.stack([lost([head]) for head in heads], axis=1)
    order = [heads[i] for i in np.argsort(-ablation.mean(0), kind="stable")]
    return Heads(
        model.name,
        tuple(heads),
        gradient,
        ablation,
        whole,
        np.stack([lost(order[: i + 1]) for i in range(len(order))]),
        np.stack([lost(order[-i - 1 :]) for i in range(len(order))]),
        np.stack([lost([h for h in heads if h[0] == n]) for n in sorted({h[0] for h in heads})]),
    )


def _probabilities(model: Model, encodings: Sequence[Encoding], aims: Sequence[Aim]) -> Floats:
    """Return the probability of each text's aim, ``[text]``."""
    values = np.empty(len(encodings))
    for positions, batch in model.batches(encodings):
        target = model.target_of([aims[i] for i in positions], "probability")
        values[positions] = model.score(batch.inputs, target).double().cpu().numpy()
    return values


def _gradients(
    model: Model, encodings: Sequence[Encoding], aims: Sequence[Aim], count: int
) -> Floats:
    """Return the size of the derivative by each head's mask, ``[text, head]``."""
    found = np.empty((len(encodings), count))
    for positions, batch in model.batches(encodings):
        target = model.target_of([aims[i] for i in positions], "probability")
        masks = _Masks({})
        with torch.enable_grad(), model.borrowed(batch.inputs, [Edit(outputs=masks.apply)]):
            score = model.value(batch.inputs, target)
            slopes = model.backward(score, list(masks.by_site.values()))
        found[positions] = torch.cat(slopes, dim=1).abs().double().cpu().numpy()
    return found


@dataclass(frozen=True, eq=False)
class _Masks:
    """A mask of 1 for each text and head, which every head's output is multiplied by."""

    by_site: dict[Site, Tensor]

    def apply(self, site: Site, outputs: Tensor) -> Tensor:
        """Multiply ``[batch, head, query, dim]``."""
        if site not in self.by_site:
            self.by_site[site] = outputs.new_ones(outputs.shape[:2]).requires_grad_()
        return outputs * self.by_site[site][:, :, None, None]
