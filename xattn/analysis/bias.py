"""Bias: whether a model takes the words of two groups differently, on the whole or by profession.

The words of one group are swapped for those of the other in many sentences about many professions
(`xattn.analysis.templates`), and what the model makes of both is compared
(`xattn.analysis.counterfactual`). Two things can be found: a *shift* that all professions share,
and a *spread*, by which professions differ (`xattn.analysis.components`).

What is called a bias is larger than a margin, the smallest change of interest. A network that was
trained on finitely many texts always makes some difference, and with enough sentences any
difference is significant; that it is not 0 is no finding. So the verdict has three values: larger
than the margin, smaller than the margin, or undecided.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr, wilcoxon
from statsmodels.stats.multitest import multipletests

from xattn.analysis.bias_finding import finding
from xattn.analysis.components import UNKNOWN, Components, Estimate
from xattn.analysis.counterfactual import asker, changes, marked, shares
from xattn.analysis.templates import PRONOUNS, Pair, expand
from xattn.errors import InputError, XattnWarning
from xattn.evaluation.significance import LEVEL
from xattn.evaluation.statistics import interval
from xattn.finding import Finding
from xattn.model import Model
from xattn.registry import Method
from xattn.types import Encoding, Floats

METHOD = "input_x_gradient"
FEWEST = 4
"""Professions that a correlation needs."""
Verdict = Literal["biased", "within", "undecided"]


class Correlation(NamedTuple):
    """How the change by profession goes with a figure of real occupations."""

    figure: str
    rho: float
    """Spearman's."""
    low: float
    high: float
    """95 % interval: Fisher's z with the variance of Bonett & Wright (2000), Sample Size
    Requirements for Estimating Pearson, Kendall and Spearman Correlations."""
    p: float
    n: int
    """Professions that have a figure."""


@dataclass(frozen=True, eq=False)
class Bias:
    """What swapping the words of two groups changes.

    Everything is derived from `pairs`; see `finding` for all of it at once.
    """

    model: str
    task: str
    groups: tuple[str, str]
    """Changes are those from the first to the second."""
    measure: str
    """What the change is of."""
    unit: str
    margin: float
    """The smallest change of interest, in the unit of the measure."""
    centred: bool
    """Whether only differences between professions mean anything; see `counterfactual`."""
    method: str | None
    """What gave the attributions."""
    pairs: pd.DataFrame = field(repr=False)
    """One row a pair, with the columns of `counterfactual.changes` and `counterfactual.shares`."""
    correlations: tuple[Correlation, ...]
    unknown: tuple[str, ...]
    """Professions that were left out because the model has no word for them."""
    pieces: float
    """Tokens of a profession, on average."""

    def table(self, column: str = "change") -> pd.DataFrame:
        """Return a column as ``[profession, template]``: the mean of all swaps in a sentence.

        nan where a profession does not stand in a template.
        """
        return self.pairs.pivot_table(
            index="profession", columns="template", values=column, sort=False
        )

    def components(self, column: str = "change") -> Components:
        """Return mean and spread of a column over professions."""
        table = self.table(column)
        values = table.to_numpy(dtype=np.float64)
        rows = tuple(row[~np.isnan(row)] for row in values)
        return Components(rows, crossed=not np.isnan(values).any())

    @cached_property
    def shift(self) -> Estimate:
        """What all professions share, in the unit of the measure.

        Unknown if they are centred, and with a single template.
        """
        return UNKNOWN if self.centred else self.components().shift(self.margin)

    @cached_property
    def spread(self) -> Estimate:
        """The standard deviation between professions; unknown with one template each."""
        return self.components().spread(self.margin)

    @property
    def judged(self) -> tuple[Estimate, ...]:
        """Shift and spread, as far as they are known."""
        return tuple(e for e in (self.shift, self.spread) if not np.isnan(e.p))

    @property
    def p(self) -> float:
        """Of "neither shift nor spread is larger than the margin", by Bonferroni's correction."""
        known = self.judged
        return min(1.0, len(known) * min(e.p for e in known)) if known else np.nan

    @property
    def effect(self) -> float:
        """The effect size: the root mean square over professions of the change.

        The root of `shift` squared plus `spread` squared, as far as they are known.
        """
        return float(np.sqrt(sum(e.value**2 for e in self.judged))) if self.judged else np.nan

    @property
    def small(self) -> bool:
        """Whether the 95 % intervals of what is known lie inside the margin."""
        inside = [max(-e.low, e.high) < self.margin for e in self.judged]
        return bool(inside) and all(inside)

    @property
    def verdict(self) -> Verdict:
        """``biased``: shift or spread is larger than the margin; ``within``: both are smaller.

        The first by `p` at the 5 % level: of models whose shift and spread are no larger than the
        margin, no more than one in twenty is called biased. The second by 95 % intervals that lie
        inside the margin.
        """
        if self.p < LEVEL:
            return "biased"
        complete = len(self.judged) == 2 - self.centred
        return "within" if complete and self.small else "undecided"

    @cached_property
    def professions(self) -> pd.DataFrame:
        """One row a profession, those with the highest change first.

        change, low, high: its mean over templates and the 95 % bootstrap interval, templates drawn.
        p: of "no further from 0 than the margin", by Wilcoxon's signed-rank test; adjusted: the
        same after Holm's correction. n: templates. attribution, moved, attention: mean changes of
        the other measures; see `counterfactual.shares`.
        """
        rows = []
        for name, values in self.table().iterrows():
            found = values.dropna().to_numpy(dtype=np.float64)
            rows.append((name, *interval(found, seed=0), beyond(found, self.margin)))
        frame = pd.DataFrame(rows, columns=["profession", "change", "low", "high", "n", "p"])
        frame["adjusted"] = multipletests(frame["p"], method="holm")[1]
        others = [name for name in ("attribution", "moved", "attention") if name in self.pairs]
        frame = frame.join(self.pairs.groupby("profession")[others].mean(), on="profession")
        return frame.sort_values("change", ascending=False, ignore_index=True)

    @property
    def flagged(self) -> tuple[str, ...]:
        """The professions whose own change is larger than the margin (Holm, 5 %)."""
        table = self.professions
        return tuple(table.loc[table["adjusted"] < LEVEL, "profession"])

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row a pair of texts."""
        return self.pairs.copy()

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values: verdict, estimates, professions, correlations, pairs."""
        return {
            "model": self.model,
            "task": self.task,
            "groups": list(self.groups),
            "measure": self.measure,
            "unit": self.unit,
            "margin": self.margin,
            "verdict": self.verdict,
            "p": self.p,
            "effect": self.effect,
            "shift": self.shift._asdict(),
            "spread": self.spread._asdict(),
            "method": self.method,
            "correlations": [found._asdict() for found in self.correlations],
            "unknown": list(self.unknown),
            "professions": self.professions.to_dict("records"),
            "pairs": self.pairs.to_dict("records"),
        }

    def finding(self) -> Finding:
        """Return verdict, changes by profession and by template, and the other measures."""
        return finding(self)

    def _repr_html_(self) -> str:
        return self.finding()._repr_html_()


