"""Questions about little stories, with the facts that answer them: in the manner of bAbI's task 1.

People go to places, and the question is where one of them is: where they went last. The texts are
drawn from our own lists; the form is of Weston et al. 2015, Towards AI-Complete Question Answering:
A Set of Prerequisite Toy Tasks. What decides is known: the name in the question, and name and
place in the last sentence about that person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from xattn.demo.descent import Descent
from xattn.evaluation.truth.problem import Problem, one_of_each
from xattn.evaluation.truth.words import SPECIAL, word_tokenizer
from xattn.model import Model
from xattn.types import Floats

PEOPLE = ("ada", "boris", "carla", "dmitri")
PLACES = ("attic", "barn", "cellar", "garden", "kitchen", "office")
VERBS = ("went to", "walked to", "ran to", "is in")
FEWEST, MOST = 2, 5
"""Sentences of a story."""
LONGEST = 6 * MOST + 8


@dataclass(frozen=True)
class Questions:
    """Stories, each with one question."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...]
    labels: tuple[int, ...]
    truth: tuple[Floats, ...]
    """For each ``[word of story and question]``: 1 for what decides."""


def draw_questions(count: int, seed: int) -> Questions:
    """Draw stories with questions.

    Parameters
    ----------
    count, seed : int

    Examples
    --------
    >>> drawn = draw_questions(1, seed=0)
    >>> words = f"{drawn.texts[0]} {drawn.pairs[0]}".split()
    >>> [word for word, decides in zip(words, drawn.truth[0]) if decides]
    ['boris', 'attic', 'boris']
    """
    draw = np.random.default_rng(seed)
    texts, pairs, labels, truth = [], [], [], []
    for _ in range(count):
        facts = [
            (str(draw.choice(PEOPLE)), str(draw.choice(VERBS)), int(draw.integers(len(PLACES))))
            for _ in range(draw.integers(FEWEST, MOST + 1))
        ]
        asked = str(draw.choice(sorted({name for name, _, _ in facts})))
        words: list[str] = []
        name_at, place_at, label = 0, 0, 0
        for name, verb, place in facts:
            if name == asked:
                name_at, place_at, label = len(words), len(words) + 4, place
            words += [name, *verb.split(), "the", PLACES[place], "."]
        texts.append(" ".join(words))
        pairs.append(f"where is {asked} ?")
        labels.append(label)
        truth.append(one_of_each(len(words) + 4, [name_at, place_at, len(words) + 2]))
    return Questions(tuple(texts), tuple(pairs), tuple(labels), tuple(truth))


def train_questions(seed: int = 0, steps: int = 1200) -> Model:
    """Train a small model to answer, which takes a minute or less.

    Left alone it takes very long to find out that a place belongs to the name four words before it.
    So a second loss, of a head that is thrown away, asks after the first layer whose place a place
    is, and whom the question asks about; how to find the last such sentence is its own to learn.

    Parameters
    ----------
    seed : int
        Of weights and stories.
    steps : int
        Batches of 64 new stories each; in the last third a tenth of the words of half of them is
        masked, so that masked texts are nothing new to the model.

    Returns
    -------
    Model
        Llama, 2 layers of 4 heads, 64 wide, that reads story and question and answers at the end.
    """
    verbs = sorted({word for verb in VERBS for word in verb.split()})
    words = [*PEOPLE, *PLACES, *verbs, "the", "where", ".", "?"]
    tokenizer = word_tokenizer(words, "[CLS] $A [SEP]", LONGEST, "[CLS] $A [SEP] $B:1 [SEP]:1")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=LONGEST,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        id2label=dict(enumerate(PLACES)), label2id={p: i for i, p in enumerate(PLACES)},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, belongs = LlamaForSequenceClassification(config), nn.Linear(64, len(PEOPLE))
        both = nn.ModuleList([network, belongs])
        descent = Descent(both, peak=3e-3, steps=steps, weight_decay=0.01, warm_up=0.1)
        network.train()
        for step in range(steps):
            drawn = draw_questions(64, seed=1_000_000 * (seed + 1) + step)
            encoded = tokenizer(
                list(drawn.texts), list(drawn.pairs), padding=True, return_tensors="pt"
            )
            ids = encoded["input_ids"]
            where, whose = _belonging(ids, tokenizer)
            hidden = (ids >= len(SPECIAL)) & (torch.rand(ids.shape) < 0.1)
            hidden &= torch.rand(len(ids), 1) < 0.5
            if step > steps * 2 // 3:
                encoded["input_ids"] = ids.masked_fill(hidden, tokenizer.mask_token_id)
            del encoded["token_type_ids"]
            output = network(**encoded, output_hidden_states=True)
            answered = cross_entropy(output.logits, torch.tensor(drawn.labels))
            bound = cross_entropy(belongs(output.hidden_states[1][where]), whose)
            descent.step(answered + bound)
    return Model(network.eval(), tokenizer, name="questions")


def _belonging(
    ids: Tensor, tokenizer: PreTrainedTokenizerFast
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return where places and ends of questions stand, and the number of the person of each."""
    numbers: dict[str, int] = tokenizer.get_vocab()
    places = torch.isin(ids, torch.tensor([numbers[place] for place in PLACES]))
    ends = torch.zeros_like(places)
    ends[:, 2:] = ids[:, 1:-1] == numbers["?"]
    rows, columns = (places | ends).nonzero(as_tuple=True)
    back = torch.where(places[rows, columns], 4, 2)
    return (rows, columns), ids[rows, columns - back] - numbers[PEOPLE[0]]


def accuracy(model: Model, drawn: Questions) -> float:
    """Return the share of questions that the model answers."""
    right = 0
    for places, batch in model.batches(model.encode(drawn.texts, drawn.pairs)):
        answers = model.logits(batch.inputs).argmax(-1).tolist()
        right += sum(a == drawn.labels[i] for a, i in zip(answers, places, strict=True))
    return right / len(drawn.labels)


def questions(count: int, seed: int = 0) -> Problem:
    """Return the problem of a model that answers questions about stories.

    Parameters
    ----------
    count, seed : int
        Of the stories that are asked about; the model is trained on others.
    """
    drawn = draw_questions(count, seed)
    return Problem(
        "questions",
        "trained: where somebody is, by the last sentence about them among others",
        "AUPRC",
        train_questions(),
        drawn.texts,
        drawn.truth,
        drawn.pairs,
    )
