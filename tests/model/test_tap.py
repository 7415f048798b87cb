"""Attention taps: right maps, right gradients, edits that take effect, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers.models.modernbert import modeling_modernbert

import xattn
from xattn.errors import AttentionError
from xattn.model import Edit, Model, Site
from xattn.model.attach import BACKENDS
from xattn.model.interface import attention_implementation
from xattn.model.reduction import HEAD_MEAN
from xattn.model.tap import Tap
from xattn.testing import TEXTS, state
from xattn.types import Batch

# Until it followed the interface, ModernBERT had a table of implementations of its own.
OWN_TABLE = hasattr(modeling_modernbert, "MODERNBERT_ATTENTION_FUNCTION")
SOFTMAX_ONLY = {"tiny-deberta-v2"} | ({"tiny-modernbert"} if OWN_TABLE else set())
CAUSAL = {"tiny-gpt2", "tiny-llama", "tiny-qwen2"}


def batch_of(model: Model) -> Batch:
    return model.batch(model.encode(TEXTS))


def test_backend_and_sites_are_those_of_the_family(tiny: Model) -> None:
    backend, sites = tiny.attach().backend, tiny.attach().sites
    assert backend == ("softmax" if tiny.name in SOFTMAX_ONLY else "interface")
    assert len(sites) == 3
    assert len(set(sites)) == 3  # ALBERT calls one module three times
    if tiny.name == "tiny-albert":
        assert len({site.module for site in sites}) == 1
        assert [site.call for site in sites] == [0, 1, 2]


def test_logits_with_tap_equal_logits_without(tiny: Model) -> None:
    batch = batch_of(tiny)
    plain = tiny.logits(batch.inputs)
    with tiny.edit(Edit(probabilities=lambda site, p: p)):
        torch.testing.assert_close(tiny.logits(batch.inputs), plain, atol=1e-5, rtol=1e-5)


def test_rows_sum_to_one_and_padding_gets_nothing(tiny: Model) -> None:
    batch = batch_of(tiny)
    trace = tiny.trace(batch, tiny.target(batch))
    real = batch.real
    for maps in trace.maps:
        assert maps.shape[:2] == (3, 4)
        sums = maps.sum(-1).permute(0, 2, 1)[real]
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)
        to_padding = (maps * (~real)[:, None, None, :]).sum(-1).permute(0, 2, 1)[real]
        assert float(to_padding.abs().max()) == 0


def test_decoders_stay_causal_and_encoders_look_ahead(tiny: Model) -> None:
    batch = batch_of(tiny)
    ahead = tiny.trace(batch, tiny.target(batch)).maps[0][1].triu(1)
    assert (float(ahead.max()) == 0) == (tiny.name in CAUSAL)


def test_maps_equal_those_of_the_eager_implementation(tiny: Model) -> None:
    batch = batch_of(tiny)
    trace = tiny.trace(batch, tiny.target(batch))
    with torch.no_grad(), attention_implementation(tiny.network, "eager"):
        pad = tiny.network.config.pad_token_id
        tiny.network.config.pad_token_id = int(batch.inputs["input_ids"][2, -1])
        expected = tiny.network(**batch.inputs, output_attentions=True).attentions
        tiny.network.config.pad_token_id = pad
    assert len(expected) == len(trace.maps)
    real = batch.real
    for got, wanted in zip(trace.maps, expected, strict=True):
        mask = (real[:, None, :, None] & real[:, None, None, :]).expand_as(got)
        torch.testing.assert_close(got[mask], wanted[mask], atol=1e-5, rtol=1e-4)


def test_gradient_by_attention_equals_finite_differences(
    tiny_of: Callable[..., Model], family: str
) -> None:
    model = tiny_of(family)
    model.attach()
    model.network.double()  # float32 differences would be all rounding
    batch = model.batch(model.encode(["A dull film."]))
    target = model.target(batch)
    trace = model.trace(batch, target, gradients=True)
    generator = torch.Generator().manual_seed(1)
    for chosen, gradient in zip(trace.sites, trace.gradients, strict=True):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)

        def shifted(step: float, chosen: Site = chosen, along: Tensor = direction) -> float:
            def change(site: Site, p: Tensor) -> Tensor:
                return p + step * along if site == chosen else p

            with model.edit(Edit(probabilities=change)):
                return float(model.score(batch.inputs, target))

        numeric = (shifted(1e-3) - shifted(-1e-3)) / 2e-3
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=2e-2, abs=2e-3)


def test_edits_of_scores_and_probabilities_change_the_output(tiny: Model) -> None:
    batch = batch_of(tiny)
    plain = tiny.logits(batch.inputs)
    for edit in (Edit(scores=lambda site, s: s * 0), Edit(probabilities=lambda site, p: p * 0)):
        with tiny.edit(edit):
            assert float((tiny.logits(batch.inputs) - plain).abs().max()) > 1e-3
    torch.testing.assert_close(tiny.logits(batch.inputs), plain, rtol=0, atol=0)


def test_an_edit_is_applied_once_and_seen_by_recordings(tiny: Model) -> None:
    batch = batch_of(tiny)
    target = tiny.target(batch)
    seen: list[Site] = []

    def halve(site: Site, p: Tensor) -> Tensor:
        seen.append(site)
        return p / 2

    with tiny.edit(Edit(probabilities=halve)):
        trace = tiny.trace(batch, target)
    assert tuple(seen) == tiny.attach().sites
    sums = trace.maps[0].sum(-1)[0, 0, 0]
    assert float(sums) == pytest.approx(0.5, abs=1e-5)


def test_edits_nest_in_order(demo: Model) -> None:
    batch = batch_of(demo)
    last: list[Tensor] = []

    def keep(site: Site, p: Tensor) -> Tensor:
        last.append(p)
        return p

    inner = Edit(probabilities=lambda site, p: p * 2), Edit(probabilities=keep)
    with demo.edit(Edit(probabilities=lambda site, p: p + 1)), demo.edit(*inner):
        demo.logits(batch.inputs)
    assert float(last[0][0, 0, 0].sum()) == pytest.approx(
        2 * (1 + batch.inputs["input_ids"].shape[1]), 1e-5
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_restored_after_an_exception(tiny: Model, error: type[BaseException]) -> None:
    batch = batch_of(tiny)
    target = tiny.target(batch)
    plain = tiny.logits(batch.inputs)
    before = state(tiny)

    def fail(site: Site, p: Tensor) -> Tensor:
        if site == tiny.attach().sites[-1]:
            raise error("in the middle of a forward pass")
        return p

    with pytest.raises(error), tiny.edit(Edit(probabilities=fail)):
        tiny.trace(batch, target, gradients=True)
    assert state(tiny) == before
    torch.testing.assert_close(tiny.logits(batch.inputs), plain, rtol=0, atol=0)


def test_a_reduction_is_applied_inside(demo: Model) -> None:
    batch = batch_of(demo)
    target = demo.target(batch)
    whole = demo.trace(batch, target)
    reduced = demo.trace(batch, target, reduce=HEAD_MEAN)
    for a, b in zip(reduced.maps, whole.maps, strict=True):
        torch.testing.assert_close(a, b.mean(1))


def test_a_model_without_attention_is_refused_with_a_remedy(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("fnet")
    with pytest.raises(AttentionError, match=r"cannot be reached.*softmax: none.*integrated_grad"):
        model.attach()
    with pytest.raises(AttentionError), model.edit(Edit()):
        pytest.fail("an edit that cannot take effect must be refused")


@pytest.mark.parametrize("change", [lambda site, p: p.mean(1), lambda site, p: None])
def test_an_edit_that_returns_something_else_is_refused(
    demo: Model, change: Callable[[Site, Tensor], Tensor]
) -> None:
    batch = batch_of(demo)
    refused = pytest.raises(AttentionError, match=r"an edit at .* returned something else")
    with refused, demo.edit(Edit(probabilities=change)):
        demo.logits(batch.inputs)


def test_a_saturated_probability_names_the_remedy(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bert")
    with torch.no_grad():
        model.network.classifier.weight.mul_(1e4)
    batch = batch_of(model)
    with pytest.raises(AttentionError, match="--quantity logit"):
        model.trace(batch, model.target(batch, quantity="probability"))


def test_threads_take_turns(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bert")
    before = state(model)
    expected = xattn.explain(tiny_of("bert"), TEXTS, ["rollout", "attention_gradient"])
    with ThreadPoolExecutor(6) as pool:
        results = list(
            pool.map(
                lambda _: xattn.explain(model, TEXTS, ["rollout", "attention_gradient"]), range(6)
            )
        )
    assert state(model) == before
    for result in results:
        for a, b in zip(result, expected, strict=True):
            assert abs(a.scores - b.scores).max() < 1e-5


def test_a_tap_that_changes_logits_is_refused(
    tiny_of: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = Tap.attend
    monkeypatch.setattr(Tap, "attend", lambda self, m, s, f: attend(self, m, s, f) * 0.9)
    model = tiny_of("bert")
    assert model.attach().backend == "maps"  # what the model itself returns is right all the same
    with pytest.raises(AttentionError, match="can only be read"), model.edit(Edit(scores=id)):
        model.logits(batch_of(model).inputs)
    monkeypatch.delitem(BACKENDS, "maps")
    with pytest.raises(AttentionError, match="logits differ by"):
        tiny_of("bert").attach()
