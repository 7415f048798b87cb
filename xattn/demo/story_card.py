"""Model card of the demo storyteller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from xattn.demo.card import proportion, settings_table, versions
from xattn.demo.story_exam import Answers, Result

_CARD = """\
---
language: en
license: apache-2.0
pipeline_tag: text-generation
---

# Demo storyteller

A small Llama decoder that writes short stories for children in English and answers questions about
them, trained from scratch by `xattn/demo/train_stories.py`, which also wrote this card. It starts
from random weights; nothing in it comes from another model.

## Use and limits

It serves the demonstrations and the tests of this project: small, fast, with several layers and
heads of attention to look at, two query heads to a key head. **It is not for production.** It knows
the few hundred words and the {plots} plots of one grammar, and no other English; a question that
the grammar does not ask, or a story that it would not write, gets an answer that means nothing. It
reads at most {max_tokens} tokens. Its errors say nothing about larger models.

What happens in a story is drawn at random, so that each answer is decided by one word of the story
whose place is known (`xattn.demo.stories`). That is what it is good for: attributions and edits of
attention can be checked against it, with questions of a kind that it answers reliably. Where its
share of right answers is close to the one by chance in the table below, it knows what kind of word
to look for but not which of two is meant: do not use these as planted answers unless the model is
seen to be right.

It reads a story with its questions and answers in lines below it, or a conversation:

    tokenizer.apply_chat_template([{{"role": "user", "content": story + " Who found the ball?"}}],
                                  add_generation_prompt=True)

The user may also say `Tell me a story about Mia and a ball.`

## Measurements

On {stories} stories of the same grammar that it has not read, one question about each, drawn at
random. An answer is right if greedy decoding writes exactly the right sentence.

| quantity | value | by chance |
|---|---|---|
| questions answered right | {all} | {all_chance} |
{kinds}
| answers that are a made-up name | {invented} | {invented_chance} |
| answers after the word that decides them was changed | {changed} | {changed_chance} |
| perplexity per token of the stories | {perplexity:.2f} | {unigram:.0f} |

Intervals are 95 % Wilson intervals. "By chance" is the expected share if a word of the right kind
were drawn from the story and the rest of the sentence came out right (a generous baseline: a wrong
name elsewhere in the sentence counts as well); without the story, a guess would be right once in 4
to 20 times. For the perplexity it is that of guessing each token by its frequency; part of every
story is random, so that no model can reach a perplexity of 1. **Grammar and recipe were changed
after looking at such results**: an earlier, richer grammar without practice came to 22.0 %, the
first short one to 64.6 %. Each grammar writes other stories, so that these had not been looked at.

| quantity | value |
|---|---|
| parameters | {parameters:,} |
| stories read, each once | {read:,} ({tokens:,} tokens) |
| time of training | {minutes:.1f} min of processor time on {threads} thread(s) |

## Data

The stories come from the grammar in `xattn/demo/stories.py`, `plots.py` and `lexicon.py`, which was
written for this project; there is no other data. Weights and tokenizer are under the project's
licence, Apache-2.0.

## Reproduction

    python -m xattn.demo.train_stories --out xattn/demo/storyteller --seed {seed}

The same machine with the same thread count and versions gives the same weights: {versions}.

| setting | value |
|---|---|
{settings}
"""


@dataclass(frozen=True)
class Training:
    """What the card says about the training.

    Attributes
    ----------
    seconds
        Processor time.
    parameters
        Number of weights; shared ones count once.
    stories, tokens
        How much was read.
    """

    seconds: float
    parameters: int
    stories: int
    tokens: int


def write_card(
    out: Path,
    training: Training,
    result: Result,
    settings: Mapping[str, object],
    *,
    plots: int,
    max_tokens: int,
    seed: int,
) -> None:
    """Write ``README.md`` beside the model.

    Parameters
    ----------
    out
        Folder of the model.
    training
        What the training took.
    result
        What the model has learned.
    settings
        Hyper-parameters by name.
    plots
        Number of plots of the grammar.
    max_tokens
        Longest input, in tokens.
    seed
        Seed of the run.
    """
    kinds = (
        f"| of these: {kind} | {_share(answers)} | {_chance(answers)} |"
        for kind, answers in result.kinds.items()
    )
    card = _CARD.format(
        plots=plots,
        max_tokens=max_tokens,
        stories=result.stories,
        all=_share(result.all),
        all_chance=_chance(result.all),
        kinds="\n".join(kinds),
        invented=_share(result.invented),
        invented_chance=_chance(result.invented),
        changed=_share(result.changed),
        changed_chance=_chance(result.changed),
        perplexity=result.perplexity,
        unigram=result.unigram,
        parameters=training.parameters,
        read=training.stories,
        tokens=training.tokens,
        minutes=training.seconds / 60,
        threads=torch.get_num_threads(),
        seed=seed,
        versions=versions(),
        settings=settings_table(settings),
    )
    (out / "README.md").write_text(card, encoding="utf-8")


def _share(answers: Answers) -> str:
    """Percentage of right answers with its interval."""
    return proportion(answers.right, answers.total) if answers.total else "none asked"


def _chance(answers: Answers) -> str:
    """Percentage expected by chance."""
    return f"{answers.chance / answers.total:.0%}" if answers.total else ""
