"""The plots of the demo stories: sentences with gaps, and the questions that they answer.

A gap ``{hero.colour}`` is filled with the colour of the hero's thing. ``hero`` and ``friend`` are
the two children; ``one`` and ``other`` are the same two in random order, so that who gives, wins
or helps is decided by the sentence that says so and by nothing else. ``taker`` is ``other`` again,
where the story says who took something.
"""

from __future__ import annotations

from typing import NamedTuple

from xattn.demo.lexicon import (
    ANIMALS,
    COLOURS,
    FAULTS,
    FOODS,
    GEAR,
    PETS,
    PLACES,
    SPOTS,
    THINGS,
)

CLASSES: dict[str, tuple[str, ...]] = {
    "animal": ANIMALS,
    "colour": COLOURS,
    "fault": FAULTS,
    "food": FOODS,
    "person": (),
    "pet": PETS,
    "place": PLACES,
    "spot": SPOTS,
    "thing": THINGS,
    "weather": tuple(GEAR),
}
"""Words that answer the same kind of question; persons are those of the story."""


class Ask(NamedTuple):
    """A question that a story answers, with gaps."""

    kind: str
    """Key of :data:`CLASSES`."""
    question: str
    reply: str
    """A whole sentence."""
    gap: str
    """The gap of the reply that the question is about."""


class Plot(NamedTuple):
    """What happens in a story."""

    beats: tuple[tuple[str, ...], ...]
    """For each step of the story, ways to put it; an empty one leaves the step out."""
    asks: tuple[Ask, ...]


_HERO = (
    "Once upon a time, there was a {hero.child} called {hero}.",
    "There once was a {hero.child} called {hero}.",
)
_FRIEND = (
    "{hero} had a friend, a {friend.child} called {friend}.",
    "{hero.Their} friend was a {friend.child} called {friend}.",
)
_HOME = ("", "{hero.They} lived near the {home}.")
_WEATHER = (
    "",
    "It was {weather}, so {hero} took {hero.their} {gear}.",
)
_GO = (
    "One day, {hero} went to the {place}.",
    "In the morning, {hero.they} went to the {place}.",
)
_MEET = (
    "One day, they went to the {place}.",
    "In the morning, they went to the {place}.",
)
_OWN = (
    "{hero} had a {hero.colour} {hero.thing} and {friend} had a {friend.colour} {friend.thing}.",
    "{friend} had a {friend.colour} {friend.thing} and {hero} had a {hero.colour} {hero.thing}.",
    "{hero} had a {hero.thing} and {friend} had a {friend.thing}. The {hero.thing} was "
    "{hero.colour} and the {friend.thing} was {friend.colour}.",
    "{friend} had a {friend.thing} and {hero} had a {hero.thing}. The {friend.thing} was "
    "{friend.colour} and the {hero.thing} was {hero.colour}.",
)

_LIVE = Ask("place", "Where did {hero} live?", "{hero} lived near the {home}.", "home")
_WENT = Ask("place", "Where did {hero} go?", "{hero} went to the {place}.", "place")
_MET = Ask("place", "Where did they go?", "They went to the {place}.", "place")
_COLOURS, _PRIZES = (
    tuple(
        Ask(
            "colour",
            f"What colour was the {{{role}.thing}}?",
            f"The {{{role}.thing}} was {{{role}.colour}}.",
            f"{role}.colour",
        )
        for role in roles
    )
    for roles in (("hero", "friend"), ("one", "other"))
)
_OWNED = tuple(
    Ask(
        "thing",
        f"What did {{{role}}} have?",
        f"{{{role}}} had a {{{role}.thing}}.",
        f"{role}.thing",
    )
    for role in ("hero", "friend")
)
_TOOK = Ask(
    "weather",
    "Why did {hero} take {hero.their} {gear}?",
    "It was {weather}, so {hero} took {hero.their} {gear}.",
    "weather",
)

