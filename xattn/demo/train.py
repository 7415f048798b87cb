"""Train the demo sentiment classifier from scratch: ``python -m xattn.demo.train --help``.

The result is deterministic given the seed, on the same machine with the same thread count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizerFast,
)

from xattn.demo.batches import (
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL_TOKENS,
    Encoded,
    bucketed_batches,
    pad,
    remove_tokens,
)
from xattn.demo.card import Measurement, write_card
from xattn.demo.data import Corpus, Example, load_corpus
from xattn.demo.descent import Descent

LABELS = {0: "negative", 1: "positive"}
MAX_TOKENS = 128
EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters; the model card says how they were chosen.

    Rates and shares are probabilities; learning rates are the peaks of a warm-up and a
    linear decay.
    """

    held_out: int = 500
    vocabulary: int = 8000
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    dropout: float = 0.2
    batch: int = 64
    weight_decay: float = 0.05
    warm_up: float = 0.06
    mask_rate: float = 0.2
    pretrain_epochs: int = 1
    pretrain_rate: float = 2e-3
    epochs: int = 1
    learning_rate: float = 1e-3
    smoothing: float = 0.05
    sentence_weight: float = 2.0
    light_removal: float = 0.2
    heavy_share: float = 0.2
    blank_share: float = 0.03


def train_tokenizer(texts: Sequence[str], size: int) -> BertTokenizerFast:
    """Learn a lower-casing WordPiece vocabulary.

    Parameters
    ----------
    texts
        Texts in natural spelling.
    size
        Number of entries, special tokens included.

    Returns
    -------
    BertTokenizerFast
        Fast tokenizer that frames a text as ``[CLS] text [SEP]``.
    """
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = {letter for text in texts for letter in pieces.normalizer.normalize_str(text)}
    # The trainer numbers "##x" pieces in the random order of a hash table and breaks ties by
    # number: naming them in advance makes the vocabulary reproducible.
    inner = [f"##{letter}" for letter in sorted(characters) if not letter.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *inner],
        show_progress=False,
    )
    pieces.train_from_iterator(texts, trainer)
    return BertTokenizerFast(vocab=pieces.get_vocab(), model_max_length=MAX_TOKENS)


def encode(tokenizer: BertTokenizerFast, examples: Sequence[Example], weight: float) -> Encoded:
    """Tokenise examples.

    Parameters
    ----------
    tokenizer
        Tokenizer of the model.
    examples
        Labelled texts.
    weight
        Weight of whole sentences in the loss, where phrases weigh 1.

    Returns
    -------
    Encoded
        Ids and targets in the order of ``examples``.
    """
    texts = [item.text for item in examples]
    return Encoded(
        tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"],
        torch.tensor([float(item.label) for item in examples]),
        torch.tensor([weight if item.complete else 1.0 for item in examples]),
    )


