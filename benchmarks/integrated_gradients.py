"""How near integrated gradients come to what their passes cost, and how many passes they need.

Run it with ``python benchmarks/integrated_gradients.py [floor] [steps] [corpus] [--texts FILE]``.

``floor``: a network of BERT-base size (random weights) and one text of 64 and one of 128 tokens, 50
steps. A bare loop runs the same forward and backward passes, batched at the size that is fastest
for it. Beside it stand xattn, which chooses its batches itself, captum with the
``internal_batch_size`` that is fastest for it, and captum as it comes (all steps at once). Rounds
are interleaved, so that other load on the machine falls on all alike; medians.

``steps``: passes and completeness gaps on the demo reviews, by the rule that stops at a gap of 1 %
and by sums of 50 fixed steps.

``corpus``: all texts of a file (``--texts``: one a line, or Stanford trees, of which the neutral
ones are left out; by default the demo reviews) explained to a gap of 1 % by xattn, and with 50
steps by captum, texts sorted by length, at the fastest number of inputs a pass.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import LayerIntegratedGradients
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import xattn
from xattn.data import load_dataset
from xattn.model import Model
from xattn.types import Attribution, Batch

STEPS = 50
ROUNDS = 3
SIZES = (4, 8, 16, 32, 50)
"""Inputs a pass that are tried for the loop and for captum."""
ROWS = (32, 64, 128, 256)
"""Inputs a pass that are tried for captum on a corpus of short texts."""
FIXED = f"integrated_gradients:steps={STEPS},max_steps={STEPS}"
Task = Callable[[], Any]


def timed(task: Task) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def fastest(candidates: Mapping[int, Task]) -> int:
    """Return the key of the task that takes least, the better of two runs each."""
    found = {key: min(timed(task), timed(task)) for key, task in candidates.items()}
    return min(found, key=found.__getitem__)


def interleaved(tasks: Mapping[str, Task]) -> dict[str, list[float]]:
    """Return the seconds of each task in every round."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            found[name].append(timed(task))
    return found


def captum(model: Model, batch: Batch, label: Sequence[int], size: int | None) -> Tensor:
    """Return captum's scores of a batch, ``[batch, token]``."""
    ids = batch.inputs["input_ids"]
    baseline = torch.where(batch.special, ids, model.token_id("auto"))
    names = [name for name in model.input_names if name in batch.inputs and name != "input_ids"]

    def forward(ids: Tensor, *extras: Tensor) -> Tensor:
        given = dict(zip(names, extras, strict=True))
        return model.network(input_ids=ids, **given).logits  # type: ignore[no-any-return]

    method = LayerIntegratedGradients(forward, model.network.get_input_embeddings())
    scores: Tensor = method.attribute(
        ids,
        baseline,
        target=list(label),
        additional_forward_args=tuple(batch.inputs[name] for name in names),
        n_steps=STEPS,
        internal_batch_size=size,
    ).sum(-1)
    return scores


# ---------------------------------------------------------------- the floor


def bert_base() -> Model:
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(200))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", mask_token="[MASK]", model_max_length=512
    )
    network = BertForSequenceClassification(BertConfig()).eval()
    for parameter in network.parameters():  # what captum and the loop would otherwise differ by
        parameter.requires_grad_(False)
    return Model(network, fast, name="BERT-base size")


def loop(model: Model, batch: Batch, size: int) -> None:
    """Run the passes of 50 steps, `size` inputs together, and nothing else."""
    embeddings = model.embeddings(batch.inputs).expand(STEPS, -1, -1).clone()
    for part in torch.split(embeddings, size):
        mask = batch.inputs["attention_mask"].expand(len(part), -1)
        leaf = part.detach().requires_grad_()
        logits = model.network(inputs_embeds=leaf, attention_mask=mask).logits
        torch.autograd.grad(logits[:, 0].sum(), leaf)