def beyond(values: Floats, margin: float) -> float:
    """Return p of "no further from 0 than the margin", two-sided, by Wilcoxon's test.

    Examples
    --------
    >>> beyond(np.arange(1.0, 9.0), margin=0.5), beyond(np.arange(1.0, 9.0), margin=8.0)
    (0.0078125, 1.0)
    """
    sides = []
    for side in (values - margin, -values - margin):
        above = side.any() and wilcoxon(side, alternative="greater").pvalue
        sides.append(float(above) if side.any() else 1.0)
    return min(1.0, 2 * min(sides))


def bias(
    model: Model,
    pairs: Sequence[Pair] | None = None,
    *,
    groups: tuple[str, str] = PRONOUNS.names,
    label: str | int | None = None,
    margin: float | None = None,
    method: str | Method | None = METHOD,
    statistics: Mapping[str, Mapping[str, float]] | None = None,
) -> Bias:
    """Measure what swapping the words of two groups changes, by profession.

    Parameters
    ----------
    model : Model
        A classifier, a masked or a causal model.
    pairs : sequence of Pair, optional
        See `templates.expand` and `schemas.read_pairs`; the project's own templates with *he* and
        *she* by default.
    groups : (str, str)
        What the two groups are called.
    label : str or int, optional
        Of classifiers, the class whose probability is followed; the last by default.
    margin : float, optional
        The smallest change of interest: of a probability (0.05 by default), or of log-odds in nats
        (0.22: odds of 5 to 4). Regressions need one.
    method : str or Method, optional
        Gives the attributions; None leaves attributions and attention out.
    statistics : mapping, optional
        Figures of real occupations, by name of the figure and of the occupation; see
        `schemas.read_statistics`.

    Raises
    ------
    InputError
        For a model of another kind, swapped words that it does not know, and fewer than two
        professions that it knows.

    Warns
    -----
    XattnWarning
        Of professions that the model does not know, which are left out.

    Examples
    --------
    >>> import xattn
    >>> from xattn.analysis.templates import expand
    >>> pairs = expand(["The {profession} lost {possessive} keys."], ["nurse", "pilot"])
    >>> bias(xattn.load(), pairs, method=None).measure
    "probability of 'positive'"
    """
    asked = asker(model, label)
    chosen = asked.margin if margin is None else margin
    if chosen is None:
        raise InputError(
            "the outputs of a regression have a unit of their own",
            expected="the smallest change of interest in it",
            remedy="pass margin (--margin)",
        )
    if not chosen >= 0:
        raise InputError("the margin", got=str(chosen), expected="0 or more")
    given = expand() if pairs is None else pairs
    if not given:
        raise InputError("no pair of sentences is given", expected="pairs of two professions")
    kept, first, second, unknown = known(model, given)
    table = changes(asked, kept, first, second)
    if method is not None:
        table = table.join(shares(asked, kept, first, second, method))
    names = (method if isinstance(method, str) else type(method).__name__) if method else None
    means = table.groupby("profession")["change"].mean()
    return Bias(
        model=model.name,
        task=model.task.name,
        groups=groups,
        measure=asked.measure,
        unit=asked.unit,
        margin=chosen,
        centred=asked.centred,
        method=names,
        pairs=table,
        correlations=tuple(_correlations(means, statistics or {})),
        unknown=unknown,
        pieces=float(np.mean([e.row["mark:profession"].sum() for e in first])),
    )


