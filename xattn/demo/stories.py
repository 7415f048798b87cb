"""A grammar that writes short stories for children, with questions and where their answers stand.

Every text comes from :mod:`xattn.demo.lexicon` and :mod:`xattn.demo.plots`, which were written for
this project. What happens is drawn at random, so that no question can be answered without its
story, and each answer is decided by one word whose place in the story is known: ground truth for
attributions and for edits of attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from xattn.demo import lexicon
from xattn.demo.plots import CLASSES, PLOTS, Ask

_GAP = re.compile(r"\{([\w.]+)\}")
_WORD = re.compile(r"\w+")
_INVENTED = 0.15
_PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}

Span = tuple[int, int]
"""First character, and the one behind the last."""


@dataclass(frozen=True)
class Question:
    """A question about a story, with the one word that answers it.

    Attributes
    ----------
    kind
        What is asked for: ``"colour"``, ``"person"`` ... (:data:`xattn.demo.plots.CLASSES`).
    text
        The question.
    reply
        The answer as a whole sentence.
    word
        The word of the reply that the question is about.
    at
        Where `word` stands in the reply.
    evidence
        Where the story says so: the characters of `word` in the story.
    choices
        Words of the same kind in the story, `word` among them, sorted.
    """

    kind: str
    text: str
    reply: str
    word: str
    at: Span
    evidence: Span
    choices: tuple[str, ...]

    @property
    def stub(self) -> str:
        """The reply up to the word that answers, without a blank at its end."""
        return self.reply[: self.at[0]].rstrip()


@dataclass(frozen=True)
class Story:
    """A story and the questions that it answers.

    Attributes
    ----------
    plot
        Key of :data:`xattn.demo.plots.PLOTS`.
    text
        The story, in one paragraph.
    topic
        Who and what it is about, such as ``"Mia and a ball"``.
    questions
        All questions that the story answers, in the order of its plot.
    """

    plot: str
    text: str
    topic: str
    questions: tuple[Question, ...]

    def retold(self, question: Question, word: str) -> str:
        """Tell the story so that another word answers a question.

        Parameters
        ----------
        question
            One of :attr:`questions`.
        word
            What to put in place of ``question.word``, wherever the story says it.

        Returns
        -------
        str
            The text of the new story.
        """
        return re.sub(rf"\b{re.escape(question.word)}\b", word, self.text)


def write(random: Random) -> Story:
    """Write one story.

    Parameters
    ----------
    random
        Source of everything that happens in it.

    Returns
    -------
    Story
    """
    name = random.choice(sorted(PLOTS))
    plot = PLOTS[name]
    words = _cast(random)
    text = ""
    places: dict[str, Span] = {}
    for beat in plot.beats:
        if template := random.choice(beat):
            sentence, found = _fill(template, words)
            begin = len(text) + 1 if text else 0
            for gap, (start, end) in found.items():
                places.setdefault(gap, (begin + start, begin + end))
            text = f"{text} {sentence}" if text else sentence
    persons = {words["hero"], words["friend"]}
    asked = (_ask(ask, words, places, text, persons) for ask in plot.asks)
    topic = f"{words['hero']} and a {words['animal' if name == 'animal' else 'hero.thing']}"
    return Story(name, text, topic, tuple(question for question in asked if question))


def stories(seed: int | str) -> Iterator[Story]:
    """Write stories without end, the same for the same seed.

    Parameters
    ----------
    seed
        Seed of the series; different seeds give unrelated series.

    Yields
    ------
    Story
        All different.
    """
    random = Random(f"stories {seed}")
    seen: set[str] = set()
    while True:
        story = write(random)
        if story.text not in seen:
            seen.add(story.text)
            yield story


def _ask(
    ask: Ask, words: Mapping[str, str], places: Mapping[str, Span], text: str, persons: set[str]
) -> Question | None:
    """Fill the gaps of a question; None where the story left its answer out."""
    reply, found = _fill(ask.reply, words)
    evidence = places.get(ask.gap)
    if evidence is None:
        return None
    same = persons.union(CLASSES[ask.kind]) if ask.kind == "person" else set(CLASSES[ask.kind])
    choices = same.intersection(_WORD.findall(text))
    question, _ = _fill(ask.question, words)
    return Question(
        kind=ask.kind,
        text=question,
        reply=reply,
        word=words[ask.gap],
        at=found[ask.gap],
        evidence=evidence,
        choices=tuple(sorted(choices)),
    )


def _fill(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, Span]]:
    """Fill the gaps; return the sentence and where each gap's word first stands in it."""
    pieces: list[str] = []
    places: dict[str, Span] = {}
    length = last = 0
    for gap in _GAP.finditer(template):
        before, word = template[last : gap.start()], words[gap[1]]
        start = length + len(before)
        places.setdefault(gap[1], (start, start + len(word)))
        pieces += [before, word]
        length, last = start + len(word), gap.end()
    return "".join([*pieces, template[last:]]), places


def _cast(random: Random) -> dict[str, str]:
    """Draw who and what a story is about: a word for every gap."""
    colours = random.sample(lexicon.COLOURS, 3)
    things = random.sample(lexicon.THINGS, 2)
    names: list[str] = []
    words: dict[str, str] = {"colour": colours[2]}
    for role, thing, colour in zip(("hero", "friend"), things, colours, strict=False):
        child = random.choice(("girl", "boy"))
        names.append(_name(random, child, names))
        they, them, their = _PRONOUNS[child]
        words |= {role: names[-1], f"{role}.thing": thing, f"{role}.colour": colour}
        words |= {f"{role}.child": child, f"{role}.them": them}
        words |= {f"{role}.they": they, f"{role}.They": they.title()}
        words |= {f"{role}.their": their, f"{role}.Their": their.title()}
    # The same two in random order: what happens to whom is then not decided by who comes first.
    roles = random.sample(("hero", "friend"), 2)
    for alias, role in zip(("one", "other"), roles, strict=True):
        words |= {
            alias + gap.removeprefix(role): word
            for gap, word in words.items()
            if gap.split(".")[0] == role
        }
    weather = random.choice(sorted(lexicon.GEAR))
    words |= {"weather": weather, "gear": random.choice(lexicon.GEAR[weather])}
    words["taker"] = words["other"]
    for gaps, choices in {
        ("animal", "animal2"): lexicon.ANIMALS,
        ("fault",): lexicon.FAULTS,
        ("food", "food2"): lexicon.FOODS,
        ("pet",): lexicon.PETS,
        ("place", "home"): lexicon.PLACES,
        ("side",): lexicon.SIDES,
        ("spot",): lexicon.SPOTS,
    }.items():
        words |= dict(zip(gaps, random.sample(choices, len(gaps)), strict=True))
    return words


def _name(random: Random, child: str, taken: list[str]) -> str:
    """Draw a name that is not taken: a usual one, or sometimes one that nobody has ever had."""
    usual = lexicon.GIRLS if child == "girl" else lexicon.BOYS
    while True:
        if random.random() < _INVENTED:
            name = "".join(random.choices(lexicon.SYLLABLES, k=random.choice((2, 3)))).title()
        else:
            name = random.choice(usual)
        if name not in taken:
            return name
