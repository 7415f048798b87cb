"""Data sets: texts with what is known about them, from a file, the Hub or xattn itself.

Columns
-------
The text is the column that `text_column` names, else the first of ``text``, ``sentence``,
``review``, ``content``, ``document``. Two columns that belong together are read as a pair of
texts: ``premise`` and ``hypothesis``, ``sentence1`` and ``sentence2``, ``question1`` and
``question2``, ``question`` and ``sentence``, ``text`` and ``pair``. The label is ``label``,
``labels``, ``class`` or ``sentiment``. ``rationale``, ``id`` and ``kind`` are read where they
exist. A rationale says which characters of the text a person found decisive: ``12-19;30-40`` or
a list of ``[start, end]``, the end not included; or it is the passage itself, or a list of them,
where each stands first.

For models of pictures the text is the name of a file, in the column ``picture`` or ``image``,
counted from the folder of the table. A folder of pictures is a data set, too; in folders within it
the folder's name is the label.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from xattn import demo
from xattn.errors import InputError, UnknownNameError

Span = tuple[int, int]
Label = str | int

TEXT_COLUMNS = ("text", "sentence", "review", "content", "document")
PICTURE_COLUMNS = ("picture", "image")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PAIR_COLUMNS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "pair"),
)
LABEL_COLUMNS = ("label", "labels", "class", "sentiment")
SPLITS = ("test", "validation", "train")
"""The split of a Hub data set that is taken when none is named: the first of these."""


@dataclass(frozen=True)
class Dataset:
    """Texts, and for each of them what the source says.

    Examples
    --------
    >>> load_dataset(limit=2)
    Dataset('reviews', 2 texts)
    """

    name: str
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """The second text of each pair."""
    labels: tuple[Label, ...] | None
    """As given: names or numbers."""
    rationales: tuple[tuple[Span, ...], ...] | None
    """For each text the spans (start, end) of characters that a person found decisive."""
    ids: tuple[str, ...]
    kinds: tuple[str, ...] | None
    """Groups of texts, for example ``negation``."""
    fingerprint: str
    """SHA-256 of the file, or of the texts of a data set from the Hub."""

    def __post_init__(self) -> None:
        for column in (self.pairs, self.labels, self.rationales, self.ids, self.kinds):
            if column is not None and len(column) != len(self.texts):
                raise ValueError(f"{len(column)} values for {len(self.texts)} texts")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} texts)"


def load_dataset(
    source: str | Path | None = None,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    rationale_column: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """Load texts to explain.

    Parameters
    ----------
    source : str or Path, optional
        A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file, a folder of pictures, or the name of
        a data set on the Hugging Face Hub, ``NAME`` or ``NAME:SPLIT``. By default the film reviews
        of xattn.
    text_column, pair_column, label_column, rationale_column : str, optional
        Names of columns; guessed otherwise, see the head of this module. A pair is only guessed
        where the text is.
    limit : int, optional
        Take that many texts from the top.

    Raises
    ------
    UnknownNameError
        For a column that does not exist; the message lists those that do.
    InputError
        For a source that is not there, cannot be read, is empty, or lacks texts or labels in some
        rows. Rows count from 1, without the header.
    """
    if limit is not None and limit < 1:
        raise InputError("limit", got=str(limit), expected="1 or more")
    name, frame, fingerprint = _read(demo.REVIEWS if source is None else source)
    if frame.empty:
        raise InputError(f"{name} is empty", expected="at least one row under the header")
    frame = frame.head(limit) if limit is not None else frame
    columns = _choose(name, list(frame.columns), text_column, pair_column, label_column)
    text, pair, label = columns
    rationale = _named(name, list(frame.columns), rationale_column, ("rationale",))
    texts = _texts(name, frame, text)
    if source is not None and text in PICTURE_COLUMNS:
        texts = tuple(str(Path(source).expanduser().parent / file) for file in texts)
    return Dataset(
        name=name,
        texts=texts,
        pairs=None if pair is None else _texts(name, frame, pair),
        labels=None if label is None else _labels(name, frame, label),
        rationales=None if rationale is None else _rationales(name, frame, rationale, texts),
        ids=tuple(map(str, frame["id"] if "id" in frame else range(1, len(frame) + 1))),
        kinds=tuple(map(str, frame["kind"])) if "kind" in frame else None,
        fingerprint=fingerprint,
    )


# ------------------------------------------------------------------------------------- reading


def _separated(separator: str) -> Callable[[Path], pd.DataFrame]:
    def read(path: Path) -> pd.DataFrame:
        # As text: pandas would read the review "null" as a missing value and "1.0" as a number.
        frame = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError("rows have more cells than the header: quote cells that hold commas")
        return frame

    return read


def _lines(path: Path) -> pd.DataFrame:
    records = []
    # not splitlines(): it also splits at separators that JSON allows inside a string
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"line {number} is not an object")
            records.append(record)
    return pd.DataFrame(records)


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _lines,
    ".parquet": pd.read_parquet,
}


def _read(source: str | Path) -> tuple[str, pd.DataFrame, str]:
    """Return name, table and fingerprint."""
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    # "reviews.xlsx" means a file, "owner/name" or "name-v1.1:test" a data set on the Hub
    rooted = str(source).startswith((".", "/", "~"))
    looks_like_file = rooted or re.fullmatch(r"\.[a-z]{2,7}", suffix)
    if not (path.exists() or looks_like_file):
        return _read_hub(str(source))
    if not path.exists():
        raise InputError("no such file", got=str(source), remedy="check the name and the folder")
    if path.is_dir():
        return path.name, *_read_folder(path)
    if suffix not in READERS:
        raise InputError(
            f"{source} is not a kind of file that can be read",
            got=repr(suffix) if suffix else "no suffix",
            expected="one of " + ", ".join(READERS),
        )
    try:
        fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
        frame = READERS[suffix](path)
    except pd.errors.EmptyDataError:
        raise InputError(
            f"{path.name} is empty", expected="a header and at least one row"
        ) from None
    except (OSError, ValueError, AttributeError, pa.ArrowException) as error:
        raise InputError(
            f"{path.name} cannot be read",
            got=f"{type(error).__name__}: {error}",
            expected=f"a {suffix[1:]} file in UTF-8" if suffix != ".parquet" else "a parquet file",
        ) from error
    return path.stem, frame, fingerprint


def _read_folder(folder: Path) -> tuple[pd.DataFrame, str]:
    """Return a table of the pictures in a folder and in folders within it, and a fingerprint."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise InputError(
            f"the folder {folder} holds no picture", expected="files with " + ", ".join(PICTURES)
        )
    digest, inside = hashlib.sha256(), [path.relative_to(folder) for path in files]
    for path, name in zip(files, inside, strict=True):
        digest.update(str(name).encode() + path.read_bytes())
    # a row's picture is counted from where the folder stands, like that of a table's row
    columns = {"picture": [str(Path(folder.name) / name) for name in inside],
               "id": [str(name) for name in inside]}  # fmt: skip
    if all(len(name.parts) > 1 for name in inside):
        columns["label"] = [name.parts[0] for name in inside]
    return pd.DataFrame(columns), digest.hexdigest()


