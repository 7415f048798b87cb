"""`Store`: a run on disk, one folder for each finished unit of work.

A unit is written under a temporary name and renamed, so that whatever stops a run leaves finished
units and nothing else. Units are called by what they hold: the texts, and which methods, operators
and metrics; a run that goes on asks for what is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import xattn
from xattn import files
from xattn.errors import InputError
from xattn.evaluation.block import Block, Findings, Known, Worth
from xattn.evaluation.design import Design
from xattn.picture import Picture, from_png, to_png
from xattn.types import Attribution

RECORD, STUDY, SHARDS, CONTENT = "run.json", "study.yaml", "shards", "unit.json"
TABLES: Mapping[str, Mapping[str, pa.DataType]] = {
    "examples": {"text": pa.int64(), "aim": pa.int64(), "target": pa.string(),
                 "prediction": pa.string(), "probability": pa.float64()},
    "scores": {"text": pa.int64(), "aim": pa.int64(), "method": pa.string(),
               "operator": pa.string(), "metric": pa.string(), "value": pa.float64()},
    "curves": {"text": pa.int64(), "aim": pa.int64(), "method": pa.string(),
               "operator": pa.string(), "order": pa.string(), "fraction": pa.float64(),
               "score": pa.float64()},
    "failures": {"text": pa.int64(), "method": pa.string(), "error": pa.string()},
    "worths": {"text": pa.int64(), "aim": pa.int64(), "operator": pa.string(),
               "quantity": pa.string(), "coalitions": pa.binary(), "values": pa.binary()},
}  # fmt: skip
Cell = tuple[str, str, str]
"""method, operator, metric"""


@dataclass(frozen=True)
class Unit:
    """What one folder holds."""

    first: int
    count: int
    methods: tuple[str, ...]
    operators: tuple[str, ...]
    metrics: tuple[str, ...]

    def cells(self) -> set[Cell]:
        """Return everything that was measured of each text."""
        return {(m, o, x) for m in self.methods for o in self.operators for x in self.metrics}

    @property
    def name(self) -> str:
        """The folder's name: the first text and a digest of the content."""
        content = json.dumps([self.count, self.methods, self.operators, self.metrics])
        return f"{self.first:08d}-{hashlib.blake2b(content.encode(), digest_size=8).hexdigest()}"


