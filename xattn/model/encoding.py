"""From text to `Encoding`: tokens as people read them, where they stand, and what is special."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from xattn.errors import InputError
from xattn.model.alignment import align
from xattn.types import Bools, Encoding, Ints, Row

UNLIMITED = 10**9  # tokenizers without a limit state a number larger than any text
REPLACEMENTS = ("mask", "pad", "unk", "eos", "bos")


def token_limit(network: nn.Module, tokenizer: Any) -> int | None:
    """Return how many tokens the model can read, or None if nothing limits it.

    The smaller of the tokenizer's stated limit and the length of the table of absolute positions.
    Tables with a padding row (RoBERTa) start counting behind it.
    """
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < UNLIMITED else []
    for name, module in network.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and leaf in {"position_embeddings", "wpe"}:
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - reserved)
    return min(limits, default=None)


def token_id(tokenizer: Any, kind: str) -> int:
    """Return the id of the tokenizer's `kind` token.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    kind : str
        ``mask``, ``pad``, ``unk``, ``eos``, ``bos``; or ``auto``: the first of these that exists.

    Raises
    ------
    InputError
        If the tokenizer has no such token.
    """
    have: dict[str, int] = {
        k: getattr(tokenizer, f"{k}_token_id")
        for k in REPLACEMENTS
        if getattr(tokenizer, f"{k}_token_id") is not None
    }
    if kind == "auto" and have:
        return next(iter(have.values()))
    if kind not in have:
        raise InputError(
            f"the tokenizer has no {kind} token",
            expected="one of " + (", ".join(have) or "none: it has no special tokens"),
            remedy="choose another replacement",
        )
    return have[kind]


def vocabulary_id(tokenizer: Any, label: str | int, rows: int) -> int:
    """Return the id of a token of the vocabulary, given by its text or number.

    The text counts as it stands: tokenizers of bytes tell "cat" from " cat".

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    label : str or int
    rows : int
        Size of the vocabulary.

    Raises
    ------
    InputError
        If it is no token, or several.
    """
    if isinstance(label, int):
        if not 0 <= label < rows:
            raise InputError("token number", got=str(label), expected=f"0 to {rows - 1}")
        return label
    ids: list[int] = tokenizer(label, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
        raise InputError(
            "the label is not one token of the vocabulary",
            got=f"{label!r}, which is {pieces or 'nothing'}",
            remedy="name one token; a leading space may belong to it",
        )
    return ids[0]


def input_names(network: nn.Module, tokenizer: Any) -> tuple[str, ...]:
    """Return what the tokenizer offers and the network's ``forward`` names, sorted.

    A tensor that a model merely passes on (token types in DistilBERT) would reach its attention.
    """
    named = inspect.signature(network.forward).parameters
    offered = {"input_ids", "attention_mask", *tokenizer.model_input_names}
    offered |= {"decoder_input_ids", "decoder_attention_mask"}
    return tuple(sorted(offered & set(named)))


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    limit: int | None,
    truncate: bool,
    special_tokens: bool = True,
) -> list[Encoding]:
    """Encode texts or pairs of texts, each without padding.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Fast ones say where a token stands in the text; for others `alignment.align` finds it out.
        On which side it pads is of no concern: nothing is padded here.
    texts : sequence of str
    pairs : sequence of str, optional
        The second text of each pair.
    limit : int, optional
        The largest number of tokens.
    truncate : bool
        Cut what is over the limit instead of refusing it.
    special_tokens : bool
        Let the tokenizer add its special tokens; False for texts that hold them already.

    Raises
    ------
    InputError
        For a text that is empty, holds nothing but special tokens, is over the limit, or is not
        spelled by the tokens of a tokenizer without offsets.
    """
    if isinstance(texts, str):
        raise InputError("texts", got="one string", expected="a list of strings")
    if pairs is not None and len(pairs) != len(texts):
        raise InputError("pairs", got=f"{len(pairs)}", expected=f"{len(texts)}, one for each text")
    result = []
    for number, text in enumerate(texts):
        pair = None if pairs is None else pairs[number]
        for part in (text,) if pair is None else (text, pair):
            if not isinstance(part, str) or not part.strip():
                raise InputError(
                    f"text {number} is empty", got=repr(part), remedy="pass at least one word"
                )
            if not part.isascii() and part != part.encode(errors="ignore").decode():
                raise InputError(
                    f"text {number} is not valid Unicode",
                    got=ascii(part)[:60],
                    remedy="read it as UTF-8 (PYTHONUTF8=1)",
                )
        read = _fast if tokenizer.is_fast else _slow
        coded = read(tokenizer, text, pair, limit if truncate else None, special_tokens)
        count = len(coded.row["input_ids"])
        if limit is not None and count > limit:
            raise InputError(
                f"text {number} is {count - limit} tokens too long for the model",
                got=f"{count} tokens",
                expected=f"at most {limit}",
                remedy="shorten it or ask for truncation (truncate=True, --truncate)",
            )
        result.append(_encoding(tokenizer, text, pair, coded))
        if result[-1].special.all():
            raise InputError(
                f"text {number} holds nothing but special tokens",
                got=repr(text),
                remedy="pass at least one word that the tokenizer knows",
            )
    return result


@dataclass(frozen=True)
class _Coded:
    """What a tokenizer says of one input, each per token."""

    row: Row
    special: Bools
    segments: Ints
    """0 and 1 for the two texts, -1 for added tokens."""
    offsets: Ints
    words: Ints
    """The tokenizer's own numbers of words; -1 where it has none."""


def _arrays(tokenizer: Any, coded: Any) -> Row:
    names = ["input_ids", "attention_mask"]
    names += [name for name in tokenizer.model_input_names if name in coded and name not in names]
    return {name: np.array(coded[name], dtype=np.int64) for name in names}


