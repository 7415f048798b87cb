"""Pictures as a vision model sees them: pixels, the patches that are its tokens, and their colours.

Scores are drawn where they belong: each patch of a faded grey copy is stained in the colours of
`xattn.render`, so that what was seen stays visible under what it counted for.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xattn import render

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.floating[Any]]

FADE = 0.32
"""How much of the grey copy's contrast is left under the colours."""
SHOWN = 176
"""Pixels of the longer side of a picture on a page."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture after the model's own resizing and cropping, cut into patches."""

    pixels: Pixels
    """``[row, column, 3]`` uint8, red, green, blue: all that the model sees of it."""
    boxes: npt.NDArray[np.int64]
    """``[patch, 4]``: left, top, right and bottom edge of each patch, in reading order."""
    name: str
    """The file it came from, or its number among the pictures."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"pixels: {self.pixels.dtype} {self.pixels.shape}")
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes: {self.boxes.shape}, not [patch, 4]")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def faded(self) -> Pixels:
        """A light grey copy, ``[row, column, 3]``."""
        grey = self.pixels @ np.array([0.299, 0.587, 0.114])  # the weights of ITU-R BT.601
        light = np.rint(255 - (255 - grey) * FADE).astype(np.uint8)
        return np.repeat(light[:, :, None], 3, axis=2)

    def heat(self, scores: Scores) -> Pixels:
        """Return the faded picture with each patch stained by its score.

        Parameters
        ----------
        scores : array
            ``[patch]``; depth is relative to the largest absolute score.

        Returns
        -------
        array
            ``[row, column, 3]`` uint8.
        """
        largest = float(abs(scores).max(initial=0.0))
        stain = np.full(self.pixels.shape, 255.0)
        for (left, top, right, bottom), score in zip(self.boxes.tolist(), scores, strict=True):
            stain[top:bottom, left:right] = render.rgb(float(score), largest)
        return np.rint(self.faded * (stain / 255)).astype(np.uint8)

    def img(self) -> str:
        """Return the picture as an HTML element that holds its own data."""
        width, height = self._shown
        return (
            f'<img src="{_data(self.pixels)}" alt="{escape(self.name)}" width="{width:.0f}" '
            f'height="{height:.0f}" style="image-rendering:{self._rendering}">'
        )

    def svg(self, scores: Scores) -> str:
        """Return the heat map as an HTML element; pointing at a patch shows its score."""
        width, height = self.size
        largest = float(abs(scores).max(initial=0.0))
        # a sheet of colours over the picture, instead of painted pixels: patches stay sharp at any
        # size, and each can say what its score is
        rects = []
        for i, (left, top, right, bottom) in enumerate(self.boxes.tolist()):
            score = float(scores[i])
            red, green, blue = render.rgb(score, largest)
            rects.append(
                f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" '
                f'fill="#{red:02x}{green:02x}{blue:02x}"><title>{score:+.4g}</title></rect>'
            )
        across, down = self._shown
        return (
            f'<svg viewBox="0 0 {width} {height}" width="{across:.0f}" height="{down:.0f}" '
            f'role="img" aria-label="{escape(self.name)}" style="isolation:isolate">'
            f'<image href="{_data(self.faded)}" width="{width}" height="{height}" '
            f'style="image-rendering:{self._rendering}"/>'
            f'<g style="mix-blend-mode:multiply" shape-rendering="crispEdges">{"".join(rects)}'
            "</g></svg>"
        )

    @property
    def _shown(self) -> tuple[float, float]:
        scale = SHOWN / max(self.size)
        return self.size[0] * scale, self.size[1] * scale

    @property
    def _rendering(self) -> str:
        return "pixelated" if max(self.size) < SHOWN else "auto"


def to_png(pixels: Pixels) -> bytes:
    """Return pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def from_png(content: bytes) -> Pixels:
    """Return the pixels of a PNG file in red, green and blue."""
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def _data(pixels: Pixels) -> str:
    """Return pixels as a data URI."""
    return "data:image/png;base64," + base64.b64encode(to_png(pixels)).decode()
