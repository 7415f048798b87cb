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
    "There once was a {mood} {hero.child} called {hero}.",
    "Long ago, there lived a {mood} {hero.child} called {hero}.",
    "This is the story of {hero}, a {mood} {hero.child}.",
)
_HOME = (
    "{hero.They} lived near the {home}.",
    "{hero} lived in a {size} house near the {home}.",
)
_WEATHER = (
    "",
    "It was a {weather} day, so {hero} took {hero.their} {gear}.",
    "The morning was {weather}, so {hero.they} took {hero.their} {gear}.",
)
_GO = (
    "One day, {hero} went to the {place}.",
    "In the morning, {hero.they} walked to the {place}.",
    "After breakfast, {hero} ran to the {place}.",
    "{hero} wanted to play, so {hero.they} went to the {place}.",
)
_FRIEND = (
    "{hero} had a friend called {friend}, a {mood2} {friend.child}.",
    "{hero.Their} best friend was a {friend.child} called {friend}.",
    "A {mood2} {friend.child} called {friend} lived next door.",
)
_OWN = (
    "{hero} had a {hero.colour} {hero.thing}, and {friend} had a {friend.colour} {friend.thing}.",
    "{friend} had a {friend.colour} {friend.thing}, but {hero} had a {hero.colour} {hero.thing}.",
)
_NOTHING = (
    "",
    "{hero.They} looked {side2} the {spot2}, but there was nothing.",
    "First {hero.they} searched {side2} the {spot2}, but found nothing there.",
)
_END = (
    "",
    "In the evening, {hero} left the {place} and went home.",
    "At night, {hero} told {hero.their} mother about the {place}.",
    "The {place} was empty when they went home.",
    "It was a good day for {hero}.",
    "From then on, {hero} and {friend} met every day.",
)

