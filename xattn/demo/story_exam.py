"""What the demo storyteller has learned, measured on stories that it has not read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xattn.demo.batches import PAD, pad
from xattn.demo.lexicon import BOYS, GIRLS
from xattn.demo.plots import CLASSES
from xattn.demo.stories import Question, Story

_BATCH = 64


@dataclass(frozen=True)
class Answers:
    """How many questions were answered with exactly the right sentence.

    Attributes
    ----------
    right, total
        Number of right answers and of questions.
    chance
        Expected number of right answers if a word of the right kind were drawn from the story,
        and everything else came out right.
    """

    right: int
    total: int
    chance: float


@dataclass(frozen=True)
class Result:
    """What was measured on held-out stories.

    Attributes
    ----------
    stories
        Their number; one question was asked about each.
    perplexity
        Per token of the stories' texts.
    unigram
        Perplexity of guessing each token by its frequency in the training texts.
    all, kinds
        Answers to all questions, and for each kind of question.
    invented
        Answers that are a name which was made up for the story.
    changed
        Answers in stories in which another word was put in place of the one that answers: right
        is the sentence with the new word.
    """

    stories: int
    perplexity: float
    unigram: float
    all: Answers
    kinds: Mapping[str, Answers]
    invented: Answers
    changed: Answers


def exchanges(told: Iterable[Story], random: Random) -> list[tuple[str, str]]:
    """Ask one question about each story: what the user says, and the right reply."""
    asked = [(story, random.choice(story.questions)) for story in told]
    return [(f"{story.text} {question.text}", question.reply) for story, question in asked]


@torch.no_grad()
def gives_replies(model: Any, tokenizer: Any, wanted: Sequence[tuple[str, str]]) -> Tensor:
    """Find out which replies come out word by word in greedy decoding.

    Parameters
    ----------
    model : LlamaForCausalLM
        In evaluation mode.
    tokenizer : PreTrainedTokenizerFast
        With the chat template of the model.
    wanted
        What the user says, and the reply that would be right.

    Returns
    -------
    Tensor
        Whether each reply comes out exactly, up to its end of turn; shape ``(wanted,)``.
    """
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    parts = []
    for first in range(0, len(wanted), _BATCH):
        talks = [
            [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
            for said, reply in wanted[first : first + _BATCH]
        ]
        ids = pad(tokenizer.apply_chat_template(talks)["input_ids"])
        # Greedy decoding writes a reply if and only if each of its tokens is the likeliest one
        # behind the tokens before it: one pass shows that for all of them.
        wrong = model(ids).logits[:, :-1].argmax(-1) != ids[:, 1:]
        replied = (ids == assistant).cumsum(dim=1)[:, :-1].bool() & (ids[:, 1:] != PAD)
        parts.append(~(wrong & replied).any(dim=1))
    return torch.cat(parts)


@torch.no_grad()
def perplexity(model: Any, rows: Sequence[Sequence[int]]) -> float:
    """Return the perplexity per token of texts, their first token not counted.

    Parameters
    ----------
    model : LlamaForCausalLM
        In evaluation mode.
    rows
        Token ids of each text.
    """
    total, count = 0.0, 0
    for first in range(0, len(rows), _BATCH):
        ids = pad(rows[first : first + _BATCH])
        real = ids[:, 1:] != PAD
        losses = functional.cross_entropy(
            model(ids).logits[:, :-1][real], ids[:, 1:][real], reduction="none"
        )
        total, count = total + float(losses.sum()), count + int(real.sum())
    return float(torch.tensor(total / count).exp())


def unigram_perplexity(
    train: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], vocabulary: int
) -> float:
    """Return the perplexity of guessing by frequency, each token counted once more than seen."""
    seen = Counter(token for row in train for token in row)
    counts = torch.tensor([seen[token] + 1.0 for token in range(vocabulary)])
    tokens = torch.tensor([token for row in rows for token in row[1:]])
    return float((-(counts / counts.sum()).log()[tokens].mean()).exp())


def examine(
    model: Any, tokenizer: Any, held_out: Sequence[Story], train: Sequence[Sequence[int]], seed: int
) -> Result:
    """Measure what the model has learned.

    Parameters
    ----------
    model : LlamaForCausalLM
        In evaluation mode.
    tokenizer : PreTrainedTokenizerFast
    held_out
        Stories that it has not read.
    train
        Token ids of what it has read.
    seed
        Seed of the questions and of the words that are put in.

    Returns
    -------
    Result
    """
    random = Random(seed)
    asked = [(story, random.choice(story.questions)) for story in held_out]
    hits = gives_replies(
        model, tokenizer, [(f"{story.text} {q.text}", q.reply) for story, q in asked]
    ).tolist()
    scored = list(zip([question for _, question in asked], hits, strict=True))
    usual = {*GIRLS, *BOYS}
    rows = tokenizer([story.text for story in held_out])["input_ids"]
    changed = [
        _changed(story, question, random) for story, question in asked if CLASSES[question.kind]
    ]
    changed_hits = gives_replies(model, tokenizer, [exchange for exchange, _ in changed]).tolist()
    return Result(
        stories=len(held_out),
        perplexity=perplexity(model, rows),
        unigram=unigram_perplexity(train, rows, len(tokenizer)),
        all=_count(scored),
        kinds={
            kind: _count([(q, hit) for q, hit in scored if q.kind == kind])
            for kind in sorted({question.kind for question, _ in scored})
        },
        invented=_count(
            [(q, hit) for q, hit in scored if q.kind == "person" and q.word not in usual]
        ),
        changed=_count([(q, hit) for (_, q), hit in zip(changed, changed_hits, strict=True)]),
    )


def _changed(story: Story, question: Question, random: Random) -> tuple[tuple[str, str], Question]:
    """Ask about the story with another word of the same kind in place of the answer."""
    others = sorted(set(CLASSES[question.kind]).difference(re.findall(r"\w+", story.text)))
    word = random.choice(others)
    start, end = question.at
    reply = question.reply[:start] + word + question.reply[end:]
    return (f"{story.retold(question, word)} {question.text}", reply), question


def _count(scored: Sequence[tuple[Question, bool]]) -> Answers:
    """Count right answers."""
    return Answers(
        right=sum(hit for _, hit in scored),
        total=len(scored),
        chance=sum(1 / len(question.choices) for question, _ in scored),
    )
