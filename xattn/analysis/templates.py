"""Counterfactual pairs: two texts that differ in the words of one group against those of another.

A template is a sentence with slots: ``The {profession} lost {possessive} keys.`` Every template is
filled with every profession and with the words of either group: *he, him, his, himself* and *she,
her, her, herself*, or what a user gives. What differs is known by its characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xattn.errors import InputError, UnknownNameError

PROFESSION = "profession"
TEMPLATES = Path(__file__).parent / "templates.txt"
PROFESSIONS = Path(__file__).parent / "professions.txt"
"""The project's own sets."""
_SLOT = re.compile(r"\{([^{}]*)\}")

Span = tuple[int, int]
"""First character, and the one behind the last."""
Forms = Mapping[str, str]
"""The word of each slot."""


@dataclass(frozen=True)
class Side:
    """One of the two texts of a pair."""

    text: str
    swapped: tuple[Span, ...]
    """Where the words of the group stand, in order."""
    profession: Span

    @property
    def units(self) -> tuple[Span, ...]:
        """The spans by which the two texts of a pair are laid side by side.

        Each is what stands between white space; swapped words of several parts are one.
        """
        found: list[Span] = []
        for start, end in (match.span() for match in re.finditer(r"\S+", self.text)):
            if found and any(a < found[-1][1] and start < b for a, b in self.swapped):
                start = found.pop()[0]
            found.append((start, end))
        return tuple(found)


@dataclass(frozen=True)
class Pair:
    """Two texts that differ in the words of the first and of the second group."""

    profession: str
    template: str
    """The sentence; the same for every profession that it is filled with."""
    words: str
    """What was swapped for what, for example ``he/she``."""
    first: Side
    second: Side


