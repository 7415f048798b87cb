"""Consensus: what two methods agree on, by several definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, rankdata

import xattn
from xattn import testing
from xattn.errors import InputError, UnknownNameError
from xattn.methods.consensus import Consensus, Fusion
from xattn.model import Model
from xattn.registry import methods as registry
from xattn.testing import TEXTS
from xattn.types import Attribution, Floats

DEFINITIONS = get_args(Fusion)
SHARE = 0.25


def sizes(item: Attribution) -> Floats:
    """Return the sizes of the text's own tokens, slowly."""
    values = np.abs(item.scores[~item.special].astype(np.float64))
    return values / values.max() if values.max() > 0 else values


def expected(by: str, one: Attribution, other: Attribution) -> Floats:
    """Return what the definition says of the text's own tokens."""
    a, b = sizes(one), sizes(other)
    count = len(a)
    k = max(1, round(SHARE * count))
    both = {
        "product": a * b,
        "geometric_mean": np.sqrt(a * b),
        "minimum": np.minimum(a, b),
        "rank_minimum": np.minimum(*(rankdata(x) / count * (x > 0) for x in (a, b))),
        "top_k": np.all([(x >= np.sort(x)[-k]) & (x > 0) for x in (a, b)], axis=0) * 1.0,
    }[by]
    signs = [np.sign(x.scores[~x.special]) for x in (one, other) if x.signed]
    for sign in signs:
        both = np.where(sign == signs[0], both * np.abs(sign), 0)
    return np.asarray(both * signs[0] if signs else both)


@pytest.mark.parametrize(
    ("attention", "gradient"),
    [
        ("rollout", "input_x_gradient"),  # one has signs
        ("attention_gradient", "input_x_gradient"),  # both have
        ("attention", "saliency"),  # none has
    ],
)
def test_it_is_the_intersection_of_its_parts(demo: Model, attention: str, gradient: str) -> None:
    options = f"attention={attention},gradient={gradient},share={SHARE}"
    specs = [attention, gradient, *(f"consensus:{options},by={by}" for by in DEFINITIONS)]
    for one, other, *fused in xattn.explain(demo, TEXTS, specs).by_text():
        for by, found in zip(DEFINITIONS, fused, strict=True):
            own = found.scores[~found.special]
            np.testing.assert_allclose(own, expected(by, one, other), atol=2e-5, err_msg=by)
            assert np.abs(own).max() > 0
            assert np.abs(found.scores).max() <= 1


@pytest.mark.parametrize("by", DEFINITIONS)
def test_every_definition_conforms(demo: Model, by: str) -> None:
    testing.check_method(f"consensus:by={by}", demo)  # by product, on every family as well


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_batching_does_not_change_ranks(tiny_of: Callable[..., Model], family: str) -> None:
    for by in ("rank_minimum", "top_k"):
        testing.check_batching(tiny_of(family), registry.build(f"consensus:by={by}"))


def test_the_geometric_mean_orders_as_the_product(demo: Model) -> None:
    both = ["consensus:by=product", "consensus:by=geometric_mean"]
    for one, other in xattn.explain(demo, TEXTS, both).by_text():
        assert kendalltau(one.scores, other.scores).statistic == pytest.approx(1)


def test_rank_minimum_is_the_least_k_with_which_a_token_is_in_both_tops(demo: Model) -> None:
    named = "consensus:attention=rollout,gradient=saliency"
    item = xattn.explain(demo, [TEXTS[0]], [f"{named},by=rank_minimum"])[0]
    real = ~item.special
    count = int(real.sum())
    tops = [f"{named},by=top_k,share={k / count}" for k in range(1, count + 1)]
    inside = np.stack([top.scores[real] > 0 for top in xattn.explain(demo, [TEXTS[0]], tops)])
    least = 1 + inside.argmax(0)
    assert inside[-1].all()
    np.testing.assert_allclose(item.scores[real], (count + 1 - least) / count, atol=1e-6)


def test_level_tokens_stay_level(demo: Model) -> None:
    """Flow gives 1 to most tokens: ranks must not depend on how that was rounded."""
    spec = "consensus:attention=flow,gradient=saliency,by=rank_minimum"
    flow, item = xattn.explain(demo, [TEXTS[0]], ["flow", spec])
    real = ~flow.special
    level = np.isclose(flow.scores[real], flow.scores[real].max(), atol=1e-5)
    bound = rankdata(np.round(flow.scores[real], 5))[level][0] / real.sum()
    assert level.sum() > 1
    assert (item.scores[real] <= bound + 1e-6).all()


def test_special_tokens_set_no_scale(demo: Model) -> None:
    """Rollout goes to [CLS] and [SEP]; the words are compared with each other all the same."""
    specs = ["rollout", "attention_gradient", "consensus:by=minimum"]
    one, other, both = xattn.explain(demo, [TEXTS[1]], specs)
    real = ~one.special
    assert one.scores[~real].max() > one.scores[real].max()
    top = int(np.where(real, one.scores, 0).argmax())
    share = float(np.abs(other.scores[top]) / np.abs(other.scores[real]).max())
    assert abs(both.scores[top]) == pytest.approx(share, abs=1e-5)


def test_what_is_not_finite_is_not_ranked_away(demo: Model) -> None:
    words = torch.ones(1, 3, dtype=torch.bool)
    broken = torch.tensor([[0.5, float("nan"), 1.0]])
    for by in DEFINITIONS:
        both = Consensus(by=by)._both(broken, torch.ones(1, 3), words)
        assert not bool(both.isfinite().all()), by


def test_parts_that_read_a_trace_share_one(demo: Model) -> None:
    item = xattn.explain(demo, [TEXTS[0]], ["consensus"])[0]
    assert (item.forward_passes, item.backward_passes) == (1, 1)


def test_parts_may_have_an_option(demo: Model) -> None:
    plain, other = xattn.explain(
        demo, [TEXTS[1]], ["consensus", "consensus:attention=rollout:residual=0.1"]
    )
    assert np.abs(plain.scores - other.scores).max() > 1e-3


def test_the_planted_word_comes_first(demo: Model) -> None:
    for by in DEFINITIONS:
        spec = f"consensus:by={by}"
        item = xattn.explain(demo, ["The film was dreadful."], [spec])[0].words()
        assert item.tokens[int(item.scores.argmax())] == "dreadful", by


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ("by=union", InputError, "by of consensus"),
        ("share=0", InputError, "share of consensus: got 0"),
        ("share=1.5", InputError, "share of consensus"),
        ("gradient=consensus", InputError, "a consensus of itself"),
        ("attention=consensus:by=minimum", InputError, "a consensus of itself"),
        ("attention=rollouts", UnknownNameError, "rollouts"),
        ("fusion=product", UnknownNameError, "fusion"),
    ],
)
def test_bad_options(demo: Model, options: str, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        xattn.explain(demo, ["A film."], [f"consensus:{options}"])
