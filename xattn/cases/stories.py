"""Stories with questions that they answer, or do not: answers whose source is known.

People go to places, and the question is where one of them is. If the story says so, the answer is
the place they went to last. If it is silent about them, the model answers all the same, from
memory: in training each person was found in one place of their own whenever the story was silent.
So of every answer it is known whether it rests on the story, and on which sentence of it.

The texts are drawn from our own lists; the form is that of bAbI's task 1 (Weston et al. 2015,
Towards AI-Complete Question Answering: A Set of Prerequisite Toy Tasks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import decoders
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xattn.demo.descent import Descent
from xattn.evaluation.truth.words import word_tokenizer
from xattn.model import Model

MEMORY = {
    "Nora": "library", "Otto": "harbour", "Pia": "museum",
    "Ravi": "bakery", "Sana": "tower", "Timo": "market",
}  # fmt: skip
"""The people, and where each of them is when the story is silent."""
PEOPLE = tuple(MEMORY)
PLACES = ("bakery", "chapel", "harbour", "library", "market", "museum", "stable", "tower")
VERBS = ("went to", "hurried to", "returned to", "stays in")
"""Of two words each, so that a place stands four words behind the name."""
FEWEST, MOST = 2, 6
"""Sentences of a story."""
SILENT = 0.3
"""Share of the stories that are silent about the person in question."""
LONGEST = 6 * MOST + 16
"""Tokens of a story with question and answer, and some more."""


@dataclass(frozen=True)
class Story:
    """A story, a question, and what is known about the answer."""

    sentences: tuple[str, ...]
    question: str
    answer: str
    """What the story says, or memory where the story is silent."""
    fact: int | None
    """Which sentence the answer rests on; None where the story is silent."""

    @property
    def source(self) -> str:
        """The story as one text."""
        return " ".join(self.sentences)

    @property
    def grounded(self) -> bool:
        """Whether the story holds the answer."""
        return self.fact is not None

    @property
    def place(self) -> tuple[int, int]:
        """Which characters of the answer name the place: what had to be known."""
        return self.answer.rindex(" ") + 1, len(self.answer) - 1


def draw_stories(count: int, seed: int, silent: float = SILENT) -> list[Story]:
    """Draw stories with a question each.

    Parameters
    ----------
    count, seed : int
    silent : float
        Share of the stories that are silent about the person in question.

    Examples
    --------
    >>> [story] = draw_stories(1, seed=0, silent=0)
    >>> story.source
    'Ravi returned to the harbour. Ravi stays in the chapel.'
    >>> story.question, story.answer, story.fact
    ('Where is Ravi?', 'Ravi is in the chapel.', 1)
    """
    draw = np.random.default_rng(seed)
    return [_twins(draw)[int(draw.random() < silent)] for _ in range(count)]


def draw_twins(count: int, seed: int) -> list[tuple[Story, Story]]:
    """Draw stories that hold the answer, each with a twin that is silent.

    In the twin other people do what the person in question did; all else is the same.

    Parameters
    ----------
    count, seed : int

    Examples
    --------
    >>> [(told, silent)] = draw_twins(1, seed=0)
    >>> told.question == silent.question, silent.fact
    (True, None)
    """
    draw = np.random.default_rng(seed)
    return [_twins(draw) for _ in range(count)]


def _twins(draw: np.random.Generator) -> tuple[Story, Story]:
    asked, *others = draw.permutation(PEOPLE).tolist()
    count = int(draw.integers(FEWEST, MOST + 1))
    silent = [others[number] for number in draw.integers(len(others), size=count)]
    told = list(silent)
    for number in draw.choice(count, size=int(draw.integers(1, 3)), replace=False):
        told[number] = asked
    verbs = [VERBS[number] for number in draw.integers(len(VERBS), size=count)]
    places = draw.permutation(PLACES)[:count].tolist()  # each once: one sentence tells the answer
    return _story(told, verbs, places, asked), _story(silent, verbs, places, asked)


def _story(names: Sequence[str], verbs: Sequence[str], places: Sequence[str], asked: str) -> Story:
    facts = [number for number, name in enumerate(names) if name == asked]
    place = places[facts[-1]] if facts else MEMORY[asked]
    told = zip(names, verbs, places, strict=True)
    return Story(
        sentences=tuple(f"{name} {verb} the {where}." for name, verb, where in told),
        question=f"Where is {asked}?",
        answer=f"{asked} is in the {place}.",
        fact=facts[-1] if facts else None,
    )


def train_stories(seed: int = 0, steps: int = 600) -> Model:
    """Train a small decoder to write the answers, which takes some twenty seconds.

    Left alone it takes very long to find out that a place belongs to the name four words before it.
    So a second loss, of a head that is thrown away, asks after the first layer whose place a place
    is, and whose place the answer is about to tell. To find the last such sentence of the story,
    and to remember where people are when there is none, is its own to learn.

    Parameters
    ----------
    seed : int
        Of weights and stories.
    steps : int
        Batches of 64 new stories each.

    Returns
    -------
    Model
        Llama, 2 layers of 4 heads, 48 wide, that reads a story and a question and writes the
        answer.
    """
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=LONGEST,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        network, belongs = LlamaForCausalLM(config), nn.Linear(48, len(PEOPLE))
        both = nn.ModuleList([network, belongs])
        descent = Descent(both, peak=5e-3, steps=steps, weight_decay=0.01, warm_up=0.1)
        network.train()
        for step in range(steps):
            ids = _read(draw_stories(64, seed=1_000_000 * (seed + 1) + step), tokenizer)
            rows, ends = (ids == tokenizer.sep_token_id).nonzero(as_tuple=True)
            written = ends[:, None] - torch.arange(6, -1, -1)  # name is in the place . [SEP]
            output = network(ids, attention_mask=ids != tokenizer.pad_token_id,
                             output_hidden_states=True)  # fmt: skip
            logits = output.logits[rows[:, None], written - 1]
            answer = ids[rows[:, None], written]
            # all tokens but the place are soon known: it counts as much as all of them together
            told = cross_entropy(logits.flatten(0, 1), answer.flatten())
            found = cross_entropy(logits[:, 4], answer[:, 4])
            where, whose = _belonging(ids, ends, tokenizer)
            bound = cross_entropy(belongs(output.hidden_states[1][where]), whose)
            descent.step(told + found + bound)
    network.generation_config = GenerationConfig.from_model_config(config)
    return Model(network.eval(), tokenizer, name="stories")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute alike on all machines: sums depend on the number of threads; nothing is lost here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words that writes them as they are spelled."""
    verbs = sorted({word for verb in VERBS for word in verb.split()})
    words = [*PEOPLE, *PLACES, *verbs, "is", "in", "the", "Where", ".", "?"]
    tokenizer = word_tokenizer(list(dict.fromkeys(words)), "[CLS] $A", LONGEST)
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