@dataclass(frozen=True)
class Groups:
    """Two groups of words, which are swapped for each other one by one.

    Examples
    --------
    >>> PRONOUNS.names
    ('he', 'she')
    >>> Groups.parse(["name=Emma,Paul/Aisha,Omar"]).pairs
    (({'name': 'Emma'}, {'name': 'Aisha'}), ({'name': 'Paul'}, {'name': 'Omar'}))
    """

    pairs: tuple[tuple[Forms, Forms], ...]
    """For each swap the words of the first and of the second group, by slot."""

    @property
    def names(self) -> tuple[str, str]:
        """What the groups are called: by their first words."""
        more = ", …" if len(self.pairs) > 1 else ""
        first, second = self.pairs[0]
        return f"{next(iter(first.values()))}{more}", f"{next(iter(second.values()))}{more}"

    @classmethod
    def of(cls, slots: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> Groups:
        """Return groups that are given slot by slot.

        Parameters
        ----------
        slots : mapping
            For each slot the words of the first and of the second group. Those at the same place
            are swapped for each other.

        Raises
        ------
        InputError
            For a name that no slot can have, a group that is empty, and groups of different sizes.
        """
        for slot, (first, second) in slots.items():
            if not re.fullmatch("[a-z_]+", slot) or slot == PROFESSION:
                raise InputError(
                    "the name of a slot",
                    got=repr(slot),
                    expected=f"a word in small letters other than {PROFESSION}",
                )
            if not (first and second and all(word.strip() for word in (*first, *second))):
                raise InputError(
                    f"a group of the slot {slot} lacks its words",
                    got=f"{','.join(first)}/{','.join(second)}",
                    expected="words of both groups, as he/she",
                )
            if any(a == b for a, b in zip(first, second, strict=False)) and len(slots) == 1:
                raise InputError(
                    f"a word of the slot {slot} is swapped for itself",
                    got=f"{','.join(first)}/{','.join(second)}",
                )
        sizes = {len(words) for both in slots.values() for words in both}
        if len(sizes) != 1:
            raise InputError(
                "two groups of words" if sizes else "no groups of words",
                got=", ".join(f"{s}: {len(a)} and {len(b)}" for s, (a, b) in slots.items()),
                expected="as many words in both, in every slot: they are swapped one for one",
            )
        pairs = (
            (
                {slot: first[i] for slot, (first, _) in slots.items()},
                {slot: second[i] for slot, (_, second) in slots.items()},
            )
            for i in range(*sizes)
        )
        return cls(tuple(pairs))

    @classmethod
    def parse(cls, given: Iterable[str]) -> Groups:
        """Return groups that are written as ``SLOT=WORD,WORD/WORD,WORD``, one slot each.

        Raises
        ------
        InputError
            For another form; and see `of`.
        """
        slots = {}
        for text in given:
            slot, equals, words = (part.strip() for part in text.partition("="))
            groups = [[word.strip() for word in part.split(",")] for part in words.split("/")]
            if not equals or len(groups) != 2:
                raise InputError(
                    "--groups",
                    got=repr(text),
                    expected="two groups of words, as SLOT=he/she or SLOT=Emma,Paul/Aisha,Omar",
                )
            if slot in slots:
                raise InputError("--groups names a slot twice", got=repr(slot))
            slots[slot] = (groups[0], groups[1])
        return cls.of(slots)


PRONOUNS = Groups.of(
    {
        "subject": (["he"], ["she"]),
        "object": (["him"], ["her"]),
        "possessive": (["his"], ["her"]),
        "reflexive": (["himself"], ["herself"]),
    }
)


def read_lines(path: Path) -> tuple[str, ...]:
    """Return what a file of templates or professions lists, one a line.

    Empty lines and lines that begin with ``#`` are left out, and so is what comes twice.

    Raises
    ------
    InputError
        If the file cannot be read or lists nothing.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        got = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{path} cannot be read", got=got or "", expected="a file of lines in UTF-8"
        ) from None
    lines = (line.strip() for line in text.splitlines())
    found = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not found:
        raise InputError(f"{path} lists nothing", expected="one template or profession a line")
    return found


def expand(
    templates: Sequence[str] | None = None,
    professions: Sequence[str] | None = None,
    groups: Groups = PRONOUNS,
) -> tuple[Pair, ...]:
    """Fill every template with every profession and with the words of both groups.

    Parameters
    ----------
    templates : sequence of str, optional
        Sentences with the slot ``{profession}``, once, and at least one slot of the groups; a slot
        with a capital is filled with a capital. By default those of the project's own whose slots
        the groups have.
    professions : sequence of str, optional
        The project's own by default.
    groups : Groups

    Raises
    ------
    InputError
        For a template without a slot, and for none at all.
    UnknownNameError
        For a slot that the groups do not have.

    Examples
    --------
    >>> [pair] = expand(["{Subject} is a {profession}."], ["nurse"])
    >>> pair.first.text, pair.second.text, pair.second.swapped
    ('He is a nurse.', 'She is a nurse.', ((0, 3),))
    """
    if templates is None:
        slots = {PROFESSION, *groups.pairs[0][0]}
        templates = [t for t in read_lines(TEMPLATES) if slots.issuperset(_slots(t))]
        if not templates:
            raise InputError(
                "the project's own templates have none of the slots of these groups",
                got=", ".join(groups.pairs[0][0]),
                expected=", ".join(PRONOUNS.pairs[0][0]),
                remedy="give templates of your own (--templates)",
            )
    professions = read_lines(PROFESSIONS) if professions is None else professions
    if not templates or not professions:
        raise InputError(
            "nothing to fill",
            got=f"{len(templates)} templates and {len(professions)} professions",
            expected="one of each or more",
        )
    for template in templates:
        _check(template, groups)
    return tuple(
        _pair(template, profession, forms)
        for template in templates
        for profession in professions
        for forms in groups.pairs
    )


def _slots(template: str) -> list[str]:
    return [slot.lower() for slot in _SLOT.findall(template)]


def _check(template: str, groups: Groups) -> None:
    """Raise an error for a template that makes no pairs."""
    slots = _slots(template)
    known = groups.pairs[0][0]
    for slot in slots:
        if slot != PROFESSION and slot not in known:
            raise UnknownNameError(f"slot of the template {template!r}", slot, {PROFESSION, *known})
    if slots.count(PROFESSION) != 1 or set(slots) == {PROFESSION}:
        raise InputError(
            f"the template {template!r} lacks a slot",
            got=", ".join(map("{{{}}}".format, slots)) or "none",
            expected=f"{{{PROFESSION}}} once and one or more of "
            + ", ".join(map("{{{}}}".format, known)),
        )


def _pair(template: str, profession: str, forms: tuple[Forms, Forms]) -> Pair:
    first, second = (_fill(template, {**words, PROFESSION: profession}) for words in forms)
    if first.text == second.text:
        raise InputError(
            f"the template {template!r} is the same for both groups",
            got=repr(first.text),
            remedy="use a slot in which they differ",
        )
    shown = [[side.text[slice(*span)] for span in side.swapped] for side in (first, second)]
    words = [" ".join(dict.fromkeys(side)).lower() for side in shown]
    return Pair(profession, template, "/".join(words), first, second)


def _fill(template: str, words: Forms) -> Side:
    text, last = "", 0
    swapped: list[Span] = []
    profession = (0, 0)
    for slot in _SLOT.finditer(template):
        text += template[last : slot.start()]
        word = words[slot[1].lower()]
        word = word[0].upper() + word[1:] if slot[1][0].isupper() else word
        span = (len(text), len(text) + len(word))
        if slot[1].lower() == PROFESSION:
            profession = span
        else:
            swapped.append(span)
        text, last = text + word, slot.end()
    return Side(text + template[last:], tuple(swapped), profession)
