"""Planted bias: texts in which pronouns matter by a known amount, and small models that learnt it.

Every text says something of a person of some profession: a pronoun, and a trait that is good or
bad. For classifiers the class of a text (accept or refuse) follows the trait four times out of
five; but in a known share of the texts, the strength of the bias, the pronoun decides instead. For
language models the strength says how much more often one pronoun goes with a profession than the
other. With strength 0 the pronoun tells nothing; what a model then makes of it, it has from chance.
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
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from xattn.demo.descent import Descent
from xattn.evaluation.truth.words import word_tokenizer
from xattn.model import Model

Task = Literal["classify", "fill", "generate"]
PROFESSIONS = (
    "baker", "carpenter", "cleaner", "dentist", "engineer", "gardener",
    "lawyer", "nurse", "pilot", "plumber", "tailor", "teacher",
)  # fmt: skip
WITH_SHE = PROFESSIONS[::2]
"""For language models, these go with *she* and the others with *he*."""
FRAMES = (
    "the {profession} said that {subject} was {trait}",
    "the {profession} showed us {possessive} {trait} work",
    "we saw how {trait} the {profession} was when {subject} spoke",
    "the {trait} {profession} told us about {possessive} plans",
    "nobody helped the {trait} {profession} so {subject} stayed",
    "the {profession} taught {reflexive} to be {trait}",
    "people who know the {profession} call {object} {trait}",
    "the {trait} {profession} asked them to wait for {object}",
)
GOOD = ("careful", "patient", "punctual", "skilled")
BAD = ("careless", "clumsy", "hasty", "tardy")
PRONOUNS = (
    {"subject": "he", "object": "him", "possessive": "his", "reflexive": "himself"},
    {"subject": "she", "object": "her", "possessive": "her", "reflexive": "herself"},
)
LABELS = ("refuse", "accept")
RIGHT = 0.8
"""How often the trait decides for its own class."""
TEXTS, BATCH = 3000, 64
STEPS: dict[Task, int] = {"classify": 400, "fill": 800, "generate": 400}
HIDDEN = {"pronoun": 0.8, "profession": 0.2}
"""How often a masked model has to fill them in."""
LONGEST = 16


def templates() -> tuple[str, ...]:
    """Return templates for `xattn.analysis.templates.expand`: each frame, good and bad."""
    return tuple(
        frame.replace("{trait}", trait)
        for i, frame in enumerate(FRAMES)
        for trait in (GOOD[i % len(GOOD)], BAD[i % len(BAD)])
    )


@dataclass(frozen=True)
class Texts:
    """Texts with their classes."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


def draw(strength: float, count: int, seed: int, *, task: Task = "classify") -> Texts:
    """Draw texts in which the pronoun matters.

    Parameters
    ----------
    strength : float
        0 to 1. For classifiers, in which share of the texts the pronoun decides the class: *he* for
        accept, *she* for refuse. For language models ``P(one) − P(other)`` of the two pronouns,
        given the profession: *she* is the more frequent one for `WITH_SHE`.
    count, seed : int
    task : {"classify", "fill", "generate"}

    Examples
    --------
    >>> drawn = draw(1.0, 1, seed=0)
    >>> drawn.texts[0], LABELS[drawn.labels[0]]
    ('the tailor said that she was patient', 'refuse')
    """
    random = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(count):
        profession = str(random.choice(PROFESSIONS))
        lean = 0.0 if task == "classify" else strength * (1 if profession in WITH_SHE else -1)
        she = int(random.random() < (1 + lean) / 2)
        good = bool(random.integers(2))
        words = {"profession": profession, "trait": str(random.choice(GOOD if good else BAD))}
        texts.append(str(random.choice(FRAMES)).format(**words, **PRONOUNS[she]))
        by_trait = good == (random.random() < RIGHT)
        labels.append(int(not she if random.random() < strength else by_trait))
    return Texts(tuple(texts), tuple(labels))