_LIVE = Ask("place", "Where did {hero} live?", "{hero} lived near the {home}.", "home")
_WENT = Ask("place", "Where did {hero} go?", "{hero} went to the {place}.", "place")
_COLOUR = Ask(
    "colour",
    "What colour was the {hero.thing}?",
    "The {hero.thing} was {hero.colour}.",
    "hero.colour",
)
_COLOUR_2 = Ask(
    "colour",
    "What colour was the {friend.thing}?",
    "The {friend.thing} was {friend.colour}.",
    "friend.colour",
)
_OWNED = Ask(
    "thing",
    "What did {friend} have?",
    "{friend} had a {friend.colour} {friend.thing}.",
    "friend.thing",
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
            _NOTHING,
            (
                "There {hero.they} found a {hero.colour} {hero.thing} {side} the {spot}.",
                "Then {hero} found a {hero.colour} {hero.thing} {side} the {spot}.",
                "Suddenly {hero.they} saw a {hero.colour} {hero.thing} {side} the {spot}.",
            ),
            (
                "A {friend.child} called {friend} came by with a {friend.colour} {friend.thing}.",
                "Soon {hero} met {friend}, a {friend.child} who had a {friend.colour} "
                "{friend.thing}.",
            ),
            (
                "They played with the {hero.colour} {hero.thing} until it was dark.",
                "{friend} liked the {hero.colour} {hero.thing}, so they played together.",
                "{hero} showed {friend} the {hero.thing}, and they sat down {side} the {spot}.",
                "They put the {hero.thing} and the {friend.colour} {friend.thing} {side} the "
                "{spot}.",
            ),
            _END,
        ),
        (
            Ask(
                "thing",
                "What did {hero} find?",
                "{hero} found a {hero.colour} {hero.thing}.",
                "hero.thing",
            ),
            Ask("person", "Who found the {hero.thing}?", "{hero} found the {hero.thing}.", "hero"),
            Ask(
                "spot",
                "Where was the {hero.thing}?",
                "The {hero.thing} was {side} the {spot}.",
                "spot",
            ),
            _COLOUR,
            _COLOUR_2,
            _OWNED,
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
            (
                "One day, {hero} took the {hero.thing} to the {place} and lost it there.",
                "{hero} went to the {place} with the {hero.thing}, but {hero.they} lost it.",
            ),
            (
                "{hero} was sad and cried.",
                "{hero.They} was very sad, because {hero.they} loved the {hero.thing}.",
            ),
            (
                "So {friend} came to help.",
                "{friend} wanted to help {hero.them}.",
            ),
            _NOTHING,
            (
                "At last {one} found the {hero.colour} {hero.thing} {side} the {spot}.",
                "Then {one} saw the {hero.thing} {side} the {spot}.",
            ),
            (
                "{hero} was happy again.",
                "{hero} laughed and thanked {friend}.",
                "They danced around the {spot}, because the {hero.colour} {hero.thing} was back.",
            ),
            _END,
        ),
        (
            Ask("person", "Who found the {hero.thing}?", "{one} found the {hero.thing}.", "one"),
            Ask(
                "thing",
                "What did {hero} lose?",
                "{hero} lost a {hero.colour} {hero.thing}.",
                "hero.thing",
            ),
            Ask(
                "place",
                "Where did {hero} lose the {hero.thing}?",
                "{hero} lost it at the {place}.",
                "place",
            ),
            Ask(
                "spot",
                "Where was the {hero.thing}?",
                "The {hero.thing} was {side} the {spot}.",
                "spot",
            ),
            _COLOUR,
            _COLOUR_2,
            _OWNED,
        ),
    ),
    "give": Plot(
        (
            _HERO,
            _FRIEND,
            _OWN,
            (
                "One day, they met at the {place}.",
                "On {their} way home, they stopped at the {place}.",
                "In the afternoon, they played at the {place}.",
            ),
            (
                "{other} was sad, because {other.their} {other.thing} was {fault}.",
                "{other} began to cry, because {other.their} {other.thing} was {fault}.",
            ),
            (
                "So {one} gave the {one.colour} {one.thing} to {taker}.",
                "{one} wanted to help, so {one.they} gave the {one.thing} to {taker}.",
            ),
            (
                "{other} was happy again and said thank you.",
                "Then {other} laughed, and they were friends forever.",
                "{other} hugged {one} and forgot the {fault} {other.thing}.",
                "{other} put the {other.colour} {other.thing} away and smiled.",
            ),
            _END,
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
            Ask("place", "Where were they?", "They were at the {place}.", "place"),
            _COLOUR,
            _COLOUR_2,
            _OWNED,
        ),
    ),
    "animal": Plot(
        (
            _HERO,
            _HOME,
            _WEATHER,
            _GO,
            (
                "{hero.They} heard a noise {side} the {spot}.",
                "Something moved {side} the {spot}.",
            ),
            (
                "It was a {size} {colour} {animal}, not a {animal2}.",
                "There sat a {colour} {animal} and looked at {hero.them}.",
            ),
            (
                "The {animal} was hungry, so {hero} gave it some {food}.",
                "It was hungry, and {hero} had some {food} for it.",
                "It was hungry. It did not like the {food2}, but it ate the {food}.",
                "It was hungry, so {hero} gave it {food} and not {food2}.",
            ),
            (
                "{hero.They} took the {colour} {animal} home and called it {pet}.",
                "{hero} loved the {animal} from the {place} and called it {pet}.",
            ),
            (
                "",
                "{pet} liked to play with a {hero.colour} {hero.thing}.",
                "From then on, {pet} lived in the house near the {home} and ate {food}.",
                "On every {weather} day, {pet} sat {side} the {spot}.",
            ),
        ),
        (
            Ask("animal", "What did {hero} see?", "{hero} saw a {colour} {animal}.", "animal"),
            Ask("colour", "What colour was the {animal}?", "The {animal} was {colour}.", "colour"),
            Ask("food", "What did the {animal} eat?", "The {animal} ate some {food}.", "food"),
            Ask("pet", "What was the {animal} called?", "The {animal} was called {pet}.", "pet"),
            Ask("spot", "Where was the {animal}?", "The {animal} was {side} the {spot}.", "spot"),
            _WENT,
            _LIVE,
            _TOOK,
        ),
    ),
    "wish": Plot(
        (
            _HERO,
            _HOME,
            _FRIEND,
            (
                "{hero} wanted a {hero.colour} {hero.thing}, but {friend} wanted a {friend.colour} "
                "{friend.thing}.",
                "{friend} wished for a {friend.colour} {friend.thing}, and {hero} wished for a "
                "{hero.colour} {hero.thing}.",
            ),
            (
                "So they went to the {place}.",
                "They worked all day at the {place}.",
                "An old man at the {place} needed help, so they helped him.",
            ),
            (
                "There {one} got the {one.colour} {one.thing}, but {other} got nothing.",
                "In the end {one} could buy the {one.thing}, but {other} had no money left.",
            ),
            (
                "{other} still wanted the {other.colour} {other.thing}, so {one} shared the "
                "{one.thing}.",
                "{one} let {other} play with it at the house near the {home}.",
            ),
            _END,
        ),
        (
            Ask(
                "thing",
                "What did {hero} want?",
                "{hero} wanted a {hero.colour} {hero.thing}.",
                "hero.thing",
            ),
            Ask(
                "thing",
                "What did {friend} want?",
                "{friend} wanted a {friend.colour} {friend.thing}.",
                "friend.thing",
            ),
            Ask("person", "Who got the {one.thing}?", "{one} got the {one.thing}.", "one"),
            Ask("person", "Who got nothing?", "{other} got nothing.", "other"),
            Ask("place", "Where were they?", "They were at the {place}.", "place"),
            _COLOUR,
            _COLOUR_2,
            _LIVE,
        ),
    ),
    "race": Plot(
        (
            _HERO,
            _FRIEND,
            _WEATHER,
            (
                "They wanted to know who was faster, so they ran to the {place}.",
                "One day, they had a race to the {place}.",
            ),
            (
                "{other} fell over a {spot}, so {one} won the race.",
                "{one} won, because {other} stopped to rest {side} the {spot}.",
                "{one} was the faster one and won, but {other} hit a {spot}.",
            ),
            (
                "{one} got a {one.colour} {one.thing} and {other} got a {other.colour} "
                "{other.thing}.",
                "The winner got a {one.colour} {one.thing}, and for {other} there was a "
                "{other.colour} {other.thing}.",
            ),
            (
                "They laughed and put the {one.colour} {one.thing} {side} the {spot}.",
                "{other} liked the {other.colour} {other.thing} better than the {one.colour} "
                "{one.thing}.",
                "",
            ),
            _END,
        ),
        (
            Ask("person", "Who won the race?", "{one} won the race.", "one"),
            Ask("person", "Who lost the race?", "{other} lost the race.", "other"),
            Ask(
                "thing",
                "What did {one} get?",
                "{one} got a {one.colour} {one.thing}.",
                "one.thing",
            ),
            Ask(
                "thing",
                "What did {other} get?",
                "{other} got a {other.colour} {other.thing}.",
                "other.thing",
            ),
            Ask("place", "Where did they run?", "They ran to the {place}.", "place"),
            Ask(
                "colour",
                "What colour was the {one.thing}?",
                "The {one.thing} was {one.colour}.",
                "one.colour",
            ),
            _TOOK,
        ),
    ),
}
"""The plots by name."""