def _read_hub(source: str) -> tuple[str, pd.DataFrame, str]:
    import datasets  # slow to import, and only needed here

    name, _, split = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, split=split or None)
    except Exception as error:  # the Hub, the network and the data set's own files raise theirs
        raise InputError(
            f"{source} is neither a file nor a data set that can be loaded",
            got=f"{type(error).__name__}: {str(error).strip() or 'no reason'}",
            expected="a file (" + ", ".join(READERS) + ") or a name on the Hub as NAME:SPLIT",
        ) from error
    if isinstance(loaded, dict):
        split = next((s for s in SPLITS if s in loaded), next(iter(loaded)))
        loaded = loaded[split]
    frame = loaded.to_pandas()
    content = frame.to_json(orient="records", lines=True).encode()
    return f"{name}:{split}", frame, hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------- columns


def _named(
    name: str, known: Sequence[str], given: str | None, guesses: Iterable[str]
) -> str | None:
    """Return the column that was named, else the first guess that exists, else None."""
    if given is None:
        return next((guess for guess in guesses if guess in known), None)
    if given not in known:
        raise UnknownNameError(f"column of {name}", given, known)
    return given


def _choose(
    name: str, known: Sequence[str], text: str | None, pair: str | None, label: str | None
) -> tuple[str, str | None, str | None]:
    """Return the columns of text, pair and label."""
    chosen_pair = _named(name, known, pair, ())
    if text is None and pair is None:
        both = (p for p in PAIR_COLUMNS if p[0] in known and p[1] in known)
        text, chosen_pair = next(both, (None, None))
    guesses = (*TEXT_COLUMNS, *PICTURE_COLUMNS, *(first for first, _ in PAIR_COLUMNS))
    chosen = _named(name, known, text, guesses)
    if chosen is None:
        raise InputError(
            f"{name} has no column that is known to hold texts",
            got=", ".join(map(str, known)),
            expected="one of " + ", ".join(dict.fromkeys(guesses)),
            remedy="name it with text_column (--text-column)",
        )
    return chosen, chosen_pair, _named(name, known, label, LABEL_COLUMNS)


