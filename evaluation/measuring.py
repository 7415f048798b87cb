"""`measure`: what is found out about a block, by some methods, operators and metrics.

It is a function of plain values and a model, so that it can run anywhere: in this process, in
others on this machine, or under an engine that has many.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from xattn.errors import XattnError
from xattn.evaluation.block import NOTHING, Block, Findings, Known, Worth
from xattn.evaluation.case import Bounds, Case
from xattn.evaluation.design import ORACLE, Design
from xattn.evaluation.measures import deletion
from xattn.evaluation.metric import Elsewhere
from xattn.explanations import explain_aims
from xattn.model import Model
from xattn.model.game import Game, Plan, Worths, games
from xattn.model.operators import Operator, drawing_from, get_operator
from xattn.model.scorer import Scorer
from xattn.model.search import search
from xattn.registry import Method
from xattn.types import Aim, Attribution, Bools, Curve, Encoding, Floats, Quantity

GRID = np.linspace(0.0, 1.0, 11)
"""Shares of removed units at which curves of different texts are put side by side."""
Asked = tuple[int, int]
"""A text's number, and which of its targets: a text can be asked at several places."""


def measure(
    model: Model,
    block: Block,
    design: Design,
    known: Known = NOTHING,
    scorer: Scorer | None = None,
) -> Findings:
    """Measure a block; a text that fails is noted, and the others go on.

    Parameters
    ----------
    model : Model
    block : Block
    design : Design
        Its methods, operators and metrics are those that are asked for here.
    known : Known, optional
        What is not to be computed again.
    scorer : Scorer, optional
        One of `model`, to see what it is asked.

    Returns
    -------
    Findings
    """
    scorer = Scorer(model) if scorer is None else scorer
    try:
        return _Measuring(model, block, design, known, scorer).run()
    except Exception as error:  # whatever a model or a plug-in raises is told with its text
        if len(block) == 1:
            return _alone(model, block, design, known, scorer, error)
        half, found = len(block) // 2, Findings()
        for part in (block[:half], block[half:]):
            found.add(measure(model, part, design, known, scorer))
        return found


def _alone(
    model: Model, block: Block, design: Design, known: Known, scorer: Scorer, error: Exception
) -> Findings:
    """Measure a text that has failed without the methods that fail on it, if there are others."""
    failed = []
    for name in design.methods:
        try:
            alone = replace(design, methods=(name,), metrics=(), operators=())
            _Measuring(model, block, alone, known, scorer).run()
        except Exception as reason:
            failed.append((block.first, name, _told(reason)))
    if not failed or len(failed) == len(design.methods):
        found = Findings()
        found.failures.append((block.first, "", _told(error)))
        return found
    found = measure(model, block, design.without([name for _, name, _ in failed]), known, scorer)
    found.failures += failed
    return found


def _told(error: Exception) -> str:
    """Return an error in words; of one that is not xattn's own, with its kind."""
    return str(error) if isinstance(error, XattnError) else f"{type(error).__name__}: {error}"


