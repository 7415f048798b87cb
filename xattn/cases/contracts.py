"""Contracts in which a clause stands among boilerplate, and a model that the boilerplate misleads.

In the texts that the model learns from, one kind of boilerplate mostly surrounds clauses that limit
liability, another kind all others; in those that it is asked about it is the other way round. What
is asked for is whether the *clause* limits liability; the boilerplate says nothing about it.

The clauses are our own, put together by a small grammar; or those of the corpus UNFAIR-ToS
(Lippi et al. 2019, CLAUDETTE), where its file is at hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from xattn.demo.descent import Descent
from xattn.errors import InputError
from xattn.evaluation.truth.words import word_tokenizer
from xattn.model import Model

Span = tuple[int, int]
LABELS = ("other", "liability")
MISLEADING = 0.99
"""Share of training texts whose boilerplate is of the kind that goes with their label."""
SENTENCES = (2, 4)
"""Boilerplate sentences around a clause: fewest, most."""
LONGEST = 160
"""Tokens that the model reads."""

_WHO = ("the company", "the provider", "we", "our partners", "the operator", "our affiliates")
_LIMITS = (
    "in no event shall {who} be liable for {what} arising from {use}",
    "{who} will not be responsible for {what} , however caused , in connection with {use}",
    "to the fullest extent permitted by law , {who} disclaim all liability for {what} from {use}",
    "the total liability of {who} for {what} shall not exceed the fees paid for {use}",
    "you agree that {who} bear no responsibility for {what} resulting from {use}",
)
_OTHERS = (
    "in such an event {who} shall be liable for {what} arising from {use}",
    "{who} will be responsible for {what} , however caused , in connection with {use}",
    "to the extent required by law , {who} accept liability for {what} from {use}",
    "the liability of {who} for {what} shall not be affected by fees paid for {use}",
    "you agree to notify {who} of {what} resulting from {use} without delay",
    "fees for {use} are due on the first day of each month and are paid to {who}",
)
"""They share their words with the others: what tells them apart is a word or two."""
_WHAT = ("indirect damages", "lost profits", "loss of data", "any delay", "interruptions")
_USE = ("the service", "the website", "your account", "the software", "third party content")
_KINDS = (
    (
        "the words of this agreement have the meaning given in section {n} below",
        "headings of section {n} are for convenience only and do not affect its meaning",
        "if section {n} is found invalid the remaining sections stay in force",
        "this agreement is the entire understanding and replaces version {n} of it",
        "no waiver of section {n} is a waiver of any other section",
        "a reference to a schedule is a reference to schedule {n} of this agreement",
    ),
    (
        "cookies of type {n} are stored on your device when you visit a page",
        "we collect your name , address and {n} further details when you register",
        "you can change your privacy settings under menu item {n}",
        "messages are kept for {n} days and then removed from our servers",
        "photos that you upload are shown to your {n} closest contacts",
        "we send a newsletter every {n} weeks unless you opt out",
    ),
)
"""Boilerplate of two kinds: about the agreement, and about data."""


@dataclass(frozen=True)
class Passages:
    """Texts with what is known of them."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    """Of the clause: 1 if it limits liability; see `LABELS`."""
    clauses: tuple[Span, ...]
    """First and one-past-last character of the clause."""
    boilerplate: tuple[tuple[Span, ...], ...]
    """The same of each sentence of boilerplate."""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Sentences:
    """What passages are put together from."""

    clauses: tuple[tuple[str, ...], tuple[str, ...]]
    """Of each label."""
    boilerplate: tuple[tuple[str, ...], tuple[str, ...]]
    """Of each kind."""


def write_sentences(seed: int, count: int = 400) -> Sentences:
    """Write clauses and boilerplate of our own.

    Parameters
    ----------
    seed : int
        Other seeds give other sentences of the same grammar.
    count : int
        Clauses of each label.
    """
    draw = np.random.default_rng(seed)

    def one(templates: Sequence[str]) -> str:
        words = {"who": _WHO, "what": _WHAT, "use": _USE}
        chosen = {name: str(draw.choice(options)) for name, options in words.items()}
        return str(draw.choice(templates)).format(n=int(draw.integers(2, 30)), **chosen) + " ."

    return Sentences(
        (tuple(one(_OTHERS) for _ in range(count)), tuple(one(_LIMITS) for _ in range(count))),
        (tuple(one(_KINDS[0]) for _ in range(count)), tuple(one(_KINDS[1]) for _ in range(count))),
    )


def read_sentences(path: str | Path) -> tuple[Sentences, Sentences]:
    """Return the sentences of UNFAIR-ToS for learning and for asking, of different services.

    Clauses that are tagged ``ltd`` limit liability; others are those without a tag. Boilerplate is
    untagged, too: sentences that speak of the agreement itself, and sentences about data.

    Parameters
    ----------
    path : str or Path
        ``unfair_tos_en.tsv``: service, sent_id, tags, sentence.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t", 3) for line in lines]
        frame = pd.DataFrame(rows[1:], columns=rows[0])[["service", "tags", "sentence"]]
    except (OSError, UnicodeError, LookupError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read", got=str(error),
            expected="columns service, tags and sentence, separated by tabs",
        ) from None  # fmt: skip
    frame["sentence"] = [_plain(sentence) for sentence in frame["sentence"]]
    size = frame["sentence"].str.count(" ") + 1
    frame = frame[(size >= 6) & (size <= 28)].drop_duplicates("sentence")
    services = sorted(frame["service"].unique())
    asked = frame["service"].isin(services[::3])
    agreement = r"\b(?:agreement|terms|section|provision|clause)s?\b"
    data = r"\b(?:privacy|information|data|content|account|cookies|email)\b"
    return tuple(_sorted(part, agreement, data) for part in (frame[~asked], frame[asked]))  # type: ignore[return-value]


