"""`Finding`: what an analysis found, in the form in which reports, notebooks and files show it.

An analysis says one thing (`Finding.says`), shows the numbers behind it (tables, heat maps, lines,
dots with intervals, passages with citations), and warns of what limits it. Numbers stay numbers: a
finding is written as JSON and drawn from it again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from xattn import charts, render

Cell = str | int | float | None
Value = float | None


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers; None stands for what is not known."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells for {len(self.columns)} columns: {row}")

    def markup(self) -> str:
        """Return the table as HTML."""
        if not self.rows:
            return charts.NOTHING
        kinds = [
            ' class="words"' if any(isinstance(cell, str) for cell in column) else ""
            for column in zip(*self.rows, strict=True)
        ]
        named = zip(self.columns, kinds, strict=True)
        head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in named)
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{kind}>{escape(shown(cell))}</td>"
                for cell, kind in zip(row, kinds, strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'<div class="scroll">{table}</div>'


@dataclass(frozen=True)
class Heatmap:
    """Values of rows by columns, drawn as colours: signed around 0 if any is negative."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[Value, ...], ...]
    """``[row, column]``; None is left blank."""
    unit: str = ""
    row_label: str = ""
    column_label: str = ""
    low: Value = None
    high: Value = None
    """The ends of the colours; those of the values by default."""
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows):
            raise ValueError(f"{len(self.values)} rows of values for {len(self.rows)} names")
        if any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(f"each row needs {len(self.columns)} values")

    def markup(self) -> str:
        """Return the map as SVG."""
        return charts.heatmap(self)


@dataclass(frozen=True)
class Line:
    """One line over the x of its `Lines`; `low` and `high` are a band around it, if given."""

    name: str
    y: tuple[Value, ...]
    low: tuple[Value, ...] = ()
    high: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Lines:
    """Several lines over one axis."""

    title: str
    x: tuple[float, ...]
    lines: tuple[Line, ...]
    x_label: str = ""
    y_label: str = ""
    level: Value = None
    """Where a dashed line stands, for example chance."""
    note: str = ""

    def __post_init__(self) -> None:
        for line in self.lines:
            if any(len(part) not in (0, len(self.x)) for part in (line.y, line.low, line.high)):
                raise ValueError(f"{line.name}: a value for each of {len(self.x)} places of x")

    def markup(self) -> str:
        """Return the lines as SVG."""
        return charts.lines(self)


@dataclass(frozen=True)
class Dot:
    """A value with its interval, and the name it stands under."""

    name: str
    value: Value
    low: Value = None
    high: Value = None
    group: str = ""
    """Dots of one group have one colour."""


@dataclass(frozen=True)
class Dots:
    """Values with intervals, one under another."""

    title: str
    dots: tuple[Dot, ...]
    x_label: str = ""
    level: Value = None
    """Where a dashed line stands, for example no effect."""
    note: str = ""

    def markup(self) -> str:
        """Return the dots as SVG."""
        return charts.dots(self)


@dataclass(frozen=True)
class Quote:
    """A piece of a passage; what it rests on, by the numbers of sources."""

    text: str
    sources: tuple[int, ...] = ()
    strength: Value = None
    """0..1: how strongly it is coloured."""
    flagged: bool = False
    """Whether it is marked as doubtful."""


@dataclass(frozen=True)
class Passage:
    """A text in pieces, with links to the sources that each piece rests on."""

    title: str
    sources: tuple[str, ...]
    pieces: tuple[Quote, ...]
    note: str = ""

    def __post_init__(self) -> None:
        numbers = {number for piece in self.pieces for number in piece.sources}
        if not numbers <= set(range(len(self.sources))):
            raise ValueError(f"sources {sorted(numbers)} of {len(self.sources)}")

    def markup(self) -> str:
        """Return the pieces, each with links to the sources under them."""
        if not self.pieces:
            return charts.NOTHING
        key = charts.key(self)
        pieces = []
        for piece in self.pieces:
            links = "".join(f'<sup><a href="#{key}-{n}">{n + 1}</a></sup>' for n in piece.sources)
            tint = f"--s:{min(1.0, max(0.0, piece.strength or 0.0)):.3f}"
            kind = "piece flagged" if piece.flagged else "piece"
            pieces.append(f'<span class="{kind}" style="{tint}">{escape(piece.text)}{links}</span>')
        sources = "".join(
            f'<li id="{key}-{n}">{escape(source)}</li>' for n, source in enumerate(self.sources)
        )
        return f'<p class="passage">{"".join(pieces)}</p><ol class="sources">{sources}</ol>'


