"""`Design`: what a comparison measures, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from xattn.errors import InputError, UnknownNameError
from xattn.evaluation.metric import Metric, metrics
from xattn.explanations import ALL, expanded
from xattn.model.operators import get_operators
from xattn.registry import Method, methods
from xattn.types import Quantity, Unit

RANDOM, ORACLE = "random", "oracle"
YARDSTICKS = (RANDOM, ORACLE)
"""Always among the methods: chance, and what a search finds."""
LEADING = "abpc"
"""Always among the metrics: it needs no choice of a single fraction."""
DEFAULT_METRICS = (
    "abpc",
    "comprehensiveness",
    "sufficiency",
    "aopc_morf",
    "aopc_lerf",
    "normalised_aopc",
    "flip",
)
PLAUSIBLE = ("auprc", "token_f1", "iou_f1", "pointing")
"""Added by default where the data set says what people found decisive."""


@dataclass(frozen=True)
class Design:
    """What is measured of each text, and how.

    Examples
    --------
    >>> Design.of(["rollout"], ["gini"], ["delete"]).metrics
    ('abpc', 'gini')
    """

    methods: tuple[str, ...]
    """Names, or names with options; the yardsticks among them."""
    metrics: tuple[str, ...]
    """Names, or names with options."""
    operators: tuple[str, ...]
    unit: Unit = "token"
    """What is removed at a time."""
    quantity: Quantity = "probability"
    """What is watched as units go."""
    label: str | int | None = None
    """The class that is explained and scored; None for each text's predicted one."""
    at: str | int | None = None
    """Where the prediction is read; see `Model.aims`."""
    seed: int = 0
    """Of the random method, of ties, and of what metrics draw."""
    truncate: bool = False
    beam: int = 3
    """Beginnings that the search for the best and the worst order keeps."""

    @classmethod
    def of(
        cls,
        methods: Sequence[str] | None,
        metrics: Sequence[str] | None,
        operators: Sequence[str],
        **others: Any,
    ) -> Design:
        """Return a design with yardsticks and the leading metric; ``all`` methods are named.

        Raises
        ------
        UnknownNameError
            For an unknown method, metric, operator or quantity, or an option of one.
        InputError
            For an option that makes no sense, or no operator.
        """
        names = dict.fromkeys(expanded([ALL] if methods is None else methods))
        names.pop(ORACLE, None)  # it comes last
        names |= dict.fromkeys(YARDSTICKS)
        measured = dict.fromkeys([LEADING, *(DEFAULT_METRICS if metrics is None else metrics)])
        removals = [operator.name for operator in get_operators(operators)]
        if not removals:
            raise InputError("no operator is named", expected="one or more, for example delete")
        design = cls(tuple(names), tuple(measured), tuple(removals), **others)
        if design.quantity not in get_args(Quantity):
            raise UnknownNameError("quantity", str(design.quantity), get_args(Quantity))
        design.built_methods()
        design.built_metrics()
        return design

    def built_methods(self) -> dict[str, Method]:
        """Return the methods by the names that they have in results; not the oracle.

        What it finds is the order itself, for each way of removing units.
        """
        return {
            name: methods.build(f"{RANDOM}:seed={self.seed}" if name == RANDOM else name)
            for name in self.methods
            if name != ORACLE
        }

    def built_metrics(self) -> dict[str, Metric]:
        """Return the metrics by the names that they have in results."""
        return {name: metrics.build(name) for name in self.metrics}

    def without(self, refused: Sequence[str]) -> Design:
        """Return the same design without some methods."""
        return replace(self, methods=tuple(name for name in self.methods if name not in refused))

    def fixed(self) -> Mapping[str, Any]:
        """Return the choices that every part of a run has in common: all but the three lists."""
        lists = ("methods", "metrics", "operators")
        return {name: value for name, value in asdict(self).items() if name not in lists}
