"""Where attention looks, in numbers: what patterns, sinks and names are made of.

The numbers are those of Clark et al. 2019 (What Does BERT Look At?) and Vig & Belinkov 2019
(Analyzing the Structure of Attention in a Transformer Language Model). Each stands beside what
attention that is spread evenly over the same visible keys would have: a causal head on short texts
looks at the first token, and at itself, without doing anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xattn import units
from xattn.caution import FUNCTION_WORDS, is_punctuation
from xattn.types import Batch, Encoding, Floats, Ints

MASSES = (
    "self", "previous", "next", "first", "separator", "punctuation", "function word", "rare word",
    "same word", "same string", "block",
)  # fmt: skip
"""Shares of a row's attention. ``first`` is the first token, ``separator`` any other special one;
``same word`` is other tokens of one word, ``same string`` the same token elsewhere, ``block`` the
sentence (or the text of a pair) that the token itself stands in; rare words are the rarest fifth of
the words of the texts themselves."""
SUMS = ("entropy", "relative entropy", "distance", *MASSES, "top of row")
NUMBERS = (*SUMS, "top columns")
"""``entropy`` in nats, and as a share of the largest possible; ``distance`` in tokens; ``top of
row`` the share of each row's `FEW` largest; ``top columns`` the share of all attention that goes to
the tenth of the columns that has most of it."""
Held = defaultdict[tuple[int, int], defaultdict[str, float]]
"""By layer and head: how much attention each string got."""
FEW = 3
TENTH = 0.1
RARE = 0.2
"""Share of the words of the texts that count as rare."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the tokens of a batch are, as the numbers need it; each ``[batch, token]``."""

    real: Tensor
    """1 for tokens, 0 for padding."""
    first: Tensor
    separator: Tensor
    punctuation: Tensor
    function_word: Tensor
    rare: Tensor
    words: Tensor
    """Number of the word, unique within a text; -1 for none."""
    strings: Tensor
    """Number of the token's string; -1 for special tokens."""
    blocks: Tensor
    """Number of the sentence; -1 where a text has one only."""

    def __getitem__(self, columns: slice) -> Tokens:
        """Return the same of one stream."""
        return Tokens(**{name: part[:, columns] for name, part in vars(self).items()})


def measure(maps: Tensor, keys: Tokens, queries: Tokens, rows: slice) -> Tensor:
    """Return the numbers of heads, summed over some rows.

    Parameters
    ----------
    maps : Tensor
        ``[batch, head, row, key]``.
    keys, queries : Tokens
        Of both axes; of `queries` the whole axis.
    rows : slice
        Which queries `maps` is of.

    Returns
    -------
    Tensor
        ``[batch, head + 1, 2 * len(SUMS) + key]`` float64: sums over rows, how many rows each is
        defined in, and the sum of each column; such tensors add up. The last "head" is attention
        that is spread evenly over the keys that any head looks at.
    """
    seen = (maps > 0).any(1, keepdim=True)
    even = seen / seen.sum(-1, keepdim=True).clamp(min=1)
    maps = torch.cat([maps.double(), even.double()], 1)
    key = torch.arange(maps.shape[-1], device=maps.device)
    query = torch.arange(rows.start, rows.start + maps.shape[2], device=maps.device)
    here = queries.real[:, rows].double()
    square = keys.real.shape == queries.real.shape
    # where a row has no such key (the first has no previous one) it says nothing
    apart = key[None] - query[:, None]
    some = {
        "self": apart == 0, "previous": apart == -1, "next": apart == 1,
        "same word": _equal(queries.words[:, rows], keys.words) & (apart != 0),
        "same string": _equal(queries.strings[:, rows], keys.strings) & (apart != 0),
        "block": _equal(queries.blocks[:, rows], keys.blocks),
    }  # fmt: skip
    kinds = {
        "first": keys.first, "separator": keys.separator, "punctuation": keys.punctuation,
        "function word": keys.function_word, "rare word": keys.rare,
    }  # fmt: skip
    entropy = -torch.xlogy(maps, maps).sum(-1)
    most = seen.sum(-1).clamp(min=1).double().log()
    relative = torch.where(most > 0, entropy / most.clamp(min=1e-9), 1.0)
    parts = [entropy, relative, (maps * apart.abs()).sum(-1)]
    defined = [here, here, here * square]
    for name in MASSES:
        if name in kinds:
            parts.append(torch.einsum("bhqk,bk->bhq", maps, kinds[name].double()))
            defined.append(here * kinds[name].any(-1, keepdim=True))
            continue
        pairs = some[name].expand(len(maps), -1, -1) & keys.real.bool()[:, None]
        parts.append(torch.einsum("bhqk,bqk->bhq", maps, pairs.double()))
        visible = (pairs & seen[:, 0]).any(-1)
        defined.append(here * visible * square)
    parts.append(maps.topk(min(FEW, maps.shape[-1]), -1).values.sum(-1))
    defined.append(here)
    pairs_of = zip(parts, defined, strict=True)
    sums = [torch.einsum("bhq,bq->bh", part, counted) for part, counted in pairs_of]
    counts = [counted.sum(-1)[:, None].expand(-1, maps.shape[1]) for counted in defined]
    columns = torch.einsum("bhqk,bq->bhk", maps, here)
    return torch.cat([torch.stack([*sums, *counts], -1), columns], -1)


