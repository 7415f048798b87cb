"""Train the demo storyteller from scratch: ``python -m xattn.demo.train_stories --help``.

It learns from the stories of our own grammar alone. The result is deterministic given the seed, on
the same machine with the same thread count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from xattn.demo.batches import PAD, bucketed_batches, pad
from xattn.demo.descent import Descent
from xattn.demo.plots import PLOTS
from xattn.demo.stories import Story, stories
from xattn.demo.story_card import Training, write_card
from xattn.demo.story_exam import Result, examine, exchanges, gives_replies

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>")
BEGIN, END, USER, ASSISTANT, TURN_END = range(1, len(SPECIAL_TOKENS))
MAX_TOKENS = 256
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ('user', 'assistant') -%}
{{- raise_exception('the storyteller knows the roles user and assistant only') -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
HELD_OUT_SEED = "held out"
TRIAL_SEED = "trial"
TRIALS = 128
REPORT_EVERY = 100
PRACTICE_BATCH = 32
PRACTICE_TOKENS = 48


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters; the shares say in which form a story is read."""

    practice: int = 1500
    practice_rate: float = 3e-3
    stories: int = 32_000
    held_out: int = 1000
    questions: int = 5
    plain_share: float = 0.45
    tell_share: float = 0.1
    vocabulary: int = 1000
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    intermediate: int = 256
    batch: int = 16
    weight_decay: float = 0.0
    warm_up: float = 0.03
    learning_rate: float = 3e-3
    initial_spread: float = 0.05
    answer_weight: float = 3.0


