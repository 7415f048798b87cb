"""Pairs from published sets of sentences, and what is known of real occupations.

Read are the files of Winogender (Rudinger et al. 2018, Gender Bias in Coreference Resolution) and
of WinoBias (Zhao et al. 2018, Gender Bias in Coreference Resolution: Evaluation and Debiasing
Methods), where a user has them. Of both, only sentences whose pronoun means the occupation.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from xattn.analysis.templates import PRONOUNS, Pair, Side, Span, expand
from xattn.errors import InputError, XattnWarning

WINOGENDER = "all_sentences.tsv"
TEMPLATES = "templates.tsv"
STATISTICS = "occupations-stats.tsv"
_WORD = re.compile(r"\w+|[^\w\s]")
_BRACKET = re.compile(r"\[([^\[\]]+)\]")
_NUMBERED = re.compile(r"\d+\s+(.*)")
_SLOTS = {
    "$OCCUPATION": "{profession}",
    "$NOM_PRONOUN": "{subject}",
    "$ACC_PRONOUN": "{object}",
    "$POSS_PRONOUN": "{possessive}",
}
_ARTICLE = re.compile(r"^(the|a|an)\s+", re.IGNORECASE)
_STEREOTYPED = "_stereotyped"
FORMS = (
    f"Winogender's {WINOGENDER} or {TEMPLATES}, a file of WinoBias (numbered lines with brackets), "
    "or a folder that holds one"
)


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Return the pairs of a file or folder of Winogender or WinoBias.

    Sentences with *he* come first, those with *she* second. In WinoBias the two stand in two files,
    ``pro_stereotyped`` and ``anti_stereotyped``, of which one is named and the other found beside
    it; in a folder, all such files are read.

    Raises
    ------
    InputError
        For anything else, and for files without a pair.

    Warns
    -----
    XattnWarning
        Of sentences that have no partner.
    """
    path = path.expanduser()
    try:
        pairs = tuple(_pairs(path))
    except (OSError, UnicodeError) as error:
        got = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{path} cannot be read", got=got or "", expected=FORMS) from None
    if not pairs:
        raise InputError(f"{path} holds no pair of sentences", expected=FORMS)
    return pairs


def _pairs(path: Path) -> Iterator[Pair]:
    if path.is_dir():
        files = [path / name for name in (WINOGENDER, TEMPLATES) if (path / name).is_file()][:1]
        files = files or sorted(path.glob(f"pro{_STEREOTYPED}*"))
        if not files:
            raise InputError(f"the folder {path} holds no sentences", expected=FORMS)
        for file in files:
            yield from _pairs(file)
        return
    head = path.read_text(encoding="utf-8-sig").partition("\n")[0]
    if not head.strip():
        raise InputError(f"{path} is empty", expected=FORMS)
    if head.split("\t")[:2] == ["sentid", "sentence"]:
        yield from _winogender(path)
    elif head.startswith("occupation(0)\t"):
        yield from _winogender_templates(path)
    elif _NUMBERED.match(head) and _BRACKET.search(head):
        yield from _winobias(path)
    else:
        raise InputError(f"{path} is of an unknown form", got=repr(head[:60]), expected=FORMS)


def _table(path: Path) -> pd.DataFrame:
    """Return a table of words, separated by tabs (or, by its name, commas)."""
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    try:
        return pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path} cannot be read", got=str(error).strip()) from None


# ---------------------------------------------------------------------------------- winogender