def _equal(one: Tensor, other: Tensor) -> Tensor:
    """Return ``[batch, row, key]``: whether numbers are the same, and any."""
    return (one[:, :, None] == other[:, None]) & (one >= 0)[:, :, None]


def numbers_of(sums: Tensor, keys: Tokens) -> Floats:
    """Return `NUMBERS` of each text and head, ``[batch, head + 1, number]``; nan where undefined.

    Parameters
    ----------
    sums : Tensor
        Of all rows; see `measure`.
    keys : Tokens
    """
    count = len(SUMS)
    means = sums[..., :count] / sums[..., count : 2 * count]
    columns = sums[..., 2 * count :]
    lengths = keys.real.sum(-1).long().tolist()
    shares = torch.empty(sums.shape[:2], dtype=torch.float64, device=sums.device)
    for row, length in enumerate(lengths):
        most = max(1, round(TENTH * length))
        shares[row] = columns[row].topk(most, -1).values.sum(-1) / columns[row].sum(-1)
    found: Floats = torch.cat([means, shares[..., None]], -1).cpu().numpy()
    return found


class Strings:
    """What the tokens of some texts are: which strings they have, and which of them are rare."""

    def __init__(self, encodings: Sequence[Encoding]) -> None:
        counted = Counter(
            token.strip().lower()
            for encoding in encodings
            for i, token in enumerate(encoding.tokens)
            if not encoding.special[i] and not is_punctuation(token)
        )
        order = sorted(counted, key=lambda token: (counted[token], token))
        limit = counted[order[int(RARE * len(order))]] if order else 0
        self.rare = {token for token in order if counted[token] <= limit}
        self.numbers: dict[str, int] = {}

    def tokens(self, batch: Batch) -> Tokens:
        """Return what the tokens of a batch are."""
        empty: dict[str, Ints] = {
            part: np.full(batch.shape, -1 if part in ("words", "strings", "blocks") else 0)
            for part in Tokens.__dataclass_fields__
        }
        for row, encoding in enumerate(batch.encodings):
            columns = batch.columns(row)
            for part, values in self._of(encoding).items():
                empty[part][row, columns] = values
        device = next(iter(batch.inputs.values())).device
        return Tokens(**{part: torch.from_numpy(v).to(device) for part, v in empty.items()})

    def _of(self, encoding: Encoding) -> dict[str, Ints]:
        strings = [token.strip().lower() for token in encoding.tokens]
        plain = ~encoding.special
        starts = np.concatenate([[True], np.diff(encoding.streams) > 0])
        marks = np.array([is_punctuation(token) for token in strings]) & plain
        blocks = np.full(len(encoding), -1)
        sentences = units.groups(encoding, "sentence")
        members = [[i for i in group if plain[i]] for group in sentences]
        members = [group for group in members if group]
        for number, group in enumerate(members if len(members) > 1 else []):
            blocks[group] = number
        numbered = [self.numbers.setdefault(token, len(self.numbers)) for token in strings]
        return {
            "real": np.ones(len(encoding), dtype=np.int64),
            "first": starts.astype(np.int64),
            "separator": (encoding.special & ~starts).astype(np.int64),
            "punctuation": marks.astype(np.int64),
            "function_word": np.array([s in FUNCTION_WORDS for s in strings]) * plain,
            "rare": np.array([s in self.rare for s in strings]) * plain,
            "words": np.where(plain, encoding.words + 10**6 * encoding.segments, -1),
            "strings": np.where(plain, numbered, -1),
            "blocks": blocks,
        }

    @staticmethod
    def add(
        held: Held,
        batch: Batch,
        row: int,
        layer: int,
        shares: Floats,
        keys: slice,
    ) -> None:
        """Count what each string of a text gets in a layer, ``shares [head, key]``."""
        encoding = batch.encodings[row]
        for token, column in zip(encoding.tokens, batch.columns(row).tolist(), strict=True):
            if keys.start <= column < keys.stop:
                for head, values in enumerate(shares):
                    held[layer, head][token.strip()] += float(values[column - keys.start])
