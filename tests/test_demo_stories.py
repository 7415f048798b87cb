"""The demo decoder: its grammar, its tokenizer, its training, and what the shipped model knows."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from xattn.demo import STORYTELLER
from xattn.demo.plots import CLASSES, PLOTS
from xattn.demo.stories import Question, Story, stories
from xattn.demo.story_card import write_card
from xattn.demo.story_exam import examine, gives_replies, perplexity
from xattn.demo.train_stories import (
    HELD_OUT_SEED,
    MAX_TOKENS,
    SPECIAL_TOKENS,
    Recipe,
    told,
    train,
    train_tokenizer,
)

TINY = Recipe(
    practice=5, stories=48, held_out=8, vocabulary=400, hidden=16, layers=2, heads=2, key_heads=1,
    intermediate=24, batch=8,
)  # fmt: skip
FRESH = "tests"
"""A seed that the training did not use."""


@pytest.fixture(scope="module")
def written() -> list[Story]:
    return list(islice(stories(FRESH), 400))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(STORYTELLER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(STORYTELLER).eval()


def test_the_same_seed_writes_the_same_stories() -> None:
    first, again = (list(islice(stories(3), 20)) for _ in range(2))
    assert first == again
    other = list(islice(stories(4), 20))
    assert not {story.text for story in first} & {story.text for story in other}


def test_every_plot_is_told_and_no_story_twice(written: list[Story]) -> None:
    assert {story.plot for story in written} == set(PLOTS)
    assert len({story.text for story in written}) == len(written)
    assert {q.kind for story in written for q in story.questions} == set(CLASSES)


def test_sentences_are_well_formed(written: list[Story]) -> None:
    for story in written:
        texts = [story.text, *(q.text for q in story.questions)]
        texts += [q.reply for q in story.questions]
        for text in texts:
            assert not re.search(r"[{}]|  |\ba [aeiou]|^\s|\s$", text), text
            assert all(s[0].isupper() for s in re.split(r"(?<=[.?]) ", text)), text
            assert text[-1] in ".?", text


def test_the_story_says_what_answers_each_question(written: list[Story]) -> None:
    for story in written:
        assert len(story.questions) >= 4
        for q in story.questions:
            assert story.text[slice(*q.evidence)] == q.word
            assert q.reply[slice(*q.at)] == q.word
            assert f"{q.stub} {q.word}".lstrip() == q.reply[: q.at[1]]
            assert q.word in q.choices
            assert q.word not in re.findall(r"\w+", q.text), "the question gives it away"


def test_pronouns_agree_with_who_they_stand_for(written: list[Story]) -> None:
    seen = set()
    for story in written:
        opening = re.match(r"[^.]*\b(girl|boy)\b[^.]*\. (She|He|Her|His)\b", story.text)
        if opening:
            seen.add(opening[1])
            assert opening[2] in {"girl": ("She", "Her"), "boy": ("He", "His")}[opening[1]]
    assert seen == {"girl", "boy"}


def test_no_answer_can_be_guessed_from_its_question() -> None:
    """The same question has different answers, and who acts is not who is named first."""
    named_first = [
        story.text.index(q.word) == min(story.text.index(name) for name in q.choices)
        for story in islice(stories("order"), 600)
        for q in story.questions
        if q.text == "Who won the race?"
    ]
    assert len(named_first) > 60
    assert 0.3 < sum(named_first) / len(named_first) < 0.7


def test_a_story_can_be_retold_with_another_answer(written: list[Story]) -> None:
    story = written[0]
    q = next(q for q in story.questions if q.kind == "colour")
    retold = story.retold(q, "orange")
    assert "orange" in retold
    assert q.word not in retold
    assert retold.replace("orange", q.word) == story.text


def test_every_form_fits_into_the_context(written: list[Story], tokenizer: Any) -> None:
    random = Random(0)
    texts = [told(story, Recipe(), random) for story in written]
    assert max(map(len, tokenizer(texts)["input_ids"])) <= MAX_TOKENS
    assert {text[:8] == "<|user|>" for text in texts} == {True, False}


def test_the_tokenizer_writes_back_what_it_read(written: list[Story], tokenizer: Any) -> None:
    others = ["Zoë's naïve café 🙂", "line one\nline two", "שלום 世界", "e\u0301 \u200d!"]
    for text in [*(story.text for story in written[:50]), *others]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_offsets_tell_where_a_token_stands(written: list[Story], tokenizer: Any) -> None:
    for story in written[:50]:
        coded = tokenizer(story.text, return_offsets_mapping=True)
        pieces = tokenizer.convert_ids_to_tokens(coded["input_ids"])
        assert coded["offset_mapping"][0] == (0, 0)
        for piece, (start, end) in list(zip(pieces, coded["offset_mapping"], strict=True))[1:]:
            assert story.text[start:end] == piece.removeprefix("Ġ")


def test_a_name_is_the_same_token_wherever_it_stands(tokenizer: Any) -> None:
    alone = tokenizer("Mia", add_special_tokens=False)["input_ids"]
    assert tokenizer("Then Mia", add_special_tokens=False)["input_ids"][-len(alone) :] == alone
    turn = tokenizer("<|assistant|>Mia", add_special_tokens=False)["input_ids"]
    assert turn[1:] == alone


def test_turns_are_marked_by_special_tokens(tokenizer: Any) -> None:
    talk = [{"role": "user", "content": "Who won?"}, {"role": "assistant", "content": "Mia won."}]
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    assert text == "<s><|user|>Who won?<|end|><|assistant|>Mia won.<|end|>"
    ids = tokenizer.apply_chat_template(talk)["input_ids"]
    markers = [token for token in ids if token in tokenizer.all_special_ids]
    assert tokenizer.convert_ids_to_tokens(markers) == [
        "<s>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>",
    ]  # fmt: skip
    opened = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<s><|user|>Who won?<|end|><|assistant|>"
    with pytest.raises(Exception, match="roles user and assistant only"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be kind."}], tokenize=False)


def test_the_tokenizer_is_learned_the_same_way_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from itertools import islice\n"
        "from xattn.demo.stories import stories\n"
        "from xattn.demo.train_stories import train_tokenizer\n"
        "texts = [story.text for story in islice(stories(1), 300)]\n"
        "print(train_tokenizer(texts, 500).backend_tokenizer.to_str())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    texts = [story.text for story in islice(stories(1), 300)]
    here = train_tokenizer(texts, 500)
    assert done.stdout.strip() == here.backend_tokenizer.to_str()
    assert here.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))


def test_training_runs_is_repeatable_and_writes_a_card(tmp_path: Path) -> None:
    for name in ("a", "b"):
        training, result = train(tmp_path / name, TINY, seed=1)
    for file in ("model.safetensors", "tokenizer.json", "config.json", "generation_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert training.stories == 48
    assert result.all.total == 8
    assert result.perplexity < 2 * 400
    write_card(
        tmp_path / "a", training, result, {"batch": 8}, plots=6, max_tokens=MAX_TOKENS, seed=1
    )
    card = (tmp_path / "a" / "README.md").read_text()
    assert "| batch | 8 |" in card
    assert "n = 8" in card


def test_losses_fall_when_the_tiny_model_reads_more(tmp_path: Path) -> None:
    _, few = train(tmp_path / "few", TINY, seed=0)
    _, more = train(tmp_path / "more", Recipe(**{**vars(TINY), "stories": 800}), seed=0)
    assert more.perplexity < few.perplexity / 2


def test_the_shipped_model_is_a_small_llama_with_shared_keys(model: Any) -> None:
    config = model.config
    assert config.model_type == "llama"
    assert 1 < config.num_key_value_heads < config.num_attention_heads
    assert config.tie_word_embeddings
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == [2, 5]


def exam(kinds: set[str], count: int) -> list[tuple[Story, Question]]:
    """Draw one question of the given kinds about each of `count` new stories that has one."""
    random = Random(0)
    asked = (
        (story, random.choice(fitting))
        for story in stories(FRESH)
        if (fitting := [q for q in story.questions if q.kind in kinds])
    )
    return list(islice(asked, count))


def test_it_answers_what_one_word_of_a_kind_decides(model: Any, tokenizer: Any) -> None:
    """Without the story, the best guess would be right once in four times at most."""
    asked = exam({"animal", "food", "pet", "place", "spot", "weather"}, 150)
    right = gives_replies(model, tokenizer, [(f"{s.text} {q.text}", q.reply) for s, q in asked])
    assert right.float().mean() > 0.95
    # The answer follows the word that decides it.
    random = Random(1)
    changed = []
    for story, q in asked:
        told_words = re.findall(r"\w+", story.text)
        word = random.choice([w for w in CLASSES[q.kind] if w not in told_words])
        reply = q.reply[: q.at[0]] + word + q.reply[q.at[1] :]
        changed.append((f"{story.retold(q, word)} {q.text}", reply))
    assert gives_replies(model, tokenizer, changed).float().mean() > 0.95


def test_it_tells_persons_apart_better_than_chance(model: Any, tokenizer: Any) -> None:
    """Two persons are in each story: one that is drawn is right in half of the cases."""
    asked = exam({"person"}, 150)
    right = gives_replies(model, tokenizer, [(f"{s.text} {q.text}", q.reply) for s, q in asked])
    assert all(len(q.choices) == 2 for _, q in asked)
    assert right.float().mean() > 0.65  # half of 150 draws, and over three standard deviations


def test_it_is_examined_on_whole_sentences(model: Any, tokenizer: Any) -> None:
    fresh = list(islice(stories(FRESH), 60))
    result = examine(model, tokenizer, fresh, [[0]], seed=0)
    assert result.all.total == sum(answers.total for answers in result.kinds.values()) == 60
    assert result.all.right == sum(answers.right for answers in result.kinds.values())
    assert result.all.right > result.all.chance
    assert 1 < result.perplexity < 2
    assert 0 < result.changed.right <= result.changed.total < 60  # persons are not changed


def test_its_answer_is_what_it_generates(model: Any, tokenizer: Any) -> None:
    """The quick examination says of each exchange what greedy decoding shows."""
    exchanges = [
        (f"{story.text} {story.questions[0].text}", story.questions[0].reply)
        for story in islice(stories("generate"), 12)
    ]
    exchanges += [(said, "The moon.") for said, _ in exchanges[:2]]
    found = gives_replies(model, tokenizer, exchanges).tolist()
    for (said, reply), right in zip(exchanges, found, strict=True):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": said}], add_generation_prompt=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert (tokenizer.decode(ids, skip_special_tokens=True) == reply) == right
    assert {*found} == {True, False}


def test_its_greedy_story_is_stable_and_ends(model: Any, tokenizer: Any) -> None:
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    first, again = (model.generate(**inputs, do_sample=False)[0].tolist() for _ in range(2))
    assert first == again
    slow = model.generate(**inputs, do_sample=False, use_cache=False)[0].tolist()
    assert first == slow
    assert first[-1] in model.generation_config.eos_token_id
    story = tokenizer.decode(first, skip_special_tokens=True)
    assert story.startswith("Once upon a time, there was a ")
    assert "?" in story, "in lines below the story stand questions"


def test_it_finds_other_texts_strange(model: Any, tokenizer: Any) -> None:
    own = [story.text for story in islice(stories(HELD_OUT_SEED), 20)]
    shuffled = [" ".join(Random(0).sample(text.split(), len(text.split()))) for text in own]
    rows, strange = (tokenizer(texts)["input_ids"] for texts in (own, shuffled))
    assert perplexity(model, rows) * 10 < perplexity(model, strange)
