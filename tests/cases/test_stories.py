"""Stories hold the answers that they are said to hold."""

from __future__ import annotations

import re

import numpy as np
import torch

from xattn.cases.stories import MEMORY, PLACES, draw_stories, draw_twins, train_stories


def test_an_answer_is_the_last_place_of_the_person_in_question():
    for story in draw_stories(200, seed=3):
        asked = re.findall(r"\w+", story.question)[-1]
        facts = [i for i, s in enumerate(story.sentences) if s.startswith(f"{asked} ")]
        assert story.fact == (facts[-1] if facts else None)
        place = re.findall(r"\w+", story.sentences[facts[-1]])[-1] if facts else MEMORY[asked]
        assert story.answer == f"{asked} is in the {place}."
        assert story.answer[slice(*story.place)] == place
        assert story.grounded == bool(facts)


def test_a_place_is_named_once_so_that_one_sentence_tells_the_answer():
    for story in draw_stories(200, seed=4):
        places = re.findall("|".join(PLACES), story.source)
        assert len(places) == len(set(places)) == len(story.sentences)


def test_a_silent_twin_differs_in_the_person_alone():
    for told, silent in draw_twins(100, seed=5):
        asked = re.findall(r"\w+", told.question)[-1]
        assert told.grounded
        assert not silent.grounded
        assert asked not in silent.source
        assert told.question == silent.question
        for one, other in zip(told.sentences, silent.sentences, strict=True):
            assert one.split(maxsplit=1)[1] == other.split(maxsplit=1)[1]
            assert one == other or one.startswith(asked)


def test_draws_repeat_and_keep_their_share_of_silence():
    assert draw_stories(30, seed=6) == draw_stories(30, seed=6)
    assert draw_stories(30, seed=6) != draw_stories(30, seed=7)
    silent = np.mean([not story.grounded for story in draw_stories(2000, seed=8)])
    assert 0.25 < silent < 0.35
    assert all(story.grounded for story in draw_stories(50, seed=9, silent=0))
    assert not any(story.grounded for story in draw_stories(50, seed=9, silent=1))


def test_training_repeats_and_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = train_stories(steps=2), train_stories(steps=2)
    assert torch.rand(3).equal(expected)
    for name, weight in one.network.state_dict().items():
        assert weight.equal(two.network.state_dict()[name])
    other = train_stories(seed=1, steps=2)
    assert not all(
        w.equal(other.network.state_dict()[n]) for n, w in one.network.state_dict().items()
    )
