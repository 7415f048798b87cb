"""Removal operators: what it means that a token is not there.

An operator works on the ids of an encoded text, never by decoding to text and tokenising again,
so exactly the tokens that were named disappear and everything else stays as it was. Special
tokens are the caller's to keep: they are True in every `keep`.

If nothing attended remains of a stream, because all tokens went and the model adds no special ones,
one single token stands there: the tokenizer's first existing one of mask, pad, unk, eos and bos. A
model cannot read less. A patch of a picture cannot be cut out or hidden; it is painted over.

Some ways draw what they put in place (`xattn.model.drawing`): several inputs then stand for one,
and what they are worth is averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from xattn.errors import InputError, UnknownNameError
from xattn.model import drawing
from xattn.model.adapter import Model
from xattn.model.entrances import BLANK, PictureEntrance, grid
from xattn.types import Bools, Floats, Ints, Row

Removal = Callable[[Model, Row, Bools], list[Row]]
Shift = Callable[[Bools], Ints]
Ground = Callable[[PictureEntrance, Floats], Floats]
"""Takes the pixels ``[channel, row, column]``, and returns what removed patches look like."""


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
    remove: Removal | None
    """Takes the arrays of one stream of tokens; None where only patches can go so."""
    shift: Shift = _stays
    """Takes what is kept of a stream, ``[token]``, and returns where each token is then; of one
    that went, where the last one before it is."""
    ground: Ground | None = None
    """What is behind the patches of a picture; None where patches cannot go so."""
    draws: int = 1
    """How many inputs stand for one together."""

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
            `draws` for each row of `keep`, next to each other.

        Raises
        ------
        InputError
            If the tokenizer lacks the token that the operator puts in place, or the operator does
            not suit what shall go: a token or a patch of a picture.
        """
        results: list[dict[str, npt.NDArray[Any]]] = [{} for _ in range(len(keep) * self.draws)]
        first = 0
        for part in _streams(row):
            width = _width(model, part)
            here = keep[:, first : first + width]
            first += width
            if "pixel_values" in part:
                rows = self._painted(model, part, here)
            elif self.remove is None:
                raise _unsuitable(self.name, "tokens of a text", "tokens", lambda o: o.remove)
            else:
                rows = self.remove(model, part, here)
            for result, new in zip(results, rows, strict=True):
                result.update(new)
        return list(results)

    def _painted(self, model: Model, part: Row, keep: Bools) -> list[Row]:
        """Return pictures of which the patches that go are painted over."""
        entrance, pixels = _picture(model), part["pixel_values"]
        if self.ground is None:
            if keep.all():
                return [part for _ in range(len(keep) * self.draws)]
            raise _unsuitable(self.name, "patches of a picture", "patches", lambda o: o.ground)
        behind = self.ground(entrance, pixels)
        steps, sizes = entrance.module.stride, entrance.module.kernel_size
        rows, columns = grid(entrance.module, pixels.shape[-2:])
        inputs: list[Row] = []
        for kept in keep[:, entrance.front :].reshape(len(keep), rows, columns):
            painted = pixels.copy()
            for r, c in zip(*np.nonzero(~kept), strict=True):
                top, left = r * steps[0], c * steps[1]
                patch = np.s_[:, top : top + sizes[0], left : left + sizes[1]]
                painted[patch] = behind[patch]
            inputs.append({**part, "pixel_values": painted})
        return inputs


def _unsuitable(
    name: str, what: str, kind: str, serves: Callable[[Operator], object]
) -> InputError:
    known = ", ".join(operator.name for operator in OPERATORS.values() if serves(operator))
    return InputError(
        f"{what} cannot be removed by {name}",
        expected=f"one of {known}",
        remedy=f"name a way of removing {kind}, for example mask",
    )


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


def _average(model: Model, row: Row, keep: Bools) -> list[Row]:
    """Mark the tokens in whose place the mean row of the embedding table shall stand."""
    name = ids_of(row).removesuffix("input_ids") + BLANK
    return [{**row, name: gone.astype(np.int64)} for gone in ~keep]


def _plain(entrance: PictureEntrance, pixels: Floats) -> Floats:
    """Return the mean colour of the pictures that the model was trained on."""
    colour: Floats = entrance.blank.cpu().numpy().astype(pixels.dtype)
    return np.broadcast_to(colour[:, None, None], pixels.shape)


def _own_mean(entrance: PictureEntrance, pixels: Floats) -> Floats:
    """Return the mean colour of the picture itself."""
    return np.broadcast_to(pixels.mean((1, 2), keepdims=True), pixels.shape)


def _blurred(entrance: PictureEntrance, pixels: Floats) -> Floats:
    """Return the picture, blurred so far that nothing as small as a patch is left."""
    down, across = entrance.module.kernel_size
    blurred: Floats = gaussian_filter(pixels, (0, down, across), mode="nearest")
    return blurred


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("delete", "the token is cut out and the text closes up", _delete, _closes),
        Operator(
            "mask",
            "the tokenizer's mask token stands in its place (a patch becomes blank)",
            partial(_replace, "mask"),
            ground=_plain,
        ),
        Operator("pad", "the padding token stands in its place", partial(_replace, "pad")),
        Operator("unknown", "the unknown token stands in its place", partial(_replace, "unk")),
        Operator(
            "attention-mask", "the token stays, but no other token may look at it", _hide, _retreats
        ),
        Operator(
            "mean-embedding", "the mean of all embeddings stands in the place of its own", _average
        ),
        Operator(
            "data",
            "tokens drawn from the texts of the data set stand in its place",
            drawing.without_texts,
            draws=drawing.DRAWS,
        ),
        Operator(
            drawing.MASKED_LM,
            "tokens that a masked language model finds likely there stand in its place",
            drawing.without_model,
            draws=drawing.DRAWS,
        ),
        Operator(
            "mean-colour", "the patch takes the mean colour of its picture", None, ground=_own_mean
        ),
        Operator("blur", "the patch is blurred beyond recognition", None, ground=_blurred),
    )
}
"""All operators by name."""


def get_operator(name: str) -> Operator:
    """Return the operator called `name`.

    Parameters
    ----------
    name : str
        One in `OPERATORS`; ``masked-lm:FOLDER`` names the language model, too.

    Raises
    ------
    UnknownNameError
        With the known names and the nearest of them.
    """
    kind, colon, source = name.partition(":")
    if kind not in OPERATORS or (colon and kind != drawing.MASKED_LM):
        raise UnknownNameError("operator", name, OPERATORS)
    operator = OPERATORS[kind]
    return replace(operator, name=name, remove=drawing.by_model(source)) if source else operator


def drawing_from(operator: Operator, model: Model, texts: Sequence[str]) -> Operator:
    """Return an operator that knows what texts to draw from, if it draws from texts."""
    if operator.name != "data" or model.tokenizer is None:
        return operator
    return replace(operator, remove=drawing.by_texts(model, texts))


def get_operators(names: Sequence[str]) -> list[Operator]:
    """Return several operators, each once, in the order given."""
    return [get_operator(name) for name in dict.fromkeys(names)]


def usual(model: Model) -> Operator:
    """Return the way of removing that suits a model: ``mask`` where there is a mask, or ``delete``.

    A mask is a mask token of the tokenizer, or for pictures a blank patch.
    """
    masks = model.tokenizer is None or model.tokenizer.mask_token_id is not None
    return OPERATORS["mask" if masks else "delete"]
