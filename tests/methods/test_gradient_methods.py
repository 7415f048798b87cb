"""Integrated gradients and attention times gradient: captum, finite differences, closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor

import xattn
from xattn.errors import InputError
from xattn.methods.attention_gradient import AttentionGradient
from xattn.methods.integrated_gradients import IntegratedGradients
from xattn.model import Edit, Model, Site
from xattn.testing import TEXTS


def captum_scores(
    model: Model, text: str, steps: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Integrated gradients of the predicted class by captum, from the mask token's embedding."""
    batch = model.batch(model.encode([text]))
    label = int(model.logits(batch.inputs).argmax())
    baseline = torch.where(batch.special, batch.inputs["input_ids"], model.token_id("auto"))
    extras = {k: v for k, v in batch.inputs.items() if k in model.input_names and k != "input_ids"}

    def forward(ids: Tensor) -> Tensor:
        repeated = {k: v.expand(len(ids), -1) for k, v in extras.items()}
        return model.network(input_ids=ids, **repeated).logits  # type: ignore[no-any-return]

    method = LayerIntegratedGradients(forward, model.network.get_input_embeddings())
    result = method.attribute(
        batch.inputs["input_ids"], baseline, target=label, n_steps=steps, method="gausslegendre"
    )
    return result.sum(-1)[0].detach().double().numpy()  # type: ignore[no-any-return]


def close(got: np.ndarray, expected: np.ndarray) -> bool:  # type: ignore[type-arg]
    return bool(np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("text", TEXTS)
def test_integrated_gradients_equal_captum_on_the_demo_model(demo: Model, text: str) -> None:
    method = IntegratedGradients(steps=32, tolerance=1.0)
    got = xattn.explain(demo, [text], [method])[0]
    assert got.backward_passes == 32
    assert close(got.scores, captum_scores(demo, text, 32))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "albert",
                                  "deberta-v2", "modernbert"])  # fmt: skip
def test_integrated_gradients_equal_captum_on_random_models(
    tiny_of: Callable[..., Model], name: str
) -> None:
    model = tiny_of(name)
    method = IntegratedGradients(steps=20, tolerance=1e9)
    got = xattn.explain(model, [TEXTS[0]], [method])[0]
    assert close(got.scores, captum_scores(model, TEXTS[0], 20))


def test_riemann_sums_equal_captum(demo: Model) -> None:
    batch = demo.batch(demo.encode([TEXTS[0]]))
    label = int(demo.target(batch).label)
    start = torch.where(batch.special, batch.inputs["input_ids"], demo.token_id("auto"))
    method = LayerIntegratedGradients(
        lambda ids: (
            demo.network(
                input_ids=ids, attention_mask=batch.inputs["attention_mask"].expand(len(ids), -1)
            ).logits
        ),
        demo.network.get_input_embeddings(),
    )
    expected = method.attribute(
        batch.inputs["input_ids"], start, target=label, n_steps=10, method="riemann_right"
    ).sum(-1)[0]
    spec = "integrated_gradients:steps=10,max_steps=10,rule=riemann"
    item = xattn.explain(demo, [TEXTS[0]], [spec])[0]
    assert close(item.scores, expected.detach().double().numpy())


def test_gaps_close_on_the_demo_model(demo: Model) -> None:
    batch = demo.batch(demo.encode(TEXTS))
    target = demo.target(batch)
    for item, y in zip(
        xattn.explain(demo, TEXTS, ["integrated_gradients"]),
        IntegratedGradients().difference(demo, batch, target).tolist(),
        strict=True,
    ):
        assert item.gap is not None
        assert abs(item.gap) <= 0.01 * abs(y)
        assert item.scores.sum() == pytest.approx(y + item.gap, abs=1e-5)


def test_steps_are_raised_until_the_gap_is_under_tolerance(demo: Model) -> None:
    loose = xattn.explain(demo, [TEXTS[1]], ["integrated_gradients:steps=1,tolerance=100.0"])[0]
    tight = xattn.explain(demo, [TEXTS[1]], ["integrated_gradients:steps=1,tolerance=0.0001"])[0]
    assert loose.backward_passes == 1
    assert tight.backward_passes > 3
    assert loose.gap is not None
    assert tight.gap is not None
    assert abs(tight.gap) < abs(loose.gap)


def test_max_steps_end_the_search_and_the_gap_is_told(tiny_of: Callable[..., Model]) -> None:
    spec = "integrated_gradients:steps=1,max_steps=2,tolerance=1e-9"
    item = xattn.explain(tiny_of("bert"), [TEXTS[0]], [spec])[0]
    assert item.backward_passes == 3  # 1 + 2
    assert item.gap is not None
    assert abs(item.gap) > 1e-6


