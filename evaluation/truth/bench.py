"""`ground_truth`: how near every method comes to known answers, and whether nearer than chance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xattn.errors import InputError, UnknownNameError, XattnWarning
from xattn.evaluation.design import RANDOM
from xattn.evaluation.statistics import interval, paired_difference
from xattn.evaluation.truth.problem import Problem
from xattn.evaluation.truth.problems import PROBLEMS
from xattn.explanations import ALL, expanded, explain_aims, refusals
from xattn.registry import methods as registry


@dataclass(frozen=True, eq=False)
class Standing:
    """Methods by problems."""

    rows: pd.DataFrame
    """One row for each method and problem: method, problem, measure, mean, low, high (95 % over
    texts), n, and above: whether the mean difference to `random` on the same texts is above 0
    with its whole interval."""
    meanings: dict[str, str]
    """What each problem is, in a line."""
    refused: pd.DataFrame
    """One row for each method that does not take a problem: method, problem, reason."""

    def table(self) -> pd.DataFrame:
        """Return the means, ``[method, problem]``; the best on average comes first.

        The order is by the mean rank over the problems that a method takes.
        """
        means = self.rows.pivot(index="method", columns="problem", values="mean")
        means = means[list(self.meanings)]
        ranks = means.rank(ascending=False)
        return means.loc[ranks.mean(axis=1).sort_values(kind="stable").index]


def ground_truth(
    methods: Sequence[str] | None = None,
    problems: Sequence[str] | None = None,
    *,
    texts: int = 50,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Standing:
    """Hold methods against problems whose answers are known.

    Parameters
    ----------
    methods : sequence of str, optional
        Names, or names with options; all registered ones by default, as far as they take each
        problem. ``random`` is always among them.
    problems : sequence of str, optional
        Names in `PROBLEMS`; all by default.
    texts : int
        Texts of each problem.
    seed : int
        Of the texts, of the random method and of the bootstrap.
    progress : callable, optional
        Called with the name of each problem before it is made; some train a model first.

    Raises
    ------
    UnknownNameError
        For an unknown method or problem.
    InputError
        For fewer than two texts.

    Examples
    --------
    >>> found = ground_truth(["rollout"], ["copy"], texts=4)
    >>> found.table().columns.tolist(), sorted(found.rows["method"])
    (['copy'], ['random', 'rollout'])
    """
    if texts < 2:
        raise InputError("texts of a problem", got=str(texts), expected="2 or more")
    names = list(dict.fromkeys([*expanded([ALL] if methods is None else methods), RANDOM]))
    for name in names:
        registry.build(name)
    chosen = list(PROBLEMS) if problems is None else list(dict.fromkeys(problems))
    for name in chosen:
        if name not in PROBLEMS:
            raise UnknownNameError("problem", name, PROBLEMS)
    rows, meanings, refused = [], {}, []
    for name in chosen:
        if progress is not None:
            progress(name)
        problem = PROBLEMS[name](texts, seed)
        meanings[name] = problem.meaning
        values, left_out = _judged(problem, names, seed)
        refused += [(method, name, reason) for method, reason in left_out.items()]
        for method, own in values.items():
            above = bool(paired_difference(own, values[RANDOM], seed).low > 0)
            rows.append((method, name, problem.measure, *interval(own, seed), above))
    columns = ["method", "problem", "measure", "mean", "low", "high", "n", "above"]
    return Standing(
        pd.DataFrame(rows, columns=columns),
        meanings,
        pd.DataFrame(refused, columns=["method", "problem", "reason"]),
    )


def _judged(
    problem: Problem, names: Sequence[str], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return each method's value of each text, ``[text]``; and which methods refuse, and why."""
    model = problem.model
    built = {
        name: registry.build(f"{RANDOM}:seed={seed}" if name == RANDOM else name) for name in names
    }
    encodings = model.encode(problem.texts, problem.pairs)
    longest = max(encodings, key=len)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)  # the table says what is left out
        reasons = refusals(model, [longest], list(built.values()))
    taken = {name: method for name, method in built.items() if method not in reasons}
    aims = [aim for (aim,) in model.aims(encodings)]
    found = explain_aims(model, list(zip(encodings, aims, strict=True)), list(taken.values()))
    table = np.array(
        [[problem.judged(i, item) for item in group] for i, group in enumerate(found.by_text())]
    )
    left_out = {name: reasons[method] for name, method in built.items() if method in reasons}
    return dict(zip(taken, table.T, strict=True)), left_out
