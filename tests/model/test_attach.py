"""Attaching: which backend is taken, what it is found to serve, and what is left alone."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from xattn.errors import AttentionError, ModelError
from xattn.model.attach import BACKENDS, find_backend
from xattn.model.tap import Edit, Site, Tap
from xattn.testing import network_state

FIELDS = ("scores", "probabilities", "values", "outputs")


WITHOUT_ATTENTION = {
    "mamba": {"hidden_size": 16, "state_size": 4, "time_step_rank": 4},
    "rwkv": {"hidden_size": 16, "attention_hidden_size": 16},
    "fnet": {"hidden_size": 16, "intermediate_size": 16, "tpu_short_seq_length": 8},
}


@pytest.mark.parametrize("kind", WITHOUT_ATTENTION)
def test_a_network_without_attention_is_refused(kind: str) -> None:
    sizes = {"vocab_size": 99, "num_hidden_layers": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, **WITHOUT_ATTENTION[kind])
    auto = AutoModelForSequenceClassification if kind == "fnet" else AutoModelForCausalLM
    network = auto.from_config(config).eval()
    ids = torch.randint(10, 60, (2, 8))
    with torch.no_grad():
        network(input_ids=ids)  # RWKV rescales its weights the first time
    before = network_state(network)
    with pytest.raises(AttentionError, match=r"cannot be reached.*integrated_gradients"):
        find_backend(network, lambda: network(input_ids=ids).logits)
    assert network_state(network) == before


@pytest.mark.parametrize(("name", "passes"), [("bert", 2), ("bloom", 3), ("longformer", 4)])
def test_attaching_costs_one_pass_more_for_each_backend_tried(
    architectures: dict[str, Any], name: str, passes: int
) -> None:
    architecture = architectures[name]
    network = architecture.build()
    count = 0

    def forward() -> Tensor:
        nonlocal count
        count += 1
        logits: Tensor = architecture.logits(network, 8)
        return logits

    find_backend(network, forward)
    assert count == passes


def test_an_unknown_tensor_is_left_to_the_softmax(
    architectures: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = architectures["stablelm"]  # hands position ids to its attention function
    network = architecture.build()
    monkeypatch.setattr("xattn.model.interface.REDUNDANT", frozenset())
    found = find_backend(network, lambda: architecture.logits(network, 8))
    assert (found.backend, found.serves) == ("softmax", architecture.serves)


def test_a_gradient_that_is_cut_is_not_promised(architectures: dict[str, Any]) -> None:
    architecture = architectures["bert"]
    network = architecture.build()
    layer = network.bert.encoder.layer[0]
    layer.forward = torch.no_grad()(layer.forward)
    found = find_backend(network, lambda: architecture.logits(network, 8))
    assert found.serves == set(FIELDS)


def test_logits_are_compared_where_classes_are_ruled_out(architectures: dict[str, Any]) -> None:
    architecture = architectures["bert"]
    network, attached = architecture.attached()
    ruled_out = torch.tensor([0.0, float("-inf")])
    found = find_backend(network, lambda: architecture.logits(network, 8) + ruled_out)
    assert (found.backend, found.sites) == (attached.backend, attached.sites)
    with pytest.raises(ModelError, match="not numbers"):
        find_backend(network, lambda: architecture.logits(network, 8) * float("nan"))


def test_a_network_that_draws_lots_is_refused(architectures: dict[str, Any]) -> None:
    network, lots = architectures["bert"].build(), torch.Generator().manual_seed(0)
    with pytest.raises(AttentionError, match=r"logits differ by .* more than"):
        find_backend(
            network,
            lambda: architectures["bert"].logits(network, 8) + torch.rand(2, generator=lots),
        )


def test_hybrids_name_their_layers_without_attention(architectures: dict[str, Any]) -> None:
    _, attached = architectures["qwen3_next"].attached()
    assert attached.skipped == ("model.layers.0",)
    _, attached = architectures["t5"].attached()
    assert attached.skipped == ()  # the feed-forward parts of a layer are no layers


def test_a_network_in_training_mode_is_refused(architectures: dict[str, Any]) -> None:
    for name in ("bert", "deberta-v2"):
        network = architectures[name].build().train()
        network.config.hidden_dropout_prob = 0.0
        with pytest.raises(AttentionError, match=r"training mode.*eval\(\)"):
            find_backend(network, lambda n=name, x=network: architectures[n].logits(x, 8))


def test_gradient_checkpointing_is_off_in_evaluation(architectures: dict[str, Any]) -> None:
    for name in ("bert", "llama", "bloom"):
        network = architectures[name].build()
        network.gradient_checkpointing_enable()
        found = find_backend(network, lambda n=name, x=network: architectures[n].logits(x, 8))
        assert "gradients" in found.serves
        assert network.is_gradient_checkpointing


def test_networks_that_share_a_configuration_are_switched_and_restored(
    architectures: dict[str, Any],
) -> None:
    architecture = architectures["bert"]
    first = architecture.build()
    second = AutoModelForSequenceClassification.from_config(first.config).eval()
    second.config = first.config
    with torch.no_grad():
        plain = architecture.logits(second, 9)
        find_backend(first, lambda: architecture.logits(first, 8))
        with BACKENDS["interface"](first, Tap(first, (Edit(probabilities=lambda s, p: p * 0),))):
            meanwhile = architecture.logits(second, 9)  # runs under the tap's function, untapped
        after = architecture.logits(second, 9)
    torch.testing.assert_close(meanwhile, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after, plain, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["bert", "bloom", "blip"])
def test_hooks_of_others_stay_and_run(architectures: dict[str, Any], name: str) -> None:
    architecture = architectures[name]
    network = architecture.build()
    ran: list[str] = []
    for module_name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=module_name: ran.append(name))
    with torch.no_grad():
        plain = architecture.logits(network, 9)
        before, count = network_state(network), len(ran)
        architecture.tapped(Edit(values=lambda site, v: v * 0), 9, network)
        assert network_state(network) == before
        assert ran[:count] == ran[count:]
        torch.testing.assert_close(architecture.logits(network, 9), plain, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["bert", "bloom", "blip"])
def test_another_thread_runs_the_network_untapped(architectures: dict[str, Any], name: str) -> None:
    architecture = architectures[name]
    network, _ = architecture.attached()

    def run() -> Tensor:
        with torch.no_grad():
            logits: Tensor = architecture.logits(network, 9)
            return logits

    plain = run()
    meanwhile: list[Tensor] = []

    def change(site: Site, p: Tensor) -> Tensor:
        if not meanwhile:
            with ThreadPoolExecutor(1) as pool:
                meanwhile.append(pool.submit(run).result())
        return p * 0

    once = architecture.tapped(Edit(probabilities=lambda site, p: p * 0)).detach()
    with torch.no_grad():
        edited = architecture.tapped(Edit(probabilities=change))
    torch.testing.assert_close(meanwhile[0], plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edited, once, atol=1e-6, rtol=1e-6)


def test_maps_that_can_only_be_read_are_the_eager_ones(architectures: dict[str, Any]) -> None:
    architecture = architectures["bert"]
    network = architecture.build()
    expected = architecture.maps()
    before = network_state(network)
    maps: list[Tensor] = []

    def keep(site: Site, p: Tensor) -> Tensor:
        maps.append(p)
        return p

    with torch.no_grad(), BACKENDS["maps"](network, Tap(network, (Edit(probabilities=keep),))):
        architecture.logits(network, 9)
    assert (
        network_state(network) == before
    )  # transformers leaves hooks behind that cannot be pickled
    torch.save(network, io.BytesIO())
    for got, wanted in zip(maps, expected.values(), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", FIELDS)
def test_maps_that_can_only_be_read_refuse_edits(architectures: dict[str, Any], field: str) -> None:
    network = architectures["bert"].build()
    tap = Tap(network, (Edit(**{field: lambda site, tensor: tensor / 2}),))
    with pytest.raises(AttentionError, match="can only be read"), BACKENDS["maps"](network, tap):
        architectures["bert"].logits(network, 9)
