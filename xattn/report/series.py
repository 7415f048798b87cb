"""What is compared, in which order, and in which colours: the methods, operators and texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xattn.evaluation import Comparison
from xattn.evaluation.design import YARDSTICKS
from xattn.types import Attribution

HUES = 7
"""Colours in ``report.css``; more methods than that are told apart by their dashes."""
DASHES = ("", "7 3", "2 3")


@dataclass(frozen=True)
class Style:
    """How the lines and dots of one method are drawn."""

    name: str
    """CSS class that sets the colour."""
    dash: str
    """SVG dash pattern; empty for a full line."""


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """Return a style for each label; the yardsticks have their own, whatever else is shown.

    Examples
    --------
    >>> styles(["random", "rollout"])["rollout"]
    Style(name='hue-0', dash='')
    """
    table = {"random": Style("hue-random", "3 3"), "oracle": Style("hue-oracle", "1 4")}
    real = [label for label in dict.fromkeys(labels) if label not in YARDSTICKS]
    for number, label in enumerate(real):
        table[label] = Style(f"hue-{number % HUES}", DASHES[number // HUES % len(DASHES)])
    return table


def contenders(comparison: Comparison) -> list[str]:
    """Return the methods that were compared, without the yardsticks, in their first order."""
    labels = dict.fromkeys(str(method) for method in comparison.scores["method"])
    return [label for label in labels if label not in YARDSTICKS]


def operators(comparison: Comparison) -> list[str]:
    """Return the ways of removing tokens, in their first order; the first one leads the report."""
    return list(dict.fromkeys(str(operator) for operator in comparison.scores["operator"]))


def by_text(comparison: Comparison) -> list[Mapping[str, Attribution]]:
    """Return for each example the attributions of the contenders, by label.

    A method that failed on a text is missing there.
    """
    return [
        {name: item for name, item in explained.items() if name not in YARDSTICKS}
        for explained in comparison.explained()
    ]
