"""Planted words: texts whose class one known word decides, and small models that have learnt it.

Every text is a row of filler words with a single key word somewhere; the key's class is the text's
class. A model that is right on new texts must have used the key, since nothing else tells: a method
that explains it has to put the key first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from xattn.demo.descent import Descent
from xattn.evaluation.truth.words import SPECIAL, word_tokenizer
from xattn.model import Model

Kind = Literal["encoder", "decoder"]
KEYS = {
    "fruit": ("apple", "cherry", "melon", "plum"),
    "metal": ("copper", "iron", "silver", "tin"),
    "river": ("danube", "ganges", "nile", "volga"),
}
"""The key words of each class."""
FILLERS = tuple(
    first + last
    for first in ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu")
    for last in ("lan", "mer", "nok", "rit", "sum", "tev")
)
"""Words that mean nothing."""
SHORTEST, LONGEST = 6, 20


@dataclass(frozen=True)
class Planted:
    """Texts with one key word each."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    keys: tuple[int, ...]
    """Which word of each text is the key, counted from 0."""


def plant(count: int, seed: int) -> Planted:
    """Draw texts with a key word at a random place.

    Parameters
    ----------
    count, seed : int

    Examples
    --------
    >>> drawn = plant(1, seed=0)
    >>> drawn.texts[0].split()[drawn.keys[0]] in list(KEYS.values())[drawn.labels[0]]
    True
    """
    draw = np.random.default_rng(seed)
    texts, labels, keys = [], [], []
    for _ in range(count):
        words = list(draw.choice(FILLERS, size=draw.integers(SHORTEST, LONGEST + 1)))
        label, place = int(draw.integers(len(KEYS))), int(draw.integers(len(words)))
        words[place] = str(draw.choice(list(KEYS.values())[label]))
        texts.append(" ".join(words))
        labels.append(label)
        keys.append(place)
    return Planted(tuple(texts), tuple(labels), tuple(keys))


def _tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    words = [*FILLERS, *(key for keys in KEYS.values() for key in keys)]
    single = "[CLS] $A [SEP]" if kind == "encoder" else "$A [SEP]"
    return word_tokenizer(words, single, LONGEST + 2)


def train_planted(kind: Kind = "encoder", seed: int = 0, steps: int = 400) -> Model:
    """Train a small model on planted words, which takes seconds.

    Parameters
    ----------
    kind : {"encoder", "decoder"}
        BERT or Llama, 3 layers of 4 heads, 64 wide.
    seed : int
        Of weights and texts.
    steps : int
        Batches of 64 new texts each; a tenth of the words is masked, so that masked texts are
        nothing new to the model.
    """
    tokenizer = _tokenizer(kind)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": LONGEST + 2,
        "pad_token_id": tokenizer.pad_token_id,
        "id2label": dict(enumerate(KEYS)),
        "label2id": {name: number for number, name in enumerate(KEYS)},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = (
            BertForSequenceClassification(BertConfig(**size))
            if kind == "encoder"
            else LlamaForSequenceClassification(LlamaConfig(**size))
        )
        descent = Descent(network, peak=2e-3, steps=steps, weight_decay=0.01, warm_up=0.1)
        network.train()
        for step in range(steps):
            drawn = plant(64, seed=10_000 * (seed + 1) + step)
            encoded = tokenizer(list(drawn.texts), padding=True, return_tensors="pt")
            ids, labels = encoded["input_ids"], torch.tensor(drawn.labels)
            filler = (ids >= len(SPECIAL)) & (ids < len(SPECIAL) + len(FILLERS))
            hidden = filler & (torch.rand(ids.shape) < 0.1)
            encoded["input_ids"] = ids.masked_fill(hidden, tokenizer.mask_token_id)
            descent.step(cross_entropy(network(**encoded).logits, labels))
    return Model(network.eval(), tokenizer, name=f"planted-{kind}")


def accuracy(model: Model, drawn: Planted) -> float:
    """Return the share of texts whose class the model predicts."""
    right = 0
    labels: Sequence[int] = drawn.labels
    for positions, batch in model.batches(model.encode(drawn.texts)):
        predicted = model.logits(batch.inputs).argmax(-1).tolist()
        right += sum(p == labels[i] for p, i in zip(predicted, positions, strict=True))
    return right / len(labels)


def invariance(model: Model, drawn: Planted, seed: int = 0, copies: int = 5) -> float:
    """Return the share of texts that keep their class when all but the key is drawn anew.

    Parameters
    ----------
    model : Model
    drawn : Planted
    seed, copies : int
        Of what is drawn, and how often each text is.

    Returns
    -------
    float
        1 where nothing but the key decides.
    """
    draw = np.random.default_rng(seed)
    texts = []
    for text, key in zip(drawn.texts, drawn.keys, strict=True):
        for _ in range(copies):
            words = list(draw.choice(FILLERS, size=len(text.split())))
            words[key] = text.split()[key]
            texts.append(" ".join(words))
    labels = tuple(label for label in drawn.labels for _ in range(copies))
    keys = tuple(key for key in drawn.keys for _ in range(copies))
    return accuracy(model, Planted(tuple(texts), labels, keys))
