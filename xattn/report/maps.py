"""Attention maps as heatmaps: a picture, or a page on which each cell can be read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from xattn import files
from xattn.report.assets import asset, environment
from xattn.types import AttentionMaps

INK, SOFT, MARK = "#1d1c1a", "#66635d", "#c8500a"
COLOURS = LinearSegmentedColormap.from_list("attention", ["#fbfaf7", "#5b96c8", "#123f73"])
READ = 0.05
"""Share of the readout from which on a row is marked."""
SCALE = 10_000
"""The page keeps attention as whole numbers of this fraction."""


def readers(readout: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return ``[token]``: whether the prediction is read from there in no small part."""
    return readout >= READ


def picked(
    maps: AttentionMaps,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    average: bool,
) -> tuple[npt.NDArray[np.float32], list[str], list[str]]:
    """Return ``[layer, head, query, key]`` to be drawn, with the names of its layers and heads.

    Parameters
    ----------
    layers, heads : sequence of int, optional
        Which ones, counted from 0; all by default.
    average : bool
        Whether the heads are averaged into one.
    """
    rows = list(range(len(maps.maps))) if layers is None else list(layers)
    columns = list(range(maps.maps.shape[1])) if heads is None else list(heads)
    values = maps.maps[rows][:, columns]
    names = [f"layer {layer}" for layer in rows]
    if average:
        return values.mean(1, keepdims=True), names, ["mean of heads"]
    return values, names, [f"head {head}" for head in columns]


def render_maps_png(
    maps: AttentionMaps,
    path: Path,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    average: bool = False,
) -> None:
    """Write heatmaps, layers by heads, as a picture, whole or not at all.

    Rows are the tokens that look (queries), columns the tokens looked at (keys); rows that the
    prediction is read from are marked. Head means of several layers stand side by side.

    Parameters
    ----------
    layers, heads, average
        See `picked`.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    values, names, columns = picked(maps, layers, heads, average)
    titles = [[" · ".join((name, column)) for column in columns] for name in names]
    # one map a layer: a square grid instead of a tower
    across = min(4, math.ceil(math.sqrt(len(names)))) if len(columns) == 1 else len(columns)
    flat = values.reshape(-1, *values.shape[2:])
    figure = _figure(maps, flat, [title for row in titles for title in row], across)
    with files.whole(path) as temporary:
        figure.savefig(temporary, format="png")


def _figure(
    maps: AttentionMaps, flat: npt.NDArray[np.float32], titles: list[str], across: int
) -> Figure:
    """Draw maps ``[map, query, key]`` in a grid that is `across` maps wide."""
    count = max(len(maps.tokens), len(maps.keys))
    down = -(-len(flat) // across)
    single = len(flat) == 1
    # inches a map: enough for its labels where they are few, smaller in big grids
    side = (
        float(np.clip(0.19 * count, 3.2, 9.0)) if single else float(np.clip(7 / across, 1.5, 3.4))
    )
    labels = 0.14 + 0.075 * min(18, max(map(len, (*maps.tokens, *maps.keys))))
    tall = side * len(maps.tokens) / count
    width, height = across * side + labels + 1.1, down * (tall + 0.24) + labels + 0.5
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        down, across, left=labels / width, right=1 - 0.95 / width, top=1 - 0.4 / height,
        bottom=(labels + 0.15) / height, wspace=0.06, hspace=0.24 / tall + 0.02,
    )  # fmt: skip
    top = float(flat.max(initial=0.0)) or 1.0
    image: Any = None
    for number, (values, title) in enumerate(zip(flat, titles, strict=True)):
        row, column = divmod(number, across)
        axes = figure.add_subplot(grid[row, column])
        image = axes.imshow(values, cmap=COLOURS, vmin=0, vmax=top, interpolation="nearest")
        axes.set_title(title, fontsize=9 if side > 2 else 7, color=INK, pad=4)
        last = number + across >= len(flat)
        _name_tokens(axes, maps, side, left=column == 0, below=last)
    bar_height = min(tall, 2.4)
    box = (1 - 0.78 / width, 1 - (0.4 + bar_height) / height, 0.12 / width, bar_height / height)
    bar = figure.colorbar(image, cax=figure.add_axes(box))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5, colors=SOFT, length=2)
    bar.set_label("attention", fontsize=8, color=SOFT)
    note = "rows look, columns are looked at; orange: where the prediction is read from"
    figure.text(0.12 / width, 0.12 / height, note, fontsize=7.5, color=SOFT)
    return figure


def _name_tokens(axes: Axes, maps: AttentionMaps, side: float, *, left: bool, below: bool) -> None:
    """Write tokens at the outer axes, and mark the rows that the prediction is read from."""
    count = max(len(maps.tokens), len(maps.keys))
    size = float(np.clip(side * 72 / count * 0.8, 3.6, 9))
    every = max(1, round(count * 4.6 / (side * 72)))
    queries, keys = range(0, len(maps.tokens), every), range(0, len(maps.keys), every)
    under = [_short(maps.keys[i]) for i in keys] if below else []
    beside = [_short(maps.tokens[i]) for i in queries] if left else []
    axes.set_xticks(list(keys), under, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(list(queries), beside, fontsize=size, parse_math=False)
    axes.tick_params(length=0, pad=2, colors=INK)
    for spine in axes.spines.values():
        spine.set(color="#d8d4cc", linewidth=0.6)
    axes.autoscale(False)  # the marks stand outside the map
    for query in np.flatnonzero(readers(maps.readout)):
        axes.plot(
            [len(maps.keys) * 1.012 - 0.5] * 2, [query - 0.45, query + 0.45],
            color=MARK, linewidth=2.2, solid_capstyle="butt", clip_on=False,
        )  # fmt: skip


def _short(token: str) -> str:
    """Return a token of at most 18 characters on one line."""
    line = " ".join(token.split())
    return (line if len(line) <= 18 else line[:17] + "…") or "·"


def render_maps_html(
    maps: AttentionMaps,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    average: bool = False,
) -> str:
    """Return a self-contained page of small heatmaps; a click enlarges one.

    Pointing at a cell shows query, key and attention. Rows that the prediction is read from are
    marked.

    Parameters
    ----------
    layers, heads, average
        See `picked`.
    """
    values, names, columns = picked(maps, layers, heads, average)
    whole = np.rint(values * SCALE).astype(int)
    data = {
        "tokens": [" ".join(token.split()) for token in maps.tokens],
        "keys": [" ".join(token.split()) for token in maps.keys],
        "readout": [round(float(share), 4) for share in maps.readout],
        "scale": SCALE,
        "largest": int(whole.max(initial=1)),
        "maps": [
            {"layer": name, "head": column, "rows": whole[i, j].tolist()}
            for i, name in enumerate(names)
            for j, column in enumerate(columns)
        ],
    }
    text = json.dumps(data, separators=(",", ":"))
    for sign in "<>&":  # a token "</script>" must not end the element that holds the data
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return (
        environment()
        .get_template("maps.html.j2")
        .render(
            count=len(maps.tokens)
            if maps.keys == maps.tokens
            else f"{len(maps.tokens)} × {len(maps.keys)}",
            layers=len(names),
            heads=len(columns),
            columns=columns,
            readers=[maps.tokens[i] for i in np.flatnonzero(readers(maps.readout))],
            data=Markup(text),
            css=asset("maps.css"),
            script=asset("maps.js"),
        )
    )
