"""What every method costs: time, passes and memory, in units of one pass of the same model.

Run it with ``python benchmarks/methods.py [--sizes demo,bert,gpt2] [--rivals] [METHOD ...]``. For
each size (the demo classifier on a review; BERT-base and GPT-2-small size with random weights on 64
tokens) and each registered method it prints milliseconds a text (median of repeated calls after a
first one), the same in units of the bare forward pass and of the bare forward and backward pass of
that text, the passes that were counted, and the peak of resident memory above what was held before.
Every method runs in a process of its own.

``--rivals`` times what other libraries offer of the same methods on the same text, one after the
other in one process with ours: captum, interpreto, inseq, ferret and transformers-interpret, those
that are installed (``.ci/rivals`` installs them).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

import xattn
from xattn.errors import XattnError
from xattn.evaluation.truth.words import word_tokenizer
from xattn.model import Model
from xattn.registry import methods as registry

SIZES = ("demo", "bert", "gpt2")
TOKENS = 64
LIMIT = 20.0
"""Seconds after which a call is not repeated."""
REVIEW = "The plot is thin and the jokes are old, but the two leads are a constant delight."
WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]


def build(size: str) -> tuple[Model, str]:
    """Return a model and the text that is explained."""
    if size == "demo":
        return xattn.load(), REVIEW
    torch.manual_seed(0)
    network = (
        BertForSequenceClassification(BertConfig())
        if size == "bert"
        else GPT2ForSequenceClassification(GPT2Config(pad_token_id=0))
    )
    text = " ".join(WORDS[i * i % len(WORDS)] for i in range(TOKENS))
    return Model(network.eval(), word_tokenizer(WORDS, "$A", 512), name=size), text


def seconds(task: Callable[[], Any], repeats: int = 7) -> float:
    """Return the median time of a call, after one that is not counted unless it took long."""
    found: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        task()
        found.append(time.perf_counter() - start)
        if sum(found) > LIMIT:
            break
    return statistics.median(found[1:] or found)


def bare(model: Model, text: str) -> tuple[float, float]:
    """Return the seconds of a forward pass, and of one with a backward pass to the embeddings."""
    batch = model.batch(model.encode([text]))
    target = model.target(batch)
    embeddings = model.embeddings(batch.inputs).detach()
    with torch.no_grad():
        inputs = {name: batch.inputs[name] for name in model.input_names}
        forward = seconds(lambda: model.network(**inputs))
    return forward, seconds(lambda: model.embedding_gradient(batch.inputs, embeddings, target))


def measure(size: str, method: str) -> dict[str, Any]:
    """Return what one method costs; or the reason why it cannot be had."""
    model, text = build(size)
    forward, both = bare(model, text)
    try:
        xattn.explain(model, [text], [method])  # verification, compilation
        [item] = xattn.explain(model, [text], [method])
        spent = seconds(lambda: xattn.explain(model, [text], [method]))
    except XattnError as error:
        return {"refused": str(error)}
    return {
        "seconds": spent,
        "forward": forward,
        "both": both,
        "passes": (item.forward_passes, item.backward_passes),
        "peak": item.memory,
    }


def child(*arguments: str) -> Any:
    run = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        # Freed memory goes back at once: what an earlier call left would hide what this one needs.
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return json.loads(run.stdout.splitlines()[-1])


def costs(sizes: list[str], methods: list[str]) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for size in sizes:
        model, text = build(size)
        count = len(model.encode([text])[0])
        forward, both = bare(model, text)
        print(
            f"\n{size}, {count} tokens: forward {1e3 * forward:.1f} ms, "
            f"forward and backward {1e3 * both:.1f} ms"
        )
        print(f"{'method':22} {'ms':>9} {'× fwd':>7} {'× f+b':>7} {'passes':>11} {'peak MB':>8}")
        for method in methods:
            found = child(size, method)
            if "refused" in found:
                print(f"{method:22} refused: {found['refused']}", flush=True)
                continue
            ahead, back = found["passes"]
            used = "—" if found["peak"] is None else f"{found['peak'] / 1e6:.0f}"
            print(
                f"{method:22} {1e3 * found['seconds']:9.1f} "
                f"{found['seconds'] / found['forward']:7.1f} "
                f"{found['seconds'] / found['both']:7.1f} {f'{ahead:g} + {back:g}':>11} "
                f"{used:>8}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--rivals", action="store_true")
    chosen = parser.parse_args()
    if chosen.rivals:
        from rivals import beside

        for size in chosen.sizes.split(","):
            beside(size, *build(size), seconds)
        return
    costs(chosen.sizes.split(","), chosen.methods or registry.names())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()