def _check_rows(name: str, column: str, bad: pd.Series[bool], what: str) -> None:
    """Raise an error that names the rows where `bad` is true."""
    rows = [i + 1 for i, is_bad in enumerate(bad) if is_bad]
    if rows:
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        raise InputError(
            f"{what} in column {column!r} of {name}",
            got=f"{len(rows)} in row{'s' if len(rows) > 1 else ''} {shown}",
            remedy="fill or drop these rows (counted from 1, without the header)",
        )


def _texts(name: str, frame: pd.DataFrame, column: str) -> tuple[str, ...]:
    values = frame[column]
    blank = values.isna() | (values.astype(str).str.strip() == "")
    _check_rows(name, column, blank, "missing texts")
    _check_rows(name, column, ~values.map(lambda v: isinstance(v, str)), "values that are no text")
    return tuple(values)


def _labels(name: str, frame: pd.DataFrame, column: str) -> tuple[Label, ...]:
    values = frame[column]
    _check_rows(name, column, values.isna() | (values.astype(str) == ""), "missing labels")
    if values.map(lambda v: re.fullmatch(r"-?\d+(\.0)?", str(v)) is not None).all():
        return tuple(int(float(v)) for v in values)
    return tuple(map(str, values))


def _rationales(
    name: str, frame: pd.DataFrame, column: str, texts: Sequence[str]
) -> tuple[tuple[Span, ...], ...]:
    parsed = [_spans(value, text) for value, text in zip(frame[column], texts, strict=True)]
    bad = [
        spans is None or any(not 0 <= start < end <= len(text) for start, end in spans)
        for spans, text in zip(parsed, texts, strict=True)
    ]
    _check_rows(name, column, pd.Series(bad), "no spans (12-19;30-40) or passages of the text")
    return tuple(spans or () for spans in parsed)


def _spans(value: Any, text: str) -> tuple[Span, ...] | None:
    """Return the spans of one cell, none for an empty cell, or None if it cannot be read."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ()
    passages = [value] if isinstance(value, str) else list(value)
    if passages and all(isinstance(p, str) and p.strip() and p.strip() in text for p in passages):
        found = [(text.index(p.strip()), p.strip()) for p in passages]
        return tuple((start, start + len(p)) for start, p in found)
    try:
        if isinstance(value, str):
            value = [part.split("-") for part in value.split(";") if part.strip()]
        return tuple((int(start), int(end)) for start, end in value)
    except (TypeError, ValueError):
        return None
