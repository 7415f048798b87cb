"""SST-2 for the demo classifier: reading, natural spelling, and a held-out split without leaks."""

from __future__ import annotations

import csv
import random
import re
from dataclasses import dataclass
from pathlib import Path

_HUB_SPLITS = {"train": "train", "validation": "test"}
_FOLDER_SPLITS = {"train.tsv": "train", "dev.tsv": "train", "test.tsv": "test"}

# Order matters: double quotes before single ones, contractions before closing quotes.
_SPELLING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"-lrb-", "("),
        (r"-rrb-", ")"),
        (r"``\s*", '"'),
        (r"\s*''", '"'),
        (r"`\s*", "'"),
        (r"\s+n't\b", "n't"),
        (r"\s+'(s|re|ve|ll|d|m)\b", r"'\1"),
        (r"\s+'(?=\s|$)", "'"),
        (r"\bcan not\b", "cannot"),
        (r"\b(gon|wan) na\b", r"\1na"),
        (r"\bgot ta\b", "gotta"),
        (r"([(\[$])\s+", r"\1"),
        (r"\s+([)\],;:?!%]|\.\.\.|\.)", r"\1"),
        (r"\s+", " "),
    )
]
_SENTENCE_END = re.compile(r"[.?!][\"')]*$")
_SHORTEST_LEAK = 3


@dataclass(frozen=True)
class Example:
    """One labelled text.

    Attributes
    ----------
    text
        Text in natural spelling.
    label
        0 is negative, 1 is positive.
    complete
        Whether the text is a whole sentence rather than a phrase cut out of one.
    """

    text: str
    label: int
    complete: bool


@dataclass(frozen=True)
class Corpus:
    """The three disjoint parts of the data.

    Attributes
    ----------
    train
        Phrases and sentences to learn from.
    held_out
        Whole sentences kept out of training, for choosing the recipe.
    test
        The 872 sentences that GLUE calls its validation split, for the reported accuracy.
    """

    train: list[Example]
    held_out: list[Example]
    test: list[Example]


def detokenise(text: str) -> str:
    """Turn Penn-Treebank tokens into natural spelling.

    Parameters
    ----------
    text
        Tokens separated by blanks, such as ``"it 's n't bad , is it ?"``.

    Returns
    -------
    str
        The same words with contractions, quotes, brackets and punctuation joined up.
        A lone apostrophe may close a quotation or mark a possessive; both attach to the left.
    """
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    return text.strip()


def load_corpus(source: str, seed: int, held_out: int) -> Corpus:
    """Read SST-2 and split it.

    Parameters
    ----------
    source
        A folder with ``train.tsv``, ``dev.tsv`` and ``test.tsv`` (columns ``sentence`` and
        ``label``), or the name of a dataset on the Hugging Face Hub.
    seed
        Seed of the held-out draw.
    held_out
        Number of whole training sentences to hold out.

    Returns
    -------
    Corpus
        Texts in natural spelling, without duplicates or contradictory labels in ``train``.
    """
    folder = Path(source)
    rows = _read_folder(folder) if folder.is_dir() else _read_hub(source)
    test = [Example(text, label, complete=True) for text, label in rows["test"]]
    pool = _unique(rows["train"])
    complete = sorted(_complete_sentences(pool))
    held = set(random.Random(seed).sample(complete, held_out))
    # Each sentence is also in the data as its phrases: without this step, the held-out
    # sentences would be known in pieces. One- and two-word phrases belong to the language.
    leaks = {run for text in held for run in _word_runs(text)} | {item.text for item in test}
    whole = set(complete)
    train = [
        Example(text, label, text in whole)
        for text, label in sorted(pool.items())
        if text not in leaks
    ]
    return Corpus(train, [Example(text, pool[text], True) for text in sorted(held)], test)


def _read_folder(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Rows of the three files as ``{"train": [(text, label), ...], "test": [...]}``."""
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for name, split in _FOLDER_SPLITS.items():
        with (folder / name).open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows[split] += [(detokenise(row["sentence"]), int(row["label"])) for row in reader]
    return rows


def _read_hub(name: str) -> dict[str, list[tuple[str, int]]]:
    """As :func:`_read_folder`, from the Hub; its ``test`` split has no labels and is left out."""
    from datasets import load_dataset

    return {
        split: [
            (detokenise(row["sentence"]), int(row["label"]))
            for row in load_dataset(name, split=hub_split)
        ]
        for hub_split, split in _HUB_SPLITS.items()
    }


def _unique(rows: list[tuple[str, int]]) -> dict[str, int]:
    """Map each text to its label; texts that occur with both labels are dropped."""
    labels: dict[str, set[int]] = {}
    for text, label in rows:
        labels.setdefault(text, set()).add(label)
    return {text: found.pop() for text, found in labels.items() if text and len(found) == 1}


def _complete_sentences(texts: dict[str, int]) -> list[str]:
    """Texts that end like a sentence and are not the tail of a longer text.

    Phrases come from parse trees, so one with the final full stop is a tail of its sentence;
    among the reversed texts in order, whatever extends a text follows right after it.
    """
    ends = sorted(text[::-1] for text in texts if _SENTENCE_END.search(text))
    pairs = zip(ends, [*ends[1:], ""], strict=True)
    return [text[::-1] for text, following in pairs if not following.startswith(text)]


def _word_runs(text: str) -> set[str]:
    """All runs of at least ``_SHORTEST_LEAK`` words of ``text``, with and without end marks."""
    words = text.split()
    runs = {
        " ".join(words[start:stop])
        for start in range(len(words))
        for stop in range(start + _SHORTEST_LEAK, len(words) + 1)
    }
    return runs | {run.rstrip(".,;:?!") for run in runs}