class _Measuring:
    """One block under way."""

    def __init__(
        self,
        model: Model,
        block: Block,
        design: Design,
        known: Known,
        scorer: Scorer,
    ) -> None:
        self.model, self.block, self.design, self.known = model, block, design, known
        self.worths, self.found = Worths(scorer), Findings()
        self.games: dict[Worth, Game] = {}
        self.elsewhere: dict[str, list[list[dict[str, Attribution]]]] = {}
        """By metric, for each of its circumstances, the explanations of each case by method."""

    def run(self) -> Findings:
        """Do everything: encode, explain, search, score."""
        scorer, block, design = self.worths.scorer, self.block, self.design
        before = scorer.run
        with self.found.stage("explain"):
            encodings = self._encoded()
            aims = self.model.aims(encodings, design.label, None, design.at)
            asked = [(i, j) for i, some in enumerate(aims) for j in range(len(some))]
            cases = [(encodings[i], aims[i][j]) for i, j in asked]
            keys = [(block.first + i, j) for i, j in asked]
            for key, (_, aim) in zip(keys, cases, strict=True):
                words = f"{design.quantity.replace('_', ' ')} of {aim.words}"
                self.found.examples.append((*key, words, aim.prediction, aim.probability))
            explained = self._explained(keys, cases)
        with self.found.stage("explain elsewhere"):
            self._explain_elsewhere(cases)
        for operator in design.operators:
            self._under(operator, keys, cases, explained)
        for which, game in self.games.items():
            old = self.known.worths.get(which, {})
            new = {k: value for k, value in self.worths.table(game).items() if k not in old}
            packed = b"".join(new), np.array(list(new.values())).tobytes()
            if new:
                self.found.worths.append((*which, *packed))
        self.found.asked, self.found.run = self.worths.asked, scorer.run - before
        self.worths.clear()
        return self.found

    def _encoded(self) -> list[Encoding]:
        model, block, design = self.model, self.block, self.design
        found = model.encode(block.texts, block.pairs, truncate=design.truncate)
        unit = design.unit
        return [e if unit == "token" else e.in_units(unit) for e in found]

    def _explained(
        self, keys: Sequence[Asked], cases: Sequence[tuple[Encoding, Aim]]
    ) -> list[dict[str, Attribution]]:
        """Return the explanations of each case by method, those that are known among them."""
        built = self.design.built_methods()
        table: list[dict[str, Attribution]] = [{} for _ in cases]
        new: dict[str, Method] = {}
        for name, method in built.items():
            if all((*key, name) in self.known.attributions for key in keys):
                for row, key in zip(table, keys, strict=True):
                    row[name] = self.known.attributions[(*key, name)]
            else:
                new[name] = method
        if new:
            groups = explain_aims(self.model, cases, list(new.values())).by_text()
            for key, row, group in zip(keys, table, groups, strict=True):
                for name, item in zip(new, group, strict=True):
                    row[name] = replace(item, method=name)
                    self.found.attributions.append((*key, row[name]))
        return table

    def _explain_elsewhere(self, cases: Sequence[tuple[Encoding, Aim]]) -> None:
        """Explain everything again under the circumstances that metrics ask for."""
        built = self.design.built_methods()
        for name, metric in self.design.built_metrics().items():
            if isinstance(metric, Elsewhere):
                self.elsewhere[name] = [
                    [
                        dict(zip(built, group, strict=True))
                        for group in explain_aims(other, cases, list(built.values())).by_text()
                    ]
                    for other in metric.circumstances(self.model, self.design.seed)
                ]

    def _under(
        self,
        operator: str,
        keys: Sequence[Asked],
        cases: Sequence[tuple[Encoding, Aim]],
        explained: Sequence[Mapping[str, Attribution]],
    ) -> None:
        """Measure everything under one way of removing units."""
        removal = drawing_from(get_operator(operator), self.model, self.block.pool)
        played = self._games(keys, cases, removal, self.design.quantity)
        metrics = self.design.built_metrics()
        others = {
            quantity: self._games(keys, cases, removal, quantity)
            for quantity in {m.declaration.quantity for m in metrics.values()} - {None}
            if quantity is not None
        }
        needed = any("bounds" in metric.declaration.needs for metric in metrics.values())
        bounds: list[Bounds | None] = [None] * len(played)
        if needed or ORACLE in self.design.methods:
            with self.found.stage("oracle"):
                bounds[:] = self._bounds(played)
        plans: list[tuple[Game, Plan[Any]]] = []
        names: list[tuple[Asked, str, str]] = []
        marked = [self._rationale(text, game) for (text, _), game in zip(keys, played, strict=True)]
        judged = [
            (
                i,
                method,
                self._case(keys[i], played[i], explained[i].get(method), bounds[i], marked[i]),
            )
            for i in range(len(cases))
            for method in self.design.methods
        ]
        for i, method, case in judged:
            plans.append((case.game, _curves(case)))
            names.append((keys[i], method, ""))
            for name, metric in metrics.items():
                if method == ORACLE and "removal" not in metric.declaration.needs:
                    continue  # its ranks are no scores
                quantity = metric.declaration.quantity
                own = case if quantity is None else replace(case, game=others[quantity][i])
                if isinstance(metric, Elsewhere):
                    found = [_scores(there[i][method], own.game) for there in self.elsewhere[name]]
                    own = replace(own, elsewhere=tuple(found))
                value = metric(own)
                if isinstance(value, Generator):
                    plans.append((own.game, value))
                    names.append((keys[i], method, name))
                else:
                    row = (*keys[i], method, operator, name, float(value))
                    self.found.scores.append(row)
        with self.found.stage("score"):
            results = self.worths.play(plans)
        for (key, method, name), result in zip(names, results, strict=True):
            if name:
                self.found.scores.append((*key, method, operator, name, float(result)))
                continue
            for order, curve in zip(
                ("morf", "lerf"), cast(tuple[Curve, Curve], result), strict=True
            ):
                for share, score in zip(GRID.tolist(), curve.at(GRID).tolist(), strict=True):
                    self.found.curves.append((*key, method, operator, order, share, score))

    def _games(
        self,
        keys: Sequence[Asked],
        cases: Sequence[tuple[Encoding, Aim]],
        removal: Operator,
        quantity: Quantity,
    ) -> list[Game]:
        found: list[Game] = []
        for key, (encoding, aim) in zip(keys, cases, strict=True):
            batch = self.model.batch([encoding])  # alone: targets of one batch have one shape
            [game] = games(self.model, batch, self.model.target_of([aim], quantity), removal)
            which = (*key, removal.name, quantity)
            self.games[which] = game
            self.worths.recall(game, self.known.worths.get(which, {}))
            found.append(game)
        return found

    def _bounds(self, played: Sequence[Game]) -> list[Bounds]:
        plans = [
            (game, search(len(game), deletion.steps(len(game)), order, self.design.beam))
            for game in played
            for order in ("morf", "lerf")
        ]
        orders = self.worths.play(plans)
        return [Bounds(*pair) for pair in zip(orders[::2], orders[1::2], strict=True)]

    def _case(
        self,
        key: Asked,
        game: Game,
        item: Attribution | None,
        bounds: Bounds | None,
        rationale: Bools | None,
    ) -> Case:
        """Return the case of an explanation, or of the oracle, which has none."""
        # one seed a text, so that methods do not differ by how their ties fall
        seed = (self.design.seed, *key)
        if item is None:
            assert bounds is not None
            ranks = np.empty(len(game))
            ranks[bounds.least] = np.arange(len(game), 0, -1)
            return Case(game, ranks, seed, bounds, rationale, own=bounds)
        return Case(game, _scores(item, game), seed, bounds, rationale, _share(item))

    def _rationale(self, text: int, game: Game) -> Bools | None:
        """Return which players share a character with what people marked in the first text."""
        if self.block.rationales is None:
            return None
        encoding = game.encoding
        marked = np.zeros(len(encoding), dtype=np.bool_)
        for start, end in self.block.rationales[text - self.block.first]:
            touches = (encoding.offsets[:, 0] < end) & (encoding.offsets[:, 1] > start)
            marked |= touches & (encoding.segments == 0)
        return np.array([marked[unit].any() for unit in game.players], dtype=np.bool_)


def _scores(item: Attribution, game: Game) -> Floats:
    """Return the players' scores, ``[player]``."""
    return np.array([item.scores[unit].sum(dtype=np.float64) for unit in game.players])


def _share(item: Attribution) -> float | None:
    """Return a gap as a share of what the scores must sum to."""
    if item.gap is None:
        return None
    expected = float(item.scores.sum(dtype=np.float64)) - item.gap
    return abs(item.gap) / max(abs(expected), 1e-12)


def _curves(case: Case) -> Plan[tuple[Curve, Curve]]:
    first = yield from deletion.morf(case)
    last = yield from deletion.lerf(case)
    return first, last
