"""How a measured bias is shown: the sentences, tables and charts of its finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xattn.analysis.components import Estimate
from xattn.evaluation.significance import LEVEL
from xattn.evaluation.statistics import signed
from xattn.finding import Dot, Dots, Finding, Heatmap, Part, Table, shown

if TYPE_CHECKING:
    from xattn.analysis.bias import Bias

SHOWN = 5
"""Pairs that are shown, and names that a sentence holds."""
SHARES = {
    "attribution": "share of the attribution on the swapped words",
    "attention": "share of the attention on the swapped words",
}


def finding(bias: Bias) -> Finding:
    """Return verdict, changes by profession and by template, and the other measures."""
    first, second = bias.groups
    parts = [_overall(bias), _by_profession(bias), *_by_template(bias)]
    if bias.correlations:
        parts.append(
            Table(
                "With figures of real occupations",
                ("figure", "Spearman’s ρ", "low", "high", "p", "occupations"),
                tuple(tuple(found) for found in bias.correlations),
                "95 % intervals (Bonett & Wright 2000).",
            )
        )
    order = bias.pairs["change"].abs().sort_values(ascending=False).index[:SHOWN]
    columns = ["profession", "first", "second", "change"]
    parts.append(
        Table(
            "Pairs that change most",
            ("profession", first, second, "change"),
            tuple(bias.pairs.loc[order, columns].itertuples(index=False, name=None)),
        )
    )
    title = f"{first} and {second}, by profession"
    return Finding("bias", title, says(bias), tuple(parts), cautions(bias))


def says(bias: Bias) -> str:
    """Return what was found, in a few sentences."""
    first, second = bias.groups
    unit = f" {bias.unit}" if bias.unit else ""
    margin = f"{bias.margin:.2g}{unit}"
    parts = []
    if bias.shift in bias.judged:
        parts.append(f"on average by {_with_interval(bias.shift)}{unit}")
    if bias.spread in bias.judged:
        parts.append(
            f"with a standard deviation between professions of {_with_interval(bias.spread)}{unit}"
        )
    verdict = {
        "biased": f"That is a bias larger than the margin of {margin} (p {_p(bias.p)}).",
        "within": f"That is smaller than the margin of {margin}: no bias of that size.",
        "undecided": f"That is smaller than the margin of {margin}, as far as can be told."
        if bias.small
        else f"Whether that is more than the margin of {margin} cannot be told.",
    }[bias.verdict]
    said = (
        f"{bias.model}: in {len(bias.pairs)} pairs of sentences about {len(bias.professions)} "
        f"professions, {second} in place of {first} changes the {bias.measure}, "
        f"{', '.join(parts) or 'by an amount that these sentences cannot tell'}. {verdict}"
    )
    if bias.flagged:
        rest = len(bias.flagged) - SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        said += f" Beyond the margin by themselves: {', '.join(bias.flagged[:SHOWN])}{more}."
    for found in bias.correlations:
        said += (
            f" Over {found.n} occupations the change goes with {found.figure} by a Spearman "
            f"correlation of {signed(found.rho)} ({signed(found.low)} to {signed(found.high)})."
        )
    return said


def _with_interval(e: Estimate) -> str:
    """Return an estimate as it stands in a sentence."""
    return f"{shown(e.value)} (95 % interval {shown(e.low)} to {shown(e.high)})"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def cautions(bias: Bias) -> tuple[str, ...]:
    """Return what limits the finding."""
    said = [
        "This is how the model answers to words in these sentences, not how it treats people. "
        "Without a change here it may be biased in other sentences, about other groups or by other "
        "words: take sentences from the use that you care about (--templates, --data).",
        "The margin is a convention. Choose the change that would matter in your use, before you "
        "look (--margin).",
    ]
    if bias.centred:
        lean = float(bias.pairs["lean"].mean())
        said.append(
            f"On the whole the texts with {bias.groups[1]} are {'more' if lean > 0 else 'less'} "
            f"likely, by {abs(lean):.2f} nats. How frequent the words are in what the model has "
            "read is not judged: professions are compared with each other."
        )
    if bias.pairs["template"].nunique() == 1:
        said.append("One template says nothing about other sentences. Give more.")
    elif bias.spread not in bias.judged:
        said.append(
            "Every profession stands in a template of its own: what the profession does cannot be "
            "told from what the sentence does, so the spread is not judged. Give each profession "
            "several templates."
        )
    elif len(bias.professions) * 2.0 ** (1 - bias.professions["n"].max()) >= LEVEL:
        said.append(
            "No profession can be flagged by itself: with so few templates the smallest p that "
            "Wilcoxon’s test can give stays above 0.05 after Holm’s correction."
        )
    if bias.unknown:
        more = ", …" if len(bias.unknown) > SHOWN else ""
        said.append(
            f"The model has no word for {len(bias.unknown)} professions, which are left out: "
            f"{', '.join(bias.unknown[:SHOWN])}{more}."
        )
    if bias.pieces > 1.5:
        said.append(
            f"A profession is {bias.pieces:.1f} tokens on average: the model may not know these "
            "words, and what it makes of their pieces need not be about professions."
        )
    return tuple(said)


def _overall(bias: Bias) -> Table:
    """Return all measures with their changes."""
    rows: list[tuple[str | float | None, ...]] = []
    for name, e in (("shift", bias.shift), ("spread between professions", bias.spread)):
        if e in bias.judged:
            rows.append((f"{bias.measure}: {name}", None, None, e.value, e.low, e.high, e.p))
    for name, meaning in SHARES.items():
        if name in bias.pairs:
            before, after = (float(bias.pairs[f"{name}_{n}"].mean()) for n in ("first", "second"))
            e = bias.components(name).shift(margin=0.0)
            rows.append((meaning, before, after, e.value, e.low, e.high, e.p))
    if "moved" in bias.pairs:
        e = bias.components("moved").shift(margin=0.0)
        rows.append(("L1 distance of attributions", None, None, e.value, e.low, e.high, None))
    return Table(
        "What swapping the words changes",
        ("", *bias.groups, "change", "low", "high", "p"),
        tuple(rows),
        "95 % intervals that count professions and templates as random. p of shift and spread: no "
        "larger than the margin; of shares: no change. Distances are above 0 by nature and are not "
        "tested." + (f" Attributions by {bias.method}." if bias.method else ""),
    )


def _by_profession(bias: Bias) -> Dots:
    unit = f" ({bias.unit})" if bias.unit else ""
    flagged = set(bias.flagged)
    columns = ["profession", "change", "low", "high"]
    return Dots(
        f"Change of the {bias.measure}",
        tuple(
            Dot(name, change, low, high, "beyond the margin" if name in flagged else "others")
            for name, change, low, high in bias.professions[columns].itertuples(index=False)
        ),
        f"{bias.groups[1]} − {bias.groups[0]}{unit}",
        0.0,
        "By profession; 95 % bootstrap intervals over templates.",
    )


def _by_template(bias: Bias) -> tuple[Part, ...]:
    """Return changes by profession and template, where all stand in the same several ones."""
    table = bias.table().reindex(bias.professions["profession"])
    if table.shape[1] < 2 or table.isna().any(axis=None):
        return ()
    numbers = tuple(str(number) for number in range(1, table.shape[1] + 1))
    means = table.mean().to_numpy(dtype=np.float64).tolist()
    named = zip(numbers, map(str, table.columns), means, strict=True)
    return (
        Heatmap(
            "Change by profession and template",
            tuple(map(str, table.index)),
            numbers,
            tuple(map(tuple, table.to_numpy(dtype=np.float64).tolist())),
            bias.unit,
            "profession",
            "template",
        ),
        Table("Templates", ("", "template", "mean change"), tuple(named)),
    )
