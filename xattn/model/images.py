"""Pictures for models that see: patches are their tokens.

Nothing is known of an architecture by name. The convolution that reads the pixels says how many
patches there are and which pixels each is made of; the size of the attention maps says how many
tokens the network itself puts before them (CLS, distillation, registers).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers.image_processing_utils import BaseImageProcessor

from xattn.errors import InputError, ModelError
from xattn.model import encoding as plain
from xattn.model.attach import Attached
from xattn.model.entrances import Entrance, PictureEntrance, TokenEntrance, first_reader, grid
from xattn.model.tap import Site
from xattn.model.trace import Link
from xattn.picture import Picture, Pixels
from xattn.types import PICTURE, Encoding, Row

if TYPE_CHECKING:
    from xattn.model.adapter import Model
    from xattn.model.runner import Runner
    from xattn.model.tasks import Task

Source = str | Path | Image.Image | npt.NDArray[np.uint8]
"""A picture: a file, or what it holds, ``[row, column, 3]`` uint8."""
GREY = 0.5
"""The mean colour where a processor names none."""


def opened(source: Source, number: int) -> tuple[Image.Image, str]:
    """Return a picture in red, green and blue, and its name.

    Transparent parts show white; the orientation that a camera noted is applied.

    Raises
    ------
    InputError
        If there is no such file, or it holds no picture.
    """
    name = f"picture {number}"
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in (
            (), (3,), (4,)
        ):  # fmt: skip
            raise InputError(
                f"the array of {name}",
                got=f"{source.dtype} {list(source.shape)}",
                expected="uint8 [row, column, 3]",
            )
        image = Image.fromarray(source)
    elif isinstance(source, Image.Image):
        image = source
    elif isinstance(source, str | Path):
        name = Path(source).name
        if not Path(source).is_file():
            raise InputError(
                "there is no such picture", got=str(source)[:200], expected="the name of a file"
            )
        try:
            image = Image.open(source)
            image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"the picture {source} cannot be read", got=str(error)) from error
    else:
        raise InputError(
            name, got=type(source).__name__, expected="a file, a PIL image or an array of uint8"
        )
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), name


@dataclass(frozen=True)
class Reader:
    """A processor of pictures: resizes, crops and scales them for one model.

    Parameters
    ----------
    processor : transformers image processor
    """

    processor: Any

    def row(self, image: Image.Image) -> Row:
        """Return the model's input arrays; ``pixel_values`` ``[channel, row, column]``."""
        return {name: values[0] for name, values in self._run(image).items()}

    def pixels(self, image: Image.Image) -> Pixels:
        """Return what the model sees, as colours: resized and cropped, but not scaled."""
        steps = ("do_rescale", "do_normalize", "do_flip_channel_order")
        off = {step: False for step in steps if getattr(self.processor, step, False)}
        values = self._run(image, **off)["pixel_values"][0].transpose(1, 2, 0)
        scale = 1.0 if "do_rescale" in off else 255.0
        colours: Pixels = np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)
        return np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else colours

    @cached_property
    def blank(self) -> Tensor:
        """``[channel]``: the mean colour of the pictures that the model was trained on.

        It does not depend on the picture, so that differences to it compare between pictures, and
        a picture's colour is explained too.
        """
        mean = getattr(self.processor, "image_mean", None)
        scaled = getattr(self.processor, "do_normalize", False) and mean is not None
        colour = np.rint(255 * np.array(mean if scaled else [GREY] * 3)).astype(np.uint8)
        values = self._run(Image.fromarray(np.tile(colour, (256, 256, 1))))["pixel_values"][0]
        # the middle: processors may put a border around it
        return torch.from_numpy(values[:, values.shape[1] // 2, values.shape[2] // 2].copy())

    def _run(self, image: Image.Image, **options: Any) -> dict[str, npt.NDArray[Any]]:
        return dict(self.processor(images=image, return_tensors="np", **options))


def parts(processor: Any, task: Task) -> tuple[Any, Reader | None]:
    """Return the tokenizer and the reader of pictures that a task needs, as far as it does.

    Parameters
    ----------
    processor : tokenizer, image processor, or processor of both
    task : Task

    Raises
    ------
    ModelError
        If one is missing.
    """
    seeing = isinstance(processor, BaseImageProcessor)
    both = hasattr(processor, "image_processor")
    kinds = {
        "text": None if seeing else processor.tokenizer if both else processor,
        "picture": processor if seeing else processor.image_processor if both else None,
    }
    for kind in sorted(task.inputs):
        if kinds[kind] is None:
            raise ModelError(
                f"the task {task.name} needs what reads a {kind}",
                got=type(processor).__name__,
                expected="a tokenizer (text), an image processor (picture) or a processor of both",
            )
    tokenizer = kinds["text"] if "text" in task.inputs else None
    return tokenizer, Reader(kinds["picture"]) if "picture" in task.inputs else None


def token_limit(model: Model) -> int | None:
    """Return how many tokens a model can read; see `xattn.model.encoding.token_limit`."""
    if model.reader is None:
        return plain.token_limit(model.network, model.tokenizer)
    # positions of patches must not be taken for those of words
    stated: int = model.network.config.get_text_config().max_position_embeddings
    return min(stated, int(model.tokenizer.model_max_length))


def input_names(model: Runner) -> tuple[str, ...]:
    """Return what tokenizer and processor offer and the network's ``forward`` names, sorted."""
    names = () if model.tokenizer is None else plain.input_names(model.network, model.tokenizer)
    if model.reader is None:
        return names
    offered = set(model.reader.processor.model_input_names)
    seen = offered & set(inspect.signature(model.network.forward).parameters)
    return tuple(sorted({*names, *seen}))


@dataclass(frozen=True)
class Stem:
    """Where pixels become patches, and where ids become embeddings in a model of both."""

    name: str
    module: nn.Conv2d
    table: tuple[str, nn.Embedding] | None
    """Of the text, in models that read text too."""

    @property
    def towers(self) -> tuple[str, str]:
        """What the names of the modules begin with that see the picture, and that read the text."""
        if self.table is None:
            return "", ""
        seen, read = self.name.split("."), self.table[0].split(".")
        shared = next(i for i, (a, b) in enumerate(zip(seen, read, strict=False)) if a != b)
        return ".".join(seen[: shared + 1]) + ".", ".".join(read[: shared + 1]) + "."


def find_stem(model: Model) -> Stem:
    """Return where pictures and texts enter a network.

    Raises
    ------
    ModelError
        If no convolution reads the pixels as they are.
    """
    row = dict(_reader(model).row(_noise(1)[0]))
    if model.tokenizer is not None:
        row = {**_texts(model, ["a b c d"], truncate=False)[0].row, **row}
    inputs = model.collate([row])
    size = inputs["pixel_values"].shape
    found = first_reader(
        model.network, nn.Conv2d, lambda given: given.shape == size, lambda: model.output(inputs)
    )
    if found is None:
        raise ModelError(
            f"{type(model.network).__name__} does not cut pictures into patches by a convolution",
            got=f"none that reads pixels of shape {list(size)}",
        )
    name, module = found
    table = None
    if "input_ids" in inputs:
        ids = inputs["input_ids"]
        asked = first_reader(
            model.network,
            nn.Embedding,
            lambda given: given.shape == ids.shape and torch.equal(given, ids),
            lambda: model.output(inputs),
        )
        if asked is None:
            raise ModelError(f"{type(model.network).__name__} looks its tokens up in no table")
        table = asked
    return Stem(name, module, table)  # type: ignore[arg-type]


def entrances(model: Model) -> list[Entrance]:
    """Return where each stream comes in: texts first, then pictures."""
    assert model.reader is not None
    picture = PictureEntrance(model.stem.module, model.front, model.reader.blank)
    if model.stem.table is None:
        return [picture]
    return [TokenEntrance(model.stem.table[1], "input_ids", model.token_id), picture]


def encode(
    model: Model,
    inputs: Sequence[Any],
    pairs: Sequence[str] | None,
    pictures: Sequence[Source] | None,
    *,
    truncate: bool = False,
) -> list[Encoding]:
    """Encode pictures, or pairs of a text and a picture.

    Parameters
    ----------
    model : Model
    inputs : sequence
        Pictures; or texts, for models of both.
    pairs : None
    pictures : sequence of Source, optional
        The picture of each text. The text is stream 0, the picture stream 1.
    truncate : bool
        Cut texts that are too long.

    Raises
    ------
    InputError
        For a picture that cannot be read, or if a model of both lacks one.
    """
    if pairs is not None:
        raise InputError(f"the task {model.task.name} has no second text", got="pairs")
    for some in (inputs, pictures):
        if isinstance(some, str | Path | Image.Image):
            raise InputError("inputs", got=f"one {type(some).__name__}", expected="a list")
    if model.tokenizer is None:
        if pictures is not None:
            raise InputError(
                f"the task {model.task.name} reads no texts", remedy="pass the pictures alone"
            )
        return _encoded(model, inputs, None, model.front)
    if pictures is None or len(pictures) != len(inputs):
        raise InputError(
            f"the task {model.task.name} takes a picture for each text",
            got=f"{len(inputs)} texts, {0 if pictures is None else len(pictures)} pictures",
            remedy="name them with pictures (--picture)",
        )
    return _encoded(model, pictures, _texts(model, inputs, truncate), model.front)


def _encoded(
    model: Model, pictures: Sequence[Source], texts: Sequence[Encoding] | None, front: int
) -> list[Encoding]:
    seen = [_seen(model, *opened(source, i), front) for i, source in enumerate(pictures)]
    if texts is None:
        return seen
    return [_joined(text, picture) for text, picture in zip(texts, seen, strict=True)]


def probe(model: Model, front: int) -> list[Encoding]:
    """Return two pictures of noise (with texts of different lengths).

    Until the network has told how many tokens stand in `front`, there are none.
    """
    texts = None
    if model.tokenizer is not None:
        texts = _texts(model, ["a b c d e f g h", "a b c"], truncate=False)
    return _encoded(model, _noise(2), texts, front)


def links(model: Model, attached: Attached, widths: Sequence[int]) -> tuple[int, tuple[Link, ...]]:
    """Return how many tokens stand before the patches, and the sites between tokens.

    Parameters
    ----------
    model : Model
    attached : Attached
        What was seen on the probe.
    widths : sequence of int
        Tokens of each stream of the probe, with none before the patches.

    Returns
    -------
    int
        0 if there is no attention between the patches.
    tuple of Link
        Empty if positions mix in other ways too: in windows, between stages, or from one tower to
        the other.
    """
    seeing, reading = model.stem.towers
    *_, patches = widths
    picture, text, elsewhere = [], [], False
    shapes: set[tuple[int, int]] = set()
    for site, (_, queries, keys) in zip(attached.sites, attached.shapes, strict=True):
        if _inside(site, seeing):
            if queries == 1:  # one learned query that pools the patches: a head, not a layer
                continue
            picture.append(site)
            shapes.add((queries, keys))
        elif _inside(site, reading) and (queries, keys) == (widths[0], widths[0]):
            text.append(site)
        else:
            elsewhere = True
    if len(shapes) != 1:
        return 0, ()
    [(queries, keys)] = shapes
    if elsewhere or queries != keys or queries < patches:
        return 0, ()
    names = ("text", "image") if len(widths) > 1 else ("", "self")
    last = len(widths) - 1
    chain = [Link(site, 0, 0, names[0]) for site in text]
    chain += [Link(site, last, last, names[1]) for site in picture]
    return queries - patches, tuple(chain)


def _inside(site: Site, tower: str) -> bool:
    return site.module.startswith(tower)


def _reader(model: Model) -> Reader:
    if model.reader is None:
        raise InputError(f"{model!r} takes no pictures")
    return model.reader


def _noise(count: int) -> list[Any]:
    """Return pictures without any structure, always the same."""
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)
    ]


