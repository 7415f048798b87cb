"""`Comparison`: what `compare` found out, how to sum it up, and how to keep it."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from xattn.data import Dataset
from xattn.errors import InputError, UnknownNameError
from xattn.evaluation import significance
from xattn.evaluation.agreement import agreement
from xattn.evaluation.block import Findings
from xattn.evaluation.design import ORACLE, RANDOM, Design
from xattn.evaluation.metric import MetricDeclaration, metrics
from xattn.evaluation.statistics import Interval, interval, paired_difference
from xattn.evaluation.store import packed, unpacked
from xattn.files import whole
from xattn.types import Attribution, Floats

CELL = ["method", "operator", "metric"]
FRAMES = ("scores", "curves", "cost", "examples", "failures")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods by texts: scores, curves, costs and explanations, with what led to them."""

    scores: pd.DataFrame
    """One row for each example, method, operator, metric: value. The yardsticks ``random`` and
    ``oracle`` are among the methods."""
    curves: pd.DataFrame
    """One row for each example, method, operator, order (``morf`` or ``lerf``) and fraction on an
    even grid 0, 0.1 ... 1: score, the probability of the explained class by interpolation."""
    cost: pd.DataFrame
    """One row for each example and method, without the oracle: seconds, forward_passes,
    backward_passes, memory (peak of its batch in bytes; nan where it is not known) and gap
    (completeness; nan for methods that promise none)."""
    attributions: list[Attribution]
    """Text by text, for each text in the order of the methods; named as in `scores`."""
    examples: pd.DataFrame
    """One row for each example: id, text, pair, label, target, prediction, probability, kind."""
    failures: pd.DataFrame
    """One row for each text that failed, under one method or altogether: id, text, method,
    error."""
    provenance: dict[str, Any]
    """What was run on what, with which parameters and versions; plain values."""

    def __repr__(self) -> str:
        names = ", ".join(self.scores["method"].unique())
        return f"Comparison({len(self.examples)} texts: {names})"

    @property
    def seed(self) -> int:
        """The seed of the run; the bootstrap uses it too."""
        return int(self.provenance["seed"])

    @property
    def unit(self) -> str:
        """What was removed at a time: token, word or sentence."""
        return str(self.provenance.get("design", {}).get("unit", "token"))

    @cached_property
    def _tables(self) -> dict[tuple[str, str], pd.DataFrame]:
        """By operator and metric, values ``[example, method]``; nan where not defined."""
        return {
            (str(operator), str(metric)): group.pivot(
                index="example", columns="method", values="value"
            )[list(dict.fromkeys(group["method"]))]
            for (operator, metric), group in self.scores.groupby(["operator", "metric"], sort=False)
        }

    def table(self, operator: str, metric: str) -> pd.DataFrame:
        """Return the values of one operator and metric, ``[example, method]``.

        Raises
        ------
        UnknownNameError
            For an operator or metric that was not measured.
        """
        for place, (kind, name) in enumerate((("operator", operator), ("metric", metric))):
            known = dict.fromkeys(key[place] for key in self._tables)
            if name not in known:
                raise UnknownNameError(kind, name, known)
        return self._tables[operator, metric]

    def _cells(self) -> Iterator[tuple[tuple[str, str, str], Floats]]:
        """Yield (method, operator, metric) and values ``[example]``, nan where not defined."""
        for (operator, metric), table in self._tables.items():
            for method in table.columns:
                yield (str(method), operator, metric), table[method].to_numpy(dtype=np.float64)

    @cached_property
    def _intervals(self) -> dict[tuple[str, str, str], Interval]:
        return {
            key: interval(values[~np.isnan(values)], self.seed) for key, values in self._cells()
        }

    def intervals(self, operator: str, metric: str) -> dict[str, Interval]:
        """Return the mean of each method with its interval, the best first, those without last.

        Raises
        ------
        UnknownNameError
            For an operator or metric that was not measured.
        """
        found = {str(m): self._intervals[str(m), operator, metric]
                 for m in self.table(operator, metric).columns}  # fmt: skip
        sign = 1 if declared(metric).higher_is_better is False else -1
        order = sorted(found, key=lambda m: (np.isnan(found[m].mean), sign * found[m].mean))
        return {method: found[method] for method in order}

    @cached_property
    def _summary(self) -> pd.DataFrame:
        rows = [(*key, *found) for key, found in self._intervals.items()]
        return pd.DataFrame(rows, columns=[*CELL, *Interval._fields])

    def summary(self) -> pd.DataFrame:
        """Return method, operator, metric, mean, low, high (95 % bootstrap over texts) and n."""
        return self._summary.copy()

    @cached_property
    def _versus_random(self) -> pd.DataFrame:
        cells = dict(self._cells())
        rows = []
        for (method, operator, metric), values in cells.items():
            if method == RANDOM:
                continue
            pairs = np.stack([values, cells[RANDOM, operator, metric]])
            known = pairs[:, ~np.isnan(pairs).any(axis=0)]
            difference = paired_difference(known[0], known[1], self.seed)
            higher = declared(metric).higher_is_better
            beats = difference.low > 0 if higher else difference.high < 0
            beats = beats and higher is not None
            rows.append((method, operator, metric, *difference, bool(beats)))
        return pd.DataFrame(rows, columns=[*CELL, *Interval._fields, "beats_random"])

    def versus_random(self) -> pd.DataFrame:
        """Return how each method differs from random on the same texts.

        Columns: method, operator, metric; mean, low, high of the paired difference, method minus
        random, with its 95 % interval; n; and beats_random: whether the whole interval lies on the
        good side of 0, which for `sufficiency` and `aopc_lerf` is below.
        """
        return self._versus_random.copy()

    def leaderboard(self, operator: str, metric: str) -> pd.DataFrame:
        """Return the summary of one operator and metric, the best method first.

        Raises
        ------
        UnknownNameError
            For an operator or metric that was not measured.
        """
        found = self.intervals(operator, metric)
        rows = [(method, operator, metric, *one) for method, one in found.items()]
        return pd.DataFrame(rows, columns=[*CELL, *Interval._fields])

    def pairs(self, operator: str, metric: str) -> list[significance.Pair]:
        """Return a test of every pair of methods that have values; the better ones come first.

        Raises
        ------
        UnknownNameError
            For an operator or metric that was not measured.
        """
        if (operator, metric) not in self._pairs:
            table = self.table(operator, metric)[self._known(operator, metric)]
            self._pairs[operator, metric] = significance.pairwise(table)
        return self._pairs[operator, metric]

    @cached_property
    def _pairs(self) -> dict[tuple[str, str], list[significance.Pair]]:
        return {}

    def pairwise(self, operator: str, metric: str) -> pd.DataFrame:
        """Return `pairs` as a table; see `xattn.evaluation.significance.Pair` for its columns.

        The last one, `needed`, says how many texts it takes to find a difference of that size.
        """
        pairs = self.pairs(operator, metric)
        table = pd.DataFrame(pairs, columns=significance.Pair._fields)
        return table.assign(needed=[pair.needed for pair in pairs])

    def letters(self, operator: str, metric: str) -> dict[str, str]:
        """Return letters by method: those that share one cannot be told apart (5 %, Holm)."""
        return significance.letters(self._known(operator, metric), self.pairs(operator, metric))

    def _known(self, operator: str, metric: str) -> list[str]:
        """Return the methods that have a value, the best first."""
        return [m for m, one in self.intervals(operator, metric).items() if one.n]

    def ranks(self, operator: str, metric: str) -> significance.Ranks:
        """Return average ranks, Friedman's test and the critical difference.

        Methods without a single value (the oracle, of metrics of scores) are left out.
        """
        higher = declared(metric).higher_is_better
        table = self.table(operator, metric).dropna(axis=1, how="all")
        return significance.ranks(table, higher is not False)

    def concordance(self, metric: str) -> float:
        """Return Kendall's W of the operators' rankings of the methods; nan with one operator.

        1 says that it does not matter for the ranking how units are removed.
        """
        means = {
            operator: table.drop(columns=ORACLE, errors="ignore").mean()
            for (operator, name), table in self._tables.items()
            if name == metric
        }
        return significance.concordance(pd.DataFrame(means))

    def agreement(self, k: int = 3) -> pd.DataFrame:
        """Return how alike the explanations of each pair of methods are; see `agreement`."""
        return agreement(self.explained(), k, self.seed)

    def explained(self) -> list[dict[str, Attribution]]:
        """Return for each example its explanations by method.

        A method that failed on a text is missing there.
        """
        found: list[dict[str, Attribution]] = [{} for _ in range(len(self.examples))]
        for example, item in zip(self.cost["example"], self.attributions, strict=True):
            found[int(example)][item.method] = item
        return found

    # ------------------------------------------------------------------ files

    def save(self, directory: str | Path, extra: Mapping[str, str] | None = None) -> None:
        """Write everything into a folder, which is created: all files or none.

        ``scores``, ``curves``, ``cost``, ``examples`` and ``attributions`` are Parquet tables;
        ``summary.json`` holds `summary`, `versus_random` and `provenance`. Files of an earlier
        comparison are replaced.

        Parameters
        ----------
        directory : str or Path
        extra : mapping of str to str, optional
            Further files by name, with their text: a report, for example.

        Raises
        ------
        InputError
            If the folder cannot be written.
        """
        directory = Path(directory)
        summary = {
            "summary": _records(self._summary),
            "versus_random": _records(self._versus_random),
            "provenance": self.provenance,
        }
        text = json.dumps(summary, indent=2, default=str, allow_nan=False)
        table = pa.Table.from_pylist([packed(a) for a in self.attributions])
        # The stack unwinds from behind, so summary.json gets its name last.
        writers: dict[str, Callable[[Path], object]] = {
            "summary.json": partial(_write, text),
            "attributions.parquet": lambda path: pq.write_table(table, path),
            **{f"{name}.parquet": getattr(self, name).to_parquet for name in FRAMES},
            **{name: partial(_write, more) for name, more in (extra or {}).items()},
        }
        with ExitStack() as stack:  # names appear only when every file is complete
            for name, write in writers.items():
                write(stack.enter_context(whole(directory / name)))


