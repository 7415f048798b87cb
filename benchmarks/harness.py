"""What the harness costs on top of the model: ``python benchmarks/harness.py``.

Eight methods, comprehensiveness, sufficiency and both deletion curves on 200 texts. The floor is a
bare loop, in the same process, that sends the unique inputs through the model in batches of similar
length; explaining is not counted. ``--texts`` takes a file with one sentence (or one tree of the
Stanford Sentiment Treebank) a line; by default the demo reviews are read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from integrated_gradients import read
from torch import Tensor

import xattn
from xattn.evaluation import Design, Scorer, load_dataset
from xattn.evaluation.block import Findings, measure
from xattn.evaluation.runner import blocks
from xattn.model import Model
from xattn.model.batching import buckets
from xattn.types import Row

METHODS = (
    "attention",
    "rollout",
    "flow",
    "attention_gradient",
    "saliency",
    "input_x_gradient",
    "integrated_gradients",
)
"""Beside random, the eighth."""
METRICS = ("comprehensiveness", "sufficiency", "aopc_morf", "aopc_lerf")
RUNS = 3


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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    options = parser.parse_args()
    model, dataset = xattn.load(), load_dataset(limit=options.limit)
    if options.texts is not None:
        texts = tuple(read(options.texts)[: options.limit])
        ids = tuple(map(str, range(len(texts))))
        dataset = replace(
            dataset, name=options.texts.name, texts=texts, pairs=None, labels=None,
            rationales=None, kinds=None, ids=ids,
        )  # fmt: skip
    design = Design.of(METHODS, METRICS, ["delete", "mask"])
    for oracle in (False, True):
        chosen = design if oracle else design.without(["oracle"])
        times, floors = [], []
        for _ in range(RUNS):
            scorer, found = Recording(model), Findings()
            for block in blocks(dataset):
                found.add(measure(model, block, chosen, scorer=scorer))
            times.append(found.seconds["score"] + found.seconds.get("oracle", 0.0))
            floors.append(bare_loop(model, scorer.rows))
        harness, floor = min(times), min(floors)
        print(
            f"{len(dataset)} texts of {dataset.name}, {len(chosen.methods)} methods"
            f"{' with' if oracle else ' without'} the search for the best order, "
            f"{len(design.metrics)} metrics, delete and mask, {torch.get_num_threads()} threads"
        )
        print(f"  coalitions asked for {found.asked:>9,}, inputs run {found.run:>8,}")
        print(f"  floor {floor:6.2f} s, harness {harness:6.2f} s, {harness / floor:.2f} times")


if __name__ == "__main__":
    main()
