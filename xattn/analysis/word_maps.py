"""Attention maps between words, of every head of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xattn.analysis.words import membership
from xattn.model import Model
from xattn.model.reduction import WHOLE
from xattn.model.trace import Request, Trace
from xattn.types import Aim, Batch, Encoding, Floats


@dataclass(frozen=True)
class Layer:
    """A layer's attention: its stack and number, and how many heads it has."""

    stack: str
    number: int
    heads: int

    @property
    def name(self) -> str:
        """The number, with the stack where there are several."""
        return str(self.number) if self.stack == "self" else f"{self.stack} {self.number}"


def layers_of(model: Model, encoding: Encoding) -> tuple[Layer, ...]:
    """Return the layers of a model, in the order of computation.

    Raises
    ------
    AttentionError
        If its attention cannot be read.
    """
    trace = _read(model, model.batch([encoding]))
    number = {i: n for numbers in trace.layers().values() for n, i in enumerate(numbers)}
    return tuple(
        Layer(link.stack, number[i], trace.kept[WHOLE][i].shape[1])
        for i, link in enumerate(trace.links)
    )


def _read(model: Model, batch: Batch) -> Trace:
    """Return whole maps; nothing is asked of the output, as they do not depend on it."""
    aims = [Aim((0,), (0,), "", "", None)] * len(batch)
    return model.record(batch, model.target_of(aims), Request((WHOLE,), readout=False))


def word_maps(
    model: Model, encodings: Sequence[Encoding], words: Sequence[Sequence[tuple[int, ...]]]
) -> tuple[list[Floats], list[float]]:
    """Return for each text its maps between words, and the share of attention that they keep.

    The share is the mean over layers.

    Parameters
    ----------
    model : Model
    encodings : sequence of Encoding
    words : sequence
        For each text the tokens of each word.

    Returns
    -------
    list of array
        ``[head, word, word]``, heads of all layers in a row: who looks, at whom. Of
        encoder-decoders 0 where a layer does not read a word.
    list of float
    """
    found: dict[int, Floats] = {}
    shares: dict[int, float] = {}
    for positions, batch in model.batches(encodings):
        trace = _read(model, batch)
        for row, position in enumerate(positions):
            members = np.zeros((len(words[position]), batch.shape[1]))
            tokens = len(batch.encodings[row])
            members[:, batch.columns(row)] = membership(words[position], tokens)
            means = members / members.sum(-1, keepdims=True)
            maps, within = [], []
            for number, kept in enumerate(trace.kept[WHOLE]):
                probabilities = kept[row].double().cpu().numpy()
                looking = means[:, trace.queries(number)] @ probabilities
                maps.append(looking @ members[:, trace.keys(number)].T)
                if looking.any():
                    within.append(maps[-1].sum() / looking.sum())
            found[position] = np.concatenate(maps)
            shares[position] = float(np.mean(within))
    return [found[i] for i in range(len(found))], [shares[i] for i in range(len(shares))]