def declared(metric: str) -> MetricDeclaration:
    """Return what a metric declares, given its name in results."""
    return metrics.get(metric.partition(":")[0]).declaration


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def load(directory: str | Path) -> Comparison:
    """Read a comparison that was saved.

    Raises
    ------
    InputError
        If the folder does not hold one, or a file is damaged.
    """
    directory = Path(directory)
    try:
        frames = {name: pd.read_parquet(directory / f"{name}.parquet") for name in FRAMES}
        rows = pq.read_table(directory / "attributions.parquet").to_pylist()
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        return Comparison(
            **frames,
            attributions=[unpacked(row) for row in rows],
            provenance=summary["provenance"],
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(
            f"{directory} does not hold a comparison that can be read",
            got=f"{type(error).__name__}: {error}",
            expected="what Comparison.save or xattn compare --out wrote",
        ) from error


def _records(frame: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return rows as plain values; JSON knows no nan, so it becomes None."""
    return [
        {key: None if isinstance(v, float) and np.isnan(v) else v for key, v in row.items()}
        for row in frame.to_dict(orient="records")
    ]


def assembled(
    found: Findings,
    dataset: Dataset,
    design: Design,
    classes: Sequence[str],
    provenance: dict[str, Any],
) -> Comparison:
    """Return the comparison that findings make, in the order of texts, methods and metrics.

    Parameters
    ----------
    found : Findings
    dataset : Dataset
        What the texts come from.
    design : Design
    classes : sequence of str
        As the model names them.
    provenance : dict
    """
    # a text that was measured in several parts is told once
    told = sorted({row[:2]: row for row in reversed(found.examples)}.values())
    number = {(text, aim): i for i, (text, aim, *_) in enumerate(told)}
    texts = [text for text, *_ in told]
    labels = _named(dataset.labels, classes)

    def of(column: Sequence[Any] | None) -> list[Any]:
        return [None if column is None else column[text] for text in texts]

    examples = pd.DataFrame(
        {
            "example": range(len(told)),
            "id": of(dataset.ids),
            "text": of(dataset.texts),
            "pair": of(dataset.pairs),
            "label": of(labels),
            "target": [target for _, _, target, _, _ in told],
            "prediction": [prediction for *_, prediction, _ in told],
            "probability": [probability for *_, probability in told],
            "kind": of(dataset.kinds),
        }
    )
    order = {name: i for i, name in enumerate(design.methods)}
    items = sorted(found.attributions, key=lambda row: (number[row[:2]], order[row[2].method]))
    cost = pd.DataFrame(
        {
            "example": [number[text, aim] for text, aim, _ in items],
            "method": [a.method for _, _, a in items],
            "seconds": [a.seconds for _, _, a in items],
            "forward_passes": [float(a.forward_passes) for _, _, a in items],
            "backward_passes": [float(a.backward_passes) for _, _, a in items],
            "memory": [np.nan if a.memory is None else float(a.memory) for _, _, a in items],
            "gap": [np.nan if a.gap is None else a.gap for _, _, a in items],
        }
    )
    failed = sorted(set(found.failures))
    return Comparison(
        scores=_frame(found.scores, [*CELL, "value"], number, design),
        curves=_frame(
            found.curves, ["method", "operator", "order", "fraction", "score"], number, design
        ),
        cost=cost,
        attributions=[a for _, _, a in items],
        examples=examples,
        failures=pd.DataFrame(
            {
                "id": [dataset.ids[text] for text, *_ in failed],
                "text": [dataset.texts[text] for text, *_ in failed],
                "method": [method for _, method, _ in failed],
                "error": [error for *_, error in failed],
            }
        ),
        provenance=provenance,
    )


def _frame(
    rows: Sequence[tuple[Any, ...]],
    columns: Sequence[str],
    number: Mapping[tuple[int, int], int],
    design: Design,
) -> pd.DataFrame:
    """Return rows ``(text, aim, *columns)`` as a table, sorted by what the design lists."""
    ranks = {
        "method": {name: i for i, name in enumerate(design.methods)},
        "operator": {name: i for i, name in enumerate(design.operators)},
        "metric": {name: i for i, name in enumerate(design.metrics)},
        "order": {"morf": 0, "lerf": 1},
    }
    frame = pd.DataFrame(list(rows), columns=["text", "aim", *columns])
    places = zip(frame["text"], frame["aim"], strict=True)
    frame.insert(0, "example", np.array([number[place] for place in places], dtype=np.int64))
    for name in set(ranks) & set(columns):  # what a run had beside is not asked for here
        frame = frame[frame[name].isin(list(ranks[name]))]
    keys = ["example", *(name for name in columns if name in ranks or name == "fraction")]
    frame = frame.drop(columns=["text", "aim"]).drop_duplicates(keys)
    return frame.sort_values(
        keys,
        key=lambda column: column.map(ranks[column.name]) if column.name in ranks else column,
        ignore_index=True,
    )


def _named(labels: Sequence[str | int] | None, classes: Sequence[str]) -> list[str] | None:
    """Return the labels as the model names its classes; None if they are of another kind.

    Data sets often number their classes. A label that is no class cannot be right or wrong.
    """
    if labels is None:
        return None
    numbers = {str(i): name for i, name in enumerate(classes)}
    for names in ({name: name for name in classes}, numbers):
        if all(str(label) in names for label in labels):
            return [names[str(label)] for label in labels]
    return None