def _seen(model: Model, image: Image.Image, name: str, front: int) -> Encoding:
    """Return the encoding of one picture."""
    reader = _reader(model)
    row = reader.row(image)
    height, width = row["pixel_values"].shape[-2:]
    rows, columns = grid(model.stem.module, (height, width))
    down, across = model.stem.module.stride
    top, left = (part.ravel() for part in np.indices((rows, columns)))
    boxes = np.stack(
        [left * across, top * down, (left + 1) * across, (top + 1) * down], axis=1
    ).clip(max=[width, height, width, height])
    count = front + rows * columns
    special = np.arange(count) < front
    patch = np.arange(count) - front
    return Encoding(
        text=name,
        pair=None,
        row=row,
        tokens=(
            *(f"[added {i}]" for i in range(front)),
            *(f"{r},{c}" for r, c in zip(top.tolist(), left.tolist(), strict=True)),
        ),
        special=special,
        offsets=np.zeros((count, 2), dtype=np.int64),
        words=np.where(special, -1, patch),
        segments=np.where(special, -1, PICTURE),
        picture=Picture(reader.pixels(image), boxes, name),
    )


def _texts(model: Model, texts: Sequence[str], truncate: bool) -> list[Encoding]:
    """Encode the texts of a model of texts and pictures."""
    tokenizer = model.tokenizer
    encodings = plain.encode(tokenizer, texts, None, limit=model.limit, truncate=truncate)
    if "attention_mask" in tokenizer.model_input_names or model.limit is None:
        return encodings
    # Without a mask padding is read like words, so the length is a part of what was learned:
    # SigLIP saw every text filled up to the full length, and reads its last place.
    return [_filled(e, model.limit, tokenizer) for e in encodings]


