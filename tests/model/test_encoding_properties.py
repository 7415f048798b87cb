"""Texts in many scripts: tokens stand where they say they do, or there is one clear error."""

from __future__ import annotations

import functools
import json
import re
import tempfile
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from transformers import ByT5Tokenizer, CanineTokenizer, CTRLTokenizer, PreTrainedTokenizerFast
from transformers.models.prophetnet.tokenization_prophetnet import ProphetNetTokenizer

from xattn.errors import InputError
from xattn.model import Model
from xattn.model.encoding import encode
from xattn.types import Encoding

EXAMPLES = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SCRAPS = st.sampled_from(
    [
        "film", "A dull, lifeless film.", "naïve", "naïve", "İstanbul", "ﬁn", "ßß", "ＡＢＣ", "½",
        "日本", "映画は退屈", "영화", "영", "สวัสดี", "नमस्ते", "שָׁלוֹם", "مرحبا", "\u202eabc\u202c",
        "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "❤️", "z̸̢̛͍", "a\u200bb", "\u200b", "\ufeff", "\u00ad", "\ufffd",
        "\x00", "\x1f",
        "x" * 70, "[SEP]", "</s>", "(!?)", "'s", "...", "\u2028", "\u00a0", "\u3000", "  ",
        "\n", "@@", "##", "▁",
    ]
)  # fmt: skip
LOOSE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
TEXTS = st.lists(st.one_of(SCRAPS, LOOSE), min_size=1, max_size=6).flatmap(
    lambda parts: st.sampled_from(["".join(parts), " ".join(parts)])
)


def metaspace() -> PreTrainedTokenizerFast:
    """A fast tokenizer like that of Llama 2: it reads the whole text as one word."""
    letters = "▁abcdefghijklmnopqrstuvwxyz.,!?日本"
    pieces = [("<unk>", 0.0), *((c, -5.0) for c in letters), ("▁A", -2.0), ("film", -3.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def ctrl() -> CTRLTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        known = ["<unk>", "du@@", "ll", "film", "a", "fi@@", "l@@", "m", "n@@", "."]
        vocabulary.write_text(json.dumps({token: i for i, token in enumerate(known)}))
        merges.write_text("#version\nd u\nl l</w>\nf i\nfi l\nfil m</w>\n")
        return CTRLTokenizer(str(vocabulary), str(merges))


def prophetnet() -> ProphetNetTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.txt")
        known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "##s", "du", "##ll",
                 "naive", ",", ".", "(", "!", "?", ")", "x", "##x", "日"]  # fmt: skip
        vocabulary.write_text("\n".join(known), encoding="utf-8")
        return ProphetNetTokenizer(str(vocabulary))


SLOW: dict[str, Callable[[], Any]] = {
    "bytes (ByT5)": ByT5Tokenizer,
    "characters (Canine)": CanineTokenizer,
    "word pieces (ProphetNet)": prophetnet,
    "merges (CTRL)": ctrl,
}
# These drop or fold what the model cannot see: accents, control signs, the replacement sign.
DROPPING = {"word pieces (ProphetNet)", "bert"}


@functools.cache
def tokenizer_of(name: str, build: Callable[..., Any]) -> Any:
    return SLOW[name]() if name in SLOW else build(name).tokenizer


def check(encoding: Encoding, drops: bool) -> None:
    for segment, source in enumerate((encoding.text, encoding.pair or "")):
        here = encoding.segments == segment
        spans = encoding.offsets[here].tolist()
        words = encoding.words[here].tolist()
        tokens = [t for t, h in zip(encoding.tokens, here, strict=True) if h]
        for token, (start, end) in zip(tokens, spans, strict=True):
            assert 0 <= start <= end <= len(source)
            if end > start:
                assert token == source[start:end]
        for (start, end), (later, last) in pairwise(spans):
            assert start <= later
            assert end <= last
        assert all(b - a in (0, 1) for a, b in pairwise([-1, *words]))
        for word in set(words):
            of_word = [s for s, w in zip(spans, words, strict=True) if w == word]
            inked = [(a, a + len(source[a:b].rstrip())) for a, b in of_word if source[a:b].strip()]
            for (_, end), (start, _) in pairwise(inked):
                assert not any(c.isspace() for c in source[end:start])
        covered = {i for start, end in spans for i in range(start, end)}
        special = {"[SEP]", "[CLS]", "[PAD]", "</s>", "<s>", "<pad>", "<|endoftext|>", "\x00"}
        if not any(name in source for name in special):
            missed = {c for i, c in enumerate(source) if i not in covered and not c.isspace()}
            if drops:
                missed = {c for c in missed if not invisible(c)}
            assert not missed
    assert not encoding.offsets[encoding.special].any()
    assert (encoding.words[encoding.special] == -1).all()


def invisible(character: str) -> bool:
    parts = unicodedata.normalize("NFD", character)
    return all(unicodedata.category(p)[0] in "MC" or p == "\ufffd" for p in parts)


REFUSALS = "is empty|nothing but special tokens|do not spell the text|special tokens in the text"


def encoded(tokenizer: Any, text: str, pair: str | None = None) -> Encoding | None:
    """Return the encoding, or None where it is refused in one of the ways that are meant."""
    try:
        pairs = None if pair is None else [pair]
        return encode(tokenizer, [text], pairs, limit=None, truncate=False)[0]
    except InputError as error:
        if not re.search(REFUSALS, str(error)):
            raise
        return None


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", *SLOW])
@EXAMPLES
@given(text=TEXTS, pair=st.one_of(st.none(), TEXTS))
def test_tokens_stand_where_they_say(
    tiny_of: Callable[..., Model], name: str, text: str, pair: str | None
) -> None:
    encoding = encoded(tokenizer_of(name, tiny_of), text, pair)
    if encoding is not None:
        check(encoding, name in DROPPING)


@EXAMPLES
@given(text=TEXTS)
def test_a_tokenizer_that_reads_one_long_word(text: str) -> None:
    encoding = encoded(metaspace(), text)
    if encoding is not None:
        check(encoding, drops=False)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", *SLOW])
@given(text=st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3))
@settings(EXAMPLES, max_examples=5)
def test_surrogates_are_refused(tiny_of: Callable[..., Model], name: str, text: str) -> None:
    with pytest.raises(InputError, match="text 0 is not valid Unicode"):
        encode(tokenizer_of(name, tiny_of), [f"a {text}"], None, limit=None, truncate=False)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@settings(EXAMPLES, max_examples=15)
@given(texts=st.lists(TEXTS, min_size=2, max_size=3))
def test_padding_changes_no_logit(
    tiny_of: Callable[..., Model], family: str, texts: list[str]
) -> None:
    model = model_of(family, tiny_of)
    encodings = [
        e for text in texts if (e := encoded(model.tokenizer, text)) is not None and len(e) <= 64
    ]
    if len(encodings) < 2:
        return
    together = model.logits(model.batch(encodings).inputs)
    for encoding, row in zip(encodings, together, strict=True):
        alone = model.logits(model.batch([encoding]).inputs)[0]
        torch.testing.assert_close(row, alone, atol=2e-5, rtol=1e-5)


@functools.cache
def model_of(family: str, build: Callable[..., Model]) -> Model:
    return build(family)
