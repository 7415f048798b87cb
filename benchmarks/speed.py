"""Explaining 64 texts in one call against 64 calls, for methods that need gradients.

Run it with ``python benchmarks/speed.py [METHOD ...]``. Both ways explain the same demo reviews
with the demo model; the largest difference between their scores is printed as well. Medians of
interleaved repeats: other load on the machine falls on both.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

import xattn
from xattn.data import load_dataset

TEXTS = 64
REPEATS = 5
METHODS = ("integrated_gradients", "attention_gradient")


def main(methods: list[str]) -> None:
    model, texts = xattn.load(), list(load_dataset(limit=TEXTS).texts)
    lengths = [len(e) for e in model.encode(texts)]
    print(
        f"{len(texts)} texts of {min(lengths)} to {max(lengths)} tokens, "
        f"{torch.get_num_threads()} threads"
    )
    for method in methods:
        batched: list[float] = []
        single: list[float] = []
        xattn.explain(model, texts[:2], [method])  # verification, first-call costs
        for _ in range(REPEATS):
            start = time.perf_counter()
            together = xattn.explain(model, texts, [method])
            batched.append(time.perf_counter() - start)
            start = time.perf_counter()
            apart = [xattn.explain(model, [text], [method])[0] for text in texts]
            single.append(time.perf_counter() - start)
        difference = max(
            float(abs(a.scores - b.scores).max()) for a, b in zip(together, apart, strict=True)
        )
        one, many = statistics.median(batched), statistics.median(single)
        print(
            f"{method:22} one call {one:7.3f} s, {TEXTS} calls {many:7.3f} s: "
            f"{many / one:5.2f} times faster; scores differ by {difference:.1e} at most",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:] or list(METHODS))
