"""What a reader should be warned of: pure functions on a comparison, silent where all is well."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from xattn.analysis.cautions import AGGREGATIONS
from xattn.caution import Caution, kind
from xattn.evaluation import Comparison
from xattn.evaluation.statistics import interval
from xattn.registry import family
from xattn.report.answer import number
from xattn.report.examples import wrongly
from xattn.report.ranking import Place, level_with_best, paired
from xattn.types import Attribution

TOP_SHARE = 0.25
"""Share of texts from which on a top token that is special or punctuation is worth a word."""
LOW_AGREEMENT = 0.3
"""Mean Kendall's τ below which two families of methods tell different stories."""
NAMED = 2
"""Pairs of methods that are named; a full list would be read by nobody."""
GAP = 0.05
"""Completeness gap, as a share of the difference that the scores must sum to."""
ACCURACY = 0.8
"""Accuracy below which many explanations explain mistakes."""
FEW_TEXTS = 30
"""Below this the intervals themselves are guesses."""

Texts = Sequence[Mapping[str, Attribution]]


def cautions(
    comparison: Comparison,
    operator: str,
    places: list[Place],
    texts: Texts,
    agreement: pd.DataFrame,
) -> list[Caution]:
    """Return all cautions that apply, the weightiest first."""
    found = [
        too_few_texts(comparison, places, operator),
        not_better_than_random(places),
        wrong_predictions(comparison.examples),
        turns_on_a_choice(comparison, operator, texts),
        families_disagree(agreement),
        top_tokens_are_marks(texts),
        incomplete(texts),
    ]
    return [caution for caution in found if caution is not None]


def too_few_texts(comparison: Comparison, places: list[Place], operator: str) -> Caution | None:
    """Warn if the texts are few, or do not even tell the best method from the last."""
    count = len(comparison.examples)
    best, level = level_with_best(comparison, places, operator)
    last = [place for place in places if not place.yardstick][-1:]
    tied = bool(last) and last[0] in level
    if best is None or (count >= FEW_TEXTS and not tied):
        return None
    evidence = f"{count} text{'s' * (count != 1)}"
    if tied:
        evidence += (
            f"; the first method ({best.method}) cannot be told apart from the last "
            f"({last[0].method}) at the 95 % level"
        )
    return Caution(
        "Too few texts for a ranking",
        f"{evidence}. Below {FEW_TEXTS} texts the intervals are rough themselves.",
        "Read the order of the table as chance, and compare on more texts.",
    )


def not_better_than_random(places: list[Place]) -> Caution | None:
    """Warn of methods whose ABPC is not above that of random scores."""
    weak = [p for p in places if p.verdict in ("not better than random", "worse than random")]
    if not weak:
        return None
    names = "; ".join(f"{p.method}: {p.verdict} (ABPC {number(p.area.mean)})" for p in weak)
    return Caution(
        "Some explanations are no better than chance",
        f"{names}.",
        "Do not use these methods to explain this model, however plausible their pictures look.",
    )


def wrong_predictions(examples: pd.DataFrame) -> Caution | None:
    """Warn if the model is often wrong: an explanation of a mistake explains the mistake."""
    known = examples[examples["label"].notna()]
    wrong = int(wrongly(known).sum())
    if not len(known) or 1 - wrong / len(known) >= ACCURACY:
        return None
    return Caution(
        "The model is often wrong on these texts",
        f"{wrong} of {len(known)} predictions are wrong: accuracy {1 - wrong / len(known):.1%}, "
        f"under {ACCURACY:.0%}.",
        "A faithful explanation of a wrong prediction shows why the model erred, not what the "
        "text means. Check the labels’ names and order, then the model.",
    )


def turns_on_a_choice(comparison: Comparison, operator: str, texts: Texts) -> Caution | None:
    """Warn if methods that differ in one choice only differ in ABPC by more than chance.

    Needs a comparison that holds one method with several layers, heads or other options, for
    example ``attention`` and ``attention:layer=0``; or several ways to put layers together.
    """
    found, choices = [], []
    for (name, choice), members in _by_choice(texts).items():
        chosen = comparison.scores[
            (comparison.scores["operator"] == operator)
            & (comparison.scores["metric"] == "abpc")
            & comparison.scores["method"].isin(list(members))
        ]
        means = chosen.groupby("method")["value"].mean().dropna().sort_values(kind="stable")
        if len(means) < 2:
            continue
        worst, best = str(means.index[0]), str(means.index[-1])
        gain = paired(comparison.scores, operator, best, worst)
        if gain.low > 0:
            choices.append(choice)
            found.append(
                f"{name}: {choice} {members[best]} ABPC {number(float(means.iloc[-1]))}, {choice} "
                f"{members[worst]} {number(float(means.iloc[0]))}, difference {gain.mean:.3f} "
                f"(95 % interval {gain.low:.3f} to {gain.high:.3f})"
            )
    if not found:
        return None
    named = " and the ".join(dict.fromkeys(choices))
    return Caution(
        f"The result turns on the choice of the {named}",
        "; ".join(found) + ".",
        f"Name the {named} whenever you report this method, choose it on other texts than these, "
        "or use a method that leaves no such choice.",
    )


