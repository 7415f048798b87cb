"""Wrapped networks: reached through the wrapper, edited for real, handed back as they came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

import xattn
from xattn.errors import ModelError
from xattn.model import Edit, Model
from xattn.testing import TEXTS, state

METHODS = ["rollout", "attention_gradient", "integrated_gradients"]
# One by each backend, and a decoder whose query heads share key heads.
SERVED = ("bert", "llama", "deberta-v2")


def logits(model: Model) -> Tensor:
    return model.logits(model.batch(model.encode(TEXTS)).inputs)


def assert_same_explanations(got: Model, expected: Model) -> None:
    for a, b in zip(
        xattn.explain(got, TEXTS, METHODS, label=0),
        xattn.explain(expected, TEXTS, METHODS, label=0),
        strict=True,
    ):
        assert abs(a.scores - b.scores).max() < 1e-5 * max(1, abs(b.scores).max())


def assert_edits_take_effect(model: Model) -> None:
    plain = logits(model)
    for edit in (Edit(scores=lambda site, s: s * 0), Edit(probabilities=lambda site, p: p * 0)):
        with model.edit(edit):
            assert float((logits(model) - plain).abs().max()) > 1e-3
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)


# ------------------------------------------------------------------------- torch.compile


class Graphs:
    """A compiler backend that runs graphs as they are and counts how often."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


def compiled(network: nn.Module, graphs: Graphs) -> nn.Module:
    wrapper: nn.Module = torch.compile(network, backend=graphs)  # type: ignore[assignment]
    return wrapper


def compiled_in_place(network: nn.Module, graphs: Graphs) -> nn.Module:
    network.compile(backend=graphs)
    return network


def compiled_layers(network: Any, graphs: Graphs) -> nn.Module:
    for layer in network.base_model.encoder.layer:
        layer.compile(backend=graphs)
    return network  # type: ignore[no-any-return]


@pytest.fixture
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("how", [compiled, compiled_in_place, compiled_layers])
def test_a_compiled_model_is_served_uncompiled(
    tiny_of: Callable[..., Model], how: Callable[[nn.Module, Graphs], nn.Module]
) -> None:
    graphs = Graphs()
    bare = tiny_of("bert")
    network = how(tiny_of("bert").network, graphs)
    inputs = bare.batch(bare.encode(TEXTS)).inputs
    with torch.no_grad():
        expected = network.eval()(**inputs).logits  # type: ignore[operator]
    compiled_runs = graphs.runs
    assert compiled_runs > 0
    model = Model(network, bare.tokenizer)
    before = state(model)
    torch.testing.assert_close(logits(model), expected)
    assert_same_explanations(model, bare)
    assert_edits_take_effect(model)
    assert state(model) == before
    assert graphs.runs == compiled_runs, "a compiled graph ran: it may ignore edits"
    with torch.no_grad():  # the caller's model is compiled as before
        torch.testing.assert_close(network(**inputs).logits, expected, rtol=0, atol=0)
    assert graphs.runs == 2 * compiled_runs


def test_what_was_taken_off_is_said(tiny_of: Callable[..., Model]) -> None:
    bare = tiny_of("bert")
    assert bare.provenance()["shells"] == []
    wrapped = Model(nn.DataParallel(torch.compile(bare.network)), bare.tokenizer)
    assert wrapped.network is bare.network
    assert wrapped.provenance()["shells"] == ["DataParallel", "OptimizedModule"]
    assert wrapped.provenance()["weights"] == bare.provenance()["weights"]


def test_something_that_is_no_transformers_model_is_refused(demo: Model) -> None:
    with pytest.raises(ModelError, match="not a transformers model: got Linear"):
        Model(nn.Linear(2, 2), demo.tokenizer)
    with pytest.raises(ModelError, match="got Linear inside DataParallel"):
        Model(nn.DataParallel(nn.Linear(2, 2)), demo.tokenizer)


# ---------------------------------------------------------------------------------- PEFT


def adapted(model: Model, **options: Any) -> Any:
    """Return the network of a model with LoRA layers that change what it says."""
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    torch.manual_seed(3)
    config = {"target_modules": "all-linear", "init_lora_weights": False, "lora_dropout": 0.5}
    return peft.get_peft_model(
        model.network, peft.LoraConfig(task_type="SEQ_CLS", **{**config, **options})
    )


