"""What the harness costs on top of the model: ``python benchmarks/harness.py``.

Eight methods, comprehensiveness, sufficiency and both deletion curves on 200 texts. The floor is a
bare loop, in the same process, that sends the unique inputs through the model in batches of similar
length; explaining is not counted. ``--texts`` takes a file with one sentence (or one tree of the
Stanford Sentiment Treebank) a line; by default the demo reviews are read.

``--rivals`` times what ferret, interpreto and Quantus have of the same work, given the same scores:
those that are installed (``.ci/rivals`` installs them).
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
from transformers import LlamaConfig, LlamaForSequenceClassification

import xattn
from xattn.evaluation import Dataset, Design, Scorer, load_dataset
from xattn.evaluation.block import Findings, Known
from xattn.evaluation.measuring import measure
from xattn.evaluation.runner import blocks
from xattn.model import Model
from xattn.model.batching import buckets
from xattn.model.prefixes import Prefixes
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
RUNS = 2


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


def shared(rows: Sequence[Row]) -> tuple[int, int]:
    """Return the tokens of inputs, and how many of them end a beginning that is new."""
    every = [row["input_ids"].astype("int32").tobytes() for row in rows]
    seen = {hash(ids[: 4 * end]) for ids in every for end in range(1, len(ids) // 4 + 1)}
    return sum(len(ids) for ids in every) // 4, len(seen)


class Unshared(Prefixes):
    """No beginnings are shared."""

    def logits(self, rows: Sequence[Row]) -> None:
        """Return nothing: every input runs whole."""


def causal(dataset: Dataset) -> None:
    """Print what shared beginnings buy on a Llama of random weights, 6 layers of 512."""
    tokenizer = xattn.load().tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1536, num_hidden_layers=6,
        num_attention_heads=8, pad_token_id=tokenizer.pad_token_id, num_labels=2,
    )  # fmt: skip
    model = Model(LlamaForSequenceClassification(config).eval(), tokenizer, name="llama")
    design = Design.of(
        ["occlusion", "rollout"], ["aopc_morf", "aopc_lerf", "leave_one_out"], ["mask"]
    )
    for chosen in (design.without(["oracle"]), design):
        times: dict[str, float] = {}
        for name, kind in (("whole", Unshared), ("shared", Prefixes), ("shared", Prefixes)):
            scorer, found = Scorer(model), Findings()
            scorer.prefixes = kind(model)
            for block in blocks(dataset):
                found.add(measure(model, block, chosen, scorer=scorer))
            took = found.seconds["score"] + found.seconds.get("oracle", 0.0)
            times[name] = min(took, times.get(name, took))
        done, all_tokens = scorer.prefixes.run, scorer.prefixes.tokens
        print(
            f"causal, {len(dataset)} texts, {len(chosen.methods)} methods"
            f"{' with' if 'oracle' in chosen.methods else ' without'} the search: inputs whole "
            f"{times['whole']:.2f} s, beginnings shared {times['shared']:.2f} s "
            f"({times['whole'] / times['shared']:.2f} times faster; "
            f"{done:,} of {all_tokens:,} tokens)"
        )


def _step(n: int) -> int:
    """Return about a tenth of `n` that divides it, as Quantus asks for."""
    return next(step for step in range(-(-n // 10), 0, -1) if n % step == 0)


def beside(model: Model, dataset: Dataset) -> None:
    """Print how long others and the harness take for what they have in common."""
    import metric_rivals

    works = {
        "ferret": (
            ("comprehensiveness:fractions=grid", "sufficiency:fractions=grid"), "delete",
            lambda text, ids, scores, label: metric_rivals.ferret(model, text, scores, label),
        ),
        "interpreto": (
            ("deletion", "insertion"), "mask",
            lambda text, ids, scores, label: [
                metric_rivals.interpreto(model, text, scores, label, kind, steps=10)
                for kind in ("Deletion", "Insertion")
            ],
        ),
        "Quantus": (
            ("deletion",), "mask",
            lambda text, ids, scores, label: metric_rivals.quantus(
                model, ids, scores, label, step=_step(len(ids))
            ),
        ),
    }  # fmt: skip
    for name, (measures, operator, theirs) in works.items():
        design = Design.of(METHODS, measures, [operator]).without(["oracle"])
        # without what every comparison adds, which the others do not compute
        design = replace(design, metrics=measures)
        explained, given = {}, []
        for block in blocks(dataset):
            found = measure(model, block, replace(design, metrics=(), operators=()))
            explained |= {(text, aim, a.method): a for text, aim, a in found.attributions}
        for (text, _, _), item in explained.items():
            scores = item.scores[~item.special].astype(float)
            ids = model.tokenizer(dataset.texts[text], add_special_tokens=False)["input_ids"]
            given.append((dataset.texts[text], ids, scores, model.label_id(item.prediction)))
        try:
            start = time.perf_counter()
            for one in given:
                theirs(*one)
            took = time.perf_counter() - start
        except ImportError as error:
            print(f"{name}: {error}")
            continue
        scorer, found = Recording(model), Findings()
        for block in blocks(dataset):
            found.add(measure(model, block, design, Known(explained), scorer))
        ours, floor = found.seconds["score"], bare_loop(model, scorer.rows)
        print(
            f"{name}: {', '.join(measures)} by {operator}, {len(given)} explanations: "
            f"{took:.2f} s; harness {ours:.2f} s, {took / ours:.1f} times faster; "
            f"floor {floor:.2f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--causal", action="store_true", help="what shared beginnings buy")
    parser.add_argument("--oracle", action="store_true", help="with the search for orders, too")
    options = parser.parse_args()
    model, dataset = xattn.load(), load_dataset(limit=options.limit)
    if options.texts is not None:
        texts = tuple(read(options.texts)[: options.limit])
        ids = tuple(map(str, range(len(texts))))
        dataset = replace(
            dataset, name=options.texts.name, texts=texts, pairs=None, labels=None,
            rationales=None, kinds=None, ids=ids,
        )  # fmt: skip
    if options.causal:
        causal(dataset)
        return
    if options.rivals:
        beside(model, dataset)
        return
    design = Design.of(METHODS, METRICS, ["delete", "mask"])
    for oracle in (False, True) if options.oracle else (False,):
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
        tokens, new = shared(scorer.rows)
        print(
            f"  tokens of these inputs {tokens:,}, behind a beginning that no other has {new:,}: "
            f"caches of beginnings could save {1 - new / tokens:.0%} in causal models"
        )
        print(f"  floor {floor:6.2f} s, harness {harness:6.2f} s, {harness / floor:.2f} times")


if __name__ == "__main__":
    main()
