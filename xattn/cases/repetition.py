"""A small decoder that learns to continue what it has read before: one that has induction heads.

Olsson et al. 2022, In-context Learning and Induction Heads. Sequences of random tokens come twice,
so that the second half can be told from the first and from nothing else. Their length varies, so
that looking back by a fixed distance does not do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from xattn.demo.descent import Descent
from xattn.evaluation.truth.words import SPECIAL, word_tokenizer
from xattn.model import Model
from xattn.types import Ints

WORDS = 60
SHORTEST, LONGEST = 6, 20
"""Tokens of the sequence that is repeated."""


def draw_repeated(count: int, length: int, seed: int) -> Ints:
    """Return sequences of random tokens that come twice, ``[sequence, 1 + 2 · length]``.

    Each begins with the start token; no token comes twice within one half.
    """
    draw = np.random.default_rng(seed)
    halves = draw.permuted(np.tile(np.arange(WORDS), (count, 1)), axis=1)[:, :length] + len(SPECIAL)
    start = np.full((count, 1), SPECIAL.index("[CLS]"))
    return np.concatenate([start, halves, halves], axis=1)


def train_repetition(seed: int = 0, layers: int = 3, steps: int = 600) -> Model:
    """Train a decoder on sequences that repeat themselves, which takes half a minute.

    Parameters
    ----------
    seed : int
        Of weights and sequences.
    layers : int
        Two are needed: one head tells each token its predecessor, another looks for it. The third
        has heads that nothing rests on, which others can be compared with.
    steps : int
        Batches of 64 new sequences.

    Returns
    -------
    Model
        Llama, 4 heads, 64 wide, that continues sequences of `WORDS` words.
    """
    words = [f"w{number}" for number in range(WORDS)]
    tokenizer = word_tokenizer(words, "[CLS] $A", 2 * LONGEST + 2)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=2 * LONGEST + 2,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
        descent = Descent(network, peak=4e-3, steps=steps, weight_decay=0.01, warm_up=0.1)
        network.train()
        lengths = np.random.default_rng(seed).integers(SHORTEST, LONGEST + 1, size=steps)
        for step, length in enumerate(lengths.tolist()):
            ids = torch.from_numpy(draw_repeated(64, length, seed=1_000_000 * (seed + 1) + step))
            # what can be told: the second half but its first token
            logits = network(input_ids=ids).logits[:, length + 1 : -1]
            descent.step(cross_entropy(logits.flatten(0, 1), ids[:, length + 2 :].flatten()))
    return Model(network.eval(), tokenizer, name=f"repetition, {layers} layers")
