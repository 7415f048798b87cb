"""CP-LRP, AttnLRP and DeepLIFT: ledgers, references, captum, closed forms, planted words."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import DeepLift as CaptumDeepLift
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import xattn
from xattn.errors import InputError, ModelError
from xattn.model import Model, relevance
from xattn.model.differences import Differences
from xattn.model.lrp import Relevance
from xattn.model.relevance import ledger
from xattn.model.rules import ruled
from xattn.testing import TEXTS, network_state

spec = importlib.util.spec_from_file_location(
    "lrp_reference", Path(__file__).parents[1] / "reference" / "lrp.py"
)
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
SOFTMAX = {"cp_lrp": "coefficient", "attnlrp": "derivative"}


@pytest.mark.parametrize("gate", ["half", "coefficient"])
@pytest.mark.parametrize("method", SOFTMAX)
def test_the_ledger_closes_on_every_family(tiny: Model, method: str, gate: Any) -> None:
    batch = tiny.batch(tiny.encode(TEXTS))
    target = tiny.target(batch)
    before = network_state(tiny.network)
    attention: Any = SOFTMAX[method]
    found = ledger(tiny, batch, target, attention, gate)
    assert network_state(tiny.network) == before
    assert abs(found.gap) <= 1e-5 * found.size
    scores = xattn.explain(tiny, TEXTS, [f"{method}:gate={gate}"])
    total = sum(float(item.scores.sum(dtype=np.float64)) for item in scores)
    assert total == pytest.approx(found.embeddings, abs=1e-5 * found.size)
    assert (found.softmax == 0) == (method == "cp_lrp")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_without_biases_and_positions_everything_is_the_tokens(
    tiny_of: Callable[..., Model], family: str
) -> None:
    model = tiny_of(family)
    for _, parameter in model.network.named_parameters():
        if parameter.ndim == 1 and "norm" not in _:
            parameter.data.zero_()
    batch = model.batch(model.encode(TEXTS[:1]))
    y = float(model.score(batch.inputs, model.target(batch)))
    item = xattn.explain(model, TEXTS[:1], ["cp_lrp"])[0]
    assert float(item.scores.sum()) == pytest.approx(y, rel=1e-3)


@pytest.mark.parametrize(("family", "task"), [("gpt2", "generate"), ("llama", "generate"),
                                              ("t5", "generate"), ("bart", "generate"),
                                              ("bert", "tag"), ("bert", "fill")])  # fmt: skip
@pytest.mark.parametrize("method", [*SOFTMAX, "deeplift"])
def test_every_task(tiny_of: Callable[..., Model], family: str, task: str, method: str) -> None:
    model = tiny_of(family, task=task)
    text = "A dull [MASK]" if task == "fill" else "A dull film"
    pairs = [" sat there"] if task == "generate" else None
    for item in xattn.explain(model, [text], [method], pairs=pairs):
        assert np.abs(item.scores).max() > 0
        if item.gap is not None:
            assert item.gap == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("attention", SOFTMAX.values())
def test_relevance_equals_the_layers_written_out(attention: Any) -> None:
    """One block of BERT with one head, all biases but zero ones and positions included."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=12,
        vocab_size=20, max_position_embeddings=8, initializer_range=0.5, num_labels=2,
    )  # fmt: skip
    network = BertForSequenceClassification(config).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.3)
    layer = network.bert.encoder.layer[0]
    record: dict[str, Any] = {}

    def keep(name: str, which: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            value = args[0] if which == "in" else output
            record[name] = value.detach()[0].double().numpy()

        return hook

    inner, middle = layer.attention.self, layer.attention.output
    for module, name, which in (
        (inner.value, "x", "in"), (inner.value, "value", "out"),
        (inner.query, "query", "out"), (inner.key, "key", "out"),
        (middle.dense, "mixed", "in"), (middle.dense, "att", "out"),
        (middle.LayerNorm, "sum1", "in"), (middle.LayerNorm, "mid", "out"),
        (layer.intermediate.dense, "pre", "out"), (layer.output.dense, "act", "in"),
        (layer.output.dense, "ff", "out"), (layer.output.LayerNorm, "sum2", "in"),
        (layer.output.LayerNorm, "out", "out"),
    ):  # fmt: skip
        module.register_forward_hook(keep(name, which))
    ids = torch.tensor([[2, 7, 11, 5, 3]])
    network.set_attn_implementation("eager")
    given = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
    leaf = given.clone().requires_grad_()
    with torch.no_grad():
        output = network.bert(input_ids=ids, output_attentions=True)
    record["p"] = output.attentions[0][0, 0].double().numpy()

    def weights(module: nn.Linear) -> Any:
        return module.weight.detach().double().numpy()

    record |= {"w1": weights(layer.intermediate.dense), "w2": weights(layer.output.dense),
               "wo": weights(middle.dense), "wv": weights(inner.value),
               "wq": weights(inner.query), "wk": weights(inner.key)}  # fmt: skip
    for number, norm in (("1", middle.LayerNorm), ("2", layer.output.LayerNorm)):
        record[f"gain{number}"] = norm.weight.detach().double().numpy()
        variance = record[f"sum{number}"].var(-1, keepdims=True)
        record[f"dev{number}"] = np.sqrt(variance + norm.eps)
    top = np.zeros_like(record["out"])
    top[0, 3] = record["out"][0, 3]  # explained: the fourth number of the first token
    expected = reference.block_backward(top, record, attention == "derivative")

    del leaf
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    x = torch.from_numpy(record["x"]).float()[None].requires_grad_()
    names = {"bert.encoder.layer.0.attention.self"}
    with torch.enable_grad(), ruled(network, Relevance(attention), names):
        out = layer(x)
    result = (out[0] if isinstance(out, tuple) else out)[0, 0, 3]
    [slope] = torch.autograd.grad(result, x)
    np.testing.assert_allclose((x * slope)[0].detach().numpy(), expected, atol=1e-4)


class Perceptron(nn.Module):
    """Two layers with an activation between them, as a module or as a function."""

    def __init__(self, activation: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 1)
        self.relu, self.function = nn.ReLU(), activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = self.relu(hidden) if self.function is None else self.function(hidden)
        return self.second(hidden)  # type: ignore[no-any-return]


def ruled_differences(network: nn.Module, x: Tensor, start: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    rules = Differences()
    with torch.enable_grad(), ruled(network, rules, ()):
        network(start.clone().requires_grad_())
        rules.rewind()
        y = network(leaf)
    assert rules.finished
    [slope] = torch.autograd.grad(y.sum(), leaf)
    return (x - start) * slope


def test_deeplift_equals_captum_where_it_knows_every_step() -> None:
    torch.manual_seed(0)
    network = Perceptron(None).eval()
    x, start = torch.randn(4, 6), torch.randn(4, 6)
    expected = CaptumDeepLift(network).attribute(x, baselines=start)
    torch.testing.assert_close(ruled_differences(network, x, start), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "function",
    [torch.tanh, torch.sigmoid, nn.functional.gelu, nn.functional.silu,
     lambda x: x.softmax(-1), lambda x: x * x.mean(-1, keepdim=True),
     lambda x: nn.functional.layer_norm(x, (9,)), lambda x: x / (1 + x.square().sum(-1, True)),
     lambda x: torch.einsum("bi,bj->bi", x, x), lambda x: x.log_softmax(-1)],
)  # fmt: skip
def test_differences_add_up_whatever_the_function(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network = Perceptron(function).eval()
    x, start = torch.randn(5, 6), torch.randn(5, 6)
    parts = ruled_differences(network, x, start).sum(-1)
    change = (network(x) - network(start))[:, 0]
    torch.testing.assert_close(parts, change, atol=1e-4, rtol=1e-3)


def test_differences_of_a_softmax_are_its_chain_written_out() -> None:
    torch.manual_seed(0)
    x, start, weights = torch.randn(7), torch.randn(7), torch.randn(7)

    class Weighted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(-1) @ weights

    parts = ruled_differences(Weighted(), x, start)
    slopes = reference.softmax_multipliers(x.double().numpy(), start.double().numpy())
    expected = (x - start).double().numpy() * (slopes @ weights.double().numpy())
    np.testing.assert_allclose(parts.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [lambda x: 1 / (1 + x.exp()), lambda x: nn.functional.silu(x * 1, inplace=True),
     lambda x: nn.functional.hardswish(x * 1, inplace=True), lambda x: (x * 1).tanh_(),
     lambda x: nn.functional.normalize(x, dim=-1),
     lambda x: nn.functional.linear(x, x.tanh().expand(9, 9)),
     lambda x: x * nn.Softmax(-1)(x), lambda x: nn.functional.relu(x, True)],
)  # fmt: skip
def test_however_it_is_written(function: Callable[[Tensor], Tensor]) -> None:
    """Differences add up, and so does relevance: to the output without the last bias."""
    torch.manual_seed(0)
    network = Perceptron(function).eval()
    x, start = torch.randn(1, 6), torch.randn(1, 6)
    parts = ruled_differences(network, x, start).sum(-1)
    torch.testing.assert_close(parts, (network(x) - network(start))[:, 0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(network(x), plain(network, x), atol=1e-6, rtol=0)


def plain(network: nn.Module, x: Tensor) -> Tensor:
    """Return what a network computes under the rules of relevance."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad(), ruled(network, Relevance("coefficient"), ()):
        return network(leaf).detach()  # type: ignore[no-any-return]


class Attending(nn.Module):
    """Weights a softmax's results, which is a module of the attention module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x) @ torch.arange(6.0)  # type: ignore[no-any-return]


def test_a_softmax_that_is_a_module_keeps_its_derivative() -> None:
    """As in SqueezeBERT, where AttnLRP was CP-LRP once."""
    x = torch.randn(6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    network = Attending()
    [expected] = torch.autograd.grad(network(x), x)
    with torch.enable_grad(), ruled(network, Relevance("derivative"), {"attention"}):
        y = network(x)
    [slope] = torch.autograd.grad(y, x)
    torch.testing.assert_close(slope, expected)
    with torch.enable_grad(), ruled(network, Relevance("coefficient"), {"attention"}):
        assert not network(x).requires_grad


def test_captums_deeplift_does_not_add_up_on_a_transformer(demo: Model) -> None:
    """The reason why it does not do the work here."""
    batch = demo.batch(demo.encode([TEXTS[0]]))
    actual, start = demo.embeddings(batch.inputs), demo.baseline(batch, "mask")
    label = int(demo.target(batch).label)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = demo.network

        def forward(self, embeddings: Tensor) -> Tensor:
            mask = batch.inputs["attention_mask"].expand(len(embeddings), -1)
            out = self.network(inputs_embeds=embeddings, attention_mask=mask)
            return out.logits  # type: ignore[no-any-return]

    theirs = float(CaptumDeepLift(Bare()).attribute(actual, start, target=label).sum())
    item = xattn.explain(demo, [TEXTS[0]], ["deeplift:baseline=mask"])[0]
    assert item.gap is not None
    difference = float(item.scores.sum()) - item.gap
    assert abs(item.gap) < 1e-3 * abs(difference)
    assert abs(theirs - difference) > 0.05 * abs(difference)


@pytest.mark.parametrize("method", [*SOFTMAX, "deeplift"])
@pytest.mark.parametrize(
    ("text", "word"),
    [("The film was dreadful.", "dreadful"), ("What a wonderful evening.", "wonderful")],
)
def test_the_planted_word_comes_first(demo: Model, method: str, text: str, word: str) -> None:
    item = xattn.explain(demo, [text], [method])[0].words()
    ordinary = ~item.special
    assert np.array(item.tokens)[ordinary][item.scores[ordinary].argmax()] == word


def test_lost_relevance_is_refused(
    tiny_of: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that no rule knows: what is taken to the third power counts three times."""
    model = tiny_of("bert")
    dense = model.network.bert.encoder.layer[0].output
    original = dense.forward

    def cubed(hidden: Tensor, given: Tensor) -> Tensor:
        out = original(hidden, given)
        return torch.special.expm1(out.clamp(max=1.0))

    monkeypatch.setattr(dense, "forward", cubed)
    for method in SOFTMAX:
        with pytest.raises(ModelError, match=r"relevance gets lost in BertFor.*integrated_grad"):
            xattn.explain(model, [TEXTS[0]], [method])


def test_the_ledger_is_checked_once(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bert")
    first = xattn.explain(model, [TEXTS[0]], ["cp_lrp"])[0]
    before = model.passes.copy()
    again = xattn.explain(model, [TEXTS[0]], ["cp_lrp"])[0]
    assert (again.forward_passes, again.backward_passes) == (1, 1)
    assert (first.forward_passes, first.backward_passes) == (1, 1)
    assert model.passes.forward - before.forward == 2
    assert relevance.CLOSED <= 1e-4


@pytest.mark.parametrize(
    ("spec", "message"),
    [("cp_lrp:gate=all", "gate of cp_lrp"), ("attnlrp:gate=all", "gate of attnlrp"),
     ("deeplift:baseline=mean", "baseline of deeplift")],
)  # fmt: skip
def test_options_that_make_no_sense(demo: Model, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        xattn.explain(demo, ["A film."], [spec])
