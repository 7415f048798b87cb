"""Two instructions that compete, and a small decoder that by habit follows the second one.

A prompt asks for two things of a list of symbols, for example ``say second or say fourth : k b x m
=``. In training the answer is what is said last, unless that is ``nothing``: so the model knows how
to follow an instruction in either place, and does not follow the first one if there is another.
Emphasising the first (post-hoc attention steering, Zhang et al. 2023) is asked to change that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from xattn.demo.descent import Descent
from xattn.evaluation.truth.words import word_tokenizer
from xattn.model import Model

PLACES = ("first", "second", "third", "fourth")
NOTHING = "nothing"
SYMBOLS = tuple("abcdefghijklmnopqrstuvwxyz")
LONGEST = 16


@dataclass(frozen=True)
class Instructions:
    """Prompts with two instructions each."""

    prompts: tuple[str, ...]
    first: tuple[tuple[int, int], ...]
    """Characters of the first instruction."""
    answers: tuple[tuple[str, str], ...]
    """What the first instruction asks for, and what the second does; empty for nothing."""


def draw_instructions(count: int, seed: int, *, alone: float = 0.0) -> Instructions:
    """Draw prompts whose instructions ask for different symbols.

    Parameters
    ----------
    count, seed : int
    alone : float
        Share of prompts in which one of both instructions is `NOTHING`.

    Examples
    --------
    >>> drawn = draw_instructions(1, seed=0)
    >>> drawn.prompts[0], drawn.answers[0]
    ('say third or say fourth : b h z g =', ('z', 'g'))
    """
    draw = np.random.default_rng(seed)
    prompts, spans, answers = [], [], []
    for _ in range(count):
        asked = [int(i) for i in draw.choice(len(PLACES), size=2, replace=False)]
        symbols = [str(s) for s in draw.choice(SYMBOLS, size=len(PLACES), replace=False)]
        words = [PLACES[i] for i in asked]
        wanted = [symbols[i] for i in asked]
        if draw.random() < alone:
            silent = int(draw.integers(2))
            words[silent], wanted[silent] = NOTHING, ""
        prompts.append(f"say {words[0]} or say {words[1]} : {' '.join(symbols)} =")
        spans.append((0, len(f"say {words[0]}")))
        answers.append((wanted[0], wanted[1]))
    return Instructions(tuple(prompts), tuple(spans), tuple(answers))


def train_instructions(seed: int = 0, steps: int = 900) -> Model:
    """Train the decoder, which takes half a minute.

    Parameters
    ----------
    seed : int
        Of weights and prompts.
    steps : int
        Batches of 64 new prompts.

    Returns
    -------
    Model
        Llama, 3 layers of 4 heads, 64 wide, that writes one symbol.
    """
    words = ["say", "or", ":", "=", NOTHING, *PLACES, *SYMBOLS]
    tokenizer = word_tokenizer(words, "[CLS] $A", LONGEST)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=LONGEST,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
        descent = Descent(network, peak=3e-3, steps=steps, weight_decay=0.01, warm_up=0.1)
        network.train()
        for step in range(steps):
            drawn = draw_instructions(64, seed=1_000_000 * (seed + 1) + step, alone=0.5)
            ids = tokenizer(list(drawn.prompts), return_tensors="pt")["input_ids"]
            wanted = [second or first for first, second in drawn.answers]
            answer = torch.tensor(tokenizer.convert_tokens_to_ids(wanted))
            descent.step(cross_entropy(network(input_ids=ids).logits[:, -1], answer))
    return Model(network.eval(), tokenizer, name="instructions")
