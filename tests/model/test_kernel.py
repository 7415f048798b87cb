"""Attention by runs of queries equals the plain formula, in value, reduction and gradient."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import xattn
from xattn.model import Edit, Model, kernel
from xattn.model.reduction import (
    HEAD_MEAN,
    WHOLE,
    GradientReduction,
    Reduction,
    along_queries,
    column_sums,
    gradient_sums,
    key_mass,
    rows,
)
from xattn.model.tap import Tap
from xattn.testing import TEXTS

LOWEST = torch.finfo(torch.float64).min
WHOLE_GRADIENTS = GradientReduction(lambda maps, gradients, queries: gradients, along_queries)


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return outputs and maps by the formula, written down without any saving."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    lowest = torch.finfo(scores.dtype).min
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), lowest)
    if mask is not None:
        mask = mask[..., : key.shape[2]]
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        column = sinks[:, None, None].expand(len(scores), -1, scores.shape[2], 1)
        scores = torch.cat([scores, column], -1)
    maps = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    maps = maps.to(query.dtype)[..., : key.shape[2]]
    return maps @ value, maps


def inputs(
    *, batch: int = 2, heads: int = 4, groups: int = 2, queries: int = 11, keys: int = 11
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value in double precision, values narrower than keys."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return (
        draw(batch, heads, queries, 6) * 2,
        draw(batch, heads // groups, keys, 6),
        draw(batch, heads // groups, keys, 5),
    )


def additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, LOWEST)


CAUSAL = torch.ones(11, 11).tril().bool()[None, None]
WINDOW = CAUSAL & torch.ones(11, 11).triu(-2).bool()
PADDED = CAUSAL.repeat(2, 1, 1, 1)
PADDED[1, :, :, 8:] = False
LEFT = CAUSAL.repeat(2, 1, 1, 1)
LEFT[0, :, :, :4] = False  # the first four queries see nothing at all
HOLES = torch.rand(2, 4, 11, 11, generator=torch.Generator().manual_seed(1)) > 0.6
BIAS = torch.randn(1, 4, 11, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"causal": True},
    "causal mask": {"mask": additive(CAUSAL)},
    "causal bool": {"mask": CAUSAL},
    "window": {"mask": additive(WINDOW)},
    "window bool": {"mask": WINDOW},
    "padded": {"mask": additive(PADDED)},
    "left padded": {"mask": additive(LEFT)},
    "left padded bool": {"mask": LEFT},
    "holes": {"mask": additive(HOLES)},
    "bias": {"mask": BIAS},
    "causal bias": {"mask": BIAS + additive(CAUSAL)},
    "of keys alone": {"mask": additive(PADDED[:, :, -1:])},
    "too long": {"mask": torch.nn.functional.pad(additive(CAUSAL), (0, 3))},
    "mild": {"mask": additive(CAUSAL).clamp(min=-3.0)},
}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "capped": {"softcap": 1.5},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 3.0, 0.0], dtype=torch.float64)},
    "all": {
        "scale": 0.7,
        "softcap": 2.0,
        "sinks": torch.tensor([0.5, -1.0, 3.0, 0.0], dtype=torch.float64),
    },
}


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs be as short as four queries, so that small inputs have several."""
    monkeypatch.setattr(kernel, "FEWEST", 4)