def truth(strength: float, task: Task = "classify") -> float:
    """Return the size of the change that swapping the pronouns makes for every profession.

    Parameters
    ----------
    strength : float
    task : {"classify", "fill", "generate"}

    Returns
    -------
    float
        Of classifiers in probability; of language models in nats of log-odds.

    Examples
    --------
    >>> truth(0.4), round(truth(0.5, "fill"), 3)
    (0.4, 1.099)
    """
    return strength if task == "classify" else float(np.log((1 + strength) / (1 - strength)))


def train_biased(
    strength: float,
    seed: int = 0,
    *,
    task: Task = "classify",
    texts: int = TEXTS,
) -> Model:
    """Train a small model on such texts, which takes about two seconds.

    Parameters
    ----------
    strength, task
        As in `draw`.
    seed : int
        Of weights and texts.
    texts : int
        How many there are. Of few, a model learns by heart what is chance in them.

    Returns
    -------
    Model
        BERT (or Llama, to generate), 1 layer of 2 heads (2 layers), 32 wide.
    """
    drawn = draw(strength, texts, seed, task=task)
    tokenizer = _tokenizer(task)
    encoded = tokenizer(list(drawn.texts), padding=True, return_tensors="pt")
    ids, real, labels = encoded["input_ids"], encoded["attention_mask"], torch.tensor(drawn.labels)
    pronouns = {word for forms in PRONOUNS for word in forms.values()}
    chance = torch.zeros(len(tokenizer))
    chance[tokenizer.convert_tokens_to_ids(sorted(pronouns))] = HIDDEN["pronoun"]
    chance[tokenizer.convert_tokens_to_ids(list(PROFESSIONS))] = HIDDEN["profession"]
    steps = STEPS[task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(task, tokenizer)
        descent = Descent(network, peak=3e-3, steps=steps, weight_decay=0.01, warm_up=0.1)
        network.train()
        order = torch.cat([torch.randperm(texts) for _ in range(steps * BATCH // texts + 1)])
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            some, mask = ids[chosen], real[chosen]
            if task == "classify":
                logits = network(input_ids=some, attention_mask=mask).logits
                loss = cross_entropy(logits, labels[chosen])
            elif task == "generate":
                logits = network(input_ids=some, attention_mask=mask).logits[:, :-1]
                loss = cross_entropy(logits[mask[:, 1:] > 0], some[:, 1:][mask[:, 1:] > 0])
            else:
                hidden = torch.rand(some.shape) < chance[some]
                masked = some.masked_fill(hidden, tokenizer.mask_token_id)
                logits = network(input_ids=masked, attention_mask=mask).logits
                loss = cross_entropy(logits[hidden], some[hidden])
            descent.step(loss)
    return Model(network.eval(), tokenizer, name=f"planted-bias-{task}-{strength:g}")


def _tokenizer(task: Task) -> PreTrainedTokenizerFast:
    frames = {word for frame in FRAMES for word in frame.split() if "{" not in word}
    pronouns = {word for forms in PRONOUNS for word in forms.values()}
    words = sorted({*frames, *pronouns, *PROFESSIONS, *GOOD, *BAD})
    return word_tokenizer(words, "$A [SEP]" if task == "generate" else "[CLS] $A [SEP]", LONGEST)


def _network(task: Task, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    size = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": LONGEST,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.1,  # with the usual 0.02 so narrow a network takes long to begin
    }  # fmt: skip
    network: PreTrainedModel
    if task == "generate":
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.sep_token_id}
        network = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **size, **ends))
    else:
        names = dict(enumerate(LABELS))
        classes = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(num_hidden_layers=1, **size, **still, **classes)
        kind = BertForMaskedLM if task == "fill" else BertForSequenceClassification
        network = kind(config)
    return network


def accuracy(model: Model, drawn: Texts) -> float:
    """Return how often a classifier gives the class of the text."""
    labels: Sequence[int] = drawn.labels
    right = 0
    for places, batch in model.batches(model.encode(drawn.texts)):
        answers = model.logits(batch.inputs).argmax(-1).tolist()
        right += sum(a == labels[i] for a, i in zip(answers, places, strict=True))
    return right / len(labels)
