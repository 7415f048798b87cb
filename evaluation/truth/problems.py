"""The problems whose answers are known, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import xattn
from xattn.data import load_dataset
from xattn.evaluation.truth.compiled import copy, counting, induction
from xattn.evaluation.truth.planted import Kind, plant, train_planted
from xattn.evaluation.truth.problem import Problem, one_of_each
from xattn.evaluation.truth.questions import questions
from xattn.explanations import explain
from xattn.methods.exact_shapley import LARGEST


def planted(kind: Kind, count: int, seed: int = 0) -> Problem:
    """Return the problem of a model that was trained on texts of which one word tells the class.

    Parameters
    ----------
    kind : {"encoder", "decoder"}
    count, seed : int
        Of the texts; the model is trained on others.
    """
    drawn = plant(count, seed)
    return Problem(
        f"planted_{kind}",
        f"trained ({kind}): one word among fillers tells the class",
        "AUPRC",
        train_planted(kind),
        drawn.texts,
        tuple(
            one_of_each(len(text.split()), [key])
            for text, key in zip(drawn.texts, drawn.keys, strict=True)
        ),
    )


def shapley(count: int, seed: int = 0) -> Problem:
    """Return the problem of the demo model on the first short reviews: exact Shapley values.

    The same definition of the absence of a token as the methods use by default (masking) makes
    them; see `xattn.methods.exact_shapley`.

    Parameters
    ----------
    count : int
        Texts; there may be fewer that are short.
    seed : int
        Not used: the texts are given.
    """
    model = xattn.load()
    texts = load_dataset().texts
    short = tuple(t for t, e in zip(texts, model.encode(texts), strict=True)
                  if len(e.removable) <= LARGEST)[:count]  # fmt: skip
    exact = explain(model, short, ["exact_shapley"])
    return Problem(
        "shapley",
        "the demo model on short reviews: exact Shapley values of every token",
        "correlation",
        model,
        short,
        tuple(item.scores[~item.special].astype(float) for item in exact),
    )


PROBLEMS: Mapping[str, Callable[[int, int], Problem]] = {
    "planted_encoder": partial(planted, "encoder"),
    "planted_decoder": partial(planted, "decoder"),
    "copy": copy,
    "counting": counting,
    "induction": induction,
    "questions": questions,
    "shapley": shapley,
}
"""Each takes the number of texts and a seed, and makes the problem; some train a model first."""