def pretrain(config: BertConfig, data: Encoded, recipe: Recipe, seed: int) -> BertForMaskedLM:
    """Masked-language pre-training, which gives rare words a meaning before any label is seen.

    Parameters
    ----------
    config
        Architecture.
    data
        Whole sentences.
    recipe
        Hyper-parameters.
    seed
        Seed of batches and masks.

    Returns
    -------
    BertForMaskedLM
        Model whose encoder :func:`fine_tune` starts from.
    """
    generator = torch.Generator().manual_seed(seed)
    model = BertForMaskedLM(config).train()
    lengths = torch.tensor([len(row) for row in data.ids])
    steps = recipe.pretrain_epochs * -(-len(data.ids) // recipe.batch)
    descent = Descent(model, recipe.pretrain_rate, steps, recipe.weight_decay, recipe.warm_up)
    for epoch in range(recipe.pretrain_epochs):
        total = 0.0
        for batch in bucketed_batches(lengths, recipe.batch, generator):
            ids = pad([data.ids[index] for index in batch.tolist()])
            chosen = torch.rand(ids.shape, generator=generator) < recipe.mask_rate
            chosen &= ids >= len(SPECIAL_TOKENS)
            # One in five chosen tokens stays, so that visible words are modelled as well.
            masked = chosen & (torch.rand(ids.shape, generator=generator) < 0.8)
            states = model.bert(ids.masked_fill(masked, MASK), (ids != PAD).long())
            scores = model.cls(states.last_hidden_state[chosen])
            loss = functional.cross_entropy(scores, ids[chosen])
            descent.step(loss)
            total += loss.item() * len(batch)
        print(f"pre-training epoch {epoch + 1}: loss {total / len(data.ids):.3f}", flush=True)
    return model


def fine_tune(
    start: BertForMaskedLM, data: Encoded, recipe: Recipe, seed: int
) -> BertForSequenceClassification:
    """Train the classifier, part of its inputs with removed tokens.

    Parameters
    ----------
    start
        Pre-trained model.
    data
        Training texts.
    recipe
        Hyper-parameters.
    seed
        Seed of batches and removals.

    Returns
    -------
    BertForSequenceClassification
        Classifier in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    model = BertForSequenceClassification(start.config).train()
    # Not strict: the pooler has no counterpart in the pre-trained model.
    model.bert.load_state_dict(start.bert.state_dict(), strict=False)
    lengths = torch.tensor([len(row) for row in data.ids])
    steps = recipe.epochs * -(-len(data.ids) // recipe.batch)
    descent = Descent(model, recipe.learning_rate, steps, recipe.weight_decay, recipe.warm_up)
    for epoch in range(recipe.epochs):
        total = 0.0
        for batch in bucketed_batches(lengths, recipe.batch, generator):
            ids = pad([data.ids[index] for index in batch.tolist()])
            ids, attended, blank = _perturb(ids, recipe, generator)
            positive = data.positive[batch].clamp(recipe.smoothing, 1 - recipe.smoothing)
            positive = positive.masked_fill(blank, 0.5)
            logits = model(ids, attended).logits
            losses = functional.cross_entropy(
                logits, torch.stack([1 - positive, positive], dim=1), reduction="none"
            )
            weight = data.weight[batch]
            loss = (losses * weight).sum() / weight.sum()
            descent.step(loss)
            total += loss.item() * len(batch)
        print(f"fine-tuning epoch {epoch + 1}: loss {total / len(data.ids):.3f}", flush=True)
    return model.eval()


def _perturb(
    ids: Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and attention mask after removal, and which texts lost every word, shape ``(texts,)``.

    Most texts lose few tokens; some lose any share, so that the model stays calibrated along
    a whole deletion curve; a few lose everything on purpose, to learn that this is neutral.
    """
    rate = torch.rand(len(ids), generator=generator)
    kind = torch.rand(len(ids), generator=generator)
    light = kind >= recipe.blank_share + recipe.heavy_share
    rate = torch.where(light, rate * recipe.light_removal, rate).masked_fill(
        kind < recipe.blank_share, 1.0
    )
    ids, attended = remove_tokens(ids, rate, generator)
    return ids, attended, (ids < len(SPECIAL_TOKENS)).all(dim=1)


@torch.no_grad()
def probabilities(model: BertForSequenceClassification, rows: Sequence[Sequence[int]]) -> Tensor:
    """Predict.

    Parameters
    ----------
    model
        Classifier in evaluation mode.
    rows
        Token ids of each text, special tokens included.

    Returns
    -------
    Tensor
        Probability of "positive" for each text, shape ``(texts,)``.
    """
    parts = []
    for first in range(0, len(rows), EVALUATION_BATCH):
        ids = pad(rows[first : first + EVALUATION_BATCH])
        parts.append(model(ids, (ids != PAD).long()).logits.softmax(dim=1)[:, 1])
    return torch.cat(parts)


def train(corpus: Corpus, out: Path, recipe: Recipe, seed: int) -> Measurement:
    """Train on a corpus and save model and tokenizer.

    Parameters
    ----------
    corpus
        Data, already split.
    out
        Folder to write to; made when missing.
    recipe
        Hyper-parameters.
    seed
        Seed of the initial weights, dropout, batches, masks and removals.

    Returns
    -------
    Measurement
        What the model card reports.
    """
    began = time.perf_counter()
    torch.manual_seed(seed)
    whole = [item for item in corpus.train if item.complete]
    tokenizer = train_tokenizer([item.text for item in whole], recipe.vocabulary)
    start = pretrain(_config(recipe, len(tokenizer)), encode(tokenizer, whole, 1.0), recipe, seed)
    model = fine_tune(start, encode(tokenizer, corpus.train, recipe.sentence_weight), recipe, seed)
    seconds = time.perf_counter() - began
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)

    def right(examples: Sequence[Example]) -> tuple[int, int]:
        data = encode(tokenizer, examples, 1.0)
        hits = (probabilities(model, data.ids) > 0.5) == (data.positive > 0.5)
        return int(hits.sum()), len(examples)

    empty, masked = probabilities(model, [[CLS, SEP], [CLS, *[MASK] * 20, SEP]]).tolist()
    return Measurement(
        seconds=seconds,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        phrases=len(corpus.train),
        sentences=len(whole),
        held_out=right(corpus.held_out),
        test=right(corpus.test),
        empty=empty,
        masked=masked,
    )


def _config(recipe: Recipe, vocabulary: int) -> BertConfig:
    """Architecture of both training stages."""
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.intermediate,
        hidden_dropout_prob=recipe.dropout,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=PAD,
        id2label=LABELS,
        label2id={name: index for index, name in LABELS.items()},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, and write model, tokenizer and card.

    Parameters
    ----------
    arguments
        Command line without the program name; ``None`` reads ``sys.argv``.
    """
    parser = argparse.ArgumentParser(prog="python -m xattn.demo.train", description=__doc__)
    parser.add_argument(
        "--data", required=True, help="folder with train.tsv, dev.tsv and test.tsv, or a Hub name"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for model and card")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default 0)")
    options = parser.parse_args(arguments)
    recipe = Recipe()
    corpus = load_corpus(options.data, options.seed, recipe.held_out)
    found = train(corpus, options.out, recipe, options.seed)
    write_card(options.out, found, asdict(recipe), MAX_TOKENS, options.seed)


if __name__ == "__main__":
    main()