PLOTS = {
    "find": Plot(
        (
            _HERO,
            _HOME,
            _WEATHER,
            _GO,
            (
                "There {hero.they} found a {hero.colour} {hero.thing} {side} the {spot}.",
                "{hero} found a {hero.thing} {side} the {spot}. The {hero.thing} was "
                "{hero.colour}.",
            ),
            (
                "{hero.Their} friend {friend} had a {friend.colour} {friend.thing}.",
                "{hero.Their} friend {friend} had a {friend.thing}. The {friend.thing} was "
                "{friend.colour}.",
            ),
            (
                "They played with the {hero.colour} {hero.thing}.",
                "They played with the {friend.colour} {friend.thing}.",
                "They put the {hero.thing} and the {friend.thing} {side} the {spot}.",
                "They were happy and left the {place}.",
            ),
        ),
        (
            Ask(
                "thing",
                "What did {hero} find?",
                "{hero} found a {hero.thing}.",
                "hero.thing",
            ),
            Ask("person", "Who found the {hero.thing}?", "{hero} found the {hero.thing}.", "hero"),
            Ask(
                "spot",
                "Where was the {hero.thing}?",
                "The {hero.thing} was {side} the {spot}.",
                "spot",
            ),
            *_COLOURS,
            _OWNED[1],
            _WENT,
            _LIVE,
            _TOOK,
        ),
    ),
    "lose": Plot(
        (
            _HERO,
            _FRIEND,
            _OWN,
            _MEET,
            ("{hero} lost the {hero.thing} there.", "There {hero} lost the {hero.thing}."),
            (
                "{hero.They} was sad, but {one} found the {hero.thing} {side} the {spot}.",
                "Then {one} found the {hero.thing} {side} the {spot}.",
            ),
            (
                "",
                "They danced around the {spot} with the {hero.colour} {hero.thing}.",
                "They were happy and left the {place}.",
            ),
        ),
        (
            Ask("person", "Who found the {hero.thing}?", "{one} found the {hero.thing}.", "one"),
            Ask("thing", "What did {hero} lose?", "{hero} lost the {hero.thing}.", "hero.thing"),
            Ask(
                "spot",
                "Where was the {hero.thing}?",
                "The {hero.thing} was {side} the {spot}.",
                "spot",
            ),
            *_COLOURS,
            *_OWNED,
            _MET,
        ),
    ),
    "give": Plot(
        (
            _HERO,
            _FRIEND,
            _OWN,
            _MEET,
            (
                "{other} was sad because the {other.thing} was {fault}.",
                "There {other} cried because the {other.thing} was {fault}.",
            ),
            (
                "So {one} gave the {one.thing} to {taker}.",
                "So {one} gave the {one.colour} {one.thing} to {taker}.",
            ),
            (
                "",
                "{other} forgot the {fault} {other.thing}.",
                "They were happy and left the {place}.",
            ),
        ),
        (
            Ask("person", "Who has the {one.thing} now?", "{taker} has the {one.thing}.", "taker"),
            Ask("person", "Who gave the {one.thing} away?", "{one} gave it away.", "one"),
            Ask(
                "thing",
                "What did {one} give to {other}?",
                "{one} gave the {one.thing} to {other}.",
                "one.thing",
            ),
            Ask(
                "fault",
                "Why was {other} sad?",
                "{other} was sad because the {other.thing} was {fault}.",
                "fault",
            ),
            *_COLOURS,
            *_OWNED,
            _MET,
        ),
    ),
    "animal": Plot(
        (
            _HERO,
            _HOME,
            _WEATHER,
            _GO,
            (
                "There {hero.they} saw a {colour} {animal} {side} the {spot}.",
                "{hero} saw a {animal} {side} the {spot}. The {animal} was {colour}.",
            ),
            (
                "The {animal} ate some {food}.",
                "The {animal} was hungry and ate some {food}.",
                "The {animal} did not like {food2}, but it ate some {food}.",
            ),
            ("The {animal} was called {pet}.", "{hero} called it {pet}."),
            (
                "",
                "They left the {place} and {pet} had more {food}.",
                "{pet} was a good {colour} {animal}.",
                "Every day, {pet} sat {side} the {spot}.",
            ),
        ),
        (
            Ask("animal", "What did {hero} see?", "{hero} saw a {animal}.", "animal"),
            Ask("colour", "What colour was the {animal}?", "The {animal} was {colour}.", "colour"),
            Ask("food", "What did the {animal} eat?", "The {animal} ate some {food}.", "food"),
            Ask("pet", "What was the {animal} called?", "The {animal} was called {pet}.", "pet"),
            Ask("spot", "Where was the {animal}?", "The {animal} was {side} the {spot}.", "spot"),
            _WENT,
            _LIVE,
            _TOOK,
        ),
    ),
    "race": Plot(
        (
            _HERO,
            _FRIEND,
            ("One day, they ran to the {place}.", "They had a race and ran to the {place}."),
            (
                "{other} fell, so {one} won the race.",
                "{one} was faster and won the race, but {other} was happy too.",
                "{one} won the race because {other} stopped {side} the {spot}.",
            ),
            (
                "{one} got a {one.colour} {one.thing} and {other} got a {other.colour} "
                "{other.thing}.",
                "{other} got a {other.colour} {other.thing} and {one} got a {one.colour} "
                "{one.thing}.",
                "{one} got a {one.thing} and {other} got a {other.thing}. The {one.thing} was "
                "{one.colour} and the {other.thing} was {other.colour}.",
                "{other} got a {other.thing} and {one} got a {one.thing}. The {other.thing} was "
                "{other.colour} and the {one.thing} was {one.colour}.",
            ),
            (
                "",
                "They played with the {one.colour} {one.thing}.",
                "They were happy and left the {place}.",
            ),
        ),
        (
            Ask("person", "Who won the race?", "{one} won the race.", "one"),
            *(
                Ask(
                    "thing",
                    f"What did {{{role}}} get?",
                    f"{{{role}}} got a {{{role}.thing}}.",
                    f"{role}.thing",
                )
                for role in ("one", "other")
            ),
            *_PRIZES,
            Ask("place", "Where did they run?", "They ran to the {place}.", "place"),
        ),
    ),
}
"""The plots by name."""