class Store:
    """A run's folder.

    Parameters
    ----------
    directory : Path
    identity : mapping
        What all units have in common, as plain values: model, data, parameters, code.
    resume : bool
        Go on with a run that is there, instead of starting anew.
    texts : mapping of str to str
        Further files by name, which are written when a run is begun.

    Raises
    ------
    InputError
        If the folder cannot be written, or the run in it is another one: the first difference is
        named.
    """

    def __init__(
        self,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        resume: bool,
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.shards = directory / SHARDS
        record = directory / RECORD
        if resume and record.exists():
            _same(directory, _read(record), json.loads(_plain(identity)))
        else:
            shutil.rmtree(self.shards, ignore_errors=True)
            for name, text in {**texts, RECORD: _plain(identity)}.items():
                files.write_text(directory / name, text)
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.unwritable(directory, error) from None
        for left in self.shards.glob(".*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)

    def units(self, block: Block | None = None) -> Iterator[tuple[Unit, Path]]:
        """Yield what is there, of one block or of all, in the order of the texts."""
        pattern = "[0-9]*" if block is None else f"{block.first:08d}-*"
        for path in sorted(self.shards.glob(pattern)):
            content = _read(path / CONTENT)
            lists = {k: tuple(content[k]) for k in ("methods", "operators", "metrics")}
            unit = Unit(content["first"], content["count"], **lists)
            if block is None or unit.count == len(block):
                yield unit, path

    def missing(self, block: Block, design: Design) -> list[Design]:
        """Return what is still to be measured of a block: methods that lack the same go together.

        Parameters
        ----------
        block : Block
        design : Design
            What shall be there in the end.
        """
        there: set[Cell] = set()
        for unit, _ in self.units(block):
            there |= unit.cells()
        parts: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
        for method in design.methods:
            for operator in design.operators:
                lacking = tuple(x for x in design.metrics if (method, operator, x) not in there)
                if lacking:
                    parts.setdefault(((operator,), lacking), []).append(method)
        # operators for which the same is lacking go together
        merged: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
        for (operators, lacking), methods in parts.items():
            merged.setdefault((tuple(methods), lacking), []).extend(operators)
        return [
            replace(design, methods=methods, operators=tuple(operators), metrics=lacking)
            for (methods, lacking), operators in merged.items()
        ]

    def known(self, block: Block) -> Known:
        """Return the explanations and the worths of a block that are there."""
        attributions, tables = {}, defaultdict[Worth, dict[bytes, float]](dict)
        for _, path in self.units(block):
            for text, aim, item in _attributions(path):
                attributions[text, aim, item.method] = item
            for *key, coalitions, values in _rows(path, "worths"):
                worths = np.frombuffer(values).tolist()
                width = len(coalitions) // len(worths)
                names = [coalitions[i * width : (i + 1) * width] for i in range(len(worths))]
                tables[tuple(key)].update(zip(names, worths, strict=True))
        return Known(attributions, dict(tables))

    def write(self, block: Block, design: Design, found: Findings) -> None:
        """Keep what was found out about a block, whole or not at all."""
        unit = Unit(block.first, len(block), design.methods, design.operators, design.metrics)
        temporary = Path(tempfile.mkdtemp(dir=self.shards, prefix="."))
        try:
            for name, schema in TABLES.items():
                columns = list(zip(*getattr(found, name), strict=True)) or [()] * len(schema)
                arrays = [
                    pa.array(column, type=kind)
                    for column, kind in zip(columns, schema.values(), strict=True)
                ]
                pq.write_table(pa.table(arrays, names=list(schema)), temporary / f"{name}.parquet")
            rows = [packed(item) | {"at": [i, j]} for i, j, item in found.attributions]
            pq.write_table(pa.Table.from_pylist(rows), temporary / "attributions.parquet")
            content = {
                **unit.__dict__,
                "asked": found.asked,
                "run": found.run,
                "seconds": dict(found.seconds),
            }
            (temporary / CONTENT).write_text(_plain(content), encoding="utf-8")
            temporary.chmod(0o755)
            os.replace(temporary, self.shards / unit.name)
        except OSError as error:
            raise files.unwritable(self.shards, error) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def findings(self) -> Findings:
        """Return everything that is there."""
        found = Findings()
        for _, path in self.units():
            found.add(_findings(path))
        return found


def _findings(path: Path) -> Findings:
    found, content = Findings(), _read(path / CONTENT)
    for name in TABLES.keys() - {"worths"}:
        getattr(found, name).extend(_rows(path, name))
    found.attributions.extend(_attributions(path))
    found.asked, found.run, found.seconds = content["asked"], content["run"], content["seconds"]
    return found


def _rows(path: Path, name: str) -> Iterator[Any]:
    """Yield the rows of a unit's table as tuples."""
    table = pq.read_table(path / f"{name}.parquet")
    yield from zip(*(column.to_pylist() for column in table.columns), strict=True)


def _attributions(path: Path) -> Iterator[tuple[int, int, Attribution]]:
    for row in pq.read_table(path / "attributions.parquet").to_pylist():
        text, aim = row.pop("at")
        yield text, aim, unpacked(row)


def packed(attribution: Attribution) -> dict[str, Any]:
    """Return an explanation as a row of a table."""
    # parameters differ from method to method, which a table's columns cannot
    values = attribution.to_dict()
    if attribution.picture is not None:
        values["picture"]["png"] = to_png(attribution.picture.pixels)
    return {**values, "parameters": json.dumps(values["parameters"], default=str)}


def unpacked(row: dict[str, Any]) -> Attribution:
    """Return the explanation that a row holds."""
    arrays = {name: np.array(row.pop(name), dtype=np.int64) for name in ("segments", "words")}
    seen = row.pop("picture", None)
    if seen is not None:
        boxes = np.array(seen["boxes"], dtype=np.int64)
        row["picture"] = Picture(from_png(seen["png"]), boxes, seen["name"])
    return Attribution(
        **{
            **row,
            "tokens": tuple(row["tokens"]),
            "offsets": np.array(row["offsets"], dtype=np.int64).reshape(-1, 2),
            "segments": arrays["segments"],
            "word_ids": arrays["words"],
            "scores": np.array(row["scores"], dtype=np.float32),
            "parameters": json.loads(row["parameters"]),
        }
    )


@cache
def code() -> str:
    """Return a digest of the source of xattn, its methods and metrics among it."""
    digest = hashlib.sha256()
    [root] = xattn.__path__
    for folder, _, names in sorted(os.walk(root, followlinks=True)):
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder) / name
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _plain(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, default=str)


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read", got=str(error)) from error
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _same(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a run that was made under other circumstances."""
    old, new = dict(_flat(before)), dict(_flat(now))
    differing: Sequence[str] = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    if differing:
        name = differing[0]
        others = f" (and in {', '.join(differing[1:])})" if differing[1:] else ""
        raise InputError(
            f"the run in {directory} is another one: it differs in {name}{others}",
            got=str(new.get(name)),
            expected=str(old.get(name)),
            remedy="go on as it was begun, or start anew in another folder (--out)",
        )
