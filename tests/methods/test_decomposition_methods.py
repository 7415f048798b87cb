"""Norm-based and decomposition methods: slow references, closed forms, planted answers, tasks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import xattn
from xattn.errors import AttentionError, InputError
from xattn.methods.decompx import DecompX
from xattn.model import Edit, Model, Site
from xattn.model.decomposition import attention_parts
from xattn.testing import TEXTS

Array = NDArray[np.float64]
Tiny = Callable[..., Model]
METHODS = ("value_norm", "globenc", "alti", "decompx", "decompx:bias=none", "value_zeroing")
TEXT = "It begins slowly, but the last hour is a wonder."


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    path = Path(__file__).parents[1] / "reference" / "decomposition.py"
    spec = importlib.util.spec_from_file_location("reference_decomposition", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["demo", "bert"])
def bert(request: pytest.FixtureRequest, demo: Model, tiny_of: Tiny) -> Model:
    return demo if request.param == "demo" else tiny_of("bert")


def scores(model: Model, text: str, spec: str) -> Array:
    return xattn.explain(model, [text], [spec])[0].scores.astype(np.float64)


def own_inputs(model: Model, text: str) -> dict[str, Tensor]:
    batch = model.batch(model.encode([text]))
    return {name: batch.inputs[name] for name in model.input_names}


@pytest.mark.parametrize("name", ["value_norm", "globenc", "alti"])
def test_norms_equal_loops_over_the_papers_equations(
    bert: Model, reference: ModuleType, name: str
) -> None:
    slow = reference.Bert(bert.network, own_inputs(bert, TEXT))
    row = np.eye(slow.tokens)[0]  # BERT reads from [CLS]
    expected = getattr(reference, name)(slow, row)
    np.testing.assert_allclose(scores(bert, TEXT, name), expected, atol=1e-6)
    assert expected.max() > 1.2 / slow.tokens  # or nothing here says anything


@pytest.mark.parametrize("rule", ["absdot", "norm", "equal", "none"])
def test_decompx_equals_loops_over_the_papers_equations(
    bert: Model, reference: ModuleType, rule: str
) -> None:
    slow = reference.Bert(bert.network, own_inputs(bert, TEXT))
    label = int(slow.logits.argmax())
    expected = reference.decompx(slow, label, rule)
    np.testing.assert_allclose(
        scores(bert, TEXT, f"decompx:bias={rule}"), expected, atol=1e-5 * np.abs(expected).max()
    )
    if rule != "none":
        assert expected.sum() == pytest.approx(slow.logits[label], abs=1e-5)


def test_decompx_of_gated_units_equals_a_frozen_jacobian_by_autograd(
    tiny_of: Tiny, reference: ModuleType
) -> None:
    model = tiny_of("llama")
    inputs = own_inputs(model, TEXT)
    logits = model.logits(inputs)[0]
    label = int(logits.argmax())
    expected = reference.frozen_llama(model.network, inputs, label)
    for rule in ("absdot", "none"):  # there are no biases
        got = scores(model, TEXT, f"decompx:bias={rule}")
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    assert expected.sum() == pytest.approx(float(logits[label]), abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_value_zeroing_equals_runs_of_the_whole_network(
    tiny_of: Tiny, reference: ModuleType, family: str
) -> None:
    model = tiny_of(family)
    if family == "bert":
        layers = list(model.network.bert.encoder.layer)
        values = [layer.attention.self.value for layer in layers]
    else:
        layers = list(model.network.model.layers)
        values = [layer.self_attn.v_proj for layer in layers]
    inputs = own_inputs(model, TEXT)
    count = inputs["input_ids"].shape[1]
    row = np.eye(count)[0 if family == "bert" else count - 1]
    expected = reference.value_zeroing(model.network, inputs, layers, values, row)
    np.testing.assert_allclose(scores(model, TEXT, "value_zeroing"), expected, atol=2e-6)


# ----------------------------------------------------------------- closed forms


@pytest.fixture
def one_head(tiny_of: Tiny) -> Model:
    """One layer, one head, which hands on twice the tokens' vectors, and no feed-forward block."""
    tokenizer = tiny_of("bert").tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=64, num_labels=3, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    network = BertForSequenceClassification(config).eval()
    layer = network.bert.encoder.layer[0]
    with torch.no_grad():
        layer.attention.self.value.weight.copy_(torch.eye(8))
        layer.attention.output.dense.weight.copy_(2 * torch.eye(8))
        layer.output.dense.weight.zero_()
    return Model(network, tokenizer, name="one-head")


def looked_at(model: Model, text: str) -> tuple[Tensor, Tensor]:
    """Return the attention of [CLS] and the vectors that enter the layer."""
    batch = model.batch(model.encode([text]))
    attention = model.trace(batch, model.target(batch)).maps[0][0, 0, 0]
    with torch.no_grad():
        vectors = model.network.bert.embeddings(batch.inputs["input_ids"])[0]
    return attention.double(), vectors.double()


