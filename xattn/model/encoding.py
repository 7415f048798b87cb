"""From text to `Encoding`: tokens as people read them, where they stand, and what is special."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from xattn.errors import InputError, ModelError
from xattn.types import Encoding, Ints

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
    tokenizer : PreTrainedTokenizerFast
        A fast tokenizer: only these say where a token stands in the text.
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
        For a text that is empty, holds nothing but special tokens, or is over the limit.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "the tokenizer does not say where tokens stand in the text",
            got=type(tokenizer).__name__,
            expected="a fast tokenizer",
            remedy="load one with AutoTokenizer.from_pretrained(..., use_fast=True)",
        )
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
        fits = {"truncation": True, "max_length": limit} if truncate and limit else {}
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
        count = len(coded["input_ids"])
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


def _encoding(tokenizer: Any, text: str, pair: str | None, coded: Any) -> Encoding:
    """Build an `Encoding` from what the tokenizer returned."""
    markers = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    markers |= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id}
    ids = np.array(coded["input_ids"], dtype=np.int64)
    special = np.array(coded["special_tokens_mask"], dtype=bool) | np.isin(
        ids, [m for m in markers if m is not None]
    )
    sequence = [-1 if s is None else s for s in coded.sequence_ids()]
    segments = np.where(special, -1, np.array(sequence, dtype=np.int64))
    offsets = np.where(special[:, None], 0, np.array(coded["offset_mapping"], dtype=np.int64))
    offsets = _without_leading_space(offsets, segments, (text, pair or ""))
    words = np.array([-1 if w is None else w for w in coded.word_ids()], dtype=np.int64)
    arrays = ["input_ids", "attention_mask"]
    arrays += [name for name in tokenizer.model_input_names if name in coded and name not in arrays]
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    shown = [
        name if segment < 0 or end <= start else (text, pair or "")[segment][start:end]
        for name, segment, (start, end) in zip(pieces, segments, offsets.tolist(), strict=True)
    ]
    return Encoding(
        text=text,
        pair=pair,
        row={name: np.array(coded[name], dtype=np.int64) for name in arrays},
        tokens=tuple(shown),
        special=special,
        offsets=offsets,
        words=np.where(special, -1, words),
        segments=segments,
    )


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
