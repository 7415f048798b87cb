"""Metrics as plug-ins: what each declares, and where they are registered.

A metric is a frozen dataclass whose fields are its choices. Called with a `Case` it returns a
number, or a plan: a generator that yields the coalitions whose worths it wants to know, and returns
the number::

    @register("keep_half", label="keep half", higher_is_better=False, bounds=(-1, 1), ...)
    @dataclass(frozen=True)
    class KeepHalf:
        def __call__(self, case):
            full, half = yield case.only([len(case), len(case) // 2])
            return full - half

The built-in ones are found by listing ``xattn.evaluation.measures``, third-party ones through the
entry-point group ``xattn.metrics``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from xattn.model.game import Plan
from xattn.registry import Registry
from xattn.types import Quantity

if TYPE_CHECKING:
    from xattn.evaluation.case import Case
    from xattn.model import Model

Need = Literal["removal", "bounds", "rationale", "completeness"]


@dataclass(frozen=True)
class MetricDeclaration:
    """How to read a metric."""

    label: str
    """What it is called in a report."""
    higher_is_better: bool | None
    """None for what is neither good nor bad, as how concentrated scores are."""
    bounds: tuple[float, float]
    """Least and largest value; infinite where there is none."""
    unit: str
    """What a value counts, for example ``probability`` or ``share of units``."""
    citation: str
    """Authors, year, title and place of the source."""
    meaning: str
    """One line for a reader who has never heard of the metric."""
    needs: Collection[Need] = ()
    """What a case must offer: units that can be removed, bounds found by a search, a human
    rationale, a method whose scores must sum to something. See `Elsewhere`, too."""
    quantity: Quantity | None = None
    """The worth of coalitions that it works with; None for that of the comparison."""


class Metric(Protocol):
    """A frozen dataclass whose fields are the choices that it leaves open."""

    name: ClassVar[str]
    declaration: ClassVar[MetricDeclaration]

    def __call__(self, case: Case) -> float | Plan[float]:
        """Return the value of one case, nan where it is not defined, or a plan that finds it."""
        ...


@runtime_checkable
class Elsewhere(Metric, Protocol):
    """A metric that compares scores with those that the same text gets under other circumstances.

    `Case.elsewhere` has them.
    """

    def circumstances(self, model: Model, seed: int) -> Iterator[Model]:
        """Yield what explains the text again; until the next is asked for, it may be changed."""
        ...


metrics: Registry[Metric] = Registry("xattn.metrics", "metric", "xattn.evaluation.measures")
register = metrics.registering(MetricDeclaration)