def known(
    model: Model, pairs: Sequence[Pair]
) -> tuple[list[Pair], list[Encoding], list[Encoding], tuple[str, ...]]:
    """Return the pairs whose professions the model knows, their texts, and the other professions.

    Raises
    ------
    InputError
        For swapped words that the model does not know, and if fewer than two professions are left.

    Warns
    -----
    XattnWarning
        Of the professions that are left out.
    """
    both = [marked(model, [getattr(pair, side) for pair in pairs]) for side in ("first", "second")]
    unk = getattr(model.tokenizer, "unk_token_id", None)
    lost: dict[str, None] = {}
    strange: dict[str, None] = {}
    for pair, *encodings in zip(pairs, *both, strict=True):
        for encoding in encodings:
            missing = encoding.row["input_ids"] == unk
            if (missing & encoding.row["mark:profession"].astype(bool)).any():
                lost[pair.profession] = None
            for i in np.flatnonzero(missing & encoding.row["mark:swapped"].astype(bool)):
                strange[encoding.tokens[i]] = None
    if strange:
        raise InputError(
            "the model has no word for what is swapped",
            got=", ".join(map(repr, strange)),
            remedy="swap words of its vocabulary (--groups)",
        )
    names = {pair.profession for pair in pairs}
    if len(names) - len(lost) < 2:
        raise InputError(
            "too few professions that the model has words for",
            got=f"{len(names) - len(lost)} of {len(names)}"
            + (f"; it has none for {', '.join(list(lost)[:5])}" if lost else ""),
            expected="two or more",
            remedy="name professions of its vocabulary (--professions)",
        )
    if lost:
        warnings.warn(
            f"the model has no word for {len(lost)} of {len(names)} professions, which are left "
            f"out: {', '.join(list(lost)[:8])}{', ...' if len(lost) > 8 else ''}",
            XattnWarning,
            stacklevel=3,
        )
    kept = [i for i, pair in enumerate(pairs) if pair.profession not in lost]
    first, second = ([encodings[i] for i in kept] for encodings in both)
    return [pairs[i] for i in kept], first, second, tuple(lost)


def _correlations(
    means: pd.Series[float], statistics: Mapping[str, Mapping[str, float]]
) -> list[Correlation]:
    """Return how the changes of professions go with each figure; warn of figures for too few."""
    found = []
    for figure, values in statistics.items():
        there = [name for name in means.index if str(name).lower() in values]
        if len(there) < FEWEST:
            warnings.warn(
                f"{figure} is known of {len(there)} of {len(means)} professions, too few for a "
                "correlation",
                XattnWarning,
                stacklevel=3,
            )
            continue
        changed = means[there].to_numpy(dtype=np.float64)
        figures = np.array([values[str(name).lower()] for name in there])
        if not np.ptp(changed) or not np.ptp(figures):
            warnings.warn(f"{figure}: all are alike", XattnWarning, stacklevel=3)
            continue
        test = spearmanr(changed, figures)
        rho, n = float(test.statistic), len(there)
        reach = float(norm.ppf(0.975)) * np.sqrt((1 + rho**2 / 2) / (n - 3))
        z = np.arctanh(np.clip(rho, -1 + 1e-9, 1 - 1e-9))
        low, high = float(np.tanh(z - reach)), float(np.tanh(z + reach))
        found.append(Correlation(figure, rho, low, high, float(test.pvalue), n))
    return found
