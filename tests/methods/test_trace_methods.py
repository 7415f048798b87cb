"""Methods that read one pass: captum, references from the papers, closed forms, planted words."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import GradientShap as CaptumGradientShap
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import NoiseTunnel
from captum.attr import Saliency as CaptumSaliency
from torch import Tensor

import xattn
from xattn.errors import InputError
from xattn.model import Edit, Model, Site
from xattn.testing import TEXTS
from xattn.types import Batch, Target


def reference(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "reference" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"reference_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepared(model: Model, text: str = TEXTS[0]) -> tuple[Batch, Target]:
    batch = model.batch(model.encode([text]))
    return batch, model.target(batch)


def forward_of(model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Return the logits as a function of the embeddings, without the adapter."""
    extras = {k: v for k, v in batch.inputs.items() if k in model.input_names and k != "input_ids"}

    def forward(embeddings: Tensor) -> Tensor:
        rows = {k: v.expand(len(embeddings), -1) for k, v in extras.items()}
        return model.network(inputs_embeds=embeddings, **rows).logits  # type: ignore[no-any-return]

    return forward


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_gradients_equal_captum(tiny_of: Callable[..., Model], family: str) -> None:
    model = tiny_of(family)
    batch, target = prepared(model)
    embeddings = model.embeddings(batch.inputs)
    label = int(target.label)
    slopes = CaptumSaliency(forward_of(model, batch)).attribute(
        embeddings.clone().requires_grad_(), target=label, abs=False
    )[0]
    products = CaptumInputXGradient(forward_of(model, batch)).attribute(
        embeddings.clone().requires_grad_(), target=label
    )[0]
    expected = {
        "saliency": slopes.norm(dim=-1),
        "saliency:norm=l1": slopes.abs().sum(-1),
        "saliency:norm=mean": slopes.abs().mean(-1),
        "saliency:norm=max": slopes.abs().amax(-1),
        "input_x_gradient": products.sum(-1),
        "input_x_gradient:reduction=l2": products.norm(dim=-1),
        "input_x_gradient:reduction=l1": products.abs().sum(-1),
    }
    items = xattn.explain(model, [TEXTS[0]], list(expected))
    for item, values in zip(items, expected.values(), strict=True):
        largest = float(values.abs().max())
        np.testing.assert_allclose(item.scores, values.detach().numpy(), atol=1e-4 * largest)


def test_input_x_gradient_from_a_baseline(demo: Model) -> None:
    batch, target = prepared(demo)
    embeddings, start = demo.embeddings(batch.inputs), demo.baseline(batch, "mask")
    _, slope = demo.embedding_gradient(batch.inputs, embeddings, target)
    item = xattn.explain(demo, [TEXTS[0]], ["input_x_gradient:baseline=mask"])[0]
    expected = ((embeddings - start) * slope).sum(-1)[0]
    np.testing.assert_allclose(item.scores, expected.numpy(), atol=1e-6)
    assert (item.scores[item.special] == 0).all()


