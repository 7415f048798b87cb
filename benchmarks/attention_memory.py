"""Rollout on long texts: time and memory beside the bare model and beside holding all maps.

Run it with ``python benchmarks/attention_memory.py [LENGTH ...]``. For two models with random
weights and each length it prints

- seconds of the bare forward pass with fused attention (``sdpa``) and of ``rollout``, which keeps
  the head means of all layers and finds the readout, and their ratio: medians of interleaved runs
  in one process;
- the peak of resident memory above what the process held before the call, of both and of a forward
  pass that holds all maps (``eager``, ``output_attentions=True``), each in a process of its own;
- rollout's share: its peak above that of the bare forward pass, in percent of what the maps add.
"""

from __future__ import annotations

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
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from xattn.evaluation.truth.words import word_tokenizer
from xattn.methods.rollout import Rollout
from xattn.model import Model
from xattn.model.memory import Peak

LENGTHS = (512, 1024, 2048, 4096)
REPEATS = {512: 7, 1024: 5, 2048: 3, 4096: 3}
WORDS = [*"abcdefghijklmnopqrstuvwxyz"]
CONFIGS = {
    "gpt2": (12, 12, lambda: GPT2Config(n_positions=max(LENGTHS), pad_token_id=0)),
    "llama": (
        8,
        16,
        lambda: LlamaConfig(
            hidden_size=512,
            num_hidden_layers=8,
            num_attention_heads=16,
            num_key_value_heads=4,
            intermediate_size=1408,
            max_position_embeddings=max(LENGTHS),
            pad_token_id=0,
        ),
    ),
}
CLASSES = {"gpt2": GPT2ForSequenceClassification, "llama": LlamaForSequenceClassification}


def build(name: str) -> Model:
    torch.manual_seed(0)
    network = CLASSES[name](CONFIGS[name][2]()).eval()
    tokenizer = word_tokenizer(WORDS, "$A", max(LENGTHS))
    return Model(network, tokenizer, name=name, budget=max(LENGTHS))


def peak(task: Callable[[], Any]) -> int:
    """Return the bytes that a call takes above what is held before it."""
    with Peak(torch.device("cpu")) as taken:
        task()
    if taken.bytes is None:
        raise SystemExit("the high-water mark of memory cannot be reset here")
    return taken.bytes


def tasks(name: str, length: int) -> dict[str, Callable[[], Any]]:
    """Return what is measured, ready to run: bare forward pass, rollout, eager with all maps."""
    model = build(name)
    text = " ".join(WORDS[i * i % len(WORDS)] for i in range(length))
    batch = model.batch(model.encode([text]))
    target = model.target(batch, label=0)
    inputs = {key: batch.inputs[key] for key in model.input_names}
    model.attach()  # verified once a model

    def bare() -> Any:
        with torch.no_grad():
            return model.network(**inputs, use_cache=False)

    def eager() -> Any:
        model.network.set_attn_implementation("eager")
        with torch.no_grad():
            output = model.network(**inputs, use_cache=False, output_attentions=True)
        assert len(output.attentions) == CONFIGS[name][0]
        return output

    return {"bare": bare, "rollout": lambda: Rollout()(model, batch, target), "eager": eager}


def measure(name: str, length: int, what: str) -> Any:
    """Return a peak in bytes, or the seconds of interleaved runs of bare forward and rollout."""
    ready = tasks(name, length)
    if what != "time":
        tasks(name, 64)[what]()  # libraries set up their buffers and threads at the first call
        return peak(ready[what])
    seconds: dict[str, list[float]] = {"bare": [], "rollout": []}
    tasks(name, 64)["rollout"]()
    for _ in range(REPEATS.get(length, 3)):
        for key, list_ in seconds.items():
            start = time.perf_counter()
            ready[key]()
            list_.append(time.perf_counter() - start)
    return seconds


def child(name: str, length: int, what: str) -> Any:
    run = subprocess.run(
        [sys.executable, __file__, "--child", name, str(length), what],
        check=True,
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "TRANSFORMERS_VERBOSITY": "error",
            # With other load on the machine, threads that spin at barriers measure that load.
            "OMP_WAIT_POLICY": "passive",
            # Freed memory goes back at once: otherwise what an earlier call left in the allocator
            # would hide what this one needs. Not while timing: mapping pages costs time.
            **({} if what == "time" else {"MALLOC_MMAP_THRESHOLD_": "65536"}),
        },
    )
    return json.loads(run.stdout.splitlines()[-1])


def available() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        found = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(found.split()[1]) * 1024


def main(lengths: list[int]) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; memory in MB above start")
    print(
        f"{'model':6} {'length':>6} {'bare s':>8} {'rollout s':>9} {'ratio':>6} "
        f"{'bare':>7} {'rollout':>8} {'all maps':>9} {'share':>7}"
    )
    for name, (layers, heads, _) in CONFIGS.items():
        for length in lengths:
            seconds = {k: statistics.median(v) for k, v in child(name, length, "time").items()}
            bare, rollout = (child(name, length, what) for what in ("bare", "rollout"))
            maps = layers * heads * length * length * 4
            measured = maps * 1.4 < available()
            held = child(name, length, "eager") if measured else bare + maps
            share = (rollout - bare) / (held - bare)
            print(
                f"{name:6} {length:6} {seconds['bare']:8.3f} {seconds['rollout']:9.3f} "
                f"{seconds['rollout'] / seconds['bare']:6.2f} {bare / 1e6:7.0f} "
                f"{rollout / 1e6:8.0f} {held / 1e6:9.0f} {share:7.1%}"
                + ("" if measured else "  (all maps: too little memory here; their size alone)"),
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        main([int(length) for length in sys.argv[1:]] or list(LENGTHS))
