"""Planted comparisons: texts, scores and curves are made up, so that no model is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xattn.evaluation import Comparison, metrics
from xattn.types import AttentionMaps, Attribution

PARTS = ("morf", "lerf")
METRICS = ("comprehensiveness", "sufficiency", "aopc_morf", "aopc_lerf", "abpc")


@dataclass(frozen=True)
class Plan:
    """What shall be true of a planted comparison."""

    areas: Mapping[str, float] = field(
        default_factory=lambda: {"integrated_gradients": 0.4, "rollout": 0.2}
    )
    """Mean ABPC of each method; random has 0, oracle 0.5."""
    count: int = 40
    spread: float = 0.02
    text: str = "A dull film, sadly ."
    wrong: int = 0
    """How many predictions are wrong."""
    gap: float = 0.0
    top: Mapping[str, int] = field(default_factory=dict)
    """The token that each method scores highest; 2, an ordinary word, by default."""
    flipped: tuple[str, ...] = ()
    """Methods that order the tokens the other way round."""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    constant: bool = False
    """Whether every token of a text gets the same score."""


def attribution(plan: Plan, method: str, text: str) -> Attribution:
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    words = [text[a:b] for a, b in spans]
    count = len(words) + 2
    scores = np.linspace(-0.5, 0.5, count) * (-1 if method in plan.flipped else 1)
    scores[plan.top.get(method, 2)] = 1.0
    if plan.constant:
        scores = np.zeros(count)
    return Attribution(
        text=text,
        pair=None,
        tokens=("[CLS]", *words, "[SEP]"),
        offsets=np.array([(0, 0), *spans, (0, 0)], dtype=np.int64),
        segments=np.array([-1, *[0] * len(words), -1], dtype=np.int64),
        word_ids=np.array([-1, *range(len(words)), -1], dtype=np.int64),
        scores=scores.astype(np.float32),
        method=method,
        parameters=plan.parameters.get(method, {}),
        target="logit of negative",
        prediction="negative",
        probability=0.9,
        gap=plan.gap if method == "integrated_gradients" else None,
    )


def measured(plan: Plan, areas: Mapping[str, float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(0)
    scores, curves = [], []
    fractions = np.linspace(0, 1, 11)
    for example in range(plan.count):
        for operator in ("delete", "mask"):
            for method, area in areas.items():
                value = area + rng.normal() * plan.spread
                for metric in METRICS:
                    sign = 1 if metrics.get(metric).declaration.higher_is_better else -1
                    scores.append((example, method, operator, metric, sign * value))
                for order, side in zip(PARTS, (-1, 1), strict=True):
                    line = 0.6 + side * value * fractions * (1 - fractions)
                    curves += [
                        (example, method, operator, order, fraction, score)
                        for fraction, score in zip(fractions, line, strict=True)
                    ]
    return (
        pd.DataFrame(scores, columns=["example", "method", "operator", "metric", "value"]),
        pd.DataFrame(
            curves, columns=["example", "method", "operator", "order", "fraction", "score"]
        ),
    )


def comparison(plan: Plan) -> Comparison:
    """Return a comparison as planned."""
    methods = [*plan.areas, "random"]
    texts = [f"{plan.text} {number}" for number in range(plan.count)]
    attributions = [attribution(plan, method, text) for text in texts for method in methods]
    scores, curves = measured(plan, {**plan.areas, "random": 0.0, "oracle": 0.5})
    numbers = range(plan.count)
    return Comparison(
        scores=scores,
        curves=curves,
        cost=pd.DataFrame(
            [
                (number, item.method, 0.02, 1.0, 2.0, 1e6, np.nan if item.gap is None else item.gap)
                for number in numbers
                for item in attributions[number * len(methods) : (number + 1) * len(methods)]
            ],
            columns=[
                "example",
                "method",
                "seconds",
                "forward_passes",
                "backward_passes",
                "memory",
                "gap",
            ],
        ),
        attributions=attributions,
        examples=pd.DataFrame(
            {
                "example": numbers,
                "id": [f"t{number}" for number in numbers],
                "text": texts,
                "pair": None,
                "label": ["positive" if n < plan.wrong else "negative" for n in numbers],
                "target": "probability of negative",
                "prediction": "negative",
                "probability": 0.9,
                "kind": ["irony" if n % 4 == 0 else "plain" for n in numbers],
            }
        ),
        failures=pd.DataFrame(columns=["id", "text", "method", "error"]),
        provenance={
            "model": "planted-model",
            "seed": 0,
            "date": "2026-01-02T03:04:05+00:00",
            "command": "xattn compare --limit 40",
            "data": {"name": "planted-texts", "n": plan.count},
            "seconds": {"total": 12.3},
        },
    )


@pytest.fixture(scope="session")
def planted() -> Callable[..., Comparison]:
    """Build a comparison from the fields of a `Plan`."""
    return lambda **fields: comparison(Plan(**fields))


@pytest.fixture(scope="session")
def attention_maps() -> Callable[..., AttentionMaps]:
    """Build maps of two layers and three heads whose rows sum to 1, read from token 0."""

    def build(*tokens: str) -> AttentionMaps:
        count = len(tokens)
        values = np.random.default_rng(0).dirichlet(np.ones(count), size=(2, 3, count))
        readout = np.eye(count, dtype=np.float32)[0]
        return AttentionMaps(tokens, values.astype(np.float32), ("layer.0", "layer.1"), readout)

    return build
