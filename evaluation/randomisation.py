"""Parameter randomisation: an explanation of a network that has learnt nothing must look different.

The parameters of a copy of the network are shuffled, from the output down to the embeddings, and
every method explains the same class again. A method whose scores stay alike explains the text or
the architecture, not what the model has learnt (Adebayo et al. 2018, Sanity Checks for Saliency
Maps: the cascading test and the independent one).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import nn

from xattn.evaluation.statistics import interval
from xattn.explanations import explain_aims
from xattn.model import Model
from xattn.registry import methods as registry
from xattn.types import Floats

STAGES = ("head", "layers", "everything")
"""What is shuffled: what stands above the layers, the layers too, the embeddings too."""


def agreement(one: Floats, other: Floats) -> float:
    """Return Spearman's rank correlation of two score vectors ``[token]``, ties counted by half.

    Nan if one of them is constant: it has no order that could be alike.
    """
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(spearmanr(one, other).statistic)


def _stage(name: str, layers: Sequence[str], above: frozenset[str]) -> str:
    """Return the stage at which a parameter is shuffled."""
    if name.startswith(tuple(f"{layer}." for layer in layers)):
        return "layers"
    return "head" if name in above else "everything"


def _above(model: Model) -> frozenset[str]:
    """Return the names of the parameters that are read after the last layer."""
    last = max(model.layers, key=lambda layer: layer.links).site
    seen: list[str] = []
    done = False

    def passed(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal done
            if done:
                seen.extend(f"{name}.{n}" for n, _ in module.named_parameters(recurse=False))
            done = done or name == last.module

        return hook

    handles = [m.register_forward_hook(passed(n)) for n, m in model.network.named_modules()]
    try:
        model.logits(model.probe().inputs)
    finally:
        for handle in handles:
            handle.remove()
    return frozenset(seen)


def shuffled(model: Model, seed: int = 0, *, cascading: bool = True) -> Iterator[tuple[str, Model]]:
    """Yield the stages and, for each, the same copy of the model with parameters shuffled.

    The entries of each parameter change places, so that their distribution stays what training
    made of it.

    Parameters
    ----------
    model : Model
        Left as it is.
    seed : int
    cascading : bool
        Whether what was shuffled at earlier stages stays so; else each stage is shuffled by itself
        (the independent test).
    """
    layers, above = [layer.site.module for layer in model.layers], _above(model)
    network = copy.deepcopy(model.network)
    reader = model.tokenizer if model.reader is None else model.reader
    twin = Model(network, reader, task=model.task.name, name=model.name, budget=model.budget)
    generator = torch.Generator().manual_seed(seed)
    named, original = list(network.named_parameters()), dict(model.network.named_parameters())
    for stage in STAGES:
        with torch.no_grad():
            for name, parameter in named:
                if not cascading:
                    parameter.copy_(original[name])
                if _stage(name, layers, above) == stage:
                    order = torch.randperm(parameter.numel(), generator=generator)
                    mixed = parameter.flatten()[order.to(parameter.device)]
                    parameter.copy_(mixed.view_as(parameter))
        yield stage, twin


def randomisation(
    model: Model,
    texts: Sequence[str],
    methods: Sequence[str] | None = None,
    seed: int = 0,
    *,
    cascading: bool = True,
) -> pd.DataFrame:
    """Return how alike explanations of a model and of shuffled copies of it are.

    Parameters
    ----------
    model : Model
    texts : sequence of str
    methods : sequence of str, optional
        All registered ones by default. Those whose scores do not depend on the network at all
        (``random``) have agreement 1 by construction.
    seed : int
        Of the shuffling and of the bootstrap.
    cascading : bool
        Whether each stage is shuffled with the ones before (the default) or by itself.

    Returns
    -------
    DataFrame
        One row for each method and stage (`STAGES`): mean, low and high (95 % bootstrap over texts)
        of Spearman's correlation of the scores of the removable tokens, and n, the texts whose
        scores have an order.

    Examples
    --------
    >>> import xattn
    >>> table = randomisation(xattn.load(), ["A dull, lifeless film."], ["rollout"])
    >>> list(table["stage"])
    ['head', 'layers', 'everything']
    """
    names = registry.names() if methods is None else list(methods)
    encodings = model.encode(texts)
    aims = [aim for (aim,) in model.aims(encodings)]
    cases = list(zip(encodings, aims, strict=True))
    before = explain_aims(model, cases, names)
    rows = []
    for stage, twin in shuffled(model, seed, cascading=cascading):
        after = explain_aims(twin, cases, names)
        values: dict[str, list[float]] = {name: [] for name in names}
        for encoding, one, other in zip(encodings, before.by_text(), after.by_text(), strict=True):
            for name, a, b in zip(names, one, other, strict=True):
                places = encoding.removable
                values[name].append(agreement(a.scores[places], b.scores[places]))
        for name in names:
            known = np.array([value for value in values[name] if not np.isnan(value)])
            rows.append((name, stage, *interval(known, seed)))
    return pd.DataFrame(rows, columns=["method", "stage", "mean", "low", "high", "n"])