@pytest.mark.parametrize("family", SERVED)
def test_an_adapter_is_part_of_what_is_explained(
    tiny_of: Callable[..., Model], family: str
) -> None:
    bare = tiny_of(family)
    wrapped = adapted(tiny_of(family))
    model = Model(wrapped, bare.tokenizer)
    inputs = model.batch(model.encode(TEXTS)).inputs
    with torch.no_grad(), wrapped.disable_adapter():
        torch.testing.assert_close(logits(model), logits(bare))
    assert float((logits(model) - logits(bare)).abs().max()) > 1e-3
    assert model.provenance()["weights"] != bare.provenance()["weights"]
    wrapped.train()
    before = state(model)
    assert any(before["gradient flags"])
    assert not all(before["gradient flags"])
    assert any(before["training"])
    assert_edits_take_effect(model)
    merged = Model(adapted(tiny_of(family)).merge_and_unload(), bare.tokenizer)
    assert_same_explanations(model, merged)
    assert state(model) == before
    wrapped.eval()
    if family == "llama":  # refuses a padded batch without a padding token
        wrapped.config.pad_token_id = int(inputs["input_ids"][2, -1])
    with torch.no_grad():
        torch.testing.assert_close(logits(model), wrapped(**inputs).logits, rtol=0, atol=0)


def test_token_types_reach_a_model_through_its_adapter(tiny_of: Callable[..., Model]) -> None:
    # PEFT's forward does not name them: asked by its signature they would be lost in silence
    model = Model(adapted(tiny_of("bert")), tiny_of("bert").tokenizer)
    assert "token_type_ids" in model.input_names


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]},
        {"target_modules": ["query", "word_embeddings"]},
    ],
    ids=["a copy", "LoRA"],
)
def test_a_wrapped_embedding_table(
    tiny_of: Callable[..., Model], options: dict[str, list[str]]
) -> None:
    model = Model(adapted(tiny_of("bert"), **options), tiny_of("bert").tokenizer)
    before = state(model)
    results = xattn.explain(model, TEXTS, METHODS)
    gaps = [result.gap for result in results if result.gap is not None]
    assert gaps
    assert max(map(abs, gaps)) < 0.05  # what the table says is what is explained
    assert state(model) == before


def test_adapters_that_do_more_than_their_layers_are_refused(
    tiny_of: Callable[..., Model],
) -> None:
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    bare = tiny_of("bert")
    wrapped = peft.get_peft_model(
        bare.network, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    )
    with pytest.raises(ModelError, match=r"more than its layers.*PROMPT_TUNING.*LoRA"):
        Model(wrapped, bare.tokenizer)


@pytest.mark.parametrize("base", ["classifier", "without a head"])
def test_an_adapter_folder_is_loaded_with_its_base(
    tiny_of: Callable[..., Model], tmp_path: Path, base: str
) -> None:
    bare = tiny_of("bert")
    source = bare.network if base == "classifier" else bare.network.bert
    source.config.num_labels = 3
    source.save_pretrained(tmp_path / "base")
    bare.tokenizer.save_pretrained(tmp_path / "base")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    wrapped = adapted(Model(network, bare.tokenizer))
    wrapped.save_pretrained(tmp_path / "adapter")
    got = xattn.load(tmp_path / "adapter")
    assert got.shells == ("PeftModelForSequenceClassification",)
    expected = Model(wrapped, bare.tokenizer)
    torch.testing.assert_close(logits(got), logits(expected), rtol=0, atol=0)


def test_an_adapter_without_peft_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("xattn.model.loading.is_peft_available", lambda: False)
    with pytest.raises(ModelError, match=r"is an adapter, not a model.*xattn\[peft\]"):
        xattn.load(tmp_path)


# ---------------------------------------------------------------------------- device_map


PLACES = {
    "bert": {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "disk",
             "classifier": "cpu"},
    "llama": {"model": "disk", "score": "cpu"},
}  # fmt: skip


def offloaded(model: Model, family: str, where: str, folder: Path) -> Any:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    if where == "cpu":
        return accelerate.cpu_offload(model.network, execution_device="cpu")
    model.network.save_pretrained(folder / "model")
    return AutoModelForSequenceClassification.from_pretrained(
        folder / "model", device_map=PLACES[family], offload_folder=folder / "offload"
    )


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_offloaded_weights(
    tiny_of: Callable[..., Model], tmp_path: Path, family: str, where: str
) -> None:
    bare = tiny_of(family)
    model = Model(offloaded(tiny_of(family), family, where, tmp_path), bare.tokenizer)
    assert any(p.is_meta for p in model.network.parameters()), "nothing is offloaded"
    assert model.device == torch.device("cpu")
    before = state(model)
    torch.testing.assert_close(logits(model), logits(bare), rtol=0, atol=0)
    assert_same_explanations(model, bare)
    assert_edits_take_effect(model)
    after = state(model)
    # offloaded parameters are put back as new objects without content, by every forward pass
    assert {k: v for k, v in after.items() if k != "parameters"} == {
        k: v for k, v in before.items() if k != "parameters"
    }
    assert model.provenance()["weights"] == bare.provenance()["weights"]
