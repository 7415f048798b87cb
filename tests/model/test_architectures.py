"""The tap on every architecture of the table in conftest: maps, gradients, edits, restoration."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

from xattn.model.tap import Edit, Site
from xattn.testing import network_state

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="the table says what transformers 5.23 does: which models it has, and how they attend",
)
FIELDS = ("scores", "probabilities", "values", "outputs")


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
    before = network_state(network)
    with torch.no_grad():
        plain = architecture.logits(network, 11)  # not the probe's length
        with_tap = architecture.tapped(Edit(probabilities=lambda site, p: p), 11)
        assert network_state(network) == before
        after = architecture.logits(network, 11)
    scale = max(1.0, float(plain.abs().max()))
    torch.testing.assert_close(with_tap / scale, plain / scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(after, plain, atol=0, rtol=0)


def test_rows_sum_to_one_and_decoders_stay_causal(architecture: Any) -> None:
    _, attached = architecture.attached()
    maps = architecture.maps()
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
        ahead = [float(p.triu(1).max()) for p in architectures[name].maps().values()]
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
        logits = editable.tapped(edit, 9, network).double()
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
        edited = editable.tapped(Edit(**{field: change}))
    assert float((edited - plain).abs().max()) > 1e-4 * float(plain.abs().max())


def test_no_probabilities_no_values_and_no_outputs_are_the_same(editable: Any) -> None:
    # Each field is where it is said to be: without any of the three, heads hand on nothing.
    with torch.no_grad():
        without = [
            editable.tapped(Edit(**{field: lambda site, tensor: tensor * 0}))
            for field in ("probabilities", "values", "outputs")
        ]
    for other in without[1:]:
        torch.testing.assert_close(other, without[0], atol=1e-5, rtol=1e-5)


def test_probabilities_mix_values_into_outputs(editable: Any) -> None:
    seen: dict[str, dict[Site, Tensor]] = {field: {} for field in FIELDS}

    def keep(field: str) -> Any:
        return lambda site, tensor: seen[field].setdefault(site, tensor)

    with torch.no_grad():
        editable.tapped(Edit(**{field: keep(field) for field in FIELDS}))
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
        editable.tapped(Edit(values=drop, outputs=keep))
    for outputs in handed:
        assert float(outputs[:, -1].abs().max()) == 0
        assert float(outputs[:, :-1].abs().max()) > 0


def test_everything_is_restored_when_an_edit_raises(architecture: Any) -> None:
    network, attached = architecture.attached()
    before = network_state(network)

    def fail(site: Site, p: Tensor) -> Tensor:
        if site == attached.sites[-1]:
            raise KeyboardInterrupt
        return p

    with torch.no_grad():
        plain = architecture.logits(network, 9)
        with pytest.raises(KeyboardInterrupt):
            architecture.tapped(Edit(probabilities=fail))
        assert network_state(network) == before
        torch.testing.assert_close(architecture.logits(network, 9), plain, atol=0, rtol=0)
        architecture.tapped(Edit())  # and the next one begins outside of any module


def test_a_tapped_network_can_be_pickled(architecture: Any) -> None:
    network, _ = architecture.attached()
    torch.save(network, io.BytesIO())


def test_windows_are_in_the_batch_axis(architectures: dict[str, Any]) -> None:
    _, attached = architectures["swin"].attached()
    assert attached.shapes[0] == (2, 16, 16)  # two heads, windows of four by four
    first = next(iter(architectures["swin"].maps().values()))
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

        architecture.tapped(Edit(probabilities=keep), 9, raised)
    assert all(p.shape[-1] == 9 for p in maps)
    assert max(float(p.sum(-1).max()) for p in maps) < 1e-6


def test_the_soft_cap_is_applied(architectures: dict[str, Any]) -> None:
    architecture = architectures["gemma2"]
    largest: list[float] = []

    def keep(site: Site, scores: Tensor) -> Tensor:
        largest.append(float(scores[scores > -1e3].abs().max()))
        return scores

    with torch.no_grad():
        architecture.tapped(Edit(scores=keep))
    assert 1 < max(largest) <= 2


def test_sliding_windows_hide_what_is_far(architectures: dict[str, Any]) -> None:
    for p in architectures["mistral"].maps().values():
        assert float(p.tril(-3).abs().max()) == 0
        assert float(p.tril(-2).abs().max()) > 0


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
    p = architecture.maps(12)[site]
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
