"""Texts for models that generate: prompts, chats, and the continuations that are explained.

A continuation is the pair of its prompt. Decoders read both as one sequence; encoder-decoders read
the prompt in the encoder (stream 0) and the continuation in the decoder (stream 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xattn.errors import InputError, ModelError
from xattn.model import encoding as plain
from xattn.types import Encoding, Ints

Chat = Sequence[Mapping[str, str]]
"""Messages, each with ``role`` and ``content``, oldest first."""


def encode(
    network: Any,
    tokenizer: Any,
    texts: Sequence[str | Chat],
    continuations: Sequence[str] | None,
    *,
    limit: int | None,
    truncate: bool,
) -> list[Encoding]:
    """Encode prompts, with continuations if they are given.

    Parameters
    ----------
    network : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    texts : sequence of str or Chat
        A chat is put into the tokenizer's template; what the template adds is special.
    continuations : sequence of str, optional
        What follows each text. Decoders read text and continuation as one string, so a space
        between them belongs to one of the two.
    limit : int, optional
        The largest number of tokens.
    truncate : bool
        Cut what is over the limit; refused for a prompt that has a continuation.

    Raises
    ------
    InputError
        For a text that is empty or too long, a chat that the template does not take, or a token
        that reaches from the text into its continuation.
    """
    if isinstance(texts, str):
        raise InputError("texts", got="one string", expected="a list of strings or chats")
    if continuations is not None and len(continuations) != len(texts):
        raise InputError(
            "continuations", got=f"{len(continuations)}", expected=f"{len(texts)}, one for each"
        )
    if continuations is not None and truncate:
        raise InputError(
            "a prompt that has a continuation cannot be cut", remedy="leave out one of the two"
        )
    paired = bool(network.config.is_encoder_decoder)
    encodings = []
    for number, text in enumerate(texts):
        continuation = None if continuations is None else continuations[number]
        if continuation is not None and not continuation.strip():
            raise InputError(f"continuation {number} is empty", remedy="pass at least one word")
        if paired:
            source = _prompt(tokenizer, text, limit, truncate)
            ids = [] if continuation is None else _target_ids(tokenizer, continuation)
            encodings.append(_decoded(network, tokenizer, source, ids))
        elif continuation is None:
            encodings.append(_prompt(tokenizer, text, limit, truncate))
        elif isinstance(text, str):
            [whole] = plain.encode(
                tokenizer, [text + continuation], None, limit=limit, truncate=False
            )
            encodings.append(_split(whole, text, continuation))
        else:
            prompt = _prompt(tokenizer, text, limit, truncate)
            ids = tokenizer(continuation, add_special_tokens=False)["input_ids"]
            encodings.append(continued(network, tokenizer, prompt, ids))
        check_length(encodings[-1], limit)
    return encodings


def check_length(encoding: Encoding, limit: int | None) -> None:
    """Raise `InputError` if a stream is longer than the model can read."""
    if limit is not None and max(encoding.widths) > limit:
        raise InputError(
            "prompt and continuation are too long for the model",
            got=f"{max(encoding.widths)} tokens",
            expected=f"at most {limit}",
            remedy="shorten one of the two",
        )


def continued(network: Any, tokenizer: Any, prompt: Encoding, ids: Sequence[int]) -> Encoding:
    """Return a prompt with a continuation that is given as token ids.

    Parameters
    ----------
    network : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    prompt : Encoding
        Without a continuation.
    ids : sequence of int
        For encoder-decoders without the token that the decoder starts from.
    """
    if bool(network.config.is_encoder_decoder):
        return _decoded(network, tokenizer, _source(prompt), ids)
    before = prompt.row["input_ids"].tolist()
    text, offsets, words = _pieces(tokenizer, before, ids)
    special = np.isin(ids, tokenizer.all_special_ids)
    added = np.array(ids, dtype=np.int64)
    new = {"input_ids": added, "attention_mask": np.ones_like(added)}  # all else is 0, marks too
    row = {
        name: np.concatenate([values, new.get(name, np.zeros_like(added))])
        for name, values in prompt.row.items()
    }
    return _joined(tokenizer, prompt, row, text, offsets, words, special, ids, stream=0)


def probe(model: Any) -> list[Encoding]:
    """Return two texts of different lengths; streams of encoder-decoders differ in length too."""
    texts = ["a b c d e f g h", "a b c"]
    if model.task.name != "generate":
        pairs = ["c d e f g h", "a b"] if model.task.name == "answer" else None
        return model.encode(texts, pairs)  # type: ignore[no-any-return]
    prompts = [_prompt(model.tokenizer, text, None, False) for text in texts]
    if not model.paired:
        return prompts
    longest = max(len(prompt) for prompt in prompts)
    ids = [int(i) for prompt in prompts for i in prompt.row["input_ids"]]
    lengths = (longest + 1, longest - 1)  # with the starting token: other than any source
    return [
        _decoded(model.network, model.tokenizer, prompt, (ids * longest)[:length])
        for prompt, length in zip(prompts, lengths, strict=True)
    ]


def _prompt(tokenizer: Any, text: str | Chat, limit: int | None, truncate: bool) -> Encoding:
    """Encode one prompt."""
    if not isinstance(text, str):
        return _chat(tokenizer, text, limit)
    [prompt] = plain.encode(tokenizer, [text], None, limit=limit, truncate=truncate)
    return prompt


def _chat(tokenizer: Any, chat: Chat, limit: int | None) -> Encoding:
    """Encode a chat; tokens that lie outside of the messages are special."""
    for message in chat:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InputError("a message of a chat", got=repr(message), expected="role and content")
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "the tokenizer has no chat template",
            got=type(tokenizer).__name__,
            remedy="pass the prompt as plain text",
        )
    try:
        rendered = tokenizer.apply_chat_template(
            list(chat), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates raise what they like, jinja2 its own
        raise InputError("the chat template refuses the chat", got=str(error)) from error
    contents = [message["content"].strip() for message in chat]
    starts, position = [], 0
    for content in contents:
        start = rendered.find(content, position)
        if start < 0:
            raise InputError(
                "the chat template changes a message", got=repr(content[:60]), expected="its words"
            )
        starts.append(start)
        position = start + len(content)
    [whole] = plain.encode(
        tokenizer, [rendered], None, limit=limit, truncate=False, special_tokens=False
    )
    special = np.ones(len(whole), dtype=bool)
    offsets = np.zeros_like(whole.offsets)
    shift = 0
    for start, content in zip(starts, contents, strict=True):
        inside = (whole.offsets[:, 0] >= start) & (whole.offsets[:, 1] <= start + len(content))
        inside &= whole.offsets[:, 1] > whole.offsets[:, 0]
        special &= ~inside
        offsets[inside] = whole.offsets[inside] - start + shift
        shift += len(content) + 1
    return replace(
        whole,
        text="\n".join(contents),
        special=special,
        offsets=offsets,
        words=np.where(special, -1, whole.words),
        segments=np.where(special, -1, 0),
    )


def _split(whole: Encoding, text: str, continuation: str) -> Encoding:
    """Tell the tokens of a continuation from those of its prompt."""
    border = len(text)
    across = (whole.offsets[:, 0] < border) & (whole.offsets[:, 1] > border)
    if across.any():
        raise InputError(
            "a token reaches from the text into its continuation",
            got=repr(whole.tokens[int(np.flatnonzero(across)[0])]),
            remedy="put the border between two words, with the space in the continuation",
        )
    behind = ~whole.special & (whole.offsets[:, 0] >= border)
    words = whole.words.copy()
    words[behind] -= words[behind].min(initial=0)
    return replace(
        whole,
        text=text,
        pair=continuation,
        offsets=whole.offsets - np.where(behind, border, 0)[:, None],
        words=words,
        segments=np.where(behind, 1, whole.segments),
    )


def _target_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids that the decoder shall write, as in training."""
    ids: list[int] = tokenizer(text_target=text)["input_ids"]
    return ids


