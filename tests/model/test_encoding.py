"""Encodings: tokens stand where they say they stand, and nothing is cut in silence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from xattn.errors import InputError
from xattn.model import Model


def test_tokens_are_cut_from_the_text(tiny: Model) -> None:
    text = "Über-clever, yes; naïve? No: 日本 and 🙂 too."
    encoding = tiny.encode([text])[0]
    for token, (start, end), special in zip(
        encoding.tokens, encoding.offsets.tolist(), encoding.special, strict=True
    ):
        if special:
            assert (start, end) == (0, 0)
        elif end > start:
            assert token == text[start:end]
    covered = {i for start, end in encoding.offsets.tolist() for i in range(start, end)}
    assert {i for i, c in enumerate(text) if not c.isspace()} <= covered


def test_specials_and_segments_of_a_pair(demo: Model) -> None:
    encoding = demo.encode(["A good film."], ["Was it?"])[0]
    assert encoding.tokens[0] == "[CLS]"
    assert encoding.tokens[-1] == "[SEP]"
    assert encoding.special.sum() == 3
    first = [t for t, s in zip(encoding.tokens, encoding.segments, strict=True) if s == 0]
    second = [t for t, s in zip(encoding.tokens, encoding.segments, strict=True) if s == 1]
    assert "".join(first).lower() == "agoodfilm."
    assert "".join(second).lower() == "wasit?"
    assert set(encoding.removable) == set(np.flatnonzero(encoding.segments >= 0))


def test_decoders_without_special_tokens_have_none(tiny_of: Callable[..., Model]) -> None:
    assert not tiny_of("gpt2").encode(["A film."])[0].special.any()
    assert tiny_of("llama").encode(["A film."])[0].special.tolist()[:2] == [True, False]


def test_a_position_table_with_a_padding_row_is_shorter(tiny_of: Callable[..., Model]) -> None:
    assert tiny_of("roberta").limit == 64
    assert tiny_of("bert").limit == 64


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_text(demo: Model, text: str) -> None:
    with pytest.raises(InputError, match=r"text 0 is empty.*pass at least one word"):
        demo.encode([text])


def test_empty_second_text(demo: Model) -> None:
    with pytest.raises(InputError, match="text 0 is empty"):
        demo.encode(["A film."], [""])


def test_only_special_tokens(demo: Model) -> None:
    with pytest.raises(InputError, match="nothing but special tokens"):
        demo.encode(["[SEP] [CLS]"])


def test_too_long_says_by_how_much_and_truncates_when_asked(demo: Model) -> None:
    text = "good " * 200
    with pytest.raises(InputError, match=r"74 tokens too long.*got 202 tokens.*at most 128.*trunc"):
        demo.encode([text])
    assert len(demo.encode([text], truncate=True)[0]) == 128


def test_a_string_instead_of_a_list(demo: Model) -> None:
    with pytest.raises(InputError, match="a list of strings"):
        demo.encode("one text")


def test_pairs_of_another_length(demo: Model) -> None:
    with pytest.raises(InputError, match="pairs: got 1, expected 2"):
        demo.encode(["a", "b"], ["c"])


def test_replacement_tokens(demo: Model, tiny_of: Callable[..., Model]) -> None:
    assert demo.token_id("auto") == demo.tokenizer.mask_token_id
    gpt2 = tiny_of("gpt2")
    assert gpt2.token_id("auto") == gpt2.tokenizer.eos_token_id
    with pytest.raises(InputError, match="no mask token: expected one of eos"):
        gpt2.token_id("mask")
