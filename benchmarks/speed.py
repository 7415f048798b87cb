"""What the adapter costs: attaching and detaching a tap, and texts one by one or together.

Run it with ``python benchmarks/speed.py [METHOD ...]``. First, milliseconds for opening and closing
the tap around a forward pass of a network of 12 layers (random weights), by backend, beside what
holding the network costs without a tap; and how many forward passes the verification runs. Then the
same 64 demo reviews explained in one call and in 64 calls, by methods that need gradients; the
largest difference between their scores is printed as well. Medians of interleaved repeats: other
load on the machine falls on both.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import xattn
from xattn.data import load_dataset
from xattn.model import Edit, Model

TEXTS = 64
REPEATS = 5
METHODS = ("integrated_gradients", "attention_gradient")


def attaching(name: str, network: PreTrainedModel) -> None:
    words = {word: i for i, word in enumerate(["[PAD]", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    model = Model(network.eval(), fast)
    passes = model.passes.forward
    backend = model.attach().backend
    passes = (model.passes.forward - passes) // 2  # the probe holds two texts
    inputs = model.batch(model.encode(["a b c"])).inputs
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(100):
        for tapped, list_ in seconds.items():
            recordings = [Edit(probabilities=lambda site, p: p)] if tapped else []
            start = time.perf_counter()
            with model.borrowed(inputs, recordings):
                pass
            list_.append(time.perf_counter() - start)
    with_, without = (1e3 * statistics.median(seconds[tapped]) for tapped in (True, False))
    print(
        f"{name:12} by {backend:9}: attach and detach {with_:5.2f} ms, held without a tap "
        f"{without:5.2f} ms; verified by {passes} forward passes, one without a tap",
        flush=True,
    )


def main(methods: list[str]) -> None:
    size = {"hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 4}
    small = {"vocab_size": 9, "intermediate_size": 64, "pad_token_id": 0}
    attaching("bert", BertForSequenceClassification(BertConfig(**size, **small)))
    attaching("llama", LlamaForSequenceClassification(LlamaConfig(**size, **small)))
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    deberta = DebertaV2Config(**size, **small, **relative)
    attaching("deberta-v2", DebertaV2ForSequenceClassification(deberta))
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
