"""`Caution`: something that limits what may be concluded from a result, and what to do about it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from xattn.types import Attribution


@dataclass(frozen=True)
class Caution:
    """Something that limits what may be concluded."""

    title: str
    evidence: str
    """The numbers, and the threshold that they crossed."""
    remedy: str

    def __str__(self) -> str:
        return f"{self.title}. {self.evidence} {self.remedy}"


FUNCTION_WORDS = frozenset(
    {
        "a", "an", "the", "this", "that", "these", "those", "i", "me", "my", "mine", "myself",
        "we", "us", "our", "ours", "ourselves", "you", "your", "yours", "yourself",
        "yourselves", "he", "him", "his", "himself", "she", "her", "hers", "herself", "it",
        "its", "itself", "they", "them", "their", "theirs", "themselves", "who", "whom",
        "whose", "which", "what", "am", "is", "are", "was", "were", "be", "been", "being", "do",
        "does", "did", "doing", "have", "has", "had", "having", "will", "would", "shall",
        "should", "can", "could", "may", "might", "must", "and", "or", "if", "as", "than",
        "because", "while", "when", "where", "whether", "so", "then", "there", "here", "of",
        "in", "on", "at", "by", "to", "from", "for", "with", "into", "onto", "upon", "about",
        "above", "below", "over", "under", "through", "during", "before", "after", "between",
        "among", "within", "along", "across", "around", "behind", "beside", "beyond", "near",
        "off", "out", "up", "down", "s", "t", "re", "ve", "ll", "d", "m",
    }
)  # fmt: skip
"""English words of the closed classes, which say little by themselves.

Those that turn or weigh what is said ("not", "but", "without", "very", "only") are left out: no
wonder if a model looks at them. Published lists of stop words hold them, and words such as "thin"
and "serious" (Nothman et al. 2018, Stop Word Lists in Free Open-source Software Packages).
"""
Kind = Literal["special", "punctuation", "function word"]


def is_punctuation(token: str) -> bool:
    """Return whether a token holds nothing but punctuation and symbols.

    Examples
    --------
    >>> is_punctuation(" …"), is_punctuation("a."), is_punctuation("##")
    (True, False, True)
    """
    return all(unicodedata.category(character)[0] in "PS" for character in token.strip())


def kind(item: Attribution, index: int) -> Kind | None:
    """Return why a token is nothing that a conclusion may rest on; None for all others.

    Special tokens, punctuation and symbols, and English function words.
    """
    if item.segments[index] < 0:
        return "special"
    token = item.tokens[index].strip()
    if is_punctuation(token):
        return "punctuation"
    return "function word" if token.lower() in FUNCTION_WORDS else None