def _decoded(network: Any, tokenizer: Any, source: Encoding, ids: Sequence[int]) -> Encoding:
    """Return a source with what the decoder reads: its starting token, then `ids`."""
    start = network.config.decoder_start_token_id
    if start is None:
        start = network.generation_config.decoder_start_token_id
    if start is None:
        raise ModelError(
            "the configuration names no token that the decoder starts from",
            expected="decoder_start_token_id",
        )
    read = [int(start), *ids]
    text, offsets, words = _pieces(tokenizer, [], read, skip=tokenizer.all_special_ids)
    special = np.isin(read, tokenizer.all_special_ids)
    special[0] = True
    row = {
        **source.row,
        "decoder_input_ids": np.array(read, dtype=np.int64),
        "decoder_attention_mask": np.ones(len(read), dtype=np.int64),
    }
    return _joined(tokenizer, source, row, text, offsets, words, special, read, stream=1)


def _source(paired: Encoding) -> Encoding:
    """Return what the encoder reads of an encoding."""
    kept = paired.streams == 0
    return replace(
        paired,
        pair=None,
        row={name: v for name, v in paired.row.items() if not name.startswith("decoder_")},
        tokens=tuple(np.array(paired.tokens, dtype=object)[kept]),
        special=paired.special[kept],
        offsets=paired.offsets[kept],
        words=paired.words[kept],
        segments=paired.segments[kept],
        streams=paired.streams[kept],
        units=paired.units[kept],
    )