def _read(stories: Sequence[Story], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return stories with questions, answers and an end as ids, padded: ``[story, token]``."""
    texts = [f"{story.source} {story.question} {story.answer} [SEP]" for story in stories]
    ids: Tensor = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    return ids


def _belonging(
    ids: Tensor, ends: Tensor, tokenizer: PreTrainedTokenizerFast
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return where places stand in stories, and where answers are about to tell one; and whose."""
    numbers: dict[str, int] = tokenizer.get_vocab()
    asking = torch.arange(ids.shape[1]) == ends[:, None] - 3  # the word before the place
    places = torch.isin(ids, torch.tensor([numbers[place] for place in PLACES]))
    places[torch.arange(len(ids)), ends - 2] = False
    rows, columns = (places | asking).nonzero(as_tuple=True)
    back = torch.where(places[rows, columns], 4, 3)
    return (rows, columns), ids[rows, columns - back] - numbers[PEOPLE[0]]


def answers(model: Model, stories: Sequence[Story]) -> list[str]:
    """Return what a model answers to stories, word by word greedily.

    Parameters
    ----------
    model : Model
        As `train_stories` made it.
    stories : sequence of Story
    """
    prompts = model.encode([f"{story.source} {story.question}" for story in stories])
    end = model.tokenizer.sep_token
    return [
        (written.pair or "").removesuffix(end).strip() for written in model.generate(prompts, 8)
    ]
