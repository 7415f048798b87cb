"""Transformers that nobody trained: weights written by hand, so that they run a known algorithm.

The network is a GPT-2 of two layers with two heads each, which reads its class at the last token.
Its hidden state is cut into named parts: which token, which place, which token came before, and
what was found. A head moves one part of one token to another part of another; the feed-forward
layers do nothing. In each layer the second head looks hard at words that have no part in the answer
and writes nothing: attention without importance. Where one layer is enough, the first carries each
word to its successor, where nobody reads it.

Layer normalisation is made linear: its ε is so large that the variance does not matter, its gain
undoes the division, and the mean of every hidden state is 0, since each part that is written is
taken off again at a place that nobody reads.

What each token contributes to the class follows from the algorithm: it is the Shapley value of the
logit, when tokens are removed by masking. The idea of compiling a program into a transformer is of
Lindner et al. 2023, Tracr: Compiled Transformers as a Laboratory for Interpretability (NeurIPS).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from xattn.evaluation.truth.planted import FILLERS
from xattn.evaluation.truth.problem import Problem, one_of_each
from xattn.evaluation.truth.words import SPECIAL, word_tokenizer
from xattn.model import Model
from xattn.types import Floats

ANSWERS = ("apple", "cherry", "melon", "plum")
FOR, AGAINST = "up", "down"
DECOYS = ("loud", "bright", "huge")
"""What the second heads look at."""
PLAIN = FILLERS[:20]
SHORTEST, LONGEST = 6, 18
SHARP = 24.0
"""How far the score of what a head looks for stands above the others: they get e⁻²⁴ each."""
LOGIT = 6.0
"""What a whole answer adds to the logit of its class."""
EPSILON = 1e6

Draw = np.random.Generator
Written = tuple[list[str], Floats]
"""The words of a text, and what each contributes."""


class Parts:
    """Where each part of the hidden state begins."""

    def __init__(self, words: int, places: int) -> None:
        self.words, self.places = words, places
        self.token, self.place, self.before, self.found = np.cumsum(
            [0, words, places, words]
        ).tolist()
        used = self.found + words + 1
        self.hidden = used + used % 2
        self.balance = self.hidden - 1
        self.head = self.hidden // 2


@dataclass(frozen=True, eq=False)
class Head:
    """One head: what asks, what answers, and what is carried where."""

    query: Tensor
    """``[hidden, head]``"""
    asked: Tensor
    """``[head]``: what every token asks for."""
    key: Tensor
    """``[hidden, head]``"""
    carried: tuple[int, int] | None = None
    """The part that is read and the part that is written to; None for nothing."""


def _blank(parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    shape = parts.hidden, parts.head
    return torch.zeros(shape), torch.zeros(parts.head), torch.zeros(shape)


def looks_at(parts: Parts, words: Sequence[int], carried: tuple[int, int] | None = None) -> Head:
    """Return a head that looks at some words wherever they stand; at all alike if there is none."""
    query, asked, key = _blank(parts)
    asked[0] = SHARP
    for word in words:
        key[parts.token + word, 0] = 1.0
    return Head(query, asked, key, carried)


def looks_back(parts: Parts) -> Head:
    """Return a head that carries each token to the one behind it."""
    query, asked, key = _blank(parts)
    for place in range(1, parts.places):
        query[parts.place + place, place - 1] = SHARP
        key[parts.place + place - 1, place - 1] = 1.0
    return Head(query, asked, key, (parts.token, parts.before))


def matches(parts: Parts, rest: int) -> Head:
    """Return a head that finds what came behind an earlier token like this one, and carries it.

    Parameters
    ----------
    parts : Parts
    rest : int
        The token to look at where there was none.
    """
    query, asked, key = _blank(parts)
    for word in range(len(SPECIAL), parts.words):  # one mask is not like another
        query[parts.token + word, word] = 2 * SHARP
        key[parts.before + word, word] = 1.0
    asked[parts.words] = SHARP
    key[parts.token + rest, parts.words] = 1.0
    return Head(query, asked, key, (parts.token, parts.found))


def _write(block: GPT2Block, heads: Sequence[Head], parts: Parts) -> None:
    """Write two heads into a block."""
    joined, output = block.attn.c_attn, block.attn.c_proj
    for number, head in enumerate(heads):
        for kind, matrix in enumerate((head.query, head.key)):
            first = kind * parts.hidden + number * parts.head
            # the network divides scores by the root of the width
            scale = parts.head**0.5 if kind == 0 else 1.0
            joined.weight[:, first : first + parts.head] = scale * matrix
        first = number * parts.head
        joined.bias[first : first + parts.head] = parts.head**0.5 * head.asked
        if head.carried is not None:
            source, target = head.carried
            for word in range(parts.words):
                joined.weight[source + word, 2 * parts.hidden + first + word] = 1.0
                output.weight[first + word, target + word] = 1.0
                output.weight[first + word, parts.balance] = -1.0


def compiled(
    name: str, working: Callable[[Parts, dict[str, int]], Sequence[Head]],
    classes: dict[str, dict[str, float]],
) -> Model:  # fmt: skip
    """Return a model whose first heads do the work.

    Parameters
    ----------
    name : str
    working : callable
        Returns the first head of each layer.
    classes : dict
        For each class how much each word that was found adds to its logit.
    """
    tokenizer = word_tokenizer((*PLAIN, *ANSWERS, FOR, AGAINST, *DECOYS), "[CLS] $A", LONGEST + 1)
    numbers: dict[str, int] = tokenizer.get_vocab()
    parts = Parts(len(numbers), LONGEST + 1)
    config = GPT2Config(
        vocab_size=parts.words, n_positions=parts.places, n_embd=parts.hidden, n_layer=2, n_head=2,
        n_inner=4, layer_norm_epsilon=EPSILON, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=None,
        id2label=dict(enumerate(classes)), label2id={c: i for i, c in enumerate(classes)},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        network = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        for where, parameter in network.named_parameters():
            norm = ".ln_" in where and where.endswith("weight")
            parameter.fill_(EPSILON**0.5 if norm else 0.0)
        for table, first in (
            (network.transformer.wte.weight, parts.token),
            (network.transformer.wpe.weight, parts.place),
        ):
            table[:, first : first + len(table)] = torch.eye(len(table))
            table[:, parts.balance] = -1.0
        decoy = looks_at(parts, [numbers[word] for word in DECOYS])
        for block, head in zip(network.transformer.h, working(parts, numbers), strict=True):
            _write(cast(GPT2Block, block), [head, decoy], parts)
        for number, adds in enumerate(classes.values()):
            for word, value in adds.items():
                network.score.weight[number, parts.found + numbers[word]] = value
    return Model(network.eval(), tokenizer, name=name)


def _filled(draw: Draw) -> list[str]:
    """Return a row of words without meaning, a decoy among them."""
    words = [str(word) for word in draw.choice(PLAIN, size=draw.integers(SHORTEST, LONGEST + 1))]
    words[draw.integers(len(words))] = str(draw.choice(DECOYS))
    return words


def _copying(draw: Draw) -> Written:
    words = _filled(draw)
    place = int(draw.choice([i for i, word in enumerate(words) if word not in DECOYS]))
    words[place] = str(draw.choice(ANSWERS))
    return words, LOGIT * one_of_each(len(words), [place])


def _counting(draw: Draw) -> Written:
    words = _filled(draw)
    free = draw.permutation([i for i, word in enumerate(words) if word not in DECOYS])
    count = int(draw.integers(1, len(free) + 1))
    fewer = int(draw.integers(0, (count + 1) // 2))  # never as many of one as of the other
    more, less = (FOR, AGAINST) if draw.random() < 0.5 else (AGAINST, FOR)
    truth = np.zeros(len(words))
    for i, place in enumerate(free[:count]):
        words[place] = less if i < fewer else more
        truth[place] = LOGIT / (len(words) + 1) * (-1 if i < fewer else 1)  # CLS counts as well
    return words, truth


def _inducing(draw: Draw) -> Written:
    words = _filled(draw)
    cue = str(draw.choice(PLAIN))
    others = [word for word in PLAIN if word != cue]
    words = [str(draw.choice(others)) if word == cue else word for word in words]
    place = int(draw.integers(0, len(words) - 2))
    words[place], words[place + 1], words[-1] = cue, str(draw.choice(ANSWERS)), cue
    if not set(words) & set(DECOYS):  # the cue took its place
        free = [i for i in range(len(words) - 1) if i not in (place, place + 1)]
        words[int(draw.choice(free))] = str(draw.choice(DECOYS))
    return words, LOGIT / 3 * one_of_each(len(words), [place, place + 1, len(words) - 1])


Texts = tuple[tuple[str, ...], tuple[Floats, ...]]


def _texts(write: Callable[[Draw], Written], count: int, seed: int) -> Texts:
    draw = np.random.default_rng(seed)
    written = [write(draw) for _ in range(count)]
    return tuple(" ".join(words) for words, _ in written), tuple(truth for _, truth in written)


def copy(count: int, seed: int = 0) -> Problem:
    """Return the problem of a model that names the only fruit in a text.

    Parameters
    ----------
    count, seed : int
        Of the texts.
    """

    def working(parts: Parts, numbers: dict[str, int]) -> list[Head]:
        fruit = [numbers[word] for word in ANSWERS]
        return [looks_back(parts), looks_at(parts, fruit, (parts.token, parts.found))]

    classes = {word: {word: LOGIT} for word in ANSWERS}
    return Problem(
        "copy",
        "weights by hand: the only fruit is copied, while other heads look at other words",
        "AUPRC",
        compiled("compiled-copy", working, classes),
        *_texts(_copying, count, seed),
    )


def counting(count: int, seed: int = 0) -> Problem:
    """Return the problem of a model that tells whether a text has more of one word or of another.

    Parameters
    ----------
    count, seed : int
        Of the texts.
    """

    def working(parts: Parts, numbers: dict[str, int]) -> list[Head]:
        return [looks_back(parts), looks_at(parts, [], (parts.token, parts.found))]

    classes = {word: {word: LOGIT, other: -LOGIT}
               for word, other in ((FOR, AGAINST), (AGAINST, FOR))}  # fmt: skip
    return Problem(
        "counting",
        "weights by hand: each 'up' speaks for the class and each 'down' against it, or the other "
        "way round",
        "correlation",
        compiled("compiled-counting", working, classes),
        *_texts(_counting, count, seed),
    )


def induction(count: int, seed: int = 0) -> Problem:
    """Return the problem of a model that says what followed the last word when it stood earlier.

    Two layers, as Olsson et al. 2022 (In-context Learning and Induction Heads) describe them: one
    carries each word to its successor, the other looks for the last word's like.

    Parameters
    ----------
    count, seed : int
        Of the texts.
    """

    def working(parts: Parts, numbers: dict[str, int]) -> list[Head]:
        return [looks_back(parts), matches(parts, numbers["[CLS]"])]

    classes = {word: {word: LOGIT} for word in ANSWERS}
    return Problem(
        "induction",
        "weights by hand: the last word's earlier copy, what followed it, and the last word itself "
        "decide together",
        "AUPRC",
        compiled("compiled-induction", working, classes),
        *_texts(_inducing, count, seed),
    )