Part = Table | Heatmap | Lines | Dots | Passage
KINDS: Mapping[str, type[Any]] = {
    "table": Table, "heatmap": Heatmap, "lines": Lines, "dots": Dots, "passage": Passage,
}  # fmt: skip
_WITHIN: Mapping[str, type[Any]] = {"lines": Line, "dots": Dot, "pieces": Quote}


@dataclass(frozen=True)
class Finding:
    """What an analysis found.

    Examples
    --------
    >>> finding = Finding("patterns", "What heads do", "Two of 8 heads look back.")
    >>> Finding.from_dict(finding.to_dict()) == finding
    True
    """

    name: str
    """What its file is called, for example ``patterns``."""
    title: str
    says: str
    """The finding in one or two sentences, with its numbers."""
    parts: tuple[Part, ...] = ()
    cautions: tuple[str, ...] = ()
    """What limits it, each with what to do about it."""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; see `from_dict`."""
        kinds = {kind: name for name, kind in KINDS.items()}
        parts = [{"kind": kinds[type(part)], **_plain(asdict(part))} for part in self.parts]
        whole = {"name": self.name, "title": self.title, "says": self.says}
        return {**whole, "parts": parts, "cautions": list(self.cautions)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Finding:
        """Return the finding that `to_dict` gave."""
        parts = []
        for part in given["parts"]:
            fields = {name: _frozen(name, value) for name, value in part.items() if name != "kind"}
            parts.append(KINDS[part["kind"]](**fields))
        said = tuple(given["cautions"])
        return cls(given["name"], given["title"], given["says"], tuple(parts), said)

    def markup(self) -> str:
        """Return the finding as HTML, without a frame; texts are escaped."""
        warned = "".join(f"<li>{escape(caution)}</li>" for caution in self.cautions)
        return "".join(
            [
                f"<p>{escape(self.says)}</p>",
                f'<ul class="limits">{warned}</ul>' if warned else "",
                *(
                    f"<figure><figcaption><b>{escape(part.title)}</b>"
                    f"{'. ' + escape(part.note) if part.note else ''}</figcaption>"
                    f"{part.markup()}</figure>"
                    for part in self.parts
                ),
            ]
        )

    def _repr_html_(self) -> str:
        hues = {"for": render.FOR, "against": render.AGAINST}
        colours = ";".join(f"--{name}:rgb{hue}" for name, hue in hues.items())
        return (
            f'<div style="{colours}"><style>{charts.CSS}</style>'
            f"<h3>{escape(self.title)}</h3>{self.markup()}</div>"
        )


def shown(cell: Cell) -> str:
    """Return a cell as people read it: three figures, a true minus, a dash for nothing.

    Examples
    --------
    >>> shown(-0.12345), shown(12), shown(None), shown(float("nan")), shown(2.0)
    ('−0.123', '12', '—', '—', '2.000')
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "—"
    if isinstance(cell, float):
        if 0 < abs(cell) < 0.0005:
            return f"{cell:.1g}".replace("-", "−")
        return (f"{cell:z.3f}" if abs(cell) < 1e5 else f"{cell:.4g}").replace("-", "−")
    return str(cell)


def _plain(value: Any) -> Any:
    """Return a value in which JSON finds nothing that it does not know: NaN becomes None."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _frozen(name: str, value: Any) -> Any:
    """Return lists as tuples, and what stands within a part as what it was."""
    if isinstance(value, Mapping):
        return _WITHIN[name](**{key: _frozen(key, item) for key, item in value.items()})
    return tuple(_frozen(name, item) for item in value) if isinstance(value, list) else value
