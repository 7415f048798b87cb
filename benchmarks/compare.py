"""Where the time of the default comparison goes, and what the harness costs on top of the model.

Run it with ``python benchmarks/compare.py``. The last line sets the time of scoring and of the
oracle against a bare loop that sends the same unique inputs through the model, sorted by length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

import xattn
from xattn.evaluation import Scorer, compare, load_dataset
from xattn.explanations import DEFAULT_METHODS
from xattn.model import Model
from xattn.model.batching import buckets
from xattn.types import Row


class Recording(Scorer):
    """A scorer that keeps every unique input it sends through the model."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.rows: list[Row] = []

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Keep the rows, then run them."""
        self.rows += rows
        return super().forward(rows)


def bare_loop(model: Model, rows: Sequence[Row]) -> float:
    start = time.perf_counter()
    for group in buckets([len(row["input_ids"]) for row in rows], model.budget):
        model.logits(model.collate([rows[i] for i in group]))
    return time.perf_counter() - start


def main() -> None:
    start = time.perf_counter()
    model, dataset = xattn.load(), load_dataset()
    loaded = time.perf_counter() - start
    model.attach()  # otherwise the first method's time would hold the verification
    scorer = Recording(model)
    result = compare(model, dataset, DEFAULT_METHODS, scorer=scorer)
    start = time.perf_counter()
    result.summary()
    result.versus_random()
    statistics = time.perf_counter() - start
    seconds = result.provenance["seconds"]
    print(f"{len(dataset)} texts; methods {', '.join(result.provenance['methods'])}, oracle")
    stages = {"load": loaded, **seconds, "statistics": statistics}
    for stage in ("load", "explain", "score", "oracle", "statistics", "total"):
        print(f"{stage:>12} {stages[stage]:7.2f} s")
    inputs = result.provenance["inputs"]
    print(f"inputs: {inputs['asked']} asked, {inputs['run']} run")
    bare = bare_loop(model, scorer.rows)
    harness = seconds["score"] + seconds["oracle"]
    print(f"bare loop over them: {bare:.2f} s; scoring and oracle take {harness / bare:.2f} times")


if __name__ == "__main__":
    main()