def floor() -> None:
    model = bert_base()
    for tokens in (64, 128):
        text = " ".join(f"w{i * i % 200}" for i in range(tokens))
        batch = model.batch(model.encode([text]))
        label = model.logits(batch.inputs).argmax(-1).tolist()

        def rival(size: int | None, batch: Batch = batch, label: Any = label) -> Task:
            return lambda: captum(model, batch, label, size)

        def bare(size: int, batch: Batch = batch) -> Task:
            return lambda: loop(model, batch, size)

        best, theirs = fastest({s: bare(s) for s in SIZES}), fastest({s: rival(s) for s in SIZES})
        found = interleaved(
            {
                "bare loop": bare(best),
                "xattn": lambda text=text: xattn.explain(model, [text], [FIXED]),
                "captum, tuned": rival(theirs),
                "captum, default": rival(None),
            }
        )
        own = model.budget // tokens
        print(
            f"BERT-base size, {tokens} tokens, {STEPS} steps, {torch.get_num_threads()} threads; "
            f"fastest inputs a pass: loop {best}, captum {theirs} (xattn takes {min(own, STEPS)})"
        )
        reference = found["bare loop"]
        for name, seconds in found.items():
            ratio = statistics.median(s / r for s, r in zip(seconds, reference, strict=True))
            print(f"  {name:16} {statistics.median(seconds):7.2f} s, {ratio:5.2f} times the loop")


# ---------------------------------------------------------------- passes and gaps


def gaps(items: Sequence[Attribution]) -> list[float]:
    """Return each text's gap relative to what its scores must sum to."""
    found = []
    for item in items:
        assert item.gap is not None
        found.append(abs(item.gap) / abs(float(item.scores.sum(dtype=np.float64)) - item.gap))
    return found


def steps() -> None:
    model, texts = xattn.load(), list(load_dataset().texts)
    print(f"{len(texts)} demo reviews: median passes a text, and relative gaps")
    specs = ("integrated_gradients", f"{FIXED},rule=riemann", FIXED)
    for spec in specs:
        items = list(xattn.explain(model, texts, [spec]))
        ahead = statistics.median(item.forward_passes for item in items)
        back = statistics.median(item.backward_passes for item in items)
        closed = gaps(items)
        print(
            f"  {spec:58} {ahead:5.1f} forward, {back:5.1f} backward; gap: median "
            f"{statistics.median(closed):.1e}, worst {max(closed):.1e}, "
            f"{np.mean([gap > 0.01 for gap in closed]):4.0%} above 1 %"
        )


# ---------------------------------------------------------------- a corpus


def read(path: Path | None) -> list[str]:
    """Return the texts of a file; of trees ``(4 (2 word) ...)`` those that are not neutral."""
    if path is None:
        return list(load_dataset().texts)
    lines = path.read_text(encoding="utf-8").splitlines()
    if not all(re.match(r"\(\d ", line) for line in lines):
        return lines
    words = (re.findall(r" ([^()]+)\)", line) for line in lines if line[1] != "2")
    return [" ".join(some).replace("-LRB-", "(").replace("-RRB-", ")") for some in words]


def corpus(path: Path | None) -> None:
    model, texts = xattn.load(), read(path)
    encodings = model.encode(texts)
    order = sorted(range(len(texts)), key=lambda i: -len(encodings[i]))
    batches = []
    for start in range(0, len(order), 16):
        batch = model.batch([encodings[i] for i in order[start : start + 16]])
        batches.append((batch, model.logits(batch.inputs).argmax(-1).tolist()))

    def rival(size: int, every: int = 1) -> Task:
        return lambda: [captum(model, b, label, size) for b, label in batches[::every]]

    best = fastest({size: rival(size, every=8) for size in ROWS})
    ours: list[Attribution] = []

    def explain() -> None:
        ours[:] = xattn.explain(model, encodings, ["integrated_gradients"])

    found = interleaved({"xattn": explain, "captum": rival(best)})
    ratio = statistics.median(c / x for x, c in zip(*found.values(), strict=True))
    closed = gaps(ours)
    print(
        f"{len(texts)} texts, {torch.get_num_threads()} threads: xattn to a gap of 1 % "
        f"{statistics.median(found['xattn']):.1f} s (worst gap {max(closed):.1e}, "
        f"{np.mean([gap > 0.01 for gap in closed]):.1%} above 1 %), captum with {STEPS} steps "
        f"and {best} inputs a pass {statistics.median(found['captum']):.1f} s: {ratio:.2f} times"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=("floor", "steps", "corpus"), default=[])
    parser.add_argument("--texts", type=Path)
    options = parser.parse_args()
    parts = {"steps": steps, "floor": floor, "corpus": lambda: corpus(options.texts)}
    for name in options.parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