def _filled(encoding: Encoding, length: int, tokenizer: Any) -> Encoding:
    """Return a text with padding that the model reads."""
    room = length - len(encoding)
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 1}
    row = {
        name: np.concatenate([values, np.full(room, fill.get(name, 0), dtype=values.dtype)])
        for name, values in encoding.row.items()
    }
    return replace(
        encoding,
        row=row,
        tokens=(*encoding.tokens, *[tokenizer.pad_token] * room),
        special=np.concatenate([encoding.special, np.ones(room, dtype=bool)]),
        offsets=np.concatenate([encoding.offsets, np.zeros((room, 2), dtype=np.int64)]),
        words=np.concatenate([encoding.words, np.full(room, -1)]),
        segments=np.concatenate([encoding.segments, np.full(room, -1)]),
        streams=np.zeros(length, dtype=np.int64),
        units=np.arange(length),
    )


def _joined(text: Encoding, picture: Encoding) -> Encoding:
    """Return one encoding of both: the text is stream 0, the picture stream 1."""
    return Encoding(
        text=text.text,
        pair=None,
        row={**text.row, **picture.row},
        tokens=text.tokens + picture.tokens,
        special=np.concatenate([text.special, picture.special]),
        offsets=np.concatenate([text.offsets, picture.offsets]),
        words=np.concatenate([text.words, picture.words]),
        segments=np.concatenate([text.segments, picture.segments]),
        streams=np.repeat([0, 1], [len(text), len(picture)]),
        picture=picture.picture,
    )
