"""The texts that the report shows, chosen by a stated rule, and their tokens as coloured strips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from xattn import render
from xattn.evaluation import Comparison
from xattn.types import Attribution

EACH = 3
"""Texts taken under each of the four reasons."""
STRONG = 0.75
"""Strength from which on a token's ink changes, so that both inks keep their contrast."""
RULE = (
    f"Up to {EACH} texts for each of four reasons, in this order, no text twice: the model is "
    "wrong (surest first); one text of each kind, beginning with the kind on which the model errs "
    "most; the methods disagree most; the methods agree most (mean Kendall’s τ over all pairs)."
)


@dataclass(frozen=True)
class Token:
    """A token of a strip, or what stands between two tokens."""

    text: str
    index: int | None
    """The token's position, the same in all strips of a text; None between tokens."""
    score: str
    strength: float
    """How deep the colour is, 0..1."""
    side: str
    """CSS classes: for or against; strong where light text reads better; special."""


@dataclass(frozen=True)
class Strip:
    """One method's view of a text."""

    method: str
    tokens: list[Token]
    heat: Markup
    """The picture with its patches stained, where there is one."""


@dataclass(frozen=True)
class Example:
    """A text that is shown, why, and what each method says of it."""

    identifier: str
    reason: str
    kind: str
    prediction: str
    probability: str
    label: str
    """The true class, or nothing where the data have none."""
    wrong: bool
    target: str
    strips: list[Strip]
    picture: Markup
    """As the model sees it, where there is one."""


def chosen(examples: pd.DataFrame, agreement: pd.DataFrame) -> dict[int, str]:
    """Return the positions of the texts to show, with the reason for each, by `RULE`."""
    table = examples.reset_index(drop=True)
    wrong = table[wrongly(table)].sort_values("probability", ascending=False, kind="stable")
    tau = agreement.groupby("example")["tau"].mean().dropna().sort_values(kind="stable")
    reasons: list[tuple[str, Iterable[int]]] = [
        ("the model is wrong", wrong.index),
        ("of the kind “{kind}”", _one_of_each_kind(table)),
        ("the methods disagree most (τ {tau:.2f})", tau.index),
        ("the methods agree most (τ {tau:.2f})", tau.index[::-1]),
    ]
    picked: dict[int, str] = {}
    for words, candidates in reasons:
        fresh = [int(position) for position in candidates if position not in picked]
        for position in fresh[:EACH]:
            picked[position] = words.format(
                kind=table.loc[position, "kind"], tau=tau.get(position, float("nan"))
            )
    return picked or dict.fromkeys(range(min(EACH, len(table))), "the first texts")


def wrongly(examples: pd.DataFrame) -> pd.Series[bool]:
    """Return which texts have a known class that the model did not predict."""
    return examples["label"].notna() & (
        examples["label"].astype(str) != examples["prediction"].astype(str)
    )


def _one_of_each_kind(table: pd.DataFrame) -> list[int]:
    named = table[table["kind"].notna() & (table["kind"].astype(str) != "")]
    if named["kind"].nunique() < 2:
        return []
    share = wrongly(named).groupby(named["kind"], sort=False).mean()
    hardest_first = share.sort_values(ascending=False, kind="stable").index
    return [int(named.index[named["kind"] == kind][0]) for kind in hardest_first]


def shown(
    comparison: Comparison,
    texts: Sequence[Mapping[str, Attribution]],
    agreement: pd.DataFrame,
    order: Sequence[str],
) -> list[Example]:
    """Return the chosen texts with a strip for each method, in the given order of methods."""
    table = comparison.examples.reset_index(drop=True)
    wrong = wrongly(table)
    result = []
    for position, reason in chosen(table, agreement).items():
        row, strips = table.loc[position], texts[position]
        seen = next((a.picture for a in strips.values() if a.picture is not None), None)
        probability = float(table["probability"].iloc[position])
        if not strips:
            continue
        result.append(
            Example(
                identifier=_words(row["id"]),
                reason=reason,
                kind=_words(row["kind"]),
                prediction=_words(row["prediction"]),
                probability=f"{probability:.1%}",
                label=_words(row["label"]),
                wrong=bool(wrong[position]),
                target=next(iter(strips.values())).target,
                strips=[strip(m, strips[m]) for m in order if m in strips],
                picture=Markup() if seen is None else Markup(seen.img()),
            )
        )
    return result


def _words(value: object) -> str:
    return "" if value is None or value != value else str(value)


def strip(method: str, attribution: Attribution) -> Strip:
    """Return one method's view of a text, or of a picture."""
    picture = attribution.picture
    heat = Markup() if picture is None else Markup(picture.svg(attribution.patches))
    return Strip(method, tokens(attribution), heat)


def tokens(attribution: Attribution) -> list[Token]:
    """Return the text of an attribution as tokens with colours and the gaps between them."""
    largest = float(abs(attribution.scores).max(initial=0.0))
    result = []
    for piece in attribution.pieces():
        if piece.token is None:
            result.append(Token(piece.text, None, "", 0.0, ""))
            continue
        score = float(attribution.scores[piece.token])
        strength = render.strength(score, largest)
        classes = ["for" if score >= 0 else "against"]
        classes += ["strong"] * (strength > STRONG)
        classes += ["special"] * bool(attribution.segments[piece.token] < 0)
        result.append(
            Token(
                piece.text,
                piece.token,
                f"{score:+.3f}".replace("-", "−"),
                round(strength, 3),
                " ".join(classes),
            )
        )
    return result
