"""Removal operators: what it means that a token is not there.

An operator works on the ids of an encoded text, never by decoding to text and tokenising again,
so exactly the tokens that were named disappear and everything else stays as it was. Special
tokens are the caller's to keep: they are True in every `keep`.

If nothing attended remains, because all tokens went and the model adds no special ones, the
result is *the empty input*: one single token, the tokenizer's first existing one of mask, pad,
unk, eos and bos. A model cannot read less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from xattn.errors import InputError, UnknownNameError
from xattn.model import Model
from xattn.types import Bools, Row

Removal = Callable[[Model, Row, Bools], list[Row]]


@dataclass(frozen=True)
class Operator:
    """One way of removing tokens.

    Examples
    --------
    >>> import numpy as np
    >>> import xattn
    >>> model = xattn.load()
    >>> [encoding] = model.encode(["Dull!"])
    >>> keep = np.array([[True, False, True, True]])
    >>> [row] = get_operator("delete")(model, encoding.row, keep)
    >>> model.tokenizer.convert_ids_to_tokens(row["input_ids"])
    ['[CLS]', '!', '[SEP]']
    """

    name: str
    meaning: str
    """One line for a reader who has never removed a token."""
    remove: Removal

    def __call__(self, model: Model, row: Row, keep: Bools) -> list[Row]:
        """Return the inputs that remain.

        Parameters
        ----------
        model : Model
        row : Row
            The untouched input, arrays ``[token]``.
        keep : array
            ``[input, token]`` bool: for each wanted input, True for the tokens that stay.

        Returns
        -------
        list of Row
            One for each row of `keep`.

        Raises
        ------
        InputError
            If the tokenizer lacks the token that the operator puts in place.
        """
        return self.remove(model, row, keep)


def empty(model: Model, row: Row) -> Row:
    """Return the empty input: one token, attended, everything else 0."""
    single = {name: np.zeros(1, dtype=np.int64) for name in row}
    single["input_ids"][0] = model.token_id("auto")
    single["attention_mask"][0] = 1
    return single


def _delete(model: Model, row: Row, keep: Bools) -> list[Row]:
    """Cut the tokens out of every array; what follows moves up."""
    return [
        {name: values[kept] for name, values in row.items()} if kept.any() else empty(model, row)
        for kept in keep
    ]


def _replace(kind: str, model: Model, row: Row, keep: Bools) -> list[Row]:
    """Put the tokenizer's `kind` token in place; it stays attended.

    It keeps its place in the row. RoBERTa counts positions without padding tokens, though, so with
    ``pad`` the tokens behind it move up there, and decoders read their prediction from the last
    token that is not padding.
    """
    if getattr(model.tokenizer, f"{kind}_token_id") is None:
        raise InputError(
            f"the tokenizer has no {kind} token to put in place",
            got=type(model.tokenizer).__name__,
            remedy="remove tokens in another way: --operators delete,attention-mask",
        )
    ids = np.where(keep, row["input_ids"], model.token_id(kind))
    return [{**row, "input_ids": changed} for changed in ids]


def _hide(model: Model, row: Row, keep: Bools) -> list[Row]:
    """Set the attention mask to 0; positions of the other tokens stay.

    Hidden tokens behind the last kept one are cut off. They could not be told from padding, but
    a decoder would still read its prediction from them.
    """
    if "attention_mask" not in model.input_names:
        raise InputError(
            "tokens cannot be hidden from this model",
            got=f"{type(model.network).__name__}, which takes no attention mask",
            remedy="remove tokens in another way, for example by delete or mask",
        )
    length = keep.shape[1]
    ends = length - np.argmax(keep[:, ::-1], axis=1)
    rows: list[Row] = []
    for kept, end in zip(keep, ends.tolist(), strict=True):
        if not kept.any():
            rows.append(empty(model, row))
            continue
        cut = {name: values[:end] for name, values in row.items()}
        cut["attention_mask"] = np.where(kept[:end], cut["attention_mask"], 0)
        rows.append(cut)
    return rows


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("delete", "the token is cut out and the text closes up", _delete),
        Operator(
            "mask", "the tokenizer's mask token stands in its place", partial(_replace, "mask")
        ),
        Operator("pad", "the padding token stands in its place", partial(_replace, "pad")),
        Operator("unknown", "the unknown token stands in its place", partial(_replace, "unk")),
        Operator("attention-mask", "the token stays, but no other token may look at it", _hide),
    )
}
"""All operators by name."""


def get_operator(name: str) -> Operator:
    """Return the operator called `name`.

    Raises
    ------
    UnknownNameError
        With the known names and the nearest of them.
    """
    if name not in OPERATORS:
        raise UnknownNameError("operator", name, OPERATORS)
    return OPERATORS[name]


def get_operators(names: Sequence[str]) -> list[Operator]:
    """Return several operators, each once, in the order given."""
    return [get_operator(name) for name in dict.fromkeys(names)]