def run_by_run(*args: Any, **kwargs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    return kernel.attention(*args, **kwargs, size=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", MASKS)
def test_outputs_and_maps_are_those_of_the_formula(mask: str, form: str) -> None:
    given_ = {**MASKS[mask], **FORMS[form]}
    expected, maps = plain(*inputs(), **given_)
    output, (whole,) = run_by_run(*inputs(), **given_, reductions=[WHOLE])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(whole, maps)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_heads_and_other_numbers_of_keys(groups: int) -> None:
    given_ = inputs(groups=groups, queries=9, keys=13)
    expected, maps = plain(*given_)
    output, (whole,) = run_by_run(*given_, reductions=[WHOLE])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(whole, maps)


REDUCTIONS: dict[str, tuple[Reduction, Callable[[Tensor], Tensor]]] = {
    "head mean": (HEAD_MEAN, lambda p: p.float().mean(1)),
    "column sums": (column_sums(), lambda p: p.float().sum(2)),
    "weighted": (
        column_sums(torch.arange(22.0).view(2, 11)),
        lambda p: torch.einsum("bq,bhqk->bhk", torch.arange(22.0).view(2, 11), p.float()),
    ),
    "rows": (
        rows(torch.tensor([[10, 0], [5, 6]])),
        lambda p: torch.stack([p[0, :, [10, 0]], p[1, :, [5, 6]]]),
    ),
    "key mass": (
        key_mass(torch.arange(11).expand(2, -1) < 4),
        lambda p: p[..., :4].float().sum(-1),
    ),
    "somebody's own, a view": (
        Reduction(lambda p, queries: p[:, 1], along_queries),
        lambda p: p[:, 1],
    ),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_reductions_are_those_of_whole_maps(mask: str, reduction: str) -> None:
    _, maps = plain(*inputs(), **MASKS[mask])
    reduce, of_whole = REDUCTIONS[reduction]
    _, (reduced,) = run_by_run(*inputs(), **MASKS[mask], reductions=[reduce])
    torch.testing.assert_close(reduced, of_whole(maps))
    at_once = reduce.join([reduce.each(maps, slice(0, 11))])
    torch.testing.assert_close(reduced, at_once)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_those_of_autograd(mask: str, form: str) -> None:
    tensors = dict(zip(("query", "key", "value"), inputs(), strict=True))
    settings_ = {**MASKS[mask], **FORMS[form]}
    leaves: dict[str, Tensor] = {}
    for name, tensor in {**tensors, **settings_}.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            leaves[name] = tensor.clone().requires_grad_()
    merged = {**tensors, **settings_, **leaves}
    expected, maps = plain(**merged)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).double()
    maps.retain_grad()
    wanted = torch.autograd.grad((expected * weight).sum(), [*leaves.values(), maps])
    sums: list[Tensor] = []
    whole: list[Tensor] = []
    output, _ = run_by_run(
        **merged,
        gradients=[
            (gradient_sums(positive=True), sums.append),
            (WHOLE_GRADIENTS, whole.append),
        ],
    )
    got = torch.autograd.grad((output * weight).sum(), list(leaves.values()))
    for name, a, b in zip(leaves, got, wanted, strict=False):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(whole[0], wanted[-1])
    products = (maps * wanted[-1]).float().clamp(min=0).sum((1, 2))
    torch.testing.assert_close(sums[0], products)


def test_gradcheck() -> None:
    query, key, value = (t[:1, :, :7].clone().requires_grad_() for t in inputs())
    bias = BIAS[..., :7, :7].clone().requires_grad_()
    sinks = FORMS["sinks"]["sinks"].clone().requires_grad_()

    def outputs(*given_: Tensor) -> Tensor:
        output, _ = run_by_run(*given_[:4], sinks=given_[4], softcap=2.0)
        return output

    assert torch.autograd.gradcheck(outputs, (query, key, value, bias, sinks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_narrow_types_round_as_the_formula_does(dtype: torch.dtype, masked: bool) -> None:
    query, key, value = (t.to(dtype) for t in inputs())
    mask = torch.zeros(11, 11, dtype=dtype).masked_fill(~CAUSAL, torch.finfo(dtype).min)
    settings_ = {"mask": mask} if masked else {}
    expected, maps = plain(query, key, value, **settings_)
    output, (whole,) = run_by_run(query, key, value, **settings_, reductions=[WHOLE])
    assert output.dtype == whole.dtype == dtype
    bound = {torch.float32: 1e-6, torch.bfloat16: 4e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(output, expected, atol=bound, rtol=bound)
    torch.testing.assert_close(whole, maps, atol=bound, rtol=bound)


def test_a_mask_wider_than_the_scores_is_added_in_its_own_type() -> None:
    query, key, value = (t.to(torch.bfloat16) for t in inputs())
    mask = BIAS.float() + torch.zeros(11, 11).masked_fill(~CAUSAL, torch.finfo(torch.float32).min)
    expected, maps = plain(query, key, value, mask)
    output, (whole,) = run_by_run(query, key, value, mask, reductions=[WHOLE])
    torch.testing.assert_close(output, expected, atol=4e-2, rtol=4e-2)
    assert bool((whole[:, :, ~CAUSAL[0, 0]] == 0).all())
    torch.testing.assert_close(whole, maps, atol=4e-2, rtol=4e-2)


def test_mask_and_causal_together_are_refused() -> None:
    with pytest.raises(ValueError, match="either a mask or causal"):
        kernel.attention(*inputs(), CAUSAL, causal=True)


# ------------------------------------------------------------------------------------ reach


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_keys_outside_the_reach_have_no_probability(data: st.DataObject) -> None:
    """And where the mask is said to be zero, it is."""
    shape = [data.draw(st.integers(1, n)) for n in (2, 2, 6, 6)]
    numbers = st.sampled_from([0.0, LOWEST, -float("inf"), -1e4, 1.5])
    count = shape[0] * shape[1] * shape[2] * shape[3]
    mask = torch.tensor(data.draw(st.lists(numbers, min_size=count, max_size=count)))
    mask = mask.double().view(shape)
    found = kernel.reach(mask)
    start = data.draw(st.integers(0, shape[2] - 1))
    run = slice(start, data.draw(st.integers(start + 1, shape[2])))
    keys, open_ = found.of(run)
    some = mask[:, :, run]
    blocked = some <= LOWEST
    outside = torch.ones(shape[3], dtype=torch.bool)
    outside[keys] = False
    assert bool(blocked[..., outside].all())
    assert not bool(outside.any()) or not bool(blocked.all(-1).any())
    assert bool((some[..., open_] == 0).all())
    assert keys.start <= open_.start <= open_.stop <= keys.stop


def test_causal_masks_are_added_at_the_diagonal_only() -> None:
    for mask in (CAUSAL, additive(CAUSAL)):
        assert kernel.reach(mask).of(slice(4, 8)) == (slice(0, 8), slice(0, 5))
    assert kernel.reach(WINDOW).of(slice(4, 6)) == (slice(2, 6), slice(3, 5))


def test_a_mask_is_looked_at_again_after_it_was_written_to() -> None:
    mask = additive(CAUSAL)
    before, _ = run_by_run(*inputs(), mask)
    mask.zero_()
    after, _ = run_by_run(*inputs(), mask)
    torch.testing.assert_close(before, plain(*inputs(), additive(CAUSAL))[0])
    torch.testing.assert_close(after, plain(*inputs())[0])


def test_masks_of_inference_mode_are_served() -> None:
    with torch.inference_mode():
        output, _ = run_by_run(*inputs(), additive(CAUSAL))
    torch.testing.assert_close(output.clone(), plain(*inputs(), additive(CAUSAL))[0])


def test_a_mask_does_not_outlive_its_forward_pass() -> None:
    before = len(kernel._reaches)
    mask = additive(CAUSAL)
    run_by_run(*inputs(), mask)
    assert len(kernel._reaches) == before + 1
    del mask
    assert len(kernel._reaches) == before


def test_no_map_is_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that any operation makes holds one run of queries, in both directions."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                Largest.count = max(Largest.count, result.numel())
            return result

    length, heads = 256, 8
    query, key, value = (torch.randn(1, heads, length, 4, requires_grad=True) for _ in range(3))
    kept: list[Tensor] = []
    with Largest():
        output, _ = run_by_run(
            query,
            key,
            value,
            causal=True,
            reductions=[column_sums()],
            gradients=[(gradient_sums(), kept.append)],
        )
        output.sum().backward()
    assert kept[0].shape == (1, length)
    assert heads * 4 * length <= Largest.count < heads * length * length / 16


# ------------------------------------------------------------------------------- in the tap


@pytest.mark.parametrize("pair", list(product([HEAD_MEAN, column_sums()], [False, True])))
def test_readings_are_the_same_by_runs_and_on_whole_maps(
    tiny: Model, pair: tuple[Reduction, bool]
) -> None:
    """An edit that changes nothing makes whole maps; without one there are runs of queries."""
    reduce, gradients = pair
    batch = tiny.batch(tiny.encode(TEXTS))
    target = tiny.target(batch)
    settings_: dict[str, Any] = {
        "reduce": reduce,
        "gradients": gradient_sums() if gradients else False,
    }
    runs = tiny.trace(batch, target, **settings_)
    with tiny.edit(Edit(scores=lambda site, s: s)):
        whole = tiny.trace(batch, target, **settings_)
    assert runs.sites == whole.sites == tiny.attach().sites
    torch.testing.assert_close(runs.score, whole.score, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(runs.readout, whole.readout, atol=1e-5, rtol=1e-4)
    assert len(runs.gradients) == (len(runs.sites) if gradients else 0)
    for a, b in zip(runs.maps + runs.gradients, whole.maps + whole.gradients, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_reduced_gradients_are_those_of_whole_maps(tiny: Model) -> None:
    batch = tiny.batch(tiny.encode(TEXTS))
    target = tiny.target(batch)
    whole = tiny.trace(batch, target, gradients=True)
    reduced = tiny.trace(batch, target, reduce=None, gradients=gradient_sums())
    assert reduced.maps == ()
    for products, maps, gradients in zip(
        reduced.gradients, whole.maps, whole.gradients, strict=True
    ):
        torch.testing.assert_close(products, (maps * gradients).sum((1, 2)), atol=2e-5, rtol=1e-4)


def test_the_score_is_that_without_a_reading(tiny: Model) -> None:
    batch = tiny.batch(tiny.encode(TEXTS))
    target = tiny.target(batch)
    expected = tiny.score(batch.inputs, target)
    torch.testing.assert_close(
        tiny.trace(batch, target, reduce=HEAD_MEAN).score, expected, atol=1e-5, rtol=1e-5
    )


def test_rollout_holds_no_map_of_the_model(
    tiny_of: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tap never asks for whole maps where nothing edits them."""

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("whole maps were computed")

    model = tiny_of("llama")
    model.attach()
    monkeypatch.setattr(Tap, "attend", refuse)
    for method in ("rollout", "attention", "flow", "attention_gradient"):
        assert xattn.explain(model, TEXTS, [method])
