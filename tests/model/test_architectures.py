"""The tap on every architecture of the table in conftest: maps, gradients, edits, restoration."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import xattn.testing
from xattn.errors import AttentionError
from xattn.model.attach import BACKENDS, find_backend
from xattn.model.tap import Edit, Site, Tap

FIELDS = ("scores", "probabilities", "values", "outputs")


def state(network: Any) -> dict[str, Any]:
    found: dict[str, Any] = xattn.testing.state(SimpleNamespace(network=network, tokenizer=()))
    return found


def tapped(architecture: Any, edit: Edit, length: int = 9, network: Any = None) -> Tensor:
    """Return the logits with an edit."""
    original, attached = architecture.attached()
    network = network or original
    with BACKENDS[attached.backend](network, Tap(network, (edit,))):
        logits: Tensor = architecture.logits(network, length)
    return logits


def maps_of(architecture: Any, length: int = 9) -> dict[Site, Tensor]:
    maps: dict[Site, Tensor] = {}

    def keep(site: Site, probabilities: Tensor) -> Tensor:
        maps[site] = probabilities
        return probabilities

    with torch.no_grad():
        tapped(architecture, Edit(probabilities=keep), length)
    return maps


def test_every_architecture_is_served_as_the_table_says(architecture: Any) -> None:
    network, attached = architecture.attached()
    assert attached.backend == architecture.backend
    assert attached.serves == architecture.serves
    assert len(attached.skipped) == architecture.skipped
    assert len(set(attached.sites)) == len(attached.sites) == len(attached.shapes)
    modules = dict(network.named_modules())
    assert all(site.module in modules for site in attached.sites)


def test_logits_with_tap_equal_logits_without(architecture: Any) -> None:
    network, _ = architecture.attached()
    before = state(network)
    with torch.no_grad():
        plain = architecture.logits(network, 11)  # not the probe's length
        with_tap = tapped(architecture, Edit(probabilities=lambda site, p: p), 11)
        assert state(network) == before
        after = architecture.logits(network, 11)
    scale = max(1.0, float(plain.abs().max()))
    torch.testing.assert_close(with_tap / scale, plain / scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(after, plain, atol=0, rtol=0)


def test_rows_sum_to_one_and_decoders_stay_causal(architecture: Any) -> None:
    _, attached = architecture.attached()
    maps = maps_of(architecture)
    assert tuple(maps) == attached.sites or len(maps) >= len(attached.sites)
    uneven = 0.0
    for p in maps.values():
        assert p.ndim == 4
        assert float(p.min()) >= 0
        sums = p.sum(-1)
        if architecture.backend == "maps":  # padding asks for nothing there
            assert bool(((sums - 1).abs() < 1e-5).logical_or(sums == 0).all())
            assert float(sums[0].min()) > 0.99
        elif architecture.sink:
            assert float(sums.max()) <= 1 + 1e-5
            assert float(sums.min()) < 0.99
        else:
            torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)
        uneven = max(uneven, float((p - p.mean(-1, keepdim=True)).abs().max()))
        if architecture.causal:
            size = p.shape[-2]
            assert float(p[..., :size].triu(1).abs().max()) == 0
    assert uneven > 0.05  # or nothing here says anything


def test_encoders_look_ahead(architectures: dict[str, Any]) -> None:
    for name in ("bert", "modernbert", "deberta-v2", "vit"):
        ahead = [float(p.triu(1).max()) for p in maps_of(architectures[name]).values()]
        assert min(ahead) > 0.01, name


def test_gradient_by_attention_equals_finite_differences(editable: Any) -> None:
    original, _ = editable.attached()
    network = copy.deepcopy(original).requires_grad_(False)
    network = network if editable.single else network.double()
    generator = torch.Generator().manual_seed(2)
    maps: dict[Site, Tensor] = {}
    along: dict[Site, Tensor] = {}

    def keep(site: Site, p: Tensor) -> Tensor:
        p = p if p.requires_grad else p.detach().requires_grad_()
        maps[site] = p
        along[site] = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        return p.clone()

    def score(edit: Edit) -> Tensor:
        logits = tapped(editable, edit, 9, network).double()
        return logits.square().mean()

    gradients = torch.autograd.grad(
        score(Edit(probabilities=keep)), list(maps.values()), allow_unused=True
    )
    exact = sum(
        float((g * d).sum())
        for g, d in zip(gradients, along.values(), strict=True)
        if g is not None
    )
    assert any(g is not None for g in gradients)

    def shifted(step: float) -> float:
        with torch.no_grad():
            return float(score(Edit(probabilities=lambda site, p: p + step * along[site])))

    def numeric(step: float) -> float:
        return (shifted(step) - shifted(-step)) / (2 * step)

    # A directional derivative, the directions of all sites being random and apart. Parts that
    # compute in single precision want a large step, kinks a small one: the step is the one whose
    # half gives most nearly the same.
    pairs = [(numeric(step), numeric(step / 2)) for step in (1e-3, 1e-4, 1e-5)]
    coarse, fine = min(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    assert abs(coarse - fine) < 0.03 * abs(fine)
    assert exact == pytest.approx(fine, rel=1e-2, abs=2 * abs(coarse - fine))


@pytest.mark.parametrize("field", FIELDS)
def test_an_edit_changes_the_output(editable: Any, field: str) -> None:
    network, attached = editable.attached()
    assert field in attached.serves

    def change(site: Site, tensor: Tensor) -> Tensor:
        if field == "scores":
            return torch.zeros_like(tensor)
        return torch.cat([tensor[:, :1] * 0, tensor[:, 1:]], 1)  # not a scale, which norms undo

    with torch.no_grad():
        plain = editable.logits(network, 9)
        edited = tapped(editable, Edit(**{field: change}))
    assert float((edited - plain).abs().max()) > 1e-4 * float(plain.abs().max())


def test_no_probabilities_no_values_and_no_outputs_are_the_same(editable: Any) -> None:
    # Each field is where it is said to be: without any of the three, heads hand on nothing.
    with torch.no_grad():
        without = [
            tapped(editable, Edit(**{field: lambda site, tensor: tensor * 0}))
            for field in ("probabilities", "values", "outputs")
        ]
    for other in without[1:]:
        torch.testing.assert_close(other, without[0], atol=1e-5, rtol=1e-5)


def test_probabilities_mix_values_into_outputs(editable: Any) -> None:
    seen: dict[str, dict[Site, Tensor]] = {field: {} for field in FIELDS}

    def keep(field: str) -> Any:
        return lambda site, tensor: seen[field].setdefault(site, tensor)

    with torch.no_grad():
        tapped(editable, Edit(**{field: keep(field) for field in FIELDS}))
    for site, probabilities in seen["probabilities"].items():
        mixed = probabilities @ seen["values"][site]
        torch.testing.assert_close(seen["outputs"][site], mixed, atol=1e-5, rtol=1e-5)
        assert seen["scores"][site].shape == probabilities.shape


def test_a_value_is_read_by_its_own_head_and_key_only(editable: Any) -> None:
    # The layout of values is right: without the last head's, that head hands on nothing.
    def drop(site: Site, values: Tensor) -> Tensor:
        return torch.cat([values[:, :-1], values[:, -1:] * 0], 1)

    handed: list[Tensor] = []

    def keep(site: Site, outputs: Tensor) -> Tensor:
        handed.append(outputs)
        return outputs

    with torch.no_grad():
        tapped(editable, Edit(values=drop, outputs=keep))
    for outputs in handed:
        assert float(outputs[:, -1].abs().max()) == 0
        assert float(outputs[:, :-1].abs().max()) > 0


def test_everything_is_restored_when_an_edit_raises(architecture: Any) -> None:
    network, attached = architecture.attached()
    before = state(network)

    def fail(site: Site, p: Tensor) -> Tensor:
        if site == attached.sites[-1]:
            raise KeyboardInterrupt
        return p

    with torch.no_grad():
        plain = architecture.logits(network, 9)
        with pytest.raises(KeyboardInterrupt):
            tapped(architecture, Edit(probabilities=fail))
        assert state(network) == before
        torch.testing.assert_close(architecture.logits(network, 9), plain, atol=0, rtol=0)
        tapped(architecture, Edit())  # and the next one begins outside of any module


def test_a_tapped_network_can_be_pickled(architecture: Any) -> None:
    network, _ = architecture.attached()
    torch.save(network, io.BytesIO())


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
    before = state(network)
    with pytest.raises(AttentionError, match=r"cannot be reached.*integrated_gradients"):
        find_backend(network, lambda: network(input_ids=ids).logits)
    assert state(network) == before


def test_hybrids_name_their_layers_without_attention(architectures: dict[str, Any]) -> None:
    _, attached = architectures["qwen3_next"].attached()
    assert attached.skipped == ("model.layers.0",)
    _, attached = architectures["t5"].attached()
    assert attached.skipped == ()  # the feed-forward parts of a layer are no layers


def test_windows_are_in_the_batch_axis(architectures: dict[str, Any]) -> None:
    _, attached = architectures["swin"].attached()
    assert attached.shapes[0] == (2, 16, 16)  # two heads, windows of four by four
    first = next(iter(maps_of(architectures["swin"]).values()))
    assert len(first) == 2 * 4  # two images of four windows each


def test_a_sink_takes_its_share_and_is_no_key(architectures: dict[str, Any]) -> None:
    architecture = architectures["gpt_oss"]
    network, _ = architecture.attached()
    raised = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in raised.named_parameters():
            if name.endswith("sinks"):
                parameter.add_(50)  # everything goes to the sink
        maps: list[Tensor] = []

        def keep(site: Site, p: Tensor) -> Tensor:
            maps.append(p)
            return p

        tapped(architecture, Edit(probabilities=keep), 9, raised)
    assert all(p.shape[-1] == 9 for p in maps)
    assert max(float(p.sum(-1).max()) for p in maps) < 1e-6


def test_the_soft_cap_is_applied(architectures: dict[str, Any]) -> None:
    architecture = architectures["gemma2"]
    largest: list[float] = []

    def keep(site: Site, scores: Tensor) -> Tensor:
        largest.append(float(scores[scores > -1e3].abs().max()))
        return scores

    with torch.no_grad():
        tapped(architecture, Edit(scores=keep))
    assert 1 < max(largest) <= 2


def test_sliding_windows_hide_what_is_far(architectures: dict[str, Any]) -> None:
    for p in maps_of(architectures["mistral"]).values():
        assert float(p.tril(-3).abs().max()) == 0
        assert float(p.tril(-2).abs().max()) > 0


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
        before, count = state(network), len(ran)
        tapped(architecture, Edit(values=lambda site, v: v * 0), 9, network)
        assert state(network) == before
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

    once = tapped(architecture, Edit(probabilities=lambda site, p: p * 0)).detach()
    with torch.no_grad():
        edited = tapped(architecture, Edit(probabilities=change))
    torch.testing.assert_close(meanwhile[0], plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edited, once, atol=1e-6, rtol=1e-6)


def test_maps_that_can_only_be_read_are_the_eager_ones(architectures: dict[str, Any]) -> None:
    architecture = architectures["bert"]
    network = architecture.build()
    expected = maps_of(architecture)
    before = state(network)
    maps: list[Tensor] = []

    def keep(site: Site, p: Tensor) -> Tensor:
        maps.append(p)
        return p

    with torch.no_grad(), BACKENDS["maps"](network, Tap(network, (Edit(probabilities=keep),))):
        architecture.logits(network, 9)
    assert state(network) == before  # transformers leaves hooks behind that cannot be pickled
    torch.save(network, io.BytesIO())
    for got, wanted in zip(maps, expected.values(), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["longformer", "led"])
def test_bands_of_windows_become_maps_of_tokens(architectures: dict[str, Any], name: str) -> None:
    architecture = architectures[name]
    network, attached = architecture.attached()
    site = attached.sites[0]
    module = network.get_submodule(site.module)
    seen: dict[str, Tensor] = {}

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        values = module.value(hidden)
        seen["values"] = values.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        seen["outputs"] = output[0].unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        seen["global"] = kwargs["is_index_global_attn"]

    handle = module.register_forward_hook(keep, with_kwargs=True)
    p = maps_of(architecture, 12)[site]
    handle.remove()
    for text in range(2):
        local = ~seen["global"][text, :12]  # tokens with global attention have their own values
        mixed = (p[text] @ seen["values"][text, :, :12])[:, local]
        expected = seen["outputs"][text, :, :12][:, local]
        rows = p[text].sum(-1)[0, local] > 0
        torch.testing.assert_close(mixed[:, rows], expected[:, rows], atol=1e-5, rtol=1e-5)
    far = p[0][:, ~seen["global"][0, :12]][..., ~seen["global"][0, :12]]
    assert float(far.triu(3).abs().max()) == 0 == float(far.tril(-3).abs().max())
    assert float(far.triu(2).abs().max()) > 0


@pytest.mark.parametrize("field", FIELDS)
def test_maps_that_can_only_be_read_refuse_edits(architectures: dict[str, Any], field: str) -> None:
    network = architectures["bert"].build()
    tap = Tap(network, (Edit(**{field: lambda site, tensor: tensor / 2}),))
    with pytest.raises(AttentionError, match="can only be read"), BACKENDS["maps"](network, tap):
        architectures["bert"].logits(network, 9)
