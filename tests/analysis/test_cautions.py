"""Warnings are found where they were planted, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from typer.testing import CliRunner

import xattn
from xattn.analysis.cautions import (
    Looks,
    agreement,
    cautions,
    flips,
    looks,
    rests_on_marks,
    tells_another_story,
)
from xattn.caution import kind
from xattn.commands import app
from xattn.model import Model
from xattn.types import Attribution

WORDS = ("[CLS]", "The", "film", "shines", "not", "dull", "warm", "bright", ".", "[SEP]")
MARKS, STORY, FLIPS = (
    "Attention rests on tokens that mean little",
    "Attention and gradients tell different stories",
    "What attention says turns on the head and the layer",
)


def item(method: str, scores: list[float], *, signed: bool = False) -> Attribution:
    count = len(WORDS)
    inside = np.arange(count)
    return Attribution(
        text=" ".join(WORDS[1:-1]),
        pair=None,
        tokens=WORDS,
        offsets=np.zeros((count, 2), dtype=np.int64),
        segments=np.where((inside == 0) | (inside == count - 1), -1, 0),
        word_ids=inside - 1,
        scores=np.array(scores, dtype=np.float32),
        method=method,
        parameters={},
        target="logit of positive",
        prediction="positive",
        probability=0.9,
        signed=signed,
    )


RISING = [0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0, 0.0]
SINK = [0.8, 0.0, 0.1, 0.2, 0.3, 0.4, 0.1, 0.1, 0.3, 0.9]


def test_tokens_that_mean_little() -> None:
    kinds = [kind(item("attention", RISING), i) for i in range(len(WORDS))]
    assert kinds == ["special", "function word", *[None] * 6, "punctuation", "special"]


def test_attention_on_words_is_no_mistake() -> None:
    assert rests_on_marks([{"attention": item("attention", RISING)}]) is None


def test_attention_on_marks_is_told_with_its_share() -> None:
    gradients = item("integrated_gradients", RISING, signed=True)
    text = {"attention": item("attention", SINK), "integrated_gradients": gradients}
    found = rests_on_marks([text])
    assert found is not None
    share = (0.8 + 0.3 + 0.9) / sum(SINK)
    assert f"40% of the tokens: attention {share:.0%} ('[SEP]' 28%, '[CLS]' 25%" in found.evidence
    assert "integrated_gradients 0%" in found.evidence
    assert found.title == MARKS


def test_a_gradient_method_on_marks_is_not_attention() -> None:
    text = {"integrated_gradients": item("integrated_gradients", SINK, signed=True)}
    assert rests_on_marks([text]) is None


def test_even_attention_does_not_rest_on_marks() -> None:
    assert rests_on_marks([{"attention": item("attention", [0.1] * 10)}]) is None


def test_orders_that_agree_are_no_mistake() -> None:
    text = {
        "attention": item("attention", RISING),
        "integrated_gradients": item("integrated_gradients", RISING, signed=True),
    }
    assert tells_another_story([text]) is None
    # attention has no sign: what speaks strongly against counts as much
    against = item("integrated_gradients", [-score for score in RISING], signed=True)
    assert tells_another_story([{**text, "integrated_gradients": against}]) is None


def test_orders_that_disagree_are_told_with_their_interval() -> None:
    other = item("integrated_gradients", [0, 0, 0.6, 0.1, 0.5, 0.2, 0.4, 0.3, 0.7, 0], signed=True)
    text = {"attention": item("attention", RISING), "integrated_gradients": other}
    found = tells_another_story([text])
    assert found is not None
    assert found.title == STORY
    tau = kendalltau(RISING[1:-1], other.scores[1:-1]).statistic
    expected = f"{tau:+.2f} (95 % interval".replace("-", "−")
    assert expected in found.evidence


def test_the_interval_of_one_text_is_that_of_fieller() -> None:
    """It covers the true τ of orders that were drawn: of pairs of normal scores, 2/π asin ρ."""
    draw, rho, covered = np.random.default_rng(0), 0.6, []
    true = 2 / np.pi * np.arcsin(rho)
    for _ in range(400):
        a = draw.normal(size=8)
        b = rho * a + np.sqrt(1 - rho**2) * draw.normal(size=8)
        found = agreement(
            [
                (
                    item("attention", [0, *a, 0], signed=True),
                    item("integrated_gradients", [0, *b, 0], signed=True),
                )
            ]
        )
        covered.append(found.low <= true <= found.high)
    assert 0.91 < np.mean(covered) < 0.99


def test_several_texts_have_an_interval_over_texts() -> None:
    same = (item("attention", RISING), item("integrated_gradients", RISING))
    found = agreement([same, same, same])
    assert (found.mean, found.low, found.high, found.n) == (1, 1, 1, 3)


def planted(favourites: list[list[int]]) -> Looks:
    shares = np.full((len(favourites), len(favourites[0]), len(WORDS)), 0.01)
    for layer, heads in enumerate(favourites):
        for head, token in enumerate(heads):
            shares[layer, head, token] = 0.5
    return Looks(tuple(str(layer) for layer in range(len(favourites))), shares)


def text_of(top: int) -> dict[str, Attribution]:
    scores = [0.1] * len(WORDS)
    scores[top] = 1.0
    return {name: item(name, scores) for name in ("attention", "rollout", "flow")}


def test_heads_of_one_mind_are_no_mistake() -> None:
    assert flips([planted([[3, 3], [3, 3]])], [text_of(3)]) is None


def test_heads_that_differ_are_counted() -> None:
    found = flips([planted([[3, 5, 6, 7], [3, 2, 5, 7]])], [text_of(3)])
    assert found is not None
    assert found.title == FLIPS
    assert "'shines' in 2, 'dull' in 2, 'bright' in 2 of 8 heads" in found.evidence


def test_aggregations_that_differ_are_named() -> None:
    text = {**text_of(3), "flow": text_of(5)["flow"]}
    found = flips([planted([[3, 3], [3, 3]])], [text])
    assert found is not None
    assert "flow 'dull'" in found.evidence


def test_tokens_that_are_level_are_not_a_choice() -> None:
    level = item("flow", [0.1, 0.1, 0.1, 1, 0.1, 1, 0.1, 0.1, 0.1, 0.1])
    assert flips([planted([[3, 3], [3, 3]])], [{**text_of(3), "flow": level}]) is None


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "bart"])
def test_looks_are_the_rows_that_the_prediction_is_read_from(
    tiny_of: Callable[..., Model], family: str
) -> None:
    model = tiny_of(family, task="generate" if family == "bart" else "classify")
    pairs = {"pairs": ["good acting", "bad"]} if family == "bart" else {}
    encodings = model.encode(["a good film", "the story is bad and dull"], **pairs)
    aims = [each[0] for each in model.aims(encodings)]
    found = looks(model, list(zip(encodings, aims, strict=True)))
    for encoding, aim, look in zip(encodings, aims, found, strict=True):
        batch = model.batch([encoding])
        trace = model.trace(batch, model.target_of([aim]))
        rows = [
            (trace.keys(number), (trace.readout[0, trace.queries(number)] @ maps[0]).numpy())
            for number, maps in enumerate(trace.maps)
            if trace.readout[0, trace.queries(number)].any()
        ]
        assert len(rows) == len(look.layers)
        for (keys, expected), shares in zip(rows, look.shares, strict=True):
            np.testing.assert_allclose(shares[:, keys], expected, atol=1e-6)


def test_the_whole_check_runs_on_the_result_of_explain(demo: Model) -> None:
    result = xattn.explain(demo, ["Boring, boring, boring."], ["rollout"])
    titles = [caution.title for caution in cautions(demo, result)]
    assert titles == [MARKS, FLIPS]
    in_words = xattn.explain(demo, ["Boring, boring, boring."], ["rollout"], unit="word")
    assert [caution.title for caution in cautions(demo, in_words)] == titles
    assert cautions(demo, xattn.explain(demo, ["Boring."], ["integrated_gradients"])) == []


def test_the_model_is_as_before(demo: Model) -> None:
    before = torch.cat([p.flatten()[:3] for p in demo.network.parameters()])
    cautions(demo, xattn.explain(demo, ["A dull film."], ["attention"]))
    assert torch.equal(before, torch.cat([p.flatten()[:3] for p in demo.network.parameters()]))
    assert not any(module._forward_hooks for module in demo.network.modules())


def test_explain_warns_and_can_be_told_not_to(tmp_path) -> None:
    page = tmp_path / "page.html"
    asked = ["explain", "Boring, boring, boring.", "-m", "rollout"]
    result = CliRunner().invoke(app, [*asked, "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert MARKS in result.output
    assert MARKS in page.read_text()
    silent = CliRunner().invoke(app, [*asked, "--no-cautions", "--html", str(page)])
    assert MARKS not in silent.output + page.read_text()