def test_special_tokens_are_their_own_baseline(demo: Model) -> None:
    item = xattn.explain(demo, [TEXTS[0]], ["integrated_gradients"])[0]
    assert (item.scores[item.special] == 0).all()


class Linear(torch.nn.Module):
    """Stands in for a network: the logit is a weighted sum of the embeddings."""

    def __init__(self, network: torch.nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.inner, self.weights = network, weights
        self.config = network.config
        self.dtype = torch.float32

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.inner.get_input_embeddings()  # type: ignore[operator, no-any-return]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
        embedded = self.get_input_embeddings()(input_ids) * attention_mask[:, :, None]
        first = (embedded * self.weights[: input_ids.shape[1]]).sum((1, 2))
        return type("Output", (), {"logits": torch.stack([first, -first, 0 * first], -1)})()


def test_integrated_gradients_are_exact_on_a_linear_model(tiny_of: Callable[..., Model]) -> None:
    base = tiny_of("bert")
    weights = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    model = Model(Linear(base.network, weights), base.tokenizer)
    item = xattn.explain(model, [TEXTS[0]], ["integrated_gradients:steps=1"], label=0)[0]
    batch = model.batch(model.encode([TEXTS[0]]))
    table = base.network.get_input_embeddings().weight.detach()
    change = table[batch.inputs["input_ids"][0]] - table[model.token_id("mask")]
    expected = (change * weights[: len(item.tokens)]).sum(-1) * ~batch.special[0]
    np.testing.assert_allclose(item.scores, expected.numpy(), atol=1e-5)
    assert item.gap == pytest.approx(0, abs=1e-4)


def test_attention_gradient_equals_finite_differences_on_random_models(tiny: Model) -> None:
    check_finite_differences(tiny)


def test_attention_gradient_equals_finite_differences_on_the_demo_model(demo: Model) -> None:
    check_finite_differences(demo)


def check_finite_differences(model: Model) -> None:
    """Scaling what a token gives to all queries by 1 + ε changes y by ε times its score."""
    text = TEXTS[0]
    item = xattn.explain(model, [text], ["attention_gradient"])[0]
    batch = model.batch(model.encode([text]))
    target = model.target(batch)

    def score(token: int, step: float) -> float:
        def scale(site: Site, p: Tensor) -> Tensor:
            factor = torch.ones(p.shape[-1])
            factor[token] += step
            return p * factor

        with model.edit(Edit(probabilities=scale)):
            return float(model.score(batch.inputs, target))

    numeric = [(score(j, 0.01) - score(j, -0.01)) / 0.02 for j in range(len(item.tokens))]
    largest = max(map(abs, numeric))
    np.testing.assert_allclose(item.scores, numeric, atol=2e-3 * largest + 2e-4)


def test_attention_gradient_sums_over_layers(demo: Model) -> None:
    batch = demo.batch(demo.encode(TEXTS))
    target = demo.target(batch)
    layers = [AttentionGradient(layer=i)(demo, batch, target) for i in range(4)]
    torch.testing.assert_close(AttentionGradient()(demo, batch, target), sum(layers))


def test_grad_sam_keeps_only_what_is_positive(demo: Model) -> None:
    batch = demo.batch(demo.encode(TEXTS[:1]))
    trace = demo.trace(batch, demo.target(batch), gradients=True)
    expected = sum(
        (a * g).clamp(min=0).sum((1, 2)) for a, g in zip(trace.maps, trace.gradients, strict=True)
    )
    got = AttentionGradient(positive=True)(demo, batch, demo.target(batch))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("spec", ["integrated_gradients", "attention_gradient"])
@pytest.mark.parametrize(
    ("text", "words"),
    [("The film was dreadful.", "dreadful"), ("What a wonderful evening.", "wonderful")],
)
def test_the_planted_word_comes_first(demo: Model, spec: str, text: str, words: str) -> None:
    item = xattn.explain(demo, [text], [spec])[0].words()
    assert item.tokens[int(item.scores.argmax())] == words


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("integrated_gradients:baseline=mean", "baseline of integrated_gradients: got 'mean'"),
        ("integrated_gradients:rule=simpson", "rule of integrated_gradients: got 'simpson'"),
        ("integrated_gradients:steps=0", "steps of integrated_gradients: got 0"),
        ("integrated_gradients:tolerance=0", "tolerance of integrated_gradients: got 0"),
    ],
)
def test_options_that_make_no_sense(demo: Model, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        xattn.explain(demo, ["A film."], [spec])