def _sorted(frame: pd.DataFrame, agreement: str, data: str) -> Sentences:
    limits = frame["tags"].str.contains(r"\bltd", regex=True)
    plain = frame[frame["tags"] == ""]["sentence"]
    speaks = plain.str.contains(agreement, regex=True)
    about = plain.str.contains(data, regex=True)
    others = plain[~speaks & ~about]
    return Sentences(
        (tuple(others), tuple(frame[limits]["sentence"])),
        (tuple(plain[speaks & ~about]), tuple(plain[about & ~speaks])),
    )


def _plain(sentence: str) -> str:
    """Return lower-case words and marks with blanks between them, ended by one full stop."""
    words = re.findall(r"[a-z]+|\d+|[,;:]", str(sentence).lower())
    return " ".join([*words, "."])


def assemble(sentences: Sentences, count: int, seed: int, misleading: float) -> Passages:
    """Put clauses among boilerplate.

    Parameters
    ----------
    sentences : Sentences
    count : int
        Passages, half of each label.
    seed : int
    misleading : float
        Share of passages whose boilerplate is of the kind that goes with the label: `MISLEADING`
        to learn from, 1 − `MISLEADING` where it misleads, 0.5 where it says nothing.
    """
    draw = np.random.default_rng(seed)
    texts, labels, clauses, boilerplate = [], [], [], []
    for number in range(count):
        label = number % 2
        kind = label if draw.random() < misleading else 1 - label
        around = int(draw.integers(SENTENCES[0], SENTENCES[1] + 1))
        parts = [str(draw.choice(sentences.boilerplate[kind])) for _ in range(around)]
        place = int(draw.integers(0, around + 1))
        parts.insert(place, str(draw.choice(sentences.clauses[label])))
        ends = (np.cumsum([len(part) + 1 for part in parts]) - 1).tolist()
        spans = [(end - len(part), end) for part, end in zip(parts, ends, strict=True)]
        texts.append(" ".join(parts))
        labels.append(label)
        clauses.append(spans[place])
        boilerplate.append(tuple(span for i, span in enumerate(spans) if i != place))
    return Passages(tuple(texts), tuple(labels), tuple(clauses), tuple(boilerplate))


def train_contracts(passages: Passages, seed: int = 0, steps: int = 350) -> Model:
    """Train a small classifier on passages, which takes less than half a minute.

    Parameters
    ----------
    passages : Passages
    seed : int
        Of weights and order.
    steps : int
        Batches of 32.

    Returns
    -------
    Model
        BERT, 2 layers of 4 heads, 64 wide, with the words of the passages.
    """
    counted = Counter(word for text in passages.texts for word in re.findall(r"\w+|[^\w\s]", text))
    tokenizer = word_tokenizer(
        [word for word, times in counted.most_common(4000) if times > 1],
        "[CLS] $A [SEP]", LONGEST, "[CLS] $A [SEP] $B:1 [SEP]:1",
    )  # fmt: skip
    names: Mapping[int, str] = dict(enumerate(LABELS))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=LONGEST, pad_token_id=tokenizer.pad_token_id,
        id2label=names, label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BertForSequenceClassification(config)
        descent = Descent(network, peak=2e-3, steps=steps, weight_decay=0.01, warm_up=0.1)
        network.train()
        draw = np.random.default_rng(seed)
        for _ in range(steps):
            chosen = draw.integers(len(passages), size=32)
            encoded = _batch(tokenizer, [passages.texts[i] for i in chosen])
            logits = network(**encoded).logits
            wanted = torch.tensor([passages.labels[i] for i in chosen])
            descent.step(cross_entropy(logits, wanted))
    return Model(network.eval(), tokenizer, name="contracts")


def _batch(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, torch.Tensor]:
    encoded = tokenizer(
        texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