def _joined(
    tokenizer: Any,
    prompt: Encoding,
    row: dict[str, Ints],
    text: str,
    offsets: Ints,
    words: Ints,
    special: Any,
    ids: Sequence[int],
    stream: int,
) -> Encoding:
    """Put the tokens of a continuation behind those of its prompt."""
    names = tokenizer.convert_ids_to_tokens(list(ids))
    shown = [
        name if hidden or end <= start else text[start:end]
        for name, hidden, (start, end) in zip(names, special, offsets.tolist(), strict=True)
    ]
    return Encoding(
        text=prompt.text,
        pair=text or None,
        row=row,
        tokens=(*prompt.tokens, *shown),
        special=np.concatenate([prompt.special, special]),
        offsets=np.concatenate([prompt.offsets, np.where(special[:, None], 0, offsets)]),
        words=np.concatenate([prompt.words, np.where(special, -1, words)]),
        segments=np.concatenate([prompt.segments, np.where(special, -1, 1)]),
        streams=np.concatenate([prompt.streams, np.full(len(ids), stream, dtype=np.int64)]),
    )


def _pieces(
    tokenizer: Any, before: Sequence[int], ids: Sequence[int], skip: Sequence[int] = ()
) -> tuple[str, Ints, Ints]:
    """Return the text that ids add, and where each of them stands in it; and its word.

    Decoded piece by piece, because a token of bytes may be part of a character, and what a token
    looks like can depend on the one before it.
    """
    base = len(_text(tokenizer, before))
    read, lengths = [*before], []
    for number in ids:
        if number not in skip:
            read.append(number)
        # a replacement sign at the end is a character that is not complete yet
        lengths.append(max(len(_text(tokenizer, read).rstrip("\ufffd")) - base, 0))
    text = _text(tokenizer, read)[base:]
    ends = np.minimum(np.maximum.accumulate(np.array([0, *lengths])), len(text))
    offsets = np.stack([ends[:-1], ends[1:]], axis=1)
    words, word = [], 0
    for i, (start, end) in enumerate(offsets.tolist()):
        piece = text[start:end]
        if i and piece[:1].isspace():
            word += 1
        words.append(word)
        if piece.strip():
            offsets[i, 0] += len(piece) - len(piece.lstrip())
    return text, offsets, np.array(words, dtype=np.int64)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    if not len(ids):
        return ""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text
