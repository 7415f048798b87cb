"""Lookback ratios are those of the maps, while a model writes and when it reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import xattn
from xattn.analysis.lookback import Lookback, lookbacks, placed, watched
from xattn.errors import InputError
from xattn.model import Model, mark

TEXT = "The plot is thin. The acting is superb."
QUESTION = "What is thin?"
KINDS = ("gpt2", "llama", "qwen2", "bart", "t5")


def writer(tiny_of: Callable[..., Model], family: str) -> Model:
    return tiny_of(family, task="generate")


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("cache", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_what_is_seen_while_writing_is_what_whole_maps_say(tiny_of, family, cache):
    model = writer(tiny_of, family)
    prompt = placed(model, QUESTION, TEXT, room=5)
    written, found = watched(model, prompt, 5, **cache)
    source, own = by_hand(model, written)
    assert found.source.shape == (5, *source.shape[1:])
    np.testing.assert_allclose(found.source, source, atol=1e-5)
    np.testing.assert_allclose(found.own, own, atol=1e-5)
    assert found.source.max() > 0.05
    assert found.own_count.tolist() == [0, 1, 2, 3, 4]
    assert found.source_count == int(prompt.row["mark:source"].sum())


@pytest.mark.parametrize("family", KINDS)
def test_reading_is_as_writing_whatever_else_is_in_the_batch(tiny_of, family):
    model = writer(tiny_of, family)
    long, short = (placed(model, QUESTION, text, room=5) for text in (TEXT, "It is thin."))
    written = [watched(model, prompt, 5) for prompt in (long, short)]
    read = lookbacks(model, [encoding for encoding, _ in written])
    for (_, one), other in zip(written, read, strict=True):
        np.testing.assert_allclose(one.ratio(), other.ratio(), atol=1e-4)
        assert one.tokens == other.tokens


def test_layers_with_windows_lose_sight_of_the_source(tiny_of):
    tokenizer = writer(tiny_of, "llama").tokenizer
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, max_position_embeddings=64,
        sliding_window=8, initializer_range=0.25, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    network = Gemma2ForCausalLM(config).eval()
    model = Model(network, tokenizer, task="generate")
    written, found = watched(model, placed(model, QUESTION, TEXT, room=9), 9)
    [read] = lookbacks(model, [written])
    np.testing.assert_allclose(found.source, read.source, atol=1e-5)
    np.testing.assert_allclose(found.own, read.own, atol=1e-5)
    source = found.source.mean((0, 2))
    assert source[[0, 2]].max() == 0  # of eight tokens all are question and answer
    assert source[[1, 3]].min() > 0.1


def by_hand(model: Model, written) -> tuple[np.ndarray, np.ndarray]:
    """Return the attention to source and own words, ``[token, layer, head]``, from whole maps."""
    flags = written.row["mark:source"].astype(bool)
    if not model.paired:
        [whole] = model.attention([written])
        start = int(np.flatnonzero(written.segments == 1)[0])
        rows = whole.maps[:, :, start - 1 : -1]
        source = rows[..., : len(flags)][..., flags].sum(-1)
        own = np.stack([rows[:, :, i, start : start + i].sum(-1) for i in range(rows.shape[2])], -1)
        return source.transpose(2, 0, 1), own.transpose(2, 0, 1)
    [cross], [inner] = (model.attention([written], stack) for stack in ("cross", "decoder"))
    source = cross.maps[:, :, :-1][..., flags].sum(-1)
    own = np.stack([inner.maps[:, :, i, 1 : i + 1].sum(-1) for i in range(source.shape[2])], -1)
    return source.transpose(2, 0, 1), own.transpose(2, 0, 1)


def lookback() -> Lookback:
    source = np.array([0.6, 0.4, 0.2])[:, None, None]
    own = np.array([0.0, 0.2, 0.2])[:, None, None]
    return Lookback(("a", "b", "c"), source, own, 4, np.array([0, 1, 2]))


def test_the_ratio_is_the_papers():
    # means: 0.6/4, 0.4/4, 0.2/4 on the source; 0, 0.2/1, 0.2/2 on the model's own words
    expected = [1.0, 0.1 / (0.1 + 0.2), 0.05 / (0.05 + 0.1)]
    np.testing.assert_allclose(lookback().ratio()[:, 0, 0], expected)
    np.testing.assert_allclose(lookback().ratio("mass")[:, 0, 0], [1.0, 0.4 / 0.6, 0.5])
    np.testing.assert_allclose(lookback().features([1, 2]), [np.mean(expected[1:])])
    with pytest.raises(InputError, match="mean or mass"):
        lookback().ratio("median")
    for wrong in ([], [3], [-1]):
        with pytest.raises(InputError, match="0 to 2"):
            lookback().features(wrong)


def test_a_head_that_looks_at_neither_has_ratio_zero():
    nowhere = Lookback(("a",), np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), 4, np.array([0]))
    assert nowhere.ratio().item() == 0


def test_the_source_is_a_text_before_the_prompt_or_a_part_of_it(tiny_of):
    model = writer(tiny_of, "llama")
    before = placed(model, QUESTION, TEXT)
    assert before.text == f"{TEXT}\n{QUESTION}"
    within = placed(model, f"  {TEXT}\n{QUESTION}", [(2, 2 + len(TEXT))])
    assert within.text == before.text
    np.testing.assert_array_equal(within.row["mark:source"], before.row["mark:source"])
    given = placed(model, QUESTION, TEXT, "The plot")
    assert given.pair == " The plot"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "the source is empty"),
        ("  \n", "the source is empty"),
        ([], "the source is empty"),
        ([(0, 99)], "outside the prompt"),
        ([(5, 5)], "outside the prompt, or empty"),
        ([(-1, 3)], "outside the prompt"),
        ("so many words " * 60, "too long for the model: got .* expected at most 64"),
    ],
)
def test_a_source_that_cannot_be_used_is_told(tiny_of, source, says):
    with pytest.raises(InputError, match=says):
        placed(writer(tiny_of, "llama"), QUESTION, source, room=4)


def test_what_else_cannot_be_watched_is_told(tiny_of, demo):
    model = writer(tiny_of, "llama")
    with pytest.raises(InputError, match="models that write"):
        placed(demo, QUESTION, TEXT)
    prompt = placed(model, QUESTION, TEXT)
    with pytest.raises(InputError, match="num_beams"):
        watched(model, prompt, 4, num_beams=2)
    with pytest.raises(InputError, match="max_new_tokens"):
        watched(model, prompt, 0)
    with pytest.raises(InputError, match="no continuation"):
        lookbacks(model, [prompt])
    with pytest.raises(InputError, match="the text has no source"):
        lookbacks(model, model.encode(["It is thin."], [" So it is."]))
    with pytest.raises(InputError, match="no mark 'source'"):
        watched(model, mark(model.encode([TEXT])[0], "other", segment=0), 4)
    with pytest.raises(InputError, match="the answer is empty"):
        placed(model, QUESTION, TEXT, "  ")


def test_watching_changes_nothing_that_is_written():
    model = xattn.load(task="generate")
    prompt = placed(model, "What did Mia have?", "Mia had a red ball. It was cold.")
    [plain] = model.generate([prompt], 12)
    written, found = watched(model, prompt, 12)
    assert written.pair == plain.pair
    [sampled] = model.generate([prompt], 12, do_sample=True, temperature=2.0, seed=3)
    written, found = watched(model, prompt, 12, do_sample=True, temperature=2.0, seed=3)
    assert written.pair == sampled.pair
    assert len(found.tokens) == int((written.segments == 1).sum())
    assert torch.is_grad_enabled()