def _fast(
    tokenizer: Any, text: str, pair: str | None, limit: int | None, special_tokens: bool
) -> _Coded:
    """Ask a tokenizer that knows where its tokens stand."""
    fits = {"truncation": True, "max_length": limit} if limit else {}
    coded = tokenizer(
        text,
        pair,
        add_special_tokens=special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=True,
        verbose=False,  # its own warning about the length would come before our error
        **fits,
    )
    return _Coded(
        row=_arrays(tokenizer, coded),
        special=np.array(coded["special_tokens_mask"], dtype=bool),
        segments=_numbers(coded.sequence_ids()),
        offsets=np.array(coded["offset_mapping"], dtype=np.int64).reshape(-1, 2),
        words=_numbers(coded.word_ids()),
    )


def _numbers(values: Sequence[int | None]) -> Ints:
    return np.array([-1 if value is None else value for value in values], dtype=np.int64)


def _slow(
    tokenizer: Any, text: str, pair: str | None, limit: int | None, special_tokens: bool
) -> _Coded:
    """Ask a tokenizer that gives bare tokens, and find them in the text."""
    parts = [text] if pair is None else [text, pair]
    tokens = [tokenizer.tokenize(part) for part in parts]
    offsets = [align(tokenizer, t, part) for t, part in zip(tokens, parts, strict=True)]
    ids = [tokenizer.convert_tokens_to_ids(t) for t in tokens]
    added = tokenizer.num_special_tokens_to_add(pair is not None) if special_tokens else 0
    over = sum(map(len, ids)) + added - (limit or 0)
    if limit and over > 0:
        second = ids[1] if pair is not None else None
        *kept, _ = tokenizer.truncate_sequences(ids[0], second, num_tokens_to_remove=over)
        left = tokenizer.truncation_side == "left"
        ids = [k for k in kept if k is not None]
        offsets = [
            o[len(o) - len(k) :] if left else o[: len(k)] for o, k in zip(offsets, ids, strict=True)
        ]
    coded = tokenizer.prepare_for_model(
        *ids, add_special_tokens=special_tokens, return_attention_mask=True, verbose=False
    )
    # where the two texts land among the added tokens: no id is negative
    places = [[-1 - i] * len(part) for i, part in enumerate(ids)]
    together = tokenizer.build_inputs_with_special_tokens(*places) if special_tokens else places[0]
    layout = np.array(together, dtype=np.int64)
    segments = np.where(layout < 0, -1 - layout, -1)
    row = _arrays(tokenizer, coded)
    expected = [number for part in ids for number in part]
    got = row["input_ids"]
    if len(got) != len(layout) or got[segments >= 0].tolist() != expected:
        raise InputError(
            "the tokenizer takes special tokens in the text for its own (ByT5 does)",
            got=repr(text[-40:]),
            remedy="leave them out",
        )
    spans = np.zeros((len(layout), 2), dtype=np.int64)
    spans[segments >= 0] = np.concatenate(offsets)
    return _Coded(row, segments < 0, segments, spans, np.zeros(len(layout), dtype=np.int64))


def _encoding(tokenizer: Any, text: str, pair: str | None, coded: _Coded) -> Encoding:
    """Build an `Encoding` from what the tokenizer said."""
    markers = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    markers |= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id}
    ids = coded.row["input_ids"]
    special = coded.special | np.isin(ids, [m for m in markers if m is not None])
    sources = (text, pair or "")
    segments = np.where(special, -1, coded.segments)
    offsets = np.where(special[:, None], 0, coded.offsets)
    offsets = _without_leading_space(offsets, segments, sources)
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    shown = [
        name if segment < 0 or end <= start else sources[segment][start:end]
        for name, segment, (start, end) in zip(pieces, segments, offsets.tolist(), strict=True)
    ]
    return Encoding(
        text=text,
        pair=pair,
        row=coded.row,
        tokens=tuple(shown),
        special=special,
        offsets=offsets,
        words=_words(coded.words, offsets, segments, sources),
        segments=segments,
    )


def _words(numbers: Ints, offsets: Ints, segments: Ints, sources: tuple[str, str]) -> Ints:
    """Return numbers of words by segment: the tokenizer's own, divided at white space.

    Some tokenizers (Llama, Gemma) never divide a text before they merge, and call all of it one
    word; slow ones know of no words.
    """
    chunks = [_chunks(source) for source in sources]
    words = np.full(len(segments), -1, dtype=np.int64)
    before: dict[int, tuple[int, int]] = {}
    count = {0: -1, 1: -1}
    for i, segment in enumerate(segments.tolist()):
        if segment < 0:
            continue
        here = int(numbers[i]), chunks[segment][int(offsets[i, 0])]
        if before.get(segment) != here:
            count[segment] += 1
        before[segment] = here
        words[i] = count[segment]
    return words


def _chunks(source: str) -> list[int]:
    """Return which stretch between white space each character, and the end, belongs to.

    White space counts to what follows it.
    """
    numbers, number, space = [], 0, False
    for character in source:
        number += space < character.isspace()  # white space begins
        space = character.isspace()
        numbers.append(number)
    return [*numbers, number]


def _without_leading_space(offsets: Ints, segments: Ints, sources: tuple[str, str]) -> Ints:
    """Move a token's start behind the spaces that byte-level tokenizers count as part of it."""
    moved = offsets.copy()
    for i, segment in enumerate(segments):
        if segment >= 0:
            start, end = moved[i]
            piece = sources[segment][start:end]
            stripped = len(piece) - len(piece.lstrip())
            if stripped < len(piece):
                moved[i, 0] = start + stripped
    return moved