def train_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary, which can write every text.

    Parameters
    ----------
    texts
        Texts to learn from.
    size
        Number of entries, special tokens and the 256 bytes included.

    Returns
    -------
    PreTrainedTokenizerFast
        Fast tokenizer that begins a text with ``<s>`` and knows the turns of a conversation.
    """
    pieces = Tokenizer(models.BPE())
    # The blank before a text lets a name be the same token wherever it stands, which makes it
    # possible to copy one into the first word of an answer.
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces.train_from_iterator(texts, trainer)
    pieces.post_processor = processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=True, trim_offsets=True),
            processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", BEGIN)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def told(story: Story, recipe: Recipe, random: Random) -> str:
    """Put a story into one of the three forms that the model reads.

    Parameters
    ----------
    story
        What to tell.
    recipe
        Shares of the forms, and how many questions follow.
    random
        Source of the form and the questions.

    Returns
    -------
    str
        Everything behind ``<s>``: the story with questions and answers in lines, a conversation
        about it, or a conversation that asks for it.
    """
    questions = random.sample(story.questions, min(recipe.questions, len(story.questions)))
    form = random.random()
    if form < recipe.plain_share:
        lines = (f"\n{question.text} {question.reply}" for question in questions)
        return f"{story.text}{''.join(lines)}</s>"
    if form < recipe.plain_share + recipe.tell_share:
        return _turns((f"Tell me a story about {story.topic}.", story.text))
    first, *more = questions
    return _turns(
        (f"{story.text} {first.text}", first.reply),
        *((question.text, question.reply) for question in more),
    )


def _turns(*pairs: tuple[str, str]) -> str:
    """Write a conversation as the chat template does, without its ``<s>``."""
    return "".join(f"<|user|>{said}<|end|><|assistant|>{reply}<|end|>" for said, reply in pairs)


def practise(model: LlamaForCausalLM, recipe: Recipe, generator: torch.Generator) -> None:
    """Train on random tokens that are said over and over, before any story is read.

    Nothing but looking back can tell how these go on, and every word has to be told apart for it.
    Stories alone reward that too rarely: words of one class then get nearly equal embeddings, and
    no answer can be copied. (Olsson et al. 2022, "In-context learning and induction heads",
    describe the heads that copy.)

    Parameters
    ----------
    model
        Model with random weights; trained in place.
    recipe
        Hyper-parameters.
    generator
        Source of the tokens.
    """
    descent = Descent(model, recipe.practice_rate, recipe.practice, 0.0, recipe.warm_up)

    ordinary = {"low": len(SPECIAL_TOKENS), "high": model.config.vocab_size}

    def draw(*size: int, low: int, high: int) -> Tensor:
        return torch.randint(low, high, size, generator=generator)

    for number in range(1, recipe.practice + 1):
        length = int(draw(low=3, high=PRACTICE_TOKENS // 3))
        phrase = draw(PRACTICE_BATCH, length, **ordinary)
        before = int(draw(low=1, high=20))
        start = draw(PRACTICE_BATCH, before, **ordinary)
        ids = torch.cat([start, phrase.repeat(1, -(-PRACTICE_TOKENS // length))], dim=1)
        ids = ids[:, : before + PRACTICE_TOKENS]
        known = slice(before + length, None)  # said before
        scores = model(ids[:, :-1]).logits[:, before + length - 1 :]
        loss = functional.cross_entropy(scores.flatten(0, 1), ids[:, known].flatten())
        descent.step(loss)
        if number % REPORT_EVERY == 0 or number == recipe.practice:
            print(f"practice {number} of {recipe.practice}: loss {loss.item():.3f}", flush=True)


def read(
    model: LlamaForCausalLM,
    rows: Sequence[list[int]],
    question_mark: int,
    recipe: Recipe,
    generator: torch.Generator,
    progress: Callable[[LlamaForCausalLM], str],
) -> None:
    """Train on every text once.

    Parameters
    ----------
    model
        Model to train in place; it has no dropout, hence no mode of training.
    rows
        Token ids of each text, special tokens included.
    question_mark
        Token that ends a question.
    recipe
        Hyper-parameters.
    generator
        Source of the order.
    progress
        Says in a few words what the model has learned so far.
    """
    lengths = torch.tensor([len(row) for row in rows])
    steps = -(-len(rows) // recipe.batch)
    descent = Descent(model, recipe.learning_rate, steps, recipe.weight_decay, recipe.warm_up)
    total = 0.0
    for number, batch in enumerate(bucketed_batches(lengths, recipe.batch, generator), 1):
        ids = pad([rows[index] for index in batch.tolist()])
        # Padding stands on the right, where a causal model does not see it: no mask is needed.
        real = ids[:, 1:] != PAD
        asked = (ids[:, :-1] == question_mark).cumsum(dim=1) > 0
        weights = torch.where(asked, recipe.answer_weight, 1.0)[real]
        states = model.model(ids).last_hidden_state[:, :-1][real]
        losses = functional.cross_entropy(model.lm_head(states), ids[:, 1:][real], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        descent.step(loss)
        total += loss.item()
        if number % REPORT_EVERY == 0 or number == steps:
            mean, total = total / ((number - 1) % REPORT_EVERY + 1), 0.0
            print(f"step {number} of {steps}: loss {mean:.3f}, {progress(model)}", flush=True)


def train(out: Path, recipe: Recipe, seed: int) -> tuple[Training, Result]:
    """Write stories, train on them, and save model and tokenizer.

    Parameters
    ----------
    out
        Folder to write to; made when missing.
    recipe
        Hyper-parameters.
    seed
        Seed of the stories, the initial weights and the order.

    Returns
    -------
    tuple of Training and Result
        What the model card reports.
    """
    began = time.process_time()
    torch.manual_seed(seed)
    random = Random(seed)
    held_out = list(islice(stories(HELD_OUT_SEED), recipe.held_out))
    known = {story.text for story in held_out}
    fresh = (story for story in stories(seed) if story.text not in known)
    texts = [told(story, recipe, random) for story in islice(fresh, recipe.stories)]
    tokenizer = train_tokenizer(texts, recipe.vocabulary)
    rows: list[list[int]] = tokenizer(texts)["input_ids"]
    trial = exchanges(islice(stories(TRIAL_SEED), TRIALS), Random(seed))

    def progress(model: LlamaForCausalLM) -> str:
        right = gives_replies(model, tokenizer, trial)
        return f"{right.float().mean():.0%} of {len(trial)} questions answered"

    generator = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM(_config(recipe, len(tokenizer)))
    practise(model, recipe, generator)
    mark = tokenizer.convert_tokens_to_ids("?")
    read(model, rows, mark, recipe, generator, progress)
    model.eval()
    seconds = time.process_time() - began
    model.generation_config = GenerationConfig(
        bos_token_id=BEGIN, eos_token_id=[END, TURN_END], pad_token_id=PAD, max_length=MAX_TOKENS
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    training = Training(
        seconds=seconds,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        stories=len(rows),
        tokens=sum(len(row) for row in rows),
    )
    return training, examine(model, tokenizer, held_out, rows, seed)


def _config(recipe: Recipe, vocabulary: int) -> LlamaConfig:
    """Architecture; input and output share one table of embeddings."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        # The usual 0.02 suits wide models; here it leaves attention uniform for long.
        initializer_range=recipe.initial_spread,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, and write model, tokenizer and card.

    Parameters
    ----------
    arguments
        Command line without the program name; ``None`` reads ``sys.argv``.
    """
    parser = argparse.ArgumentParser(prog="python -m xattn.demo.train_stories", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder for model and card")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = Recipe()
    training, result = train(options.out, recipe, options.seed)
    write_card(
        options.out,
        training,
        result,
        asdict(recipe),
        plots=len(PLOTS),
        max_tokens=MAX_TOKENS,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