def _winogender(path: Path) -> Iterator[Pair]:
    """Read ``OCCUPATION.PARTICIPANT.ANSWER.GENDER.txt`` and a sentence, one a line."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for name, sentence in _table(path)[["sentid", "sentence"]].itertuples(index=False):
        parts = name.removesuffix(".txt").split(".")
        if len(parts) != 4:
            raise InputError(
                f"a name in {path.name}", got=name, expected="OCCUPATION.PARTICIPANT.ANSWER.GENDER"
            )
        if parts[2] == "0":  # the answer is the occupation, not the participant
            found.setdefault(tuple(parts[:3]), {})[parts[3]] = sentence
    alone = [key for key, said in found.items() if not {"male", "female"} <= said.keys()]
    _warn(path, [".".join(key) for key in alone])
    for key, said in found.items():
        if key not in alone:
            # the participant is named in one sentence and "someone" in the other: one template
            template = f"{key[0]}.{key[2]}"
            yield _aligned(key[0], template, said["male"], said["female"])


def _winogender_templates(path: Path) -> Iterator[Pair]:
    """Fill each template with its own occupation and with its participant, and "someone"."""
    table = _table(path)
    columns = ("occupation(0)", "other-participant(1)", "answer", "sentence")
    if tuple(table.columns) != columns:
        raise InputError(
            f"the columns of {path.name}",
            got=", ".join(table.columns),
            expected=", ".join(columns),
        )
    for occupation, participant, answer, sentence in table.itertuples(index=False):
        if answer != "0":
            continue
        for variable, slot in _SLOTS.items():
            sentence = sentence.replace(variable, slot)
        named = sentence.replace("$PARTICIPANT", participant)
        nobody = re.sub(r"\b(the|an?) \$PARTICIPANT", _someone, sentence, flags=re.IGNORECASE)
        for pair in expand([named, nobody], [occupation], PRONOUNS):
            yield replace(pair, template=sentence)


def _someone(match: re.Match[str]) -> str:
    return "Someone" if match[0][0].isupper() else "someone"


# ------------------------------------------------------------------------------------ winobias


def _winobias(path: Path) -> Iterator[Pair]:
    """Read ``NUMBER [The OCCUPATION] ... [pronoun] ...`` and the same lines of the other file."""
    partner = _partner(path)
    if partner is None or not partner.is_file():
        raise InputError(
            f"the partner of {path.name} is missing",
            got="no such file" if partner is None else f"no {partner.name} beside it",
            expected=f"files named pro{_STEREOTYPED}... and anti{_STEREOTYPED}...",
            remedy="put both into one folder: which pronoun answers 'her' cannot be told otherwise",
        )
    mine, others = _lines(path), _lines(partner)
    _warn(path, sorted(mine.keys() ^ others.keys()))
    for number in mine:
        if number in others:
            yield _bracketed(f"{path.name} {number}", mine[number], others[number])


def _partner(path: Path) -> Path | None:
    for one, other in (("pro", "anti"), ("anti", "pro")):
        if path.name.startswith(one + _STEREOTYPED):
            return path.with_name(other + path.name.removeprefix(one))
    return None


def _lines(path: Path) -> dict[str, str]:
    lines = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip():
            match = _NUMBERED.fullmatch(line.strip())
            if match is None or len(_BRACKET.findall(match[1])) < 2:
                raise InputError(
                    f"a line of {path.name}",
                    got=repr(line[:60]),
                    expected="NUMBER [The OCCUPATION] ... [PRONOUN] ...",
                )
            lines[line.split()[0]] = match[1]
    return lines


def _bracketed(name: str, one: str, other: str) -> Pair:
    """Return the pair of two lines; that of a man first."""
    marked = [span.lower() for span in _BRACKET.findall(one)]
    ours = {word for first, _ in PRONOUNS.pairs for word in first.values()}
    if not ours.intersection(marked):
        one, other = other, one
    occupation = next(m for m in _BRACKET.findall(one) if m.lower() not in ours)
    plain = [_BRACKET.sub(r"\1", text) for text in (one, other)]
    return _aligned(_ARTICLE.sub("", occupation).lower(), name, plain[0], plain[1])


# ------------------------------------------------------------------------------------- both


def _aligned(profession: str, template: str, first: str, second: str) -> Pair:
    """Return the pair of two sentences that differ word for word."""
    words = [[(m[0], m.span()) for m in _WORD.finditer(text)] for text in (first, second)]
    differing = [(a, b) for (a, b) in zip(*words, strict=False) if a[0].lower() != b[0].lower()]
    if len(words[0]) != len(words[1]) or not differing:
        raise InputError(
            f"the two sentences of {template} do not differ word for word",
            got=f"{first!r} and {second!r}",
            expected="the same sentence with other pronouns",
        )
    sides = [
        Side(text, tuple(pair[i][1] for pair in differing), _place(text, profession, template))
        for i, text in enumerate((first, second))
    ]
    swapped = "/".join(
        " ".join(dict.fromkeys(pair[i][0].lower() for pair in differing)) for i in (0, 1)
    )
    return Pair(profession, template, swapped, sides[0], sides[1])


def _place(text: str, profession: str, name: str) -> Span:
    match = re.search(rf"\b{re.escape(profession)}\b", text, re.IGNORECASE)
    if match is None:
        raise InputError(f"{profession!r} is not in the sentence {name}", got=repr(text))
    return match.span()


def _warn(path: Path, alone: list[str]) -> None:
    if alone:
        warnings.warn(
            f"{path.name}: without a partner, and left out: {', '.join(alone[:3])}"
            + (f" and {len(alone) - 3} more" if len(alone) > 3 else ""),
            XattnWarning,
            stacklevel=5,
        )


def read_statistics(path: Path) -> Mapping[str, Mapping[str, float]]:
    """Return figures of real occupations: for each column the figure of each occupation.

    Parameters
    ----------
    path : Path
        A table (.tsv, or .csv) whose first column names occupations; or a folder with Winogender's.
        Read are the columns with "female" or "women" in their names or, where there are none, every
        column of numbers.

    Raises
    ------
    InputError
        If there is no such column.
    """
    path = path.expanduser()
    path = path / STATISTICS if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"{path} cannot be read", got="no such file", expected="a table of occupations"
        )
    table = _table(path)
    names = table[table.columns[0]].str.strip().str.lower()
    numbers = table[table.columns[1:]].apply(pd.to_numeric, errors="coerce")
    numeric = [str(name) for name in numbers if numbers[name].notna().any()]
    chosen = [name for name in numeric if re.search("female|women", name.lower())] or numeric
    if not chosen:
        raise InputError(
            f"{path.name} has no column of numbers",
            got=", ".join(map(str, table.columns)),
            expected="a column of occupations and one of figures, for example percent female",
        )
    found: dict[str, dict[str, float]] = {}
    for name in chosen:
        known = numbers[name].notna()
        found[name] = dict(zip(names[known], numbers.loc[known, name].astype(float), strict=True))
    return found