def test_one_head_with_known_weights(one_head: Model) -> None:
    attention, vectors = looked_at(one_head, TEXT)
    added = 2 * attention[:, None] * vectors
    norms = added.norm(dim=-1)
    expected = {"value_norm:layer=0": norms / norms.sum()}
    parts = added.clone()
    parts[0] += vectors[0]
    true = parts.sum(0)
    parts = (parts - parts.mean(-1, keepdim=True)) / true.std(correction=0)
    lengths = parts.norm(dim=-1)
    expected["globenc"] = lengths / lengths.sum()  # the second norm scales all parts alike
    y = parts.sum(0)
    nearness = (y.abs().sum() - (y - parts).abs().sum(-1)).clamp(min=0)
    expected["alti"] = nearness / nearness.sum()
    for spec, value in expected.items():
        np.testing.assert_allclose(scores(one_head, TEXT, spec), value.numpy(), atol=1e-5)


def test_a_model_that_copies_one_token_gives_it_everything(demo: Model) -> None:
    def copy(site: Site, p: Tensor) -> Tensor:
        return torch.zeros_like(p).index_fill(-1, torch.tensor([3]), 1.0)

    with demo.edit(Edit(probabilities=copy)):
        for spec in ("value_norm:residual=0.0", "value_zeroing"):
            got = scores(demo, TEXTS[0], spec)
            np.testing.assert_allclose(got, np.eye(len(got))[3], atol=1e-6)
        for spec in ("globenc", "alti", "decompx:bias=none"):
            got = scores(demo, TEXTS[0], spec)
            others = np.delete(got, [0, 3])  # [CLS] keeps its own by the residual connection
            assert others == pytest.approx(0, abs=1e-6)
            assert got[3] != pytest.approx(0, abs=1e-3)


def test_a_model_without_mixing_reads_its_own_token_alone(tiny_of: Tiny) -> None:
    """Nothing comes from attention: the logit is all the last token's."""
    model = tiny_of("llama")
    with torch.no_grad():
        for layer in model.network.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    item = xattn.explain(model, [TEXT], ["decompx"])[0]
    batch = model.batch(model.encode([TEXT]))
    logit = float(model.score(batch.inputs, model.target(batch))[0])
    assert item.scores[-1] == pytest.approx(logit, abs=1e-5)
    assert np.abs(item.scores[:-1]).max() == 0


