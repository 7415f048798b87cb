"""Models for the tests: the demo model and one tiny random classifier for each family."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # tests never ask the network
# processes that share the cores, and the programs that they start, must not ask for all of them
os.environ["OMP_NUM_THREADS"] = str(
    max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
)

import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AlbertConfig,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    T5Config,
)

import xattn
from xattn.demo import REVIEWS
from xattn.model.tasks import TASKS

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
# Large weights: with the usual small ones every map is uniform and every test passes.
WIDE = {"initializer_range": 0.25}

ENCODERS: dict[str, Callable[[dict[str, int]], Any]] = {
    "bert": lambda t: BertConfig(**SIZE, **WIDE, **t),
    "roberta": lambda t: RobertaConfig(**{**SIZE, "max_position_embeddings": 66}, **WIDE, **t),
    "distilbert": lambda t: DistilBertConfig(
        dim=32,
        n_layers=3,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=64,
        num_labels=3,
        **WIDE,
        **t,
    ),
    "electra": lambda t: ElectraConfig(**SIZE, embedding_size=16, **WIDE, **t),
    "albert": lambda t: AlbertConfig(**SIZE, embedding_size=16, **WIDE, **t),
    "deberta-v2": lambda t: DebertaV2Config(
        **SIZE,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        pooler_hidden_size=32,
        **WIDE,
        **t,
    ),
    "modernbert": lambda t: ModernBertConfig(
        **SIZE, local_attention=8, global_attn_every_n_layers=2, **WIDE, **t
    ),
}
DECODERS: dict[str, Callable[[dict[str, int]], Any]] = {
    "gpt2": lambda t: GPT2Config(
        n_embd=32, n_layer=3, n_head=4, n_inner=48, n_positions=64, num_labels=3, **WIDE, **t
    ),
    "llama": lambda t: LlamaConfig(**SIZE, num_key_value_heads=2, **WIDE, **t),
    "qwen2": lambda t: Qwen2Config(**SIZE, num_key_value_heads=2, **WIDE, **t),
}
FAMILIES = (*ENCODERS, *DECODERS)
ENCODER_DECODERS: dict[str, Callable[[dict[str, int]], Any]] = {
    "bart": lambda t: BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, num_labels=3,
        max_position_embeddings=64, init_std=0.25, decoder_start_token_id=2,
        forced_eos_token_id=None, **t,
    ),
    "t5": lambda t: T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, num_labels=3,
        decoder_start_token_id=1, initializer_factor=1.0, **t,
    ),
}  # fmt: skip
# Mixes positions by a Fourier transform: a classifier without attention.
WITHOUT_ATTENTION = {"fnet": lambda t: FNetConfig(**SIZE, **WIDE, **t)}


def _sentences() -> list[str]:
    with REVIEWS.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def _wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers "##x" pieces in the random order of a hash table and breaks ties by
    # number: naming them in advance makes the vocabulary the same in every run.
    inner = [f"##{letter}" for letter in sorted(set("".join(_sentences()).lower()) - {" "})]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *inner]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    tokenizer.train_from_iterator(_sentences(), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def _byte_level(special: dict[str, str], template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys(special.values()))
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    if template == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    elif template == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    if family in ("roberta", "modernbert", *ENCODER_DECODERS):
        return _byte_level(
            {
                "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>",
                "unk_token": "<unk>", "mask_token": "<mask>", "cls_token": "<s>",
                "sep_token": "</s>",
            },
            "roberta",
        )  # fmt: skip
    if family == "llama":
        return _byte_level({"bos_token": "<s>", "eos_token": "</s>"}, "llama")
    if family in DECODERS:
        return _byte_level({"eos_token": "<|endoftext|>"}, None)
    return _wordpiece()


def build(family: str, seed: int = 0, *, task: str = "classify", **changes: Any) -> xattn.Model:
    """Return a tiny random model of one family, with a tokenizer of its kind.

    `changes` are of the configuration.
    """
    tokenizer = _tokenizer(family)
    ids = {
        name: value
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        if (value := getattr(tokenizer, name)) is not None
        and (family not in DECODERS or name != "pad_token_id")
    }
    torch.manual_seed(seed)
    kinds = {**ENCODERS, **DECODERS, **ENCODER_DECODERS, **WITHOUT_ATTENTION}
    config = kinds[family]({"vocab_size": len(tokenizer), **ids})
    if task == "answer":  # start and end
        changes["num_labels"] = 2
    for name, value in changes.items():
        setattr(config, name, value)
    network = TASKS[task].auto_class(config).from_config(config).eval()
    with torch.no_grad():  # heads start at zero bias and small weights in some families
        for name, parameter in network.named_parameters():
            if name.startswith(
                ("score", "classifier", "pooler", "head", "pre_classifier", "qa_outputs")
            ):
                parameter.normal_(0, 0.3)
    return xattn.Model(network, tokenizer, task=task, name=f"tiny-{family}")


@pytest.fixture(scope="session")
def demo() -> xattn.Model:
    """The sentiment model that comes with xattn."""
    return xattn.load()


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> xattn.Model:
    """A tiny random classifier, of every family in turn."""
    return build(request.param)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """The name of every family in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def tiny_of() -> Callable[..., xattn.Model]:
    """Build a tiny random model of a named family."""
    return build
