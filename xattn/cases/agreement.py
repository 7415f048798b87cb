"""Beginnings of sentences whose next word is a verb, and a model that says its number.

The task by which Abnar & Zuidema 2020, Quantifying Attention Flow in Transformers, compared
attention, rollout and flow: a sentence is read up to its verb, and the verb is singular or plural.
One noun decides; others of the other number may stand nearer (attractors).

The sentences are our own, put together by a small grammar; or those of Marvin & Linzen 2018,
Targeted Syntactic Evaluation of Language Models, where their files are at hand. (The paper took
those of Linzen et al. 2016, which are from Wikipedia.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForSequenceClassification,
)

from xattn.demo.descent import Descent
from xattn.errors import InputError
from xattn.evaluation.truth.words import word_tokenizer
from xattn.model import Model
from xattn.types import Bools

LABELS = ("singular", "plural")
LONGEST = 24
"""Tokens that the model reads."""
UNKNOWN = 0.05
"""Share of words that are unknown in training: what blank-out puts in place is nothing new."""
TABLES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "blank-out": {
        "raw": (0.69, 0.10, -0.11, -0.09, 0.20, 0.29),
        "rollout": (0.32, 0.38, 0.51, 0.62, 0.70, 0.71),
        "flow": (0.32, 0.44, 0.70, 0.70, 0.71, 0.70),
    },
    "gradients": {
        "raw": (0.53, 0.16, -0.06, 0.00, 0.24, 0.46),
        "rollout": (0.22, 0.27, 0.39, 0.47, 0.53, 0.54),
        "flow": (0.22, 0.31, 0.54, 0.61, 0.60, 0.61),
    },
}
"""Mean Spearman correlations by layer, as published (tables 1 and 2; 2000 sentences)."""

_PEOPLE = (
    "baker", "sailor", "tailor", "miner", "gardener", "weaver", "singer", "hunter", "judge",
    "nurse", "clerk", "shepherd", "neighbour", "painter",
)  # fmt: skip
_THINGS = ("lantern", "boat", "kettle", "letter", "statue", "mirror", "cottage", "carpet")
_NEAR = ("near", "behind", "beside", "with", "opposite")
_DO = ("follow", "visit", "praise", "ignore", "hear", "greet")
_SAY = ("said", "knew", "thought", "hoped")
_KINDS = ("old", "quiet", "tall", "young", "famous", "tired")
_WHEN = ("today", "often", "again", "here")


@dataclass(frozen=True)
class Prefix:
    """The beginning of a sentence, up to a verb."""

    text: str
    plural: bool
    """The number of the verb."""
    construction: str
    attractor: bool
    """Whether a noun that does not decide has the other number."""

    @property
    def template(self) -> str:
        """The words without their numbers: the same for singular and plural of one sentence."""
        same = {"are": "is", "have": "has"}
        return " ".join(same.get(word, word).removesuffix("s") for word in self.text.split())


def draw_prefixes(count: int, seed: int) -> list[Prefix]:
    """Draw different beginnings of sentences from our own grammar.

    Parameters
    ----------
    count, seed : int

    Examples
    --------
    >>> draw_prefixes(2, seed=0)[0].construction in CONSTRUCTIONS
    True
    """
    draw = np.random.default_rng(seed)
    found: dict[str, Prefix] = {}
    while len(found) < count:
        prefix = _drawn(draw)
        found.setdefault(prefix.text, prefix)
    return list(found.values())


CONSTRUCTIONS = {
    "plain": "{a}",
    "phrase": "{a} {near} {b}",
    "two phrases": "{a} {near} {b} {next} {c}",
    "subject relative": "{a} that {do_a} {b}",
    "object relative": "{a} that {b} {do_b}",
    "within the relative": "{b} that {a}",
    "complement": "{b} {say} {a}",
}
"""How beginnings are built: the noun phrase ``a`` decides."""


def _drawn(draw: np.random.Generator) -> Prefix:
    construction = str(draw.choice(list(CONSTRUCTIONS)))
    form = CONSTRUCTIONS[construction]
    nouns = _PEOPLE + _THINGS if "{near}" in form else _PEOPLE  # things say and do nothing
    plural = {noun: bool(draw.integers(2)) for noun in "abc"}

    def noun(name: str) -> str:
        kind = f"{draw.choice(_KINDS)} " if draw.random() < 0.3 else ""
        return f"the {kind}{draw.choice(nouns)}{'s' if plural[name] else ''}"

    def do(name: str) -> str:
        return f"{draw.choice(_DO)}{'' if plural[name] else 's'}"

    parts = {name: noun(name) for name in "abc"}
    near = {name: str(draw.choice(_NEAR)) for name in ("near", "next")}
    verbs = {"do_a": do("a"), "do_b": do("b"), "say": str(draw.choice(_SAY))}
    when = f"{draw.choice(_WHEN)} " if draw.random() < 0.3 else ""
    others = [name for name in "bc" if f"{{{name}}}" in form]
    return Prefix(
        when + form.format(**parts, **near, **verbs),
        plural["a"],
        construction,
        any(plural[name] != plural["a"] for name in others),
    )


def read_prefixes(folder: str | Path) -> list[Prefix]:
    """Return the different beginnings of Marvin & Linzen's sentences, up to the first difference.

    Reflexives are left out: there no verb differs.

    Parameters
    ----------
    folder : str or Path
        Of files ``CONSTRUCTION.tsv`` with the columns condition, grammatical and ungrammatical. A
        condition names the number of the noun that decides first, then those of the others.

    Raises
    ------
    InputError
        If there are no such files, or one cannot be read.
    """
    paths = sorted(p for p in Path(folder).glob("*.tsv") if not p.stem.startswith("reflexive"))
    if not paths:
        raise InputError(
            f"{folder} holds no sentences", expected="files CONSTRUCTION.tsv of Marvin & Linzen"
        )
    found: dict[str, Prefix] = {}
    for path in paths:
        for prefix in _read(path):
            found.setdefault(prefix.text, prefix)
    return list(found.values())


def _read(path: Path) -> Iterator[Prefix]:
    header, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    if header.split("\t") != ["condition", "grammatical", "ungrammatical"]:
        raise InputError(
            f"{path} cannot be read", got=repr(header),
            expected="columns condition, grammatical and ungrammatical, separated by tabs",
        )  # fmt: skip
    for number, line in enumerate(lines, start=2):
        cells = line.split("\t")
        numbers = [part for part in cells[0].split("_") if part in ("sing", "plur")]
        words = [cell.split() for cell in cells[1:]]
        if len(words) != 2 or not numbers or words[0] == words[1]:
            raise InputError(
                f"line {number} of {path}", got=repr(line), expected="a condition and two sentences"
            )
        pairs = enumerate(zip(*words, strict=False))
        place = next((i for i, (one, other) in pairs if one != other), min(map(len, words)))
        yield Prefix(
            " ".join(words[0][:place]),
            numbers[0] == "plur",
            path.stem,
            any(other != numbers[0] for other in numbers[1:]),
        )


def split(
    prefixes: Sequence[Prefix], seed: int = 0, asked: float = 0.2
) -> tuple[list[Prefix], list[Prefix]]:
    """Return prefixes to learn from and others to ask about, of different templates.

    So no sentence that is asked about was seen in training, in whichever number.

    Parameters
    ----------
    prefixes : sequence of Prefix
    seed : int
    asked : float
        Share of the templates that is asked about, between 0 and 1.
    """
    if not 0 < asked < 1:
        raise InputError("share to ask about", got=str(asked), expected="between 0 and 1")
    templates = sorted({prefix.template for prefix in prefixes})
    order = np.random.default_rng(seed).permutation(len(templates))
    held = {templates[i] for i in order[: round(asked * len(templates))]}
    return (
        [prefix for prefix in prefixes if prefix.template not in held],
        [prefix for prefix in prefixes if prefix.template in held],
    )


def train_agreement(
    prefixes: Sequence[Prefix],
    *,
    causal: bool = True,
    width: int = 128,
    steps: int = 600,
    seed: int = 0,
) -> Model:
    """Train a model of 6 layers of 8 heads to say the number of the verb.

    Parameters
    ----------
    prefixes : sequence of Prefix
    causal : bool
        A decoder (GPT-2), which reads the number from a [CLS] behind the text; otherwise an
        encoder of the same blocks without the mask, with its [CLS] in front. The paper's model is
        such an encoder.
    width : int
        A multiple of 8; the paper takes 128.
    steps : int
        Batches of 64: the default takes about a minute.
    seed : int
        Of weights and order.

    Returns
    -------
    Model
        A classifier of `LABELS`.
    """
    words = sorted({word for prefix in prefixes for word in prefix.text.split()})
    tokenizer = word_tokenizer(words, "$A [CLS]" if causal else "[CLS] $A", LONGEST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = (_decoder if causal else _encoder)(len(tokenizer), width)
        descent = Descent(network, peak=1e-3, steps=steps, weight_decay=0.01, warm_up=0.1)
        network.train()
        draw = np.random.default_rng(seed)
        ids, mask = _ids(tokenizer, prefixes)
        numbers = torch.tensor([int(prefix.plural) for prefix in prefixes])
        for _ in range(steps):
            chosen = torch.from_numpy(draw.integers(len(prefixes), size=64))
            longest = int(mask[chosen].sum(1).max())
            read, real = ids[chosen, :longest], mask[chosen, :longest]
            gone = torch.from_numpy(draw.random(read.shape) < UNKNOWN)
            gone &= (real > 0) & (read != tokenizer.cls_token_id)
            read = torch.where(gone, tokenizer.unk_token_id, read)
            descent.step(cross_entropy(network(read, attention_mask=real).logits, numbers[chosen]))
    kind = "decoder" if causal else "encoder"
    return Model(network.eval(), tokenizer, name=f"agreement, {kind}")


def _decoder(vocabulary: int, width: int) -> GPT2ForSequenceClassification:
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=LONGEST, n_embd=width, n_layer=6, n_head=8,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=0, bos_token_id=None,
        eos_token_id=None, id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    return GPT2ForSequenceClassification(config)


def _encoder(vocabulary: int, width: int) -> RobertaPreLayerNormForSequenceClassification:
    config = RobertaPreLayerNormConfig(
        vocab_size=vocabulary, max_position_embeddings=LONGEST + 1, hidden_size=width,
        num_hidden_layers=6, num_attention_heads=8, intermediate_size=4 * width, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, type_vocab_size=1,
        bos_token_id=None, eos_token_id=None, id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    return RobertaPreLayerNormForSequenceClassification(config)


def _ids(tokenizer: PreTrainedTokenizerFast, prefixes: Sequence[Prefix]) -> tuple[Tensor, Tensor]:
    """Return ids and mask ``[prefix, token]``, padded on the right."""
    encoded = tokenizer([p.text for p in prefixes], padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def right(model: Model, prefixes: Sequence[Prefix]) -> Bools:
    """Return for each prefix whether the model says the number of its verb.

    Parameters
    ----------
    model : Model
        As `train_agreement` made it.
    prefixes : sequence of Prefix
    """
    found = np.zeros(len(prefixes), dtype=np.bool_)
    wanted = np.array([prefix.plural for prefix in prefixes])
    for places, batch in model.batches(model.encode([prefix.text for prefix in prefixes])):
        found[places] = model.logits(batch.inputs).argmax(-1).cpu().numpy() == wanted[places]
    return found
