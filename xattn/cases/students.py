"""Three students of the demo model, of which it is known how much they have of it.

All are half as deep, with half as many heads; begin from the same weights, the words' embeddings
those of the teacher (as DistilBERT begins from its teacher; Sanh et al. 2019) and the rest random;
and read the same texts, pieces of film reviews. They differ in what they learn from:

``attention``
    The teacher's probabilities and its attention maps: those of the heads in `LAYERS` and `HEADS`,
    by Kullback-Leibler divergence (Wang et al. 2020, MiniLM, equation 3).
``output``
    The teacher's probabilities alone (Hinton et al. 2015).
``alone``
    The labels alone; it never sees the teacher's answers.

Train them with ``python -m xattn.cases.students --out DIR``: half a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import BertConfig, BertForSequenceClassification

from xattn.data import load_dataset
from xattn.demo.descent import Descent
from xattn.errors import UnknownNameError
from xattn.model import Model, load
from xattn.model.interface import attention_implementation

Kind = Literal["attention", "output", "alone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LAYERS = {0: 1, 1: 3}
"""Which of the teacher's layers each layer of the student learns from."""
HEADS = {0: 2, 1: 0}
"""Which of its heads each head learns from: not in their order, so that matching has to find it."""
LEARNED = 160
"""Reviews that are learnt from; the others are there to ask about."""
STEPS, BATCH = 250, 32
PIECES, WORDS = (1, 3), (3, 11)
"""Pieces that a text is put together from, and their words: fewest, most."""
FAINT = 1e-9
"""Attention under this counts as that much where its logarithm is taken."""


@dataclass(frozen=True)
class Reviews:
    """Film reviews with their classes, as the teacher numbers them."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


def reviews(teacher: Model) -> tuple[Reviews, Reviews]:
    """Return the reviews that students learn from, and others to ask about."""
    data = load_dataset(None)
    labels = [teacher.label_id(str(label)) for label in data.labels or ()]
    order = np.random.default_rng(0).permutation(len(data.texts)).tolist()
    parts = order[:LEARNED], order[LEARNED:]
    known, asked = (
        Reviews(tuple(data.texts[i] for i in part), tuple(labels[i] for i in part))
        for part in parts
    )
    return known, asked


def pieces(known: Reviews, count: int, seed: int) -> Reviews:
    """Put together texts from pieces of reviews of one class each.

    Examples
    --------
    >>> drawn = pieces(Reviews(("a dull plot", "a warm film"), (0, 1)), 1, seed=0)
    >>> drawn.texts[0] in ("a dull plot", "a warm film") or len(drawn.texts[0].split()) > 3
    True
    """
    draw = np.random.default_rng(seed)
    pairs = list(zip(known.texts, known.labels, strict=True))
    words = [[text.split() for text, label in pairs if label == k] for k in (0, 1)]
    texts, labels = [], []
    for _ in range(count):
        label = int(draw.integers(2))
        taken: list[str] = []
        for _ in range(int(draw.integers(PIECES[0], PIECES[1] + 1))):
            review = words[label][int(draw.integers(len(words[label])))]
            start = int(draw.integers(max(1, len(review) - WORDS[0] + 1)))
            taken += review[start : start + int(draw.integers(WORDS[0], WORDS[1] + 1))]
        texts.append(" ".join(taken))
        labels.append(label)
    return Reviews(tuple(texts), tuple(labels))


def train_student(kind: Kind, seed: int = 0, *, steps: int = STEPS) -> Model:
    """Train one student of the demo model, which takes five to ten seconds.

    Parameters
    ----------
    kind : {"attention", "output", "alone"}
    seed : int
        Of weights and texts.
    steps : int
        Batches of `BATCH` texts.

    Raises
    ------
    UnknownNameError
        For another kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("student", kind, KINDS)
    teacher = load()
    drawn = pieces(reviews(teacher)[0], steps * BATCH, seed)
    with torch.random.fork_rng(devices=[]), attention_implementation(teacher.network, "eager"):
        torch.manual_seed(seed)
        network = _network(teacher)
        descent = Descent(network, peak=1e-3, steps=steps, weight_decay=0.01, warm_up=0.1)
        network.train()
        for start in range(0, steps * BATCH, BATCH):
            some = slice(start, start + BATCH)
            encoded = teacher.tokenizer(list(drawn.texts[some]), padding=True, return_tensors="pt")
            inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            said = network(**inputs, output_attentions=kind == "attention")
            if kind == "alone":
                descent.step(cross_entropy(said.logits, torch.tensor(drawn.labels[some])))
                continue
            with torch.no_grad():
                told = teacher.network(**inputs, output_attentions=kind == "attention")
            wanted = told.logits.softmax(-1)
            loss = kl_div(said.logits.log_softmax(-1), wanted, reduction="batchmean")
            if kind == "attention":
                real = inputs["attention_mask"].bool()
                loss = loss + _distance(told.attentions, said.attentions, real)
            descent.step(loss)
    return Model(network.eval(), teacher.tokenizer, name=f"student-{kind}")


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor], real: Tensor) -> Tensor:
    """Return the divergence of the student's maps, mean over rows and heads, sum over layers."""
    heads = list(HEADS.values())
    parts = []
    for student, teacher in LAYERS.items():
        p, q = ours[teacher][:, heads], theirs[student][:, list(HEADS)]
        rows = (p * (p.clamp_min(FAINT).log() - q.clamp_min(FAINT).log())).sum(-1)
        parts.append((rows * real[:, None]).sum() / (real.sum() * len(heads)))
    return torch.stack(parts).sum()


def _network(teacher: Model) -> BertForSequenceClassification:
    """Return a student that knows the words and nothing else."""
    full = teacher.network.config
    config = BertConfig(
        vocab_size=full.vocab_size,
        hidden_size=full.hidden_size,
        num_hidden_layers=len(LAYERS),
        num_attention_heads=len(HEADS),
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=full.max_position_embeddings,
        pad_token_id=full.pad_token_id,
        id2label=full.id2label,
        label2id=full.label2id,
        attn_implementation="eager",
    )
    network = BertForSequenceClassification(config)
    network.bert.embeddings.load_state_dict(teacher.network.bert.embeddings.state_dict())
    network.bert.embeddings.requires_grad_(False)
    return network


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, and save students as folders of their kind."""
    parser = argparse.ArgumentParser(prog="python -m xattn.cases.students", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder for the students")
    parser.add_argument("--kind", choices=KINDS, action="append", help="all by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for kind in options.kind or KINDS:
        student = train_student(kind, options.seed)
        student.network.save_pretrained(options.out / kind)
        student.tokenizer.save_pretrained(options.out / kind)
        print(f"wrote {options.out / kind}")


if __name__ == "__main__":
    main()
