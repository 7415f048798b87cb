"""`effect`: what an edit of attention does to a prediction and to its explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import torch
from torch import Tensor

from xattn import render
from xattn.explanations import DEFAULT_METHODS, Explanations, explain_aims
from xattn.model import Model
from xattn.model.interventions import Intervenable
from xattn.registry import Method
from xattn.types import Aim, Encoding, Quantity


@dataclass(frozen=True, eq=False)
class Effect:
    """Predictions and explanations of one text without and with an edit."""

    before: Explanations
    after: Explanations
    """Of the same targets; of what is written instead, for models that generate."""
    probabilities: tuple[tuple[str, float, float], ...]
    """Classes (or next tokens) with their probabilities before and after; empty for numbers."""

    @property
    def changed(self) -> bool:
        """Whether the model says something else than before."""
        return _said(self.before) != _said(self.after)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{a:.1%}</td><td>{b:.1%}</td></tr>"
            for name, a, b in self.probabilities
        )
        table = f"<table><tr><th></th><th>before</th><th>after</th></tr>{rows}</table>"
        lines = [
            replace(item, method=f"{item.method}, {when}").line()
            for a, b in zip(self.before.by_text(), self.after.by_text(), strict=False)
            for pair in zip(a, b, strict=True)
            for when, item in zip(("before", "after"), pair, strict=True)
        ]
        return (table if rows else "") + render.table(lines)


def _said(explanations: Explanations) -> list[str]:
    return [group[0].prediction for group in explanations.by_text()]


def effect(
    model: Model,
    encoding: Encoding,
    edits: Sequence[Intervenable],
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    *,
    label: str | int | None = None,
    against: str | int | None = None,
    at: str | int | None = None,
    quantity: Quantity = "logit",
    max_new_tokens: int = 16,
    shown: int = 5,
) -> Effect:
    """Explain a text without and with edits of attention.

    Parameters
    ----------
    model : Model
    encoding : Encoding
        With the marks that the edits look for; see `xattn.model.mark`. A prompt without
        continuation is continued both times, and explained as a whole by default.
    edits : sequence of Edit or Intervention
    methods : sequence of str or Method
    label, against, at, quantity
        As in `explain`. What is explained afterwards is what was explained before, also where the
        prediction is another.
    max_new_tokens : int
        Length of what is generated.
    shown : int
        How many classes or tokens `Effect.probabilities` names.

    Raises
    ------
    XattnError
        As `explain`, and if an edit cannot take effect.
    """
    writes = model.task.name == "generate" and encoding.pair is None and at != "next"
    if writes:
        at = "whole" if at is None else at
        [before] = model.generate([encoding], max_new_tokens)
        with model.edit(*edits):
            [after] = model.generate([encoding], max_new_tokens)
    else:
        before = after = encoding
    [aims] = model.aims([before], label, against, at)
    then = _probabilities(model, encoding, at)
    with model.edit(*edits):
        if writes:
            [edited] = model.aims([after], label, against, at)
        else:
            edited = [_asked_again(model, after, aim) for aim in aims]
        explained = explain_aims(model, [(after, aim) for aim in edited], methods, quantity)
        now = _probabilities(model, encoding, at)
    order = torch.maximum(then, now).argsort(descending=True)[:shown].tolist()
    return Effect(
        before=explain_aims(model, [(before, aim) for aim in aims], methods, quantity),
        after=explained,
        probabilities=tuple((model.class_name(i), float(then[i]), float(now[i])) for i in order),
    )


def _asked_again(model: Model, encoding: Encoding, aim: Aim) -> Aim:
    """Return an aim with what the model predicts there now."""
    now = model.aims([encoding], at=aim.at)[0][0]
    return replace(aim, prediction=now.prediction, probability=now.probability)


def _probabilities(model: Model, encoding: Encoding, at: str | int | None) -> Tensor:
    """Return the probability of each class, or of each next token, of a text."""
    if model.link == "identity" or model.task.name not in ("classify", "image", "generate"):
        return torch.empty(0)
    place = "next" if model.task.name == "generate" else None
    [[aim]] = model.aims([encoding], at=place)
    [logits] = model.logits(model.batch([encoding]).inputs, aim.position)
    row: Tensor = logits.view(-1, logits.shape[-1])[0]
    return row.sigmoid() if model.link == "sigmoid" else row.softmax(-1)