def _by_choice(texts: Texts) -> dict[tuple[str, str], dict[str, str]]:
    """Group methods that differ in one option: name and option, then label, then its value.

    `AGGREGATIONS` with no options of their own are a group, too.
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    items = texts[0] if texts else {}
    for label, item in items.items():
        for option, value in item.parameters.items():
            others = {k: v for k, v in item.parameters.items() if k != option and v is not None}
            name = label.partition(":")[0]
            if others:
                name += f" ({', '.join(f'{k}={v}' for k, v in others.items())})"
            groups.setdefault((name, option), {})[label] = "all" if value is None else str(value)
    together = {label: label for label in AGGREGATIONS if label in items}
    groups["attention over the layers", "aggregation"] = together
    return {group: members for group, members in groups.items() if len(members) > 1}


def families_disagree(agreement: pd.DataFrame) -> Caution | None:
    """Warn if attention-based and gradient-based methods order the tokens differently."""
    pairs = agreement.dropna(subset="tau").groupby(["first", "second"], sort=False)["tau"]
    across = {
        f"{first} and {second}": interval(taus.to_numpy(), seed=0)
        for (first, second), taus in pairs
        if {family(str(first)), family(str(second))} == {"attention", "gradients"}
    }
    low = {pair: found for pair, found in across.items() if found.mean < LOW_AGREEMENT}
    if not low:
        return None
    lowest = sorted(low, key=lambda pair: low[pair].mean)[:NAMED]
    named = "; ".join(f"{pair} {low[pair].said}" for pair in lowest)
    return Caution(
        "Attention and gradients tell different stories",
        f"{len(low)} of {len(across)} pairs have a mean Kendall’s τ over texts under "
        f"{LOW_AGREEMENT} (special tokens left out); lowest: {named}.",
        "High attention is not importance: trust the family that stands higher in the ranking, "
        "and do not quote the other as evidence.",
    )


def top_tokens_are_marks(texts: Texts) -> Caution | None:
    """Warn if the highest-scoring token is often special, punctuation or a function word."""
    shares, chance = [], []
    labels = texts[0] if texts else ()
    for label in labels:
        tops = Counter(kind(text[label], int(np.argmax(text[label].scores))) for text in texts)
        del tops[None]
        share = tops.total() / len(texts)
        if share >= TOP_SHARE:
            counted = tops.most_common()
            kinds = ", ".join(f"{name} {count / len(texts):.0%}" for name, count in counted)
            shares.append((share, f"{label} {share:.0%} ({kinds})"))
    for text in texts if labels else ():
        item = next(iter(text.values()))
        chance.append(np.mean([kind(item, i) is not None for i in range(len(item.tokens))]))
    above = [said for share, said in shares if share > np.mean(chance)]
    if not above:
        return None
    return Caution(
        "The top token is often one that means little",
        f"Share of texts where it is special, punctuation or a function word: {'; '.join(above)}; "
        f"{np.mean(chance):.0%} would be chance, {TOP_SHARE:.0%} is the threshold.",
        "Such tokens serve as places to look at when nothing else matters. Read these maps by "
        "their other tokens, or use a method that weighs attention by gradients or values.",
    )


def incomplete(texts: Texts) -> Caution | None:
    """Warn if scores miss the sum that their axiom asks for."""
    found = []
    for label in texts[0] if texts else ():
        shares = [share for text in texts if not math.isnan(share := relative_gap(text[label]))]
        over = sum(share > GAP for share in shares)
        if over:
            found.append(f"{label}: {over} of {len(shares)} texts, largest gap {max(shares):.0%}")
    if not found:
        return None
    return Caution(
        "Some scores do not sum to what they must",
        f"{'; '.join(found)} (more than {GAP:.0%} of the difference that is to be explained).",
        "Raise the method’s number of steps or lower its tolerance.",
    )


def relative_gap(attribution: Attribution) -> float:
    """Return the completeness gap as a share of what the scores must sum to; NaN without it."""
    if attribution.gap is None:
        return math.nan
    expected = float(attribution.scores.sum()) - attribution.gap
    return abs(attribution.gap / expected) if expected else math.nan