def eager(model: Model, batch: Batch, target: Target) -> tuple[list[Tensor], list[Tensor]]:
    """Return maps and their gradients by the network's own ``output_attentions``."""
    network = model.network
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        given = {name: batch.inputs[name] for name in model.input_names if name in batch.inputs}
        output = network(**given, output_attentions=True, use_cache=False)
        kinds = ("encoder_attentions", "decoder_attentions", "cross_attentions")
        if "encoder_attentions" in output:
            encoder, decoder, cross = (list(output[kind]) for kind in kinds)
            maps = [*encoder, *(m for pair in zip(decoder, cross, strict=True) for m in pair)]
        else:
            maps = list(output.attentions)
        y = target(output.logits).sum()
        gradients = torch.autograd.grad(y, maps)
    finally:
        network.set_attn_implementation(before)
    return [m.detach()[0] for m in maps], [g[0] for g in gradients]


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "gpt2", "llama"])
def test_generic_attention_equals_the_equations(tiny_of: Callable[..., Model], family: str) -> None:
    model = tiny_of(family)
    batch, target = prepared(model)
    relevance = reference("generic_attention").single(*eager(model, batch, target))
    item = xattn.explain(model, [TEXTS[0]], ["generic_attention"])[0]
    row = 0 if family in ("bert", "distilbert", "modernbert") else len(item.tokens) - 1
    np.testing.assert_allclose(item.scores, relevance[row].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_generic_attention_of_encoder_decoders_equals_the_equations(
    tiny_of: Callable[..., Model], family: str
) -> None:
    model = tiny_of(family, task="generate")
    encodings = model.encode(["A dull film"], [" sat there"])
    [aim] = model.aims(encodings, at=1)[0]
    batch, target = model.batch(encodings), model.target_of([aim])
    stacks = ["encoder"] * 2 + ["decoder", "cross"] * 2
    across, own = reference("generic_attention").crossed(stacks, *eager(model, batch, target))
    item = xattn.explain(model, encodings, ["generic_attention"], at=1)[0]
    row = aim.position[0]
    expected = torch.cat([across[row], own[row]]).numpy()
    np.testing.assert_allclose(item.scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("along", ["query", "key"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_attention_cat_equals_its_equations(
    tiny_of: Callable[..., Model], family: str, along: str
) -> None:
    model = tiny_of(family)
    batch, target = prepared(model)
    maps, _ = eager(model, batch, target)
    hidden: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        hidden.append(output[0] if isinstance(output, tuple) else output)

    blocks = {"bert": "bert.encoder.layer", "gpt2": "transformer.h", "llama": "model.layers"}
    layers = list(model.network.get_submodule(blocks[family]))
    handles = [layer.register_forward_hook(keep) for layer in layers]
    given = {name: batch.inputs[name] for name in model.input_names if name in batch.inputs}
    y = target(model.network(**given).logits).sum()
    slopes = torch.autograd.grad(y, hidden)
    for handle in handles:
        handle.remove()
    count = len(maps[0][0])
    expected = np.zeros(count)
    for attention, h, slope in zip(maps, hidden, slopes, strict=True):
        mean = attention.mean(0)
        for i in range(count):
            for j in range(count):
                c = float((h[0, j] * slope[0, j]).sum())
                expected[i if along == "query" else j] += float(mean[i, j]) * c
    item = xattn.explain(model, [TEXTS[0]], [f"attention_cat:along={along}"])[0]
    largest = np.abs(expected).max()
    np.testing.assert_allclose(item.scores, expected, atol=1e-4 * largest)


def test_smoothgrad_without_noise_is_the_gradient(demo: Model) -> None:
    specs = ["smoothgrad:noise=0.0,samples=3", "input_x_gradient",
             "smoothgrad:noise=0.0,samples=3,base=saliency", "saliency"]  # fmt: skip
    smooth, plain, length, slope = xattn.explain(demo, [TEXTS[1]], specs)
    np.testing.assert_allclose(smooth.scores, plain.scores, atol=1e-5)
    np.testing.assert_allclose(length.scores, slope.scores, atol=1e-5)


def test_smoothgrad_and_gradient_shap_agree_with_captum_in_the_mean(demo: Model) -> None:
    batch, target = prepared(demo)
    embeddings, start = demo.embeddings(batch.inputs), demo.baseline(batch, "mask")
    label, forward = int(target.label), forward_of(demo, batch)
    smooth, shap = xattn.explain(
        demo, [TEXTS[0]], ["smoothgrad:samples=600,noise=0.02",
                           "gradient_shap:samples=600,baseline=mask"]
    )  # fmt: skip
    torch.manual_seed(0)
    scale = 0.02 * float(embeddings.max() - embeddings.min())
    tunnel = NoiseTunnel(CaptumSaliency(forward))
    slopes = tunnel.attribute(
        embeddings, nt_samples=600, nt_samples_batch_size=100, stdevs=scale, target=label, abs=False
    )
    expected = (embeddings * slopes).sum(-1)[0].detach().numpy()
    np.testing.assert_allclose(smooth.scores, expected, atol=0.15 * np.abs(expected).max())
    theirs = CaptumGradientShap(forward).attribute(
        embeddings, baselines=start, n_samples=600, stdevs=0.0, target=label
    )
    expected = theirs.sum(-1)[0].detach().numpy()
    np.testing.assert_allclose(shap.scores, expected, atol=0.15 * np.abs(expected).max())


def test_gradient_shap_sums_to_the_difference_in_the_mean(demo: Model) -> None:
    shap, exact = xattn.explain(
        demo, [TEXTS[0]], ["gradient_shap:samples=800", "integrated_gradients:tolerance=1e-4"]
    )
    np.testing.assert_allclose(shap.scores, exact.scores, atol=0.1 * np.abs(exact.scores).max())


def test_sequential_paths_end_in_occlusion(demo: Model) -> None:
    """Along a path on which one token moves alone, that token's share is the whole change."""
    batch, target = prepared(demo)
    actual, start = demo.embeddings(batch.inputs), demo.baseline(batch, "mask")
    nodes, weights = np.polynomial.legendre.leggauss(40)
    item = xattn.explain(demo, [TEXTS[0]], ["occlusion:operator=mask"])[0]
    for token in np.flatnonzero(~item.special)[:3]:
        total = 0.0
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            point = actual.clone()
            point[0, token] = start[0, token] + float(node) * (actual - start)[0, token]
            _, slope = demo.embedding_gradient(batch.inputs, point, target)
            total += weight * float(((actual - start)[0, token] * slope[0, token]).sum())
        assert total == pytest.approx(item.scores[token], abs=2e-3)


@pytest.mark.parametrize(
    "method", ["input_x_gradient", "generic_attention", "smoothgrad", "gradient_shap"]
)
@pytest.mark.parametrize(
    ("text", "word"),
    [("The film was dreadful.", "dreadful"), ("What a wonderful evening.", "wonderful")],
)
def test_the_planted_word_comes_first(demo: Model, method: str, text: str, word: str) -> None:
    item = xattn.explain(demo, [text], [method])[0].words()
    ordinary = ~item.special
    assert np.array(item.tokens)[ordinary][item.scores[ordinary].argmax()] == word


def test_one_head_that_copies(tiny_of: Callable[..., Model]) -> None:
    """If one token alone is attended to in the last layer, it has all gradient-weighted attention.

    Frozen that way, the other keys' products are zero in that layer.
    """
    model = tiny_of("bert")
    last = model.links()[-1].site

    def copy(site: Site, p: Tensor) -> Tensor:
        return torch.zeros_like(p).index_fill(-1, torch.tensor([3]), 1.0) if site == last else p

    with model.edit(Edit(probabilities=copy)):
        item = xattn.explain(model, [TEXTS[0]], ["attention_gradient:layer=-1"])[0]
    assert np.flatnonzero(item.scores).tolist() == [3]


TASKS = [
    ("bert", "tag", None, "each"), ("bert", "answer", ["It is long."], "span"),
    ("bert", "fill", None, None), ("gpt2", "generate", [" sat"], "each"),
    ("llama", "generate", [" sat"], "whole"), ("t5", "generate", [" sat"], "each"),
    ("bart", "generate", [" sat"], "whole"),
]  # fmt: skip
METHODS = ("saliency", "input_x_gradient", "attention_gradient", "generic_attention",
           "attention_cat", "gradient_flow", "smoothgrad", "gradient_shap",
           "consensus")  # fmt: skip


@pytest.mark.parametrize(("family", "task", "pairs", "at"), TASKS)
def test_every_task(
    tiny_of: Callable[..., Model], family: str, task: str, pairs: Any, at: Any
) -> None:
    model = tiny_of(family, task=task)
    text = "A dull [MASK]" if task == "fill" else "A dull film"
    for item in xattn.explain(model, [text], METHODS, pairs=pairs, at=at):
        assert np.abs(item.scores).max() > 0, item.method


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("saliency:norm=l3", "norm of saliency: got 'l3'"),
        ("input_x_gradient:reduction=mean", "reduction of input_x_gradient"),
        ("attention_cat:along=head", "along of attention_cat"),
        ("smoothgrad:samples=0", "samples of smoothgrad: got 0"),
        ("smoothgrad:noise=-1.0", "noise of smoothgrad"),
        ("gradient_shap:baseline=none", "baseline of gradient_shap"),
        ("gradient_flow:weight=none", "weight of gradient_flow"),
        ("gradient_flow:sink=none", "sink of gradient_flow"),
        ("gradient_flow:barrier=0.0", "barrier of gradient_flow: got 0.0"),
        ("flow:memory=0.0", "memory of flow: got 0.0"),
    ],
)
def test_options_that_make_no_sense(demo: Model, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        xattn.explain(demo, ["A film."], [spec])


def test_flow_beyond_its_memory_says_the_size_and_the_option(demo: Model) -> None:
    message = r"flow of a text of \d+ tokens in 4 layers: got .* GiB of maps, .*flow:memory=1"
    with pytest.raises(InputError, match=message):
        xattn.explain(demo, [TEXTS[1]], ["flow:memory=1e-06"])


def test_methods_without_attention_serve_models_without(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("fnet")
    specs = ["saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "occlusion"]
    assert len(xattn.explain(model, [TEXTS[0]], specs)) == len(specs)
    with pytest.raises(xattn.errors.AttentionError, match="use a method that does not need"):
        xattn.explain(model, [TEXTS[0]], ["attention_cat"])
    with pytest.warns(xattn.errors.XattnWarning, match="rollout is left out: the attention of"):
        names = {item.method for item in xattn.explain(model, ["Dull!"], ["all"])}
    assert {"saliency", "exact_shapley", "random"} <= names
    assert "rollout" not in names


def test_memory_bounds_the_batch_and_not_the_result(demo: Model) -> None:
    small = Model(demo.network, demo.tokenizer, memory=0.002)
    assert small.budget < demo.budget
    specs = ["integrated_gradients", "smoothgrad"]
    pairs = zip(xattn.explain(small, TEXTS, specs), xattn.explain(demo, TEXTS, specs), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    with pytest.raises(InputError, match="memory: got 0"):
        Model(demo.network, demo.tokenizer, memory=0)


def test_no_memory_for_many_points_takes_fewer_at_a_time(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = xattn.explain(demo, [TEXTS[1]], ["integrated_gradients"])[0]
    original, sizes = Model.embedding_gradient, []

    def scarce(self: Model, inputs: Any, embeddings: Tensor, target: Target) -> Any:
        sizes.append(len(embeddings))
        if len(embeddings) > 2:
            raise torch.OutOfMemoryError
        return original(self, inputs, embeddings, target)

    monkeypatch.setattr(Model, "embedding_gradient", scarce)
    item = xattn.explain(demo, [TEXTS[1]], ["integrated_gradients"])[0]
    np.testing.assert_allclose(item.scores, expected.scores, atol=1e-5)
    assert sizes[:3] == [8, 4, 2]