def test_a_linear_model_is_split_exactly(tiny_of: Tiny) -> None:
    """Without feed-forward blocks, one layer of attention is a sum over tokens by hand."""
    model = tiny_of("gpt2", n_layer=1)
    network = model.network
    block = network.transformer.h[0]
    with torch.no_grad():
        block.mlp.c_proj.weight.zero_()
    batch = model.batch(model.encode([TEXT]))
    target = model.target(batch)
    attention = model.trace(batch, target).maps[0][0, :, -1].double()
    ids = batch.inputs["input_ids"][0]
    with torch.no_grad():
        x = (network.transformer.wte(ids) + network.transformer.wpe.weight[: len(ids)]).double()

    def centred(vectors: Tensor, true: Tensor, norm: Any) -> Tensor:
        root = (true.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        return (vectors - vectors.mean(-1, keepdim=True)) / root * norm.weight.double()

    with torch.no_grad():
        normed = centred(x, x, block.ln_1) @ block.attn.c_attn.weight.double()[:, 64:]
        heads = normed.view(len(ids), 4, 8).transpose(0, 1)
        mixed = (attention[:, :, None] * heads).transpose(0, 1).reshape(len(ids), 32)
        parts = mixed @ block.attn.c_proj.weight.double()
        parts[-1] += x[-1]
        # biases are zero when a network is new
        parts = centred(parts, parts.sum(0), network.transformer.ln_f)
        expected = parts @ network.score.weight.double()[int(target.label[0])]
    got = DecompX()(model, batch, target)[0].double()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


# ----------------------------------------------------------------- what they promise


@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize(
    ("text", "word"),
    [("The film was dreadful.", "dreadful"), ("What a wonderful evening.", "wonderful")],
)
def test_the_planted_word_comes_first(demo: Model, spec: str, text: str, word: str) -> None:
    item = xattn.explain(demo, [text], [spec])[0].words()
    assert item.tokens[int(item.scores.argmax())] == word


CASES: dict[str, tuple[str, list[str], list[str] | None, str | int | None]] = {
    "classify": ("bert", ["A clumsy film.", "A dull and heartless bore."], None, None),
    "tag": ("deberta-v2", ["A clumsy film.", "Dull, dull and heartless."], None, "each"),
    "answer": ("roberta", ["What is dull?", "Why?"], ["The film is dull.", "A bore it is."], None),
    "fill": ("bert", ["A [MASK] film.", "[MASK] and [MASK] a bore"], None, None),
    "generate": ("llama", ["A clumsy film", "The dull"], [" is a bore", " man and woman"], "each"),
    "generate the whole": ("gpt2", ["A clumsy film", "A"], [" is a bore", " man"], "whole"),
    "generate from a source": ("bart", ["A clumsy film", "The dull"], ["is a", "man or"], "each"),
    "generate all from a source": ("t5", ["A clumsy film", "A"], ["is a bore", "man"], "whole"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_task_is_served(tiny_of: Tiny, case: str) -> None:
    family, texts, pairs, at = CASES[case]
    model = tiny_of(family, task=case.split()[0])
    encodings = model.encode(texts, pairs)
    together = xattn.explain(model, encodings, METHODS, at=at)
    alone = [item for e in encodings for item in xattn.explain(model, [e], METHODS, at=at)]
    for item, single in zip(together, alone, strict=True):
        np.testing.assert_allclose(item.scores, single.scores, atol=2e-5)
        if item.gap is None:
            assert float(item.scores.sum()) == pytest.approx(1, abs=1e-5)
        else:
            assert abs(item.gap) <= 1e-4 * max(1, float(np.abs(item.scores).sum()))


@pytest.mark.parametrize("spec", ["globenc", "alti", "value_zeroing"])
def test_the_source_gets_its_share_through_the_decoder(tiny_of: Tiny, spec: str) -> None:
    model = tiny_of("bart", task="generate")
    item = xattn.explain(model, ["A clumsy film"], [spec], pairs=["is a bore"], at=1)[0]
    source = item.segments == 0
    assert 0.02 < float(item.scores[source].sum()) < 0.98


def test_value_norms_are_those_of_the_values_under_the_output_projection(tiny_of: Tiny) -> None:
    """Grouped queries: each head's own value, all under W_O, and the parts sum to the output."""
    model = tiny_of("llama")
    batch = model.batch(model.encode([TEXT]))
    seen: dict[Site, dict[str, Tensor]] = {}

    def keep(name: str) -> Callable[[Site, Tensor], Tensor]:
        def record(site: Site, tensor: Tensor) -> Tensor:
            seen.setdefault(site, {})[name] = tensor
            return tensor

        return record

    edit = Edit(probabilities=keep("p"), values=keep("v"), outputs=keep("o"))
    with model.edit(edit):
        model.logits(batch.inputs)
    steps = attention_parts(model, batch, lambda parts, whole: parts.norm(dim=-1))
    for (site, held), (_, matrix) in zip(seen.items(), steps, strict=True):
        weight = model.network.get_submodule(site.module).o_proj.weight
        each = held["p"][0, :, :, :, None] * held["v"][0, :, None]  # [head, query, key, dim]
        vectors = each.permute(1, 2, 0, 3).flatten(2) @ weight.T
        torch.testing.assert_close(matrix, vectors.norm(dim=-1), atol=1e-5, rtol=1e-5)


# ----------------------------------------------------------------- what they refuse


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("value_norm:residual=1.5", "residual of value_norm: got 1.5, expected 0 to 1"),
        ("value_norm:layer=9", "layer of value_norm: got 9, expected -4 to 3"),
    ],
)
def test_options_out_of_range(demo: Model, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        xattn.explain(demo, ["A dull film."], [spec])


@pytest.mark.parametrize(
    "spec",
    ["value_norm:norm=3", "globenc:norm=0", "alti:norm=3", "decompx:bias=dot",
     "value_zeroing:distance=manhattan"],
)  # fmt: skip
def test_options_that_do_not_exist(demo: Model, spec: str) -> None:
    with pytest.raises(InputError, match=spec.partition(":")[0]):
        xattn.explain(demo, ["A dull film."], [spec])


def test_only_logits_are_sums_of_parts(demo: Model) -> None:
    with pytest.raises(InputError, match="only logits are sums of parts: got quantity prob"):
        xattn.explain(demo, ["A dull film."], ["decompx"], quantity="probability")


class Sine(torch.nn.Module):
    """An activation that no rule knows: it has a weight, so it is not taken for one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).sin()


def test_what_does_not_add_up_is_refused_with_the_gap(tiny_of: Tiny) -> None:
    model = tiny_of("bert")
    model.network.bert.encoder.layer[1].intermediate.intermediate_act_fn = Sine()
    for rule in ("absdot", "none"):
        with pytest.raises(AttentionError, match=r"do not add up to its logits: got a gap of"):
            xattn.explain(model, [TEXT], [f"decompx:bias={rule}"])
    for spec in ("globenc", "alti"):  # go round the feed-forward block
        xattn.explain(model, [TEXT], [spec])
