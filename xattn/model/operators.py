"""Removal operators: what it means that a token is not there.

An operator works on the ids of an encoded text, never by decoding to text and tokenising again,
so exactly the tokens that were named disappear and everything else stays as it was. Special
tokens are the caller's to keep: they are True in every `keep`.

If nothing attended remains of a stream, because all tokens went and the model adds no special ones,
one single token stands there: the tokenizer's first existing one of mask, pad, unk, eos and bos. A
model cannot read less. A patch of a picture cannot be cut out or hidden; it becomes blank, in the
mean colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from xattn.errors import InputError, UnknownNameError
from xattn.model.adapter import Model
from xattn.model.entrances import PictureEntrance, grid
from xattn.types import Bools, Ints, Row

Removal = Callable[[Model, Row, Bools], list[Row]]
Shift = Callable[[Bools], Ints]


def _stays(kept: Bools) -> Ints:
    return np.arange(len(kept))


def _closes(kept: Bools) -> Ints:
    places: Ints = np.maximum(np.cumsum(kept) - 1, 0)
    return places


def _retreats(kept: Bools) -> Ints:
    places: Ints = np.maximum.accumulate(np.where(kept, np.arange(len(kept)), 0))
    return places


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
    """Takes the arrays of one stream of tokens."""
    shift: Shift = _stays
    """Takes what is kept of a stream, ``[token]``, and returns where each token is then; of one
    that went, where the last one before it is."""

    @property
    def physical(self) -> bool:
        """Whether a token that goes leaves no place where anything could be read."""
        return self.shift is not _stays

    def __call__(self, model: Model, row: Row, keep: Bools) -> list[Row]:
        """Return the inputs that remain.

        Parameters
        ----------
        model : Model
        row : Row
            The untouched input, arrays ``[token of its stream]``.
        keep : array
            ``[input, token]`` bool, all streams side by side: for each wanted input, True for the
            tokens that stay.

        Returns
        -------
        list of Row
            One for each row of `keep`.

        Raises
        ------
        InputError
            If the tokenizer lacks the token that the operator puts in place, or a patch of a
            picture shall be removed by anything but ``mask``.
        """
        results: list[dict[str, npt.NDArray[Any]]] = [{} for _ in keep]
        first = 0
        for part in _streams(row):
            width = _width(model, part)
            here = keep[:, first : first + width]
            first += width
            rows = (
                _blank(self.name, model, part, here)
                if "pixel_values" in part
                else self.remove(model, part, here)
            )
            for result, new in zip(results, rows, strict=True):
                result.update(new)
        return list(results)


def _streams(row: Row) -> list[Row]:
    """Return the arrays of each stream by themselves, in the order of streams."""
    parts: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for name, values in row.items():
        kind = "decoder" if name.startswith("decoder_") else "text"
        parts.setdefault("picture" if values.ndim > 1 else kind, {})[name] = values
    return [parts[kind] for kind in ("text", "decoder", "picture") if kind in parts]


def ids_of(row: Row) -> str:
    """Return the name of a stream's token ids."""
    return next(name for name in row if name.endswith("input_ids"))


def _picture(model: Model) -> PictureEntrance:
    return next(e for e in model.entrances if isinstance(e, PictureEntrance))


def _width(model: Model, part: Row) -> int:
    """Return the number of tokens of a stream."""
    if "pixel_values" not in part:
        return len(part[ids_of(part)])
    entrance = _picture(model)
    rows, columns = grid(entrance.module, part["pixel_values"].shape[-2:])
    return entrance.front + rows * columns


def _blank(name: str, model: Model, part: Row, keep: Bools) -> list[Row]:
    """Paint the patches that go in the mean colour."""
    if name != "mask" and not keep.all():
        raise InputError(
            f"patches of a picture cannot be removed by {name}",
            expected="mask: they become blank",
            remedy="set the operator to mask",
        )
    entrance, pixels = _picture(model), part["pixel_values"]
    steps, sizes = entrance.module.stride, entrance.module.kernel_size
    rows, columns = grid(entrance.module, pixels.shape[-2:])
    colour = entrance.blank.cpu().numpy().astype(pixels.dtype)[:, None, None]
    inputs: list[Row] = []
    for kept in keep[:, entrance.front :].reshape(len(keep), rows, columns):
        painted = pixels.copy()
        for r, c in zip(*np.nonzero(~kept), strict=True):
            top, left = r * steps[0], c * steps[1]
            painted[:, top : top + sizes[0], left : left + sizes[1]] = colour
        inputs.append({**part, "pixel_values": painted})
    return inputs


def empty(model: Model, row: Row) -> Row:
    """Return the empty stream: the empty token alone."""
    return emptied(model, {name: np.zeros(1, dtype=np.int64) for name in row})


def emptied(model: Model, row: Row) -> Row:
    """Return an input whose first token, of its last stream, is the empty one.

    It is attended, everything else of it is 0.
    """
    last = _streams(row)[-1]
    result = dict(row)
    for name, values in last.items():
        result[name] = values.copy()
        result[name][0] = int(name.endswith("attention_mask"))
    ids = ids_of(last)
    result[ids][0] = model.token_id("auto")
    return result


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
    name = ids_of(row)
    changed = np.where(keep, row[name], model.token_id(kind))
    return [{**row, name: ids} for ids in changed]


def _hide(model: Model, row: Row, keep: Bools) -> list[Row]:
    """Set the attention mask to 0; positions of the other tokens stay.

    Hidden tokens behind the last kept one are cut off. They could not be told from padding, but
    a decoder would still read its prediction from them.
    """
    mask = next((name for name in row if name.endswith("attention_mask")), None)
    if mask is None or mask not in model.input_names:
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
        cut[mask] = np.where(kept[:end], cut[mask], 0)
        rows.append(cut)
    return rows


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("delete", "the token is cut out and the text closes up", _delete, _closes),
        Operator(
            "mask", "the tokenizer's mask token stands in its place", partial(_replace, "mask")
        ),
        Operator("pad", "the padding token stands in its place", partial(_replace, "pad")),
        Operator("unknown", "the unknown token stands in its place", partial(_replace, "unk")),
        Operator(
            "attention-mask", "the token stays, but no other token may look at it", _hide, _retreats
        ),
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


def usual(model: Model) -> Operator:
    """Return the way of removing that suits a model: ``mask`` where there is a mask, or ``delete``.

    A mask is a mask token of the tokenizer, or for pictures a blank patch.
    """
    masks = model.tokenizer is None or model.tokenizer.mask_token_id is not None
    return OPERATORS["mask" if masks else "delete"]
