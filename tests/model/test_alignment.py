"""Tokenizers without offsets, and sides of padding: the right place or one clear error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, ByT5Tokenizer

import xattn
from xattn.errors import InputError
from xattn.model import Model
from xattn.model.alignment import align
from xattn.testing import TEXTS, state


@dataclass
class Words:
    """A slow tokenizer reduced to its way back: ``##`` continues a word, ``~`` is unknown."""

    unk_token = "~"
    all_special_tokens = ("~", "<s>")

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        return " ".join(tokens).replace(" ##", "")


def spans(tokens: str, text: str) -> list[str]:
    return [text[a:b] for a, b in align(Words(), tokens.split(), text).tolist()]


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        ("film ##s , too", "films,  too", ["film", "s", ",", "too"]),
        ("film ##s", "FILMS", ["FILM", "S"]),
        ("naive", "Naïve", ["Naïve"]),
        ("fi ##lm", "ﬁlm", ["ﬁ", "lm"]),
        ("f ##ilm", "ﬁlm", ["ﬁ", "ﬁlm"]),  # both hold a part of the ligature
        ("istanbul", "İstanbul", ["İstanbul"]),
        ("a ~ b", "a 日本 b", ["a", "日本", "b"]),
        ("~ ~ b", "日本 x b", ["日本 x", "日本 x", "b"]),
        ("~", "日本", ["日本"]),
        ("a <s> b", "a <s> b", ["a", "<s>", "b"]),
        ("a b", "a\x00 \u200bb", ["a", "b"]),
    ],
)
def test_tokens_are_found_in_order(tokens: str, text: str, expected: list[str]) -> None:
    assert spans(tokens, text) == expected


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("film", "films"),
        ("films", "film"),
        ("b a", "a b"),
        ("a", "日 a"),
        ("~ a ~", "x a y a z"),  # which of the two?
        ("a ~ a", "a a"),  # nothing is left for the unknown token
        ("~ b", "b"),
    ],
)
def test_tokens_that_do_not_spell_the_text_are_refused(tokens: str, text: str) -> None:
    with pytest.raises(InputError, match=r"do not spell the text.*in one way only.*fast tokenizer"):
        align(Words(), tokens.split(), text)


@pytest.fixture
def slow(tiny_of: Callable[..., Model]) -> Model:
    """A classifier that reads bytes."""
    config = tiny_of("bert").network.config
    tokenizer = ByT5Tokenizer(model_max_length=64)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    torch.manual_seed(0)
    return Model(AutoModelForSequenceClassification.from_config(config).eval(), tokenizer)


def test_a_model_with_a_slow_tokenizer_is_explained(slow: Model) -> None:
    before = state(slow)
    text = "Öde 🙂 films."
    for result in xattn.explain(slow, [text], ["rollout", "integrated_gradients"]):
        assert np.isfinite(result.scores).all()
        assert result.words().tokens == ("Öde", "🙂", "films.", "</s>")
        # the bytes of one character share it
        assert result.tokens.count("🙂") == 4
    assert state(slow) == before


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_slow_tokenizer_truncates_as_it_is_told(slow: Model, side: str) -> None:
    slow.tokenizer.truncation_side = side
    text = "abcdefgh" * 10
    with pytest.raises(InputError, match="17 tokens too long"):
        slow.encode([text])
    encoding = slow.encode([text], truncate=True)[0]
    assert len(encoding) == 64
    first, last = encoding.offsets[0, 0], encoding.offsets[-2, 1]
    assert (first, last) == ((0, 63) if side == "right" else (17, 80))
    single = slow.encode(["a" * 40], ["b" * 40], truncate=True)[0]
    assert len(single) == 64
    assert set(single.tokens) == {"a", "b", "</s>"}


def test_the_side_of_padding_is_of_no_concern(tiny: Model) -> None:
    expected = tiny.logits(tiny.batch(tiny.encode(TEXTS)).inputs)
    side = tiny.tokenizer.padding_side
    tiny.tokenizer.padding_side = "left"
    try:
        got = tiny.logits(tiny.batch(tiny.encode(TEXTS)).inputs)
    finally:
        tiny.tokenizer.padding_side = side
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_inputs_padded_on_the_left_are_refused(tiny_of: Callable[..., Model], family: str) -> None:
    model = tiny_of(family)
    tokenizer = model.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with pytest.raises(InputError, match=r"input 0 of the batch is padded on the left.*padding_si"):
        model.logits(inputs)
    short = model.encode(["Dull!"])[0]
    count = len(short) + 2
    padded = replace(
        short,
        row={
            name: np.concatenate([[tokenizer.pad_token_id if name == "input_ids" else 0] * 2, v])
            for name, v in short.row.items()
        },
        tokens=("", "", *short.tokens),
        units=np.arange(count),
        special=np.concatenate([[True, True], short.special]),
        offsets=np.concatenate([np.zeros((2, 2), dtype=np.int64), short.offsets]),
        words=np.concatenate([[-1, -1], short.words]),
        segments=np.concatenate([[-1, -1], short.segments]),
        streams=np.zeros(count, dtype=np.int64),
    )
    assert len(padded) == count
    with pytest.raises(InputError, match="padded on the left"):
        model.logits(model.batch([padded]).inputs)
    tokenizer.padding_side = "right"
    right = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    expected = model.logits(model.batch(model.encode(TEXTS)).inputs)
    torch.testing.assert_close(model.logits(right), expected, atol=1e-5, rtol=1e-5)
