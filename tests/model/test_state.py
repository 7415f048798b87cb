"""Models that come in an unusual state: right results, and the state handed back bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from xattn.errors import ModelError
from xattn.model import Edit, Model
from xattn.testing import TEXTS, state
from xattn.types import Attribution

METHODS = ["attention", "rollout", "attention_gradient", "integrated_gradients"]
SERVED = ("bert", "albert", "deberta-v2", "gpt2", "llama")


def bits(model: Model) -> dict[str, bytes]:
    """Return every number that a model holds, gradients included."""
    tensors = dict(model.network.state_dict())
    tensors |= {
        f"{name}.grad": p.grad for name, p in model.network.named_parameters() if p.grad is not None
    }
    return {name: t.contiguous().view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}


def explained(model: Model) -> list[Attribution]:
    return xattn.explain(model, TEXTS, METHODS, label=0)


def assert_same(got: list[Attribution], expected: list[Attribution], atol: float = 0) -> None:
    for a, b in zip(got, expected, strict=True):
        assert abs(a.scores - b.scores).max() <= atol


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_in_the_middle_of_training(
    tiny_of: Callable[..., Model], name: str, checkpointing: bool
) -> None:
    expected = explained(tiny_of(name))
    model = tiny_of(name)
    if checkpointing and not model.network.supports_gradient_checkpointing:
        pytest.skip(f"transformers refuses to checkpoint {name}")
    for key, value in vars(model.network.config).items():
        if "drop" in key and isinstance(value, float):
            setattr(model.network.config, key, 0.5)
    for module in model.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    if checkpointing:
        model.network.gradient_checkpointing_enable()
    network = model.network.train()
    inputs = dict(model.batch(model.encode([TEXTS[0]])).inputs)
    network(**inputs).logits.sum().backward()  # gradients that an optimiser still waits for
    next(network.parameters()).requires_grad_(False)
    before, numbers = state(model), bits(model)
    assert any(before["training"])
    assert not all(before["gradients"])
    checkpointed = [getattr(m, "gradient_checkpointing", None) for m in network.modules()]
    assert any(checkpointed) == checkpointing
    assert_same(explained(model), expected)
    with model.edit(Edit(probabilities=lambda site, p: p * 0)):
        model.logits(model.batch(model.encode(TEXTS)).inputs)
    assert state(model) == before
    assert bits(model) == numbers
    assert [getattr(m, "gradient_checkpointing", None) for m in network.modules()] == checkpointed


@pytest.mark.parametrize("name", SERVED)
def test_foreign_hooks_run_and_stay(tiny_of: Callable[..., Model], name: str) -> None:
    expected = explained(tiny_of(name))
    model = tiny_of(name)
    seen: list[str] = []

    def watch(module: Any, args: Any, output: Any) -> None:
        seen.append(type(module).__name__)

    handles = [module.register_forward_hook(watch) for module in model.network.modules()]
    before, numbers = state(model), bits(model)
    assert_same(explained(model), expected)
    assert seen
    assert state(model) == before
    assert bits(model) == numbers
    seen.clear()
    for handle in handles:
        handle.remove()
    model.logits(model.batch(model.encode(TEXTS)).inputs)
    assert not seen


def test_a_foreign_hook_that_changes_the_model_is_part_of_it(tiny_of: Callable[..., Model]) -> None:
    plain, model = tiny_of("bert"), tiny_of("bert")
    layer = model.network.bert.encoder.layer[1].attention.output
    layer.register_forward_hook(lambda module, args, output: output * 0.5)
    batch = model.batch(model.encode(TEXTS))
    changed = model.logits(batch.inputs)
    assert float((changed - plain.logits(batch.inputs)).abs().max()) > 1e-3
    assert model.attach().backend == "interface"
    trace = model.trace(batch, model.target(batch, 0), gradients=True)
    torch.testing.assert_close(trace.score, changed[:, 0])


def test_a_foreign_hook_that_raises_leaves_nothing_behind(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("deberta-v2")  # its tap is a function mode: left open it would stay for good
    batch = model.batch(model.encode(TEXTS))
    target = model.target(batch)
    model.attach()

    def fail(module: Any, args: Any, output: Any) -> None:
        raise RuntimeError("from a foreign hook")

    handle = model.network.deberta.encoder.layer[1].attention.self.register_forward_hook(fail)
    before, numbers = state(model), bits(model)
    with pytest.raises(RuntimeError, match="from a foreign hook"):
        model.trace(batch, target, gradients=True)
    assert state(model) == before
    assert bits(model) == numbers
    handle.remove()
    assert_same(explained(model), explained(tiny_of("deberta-v2")))


@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_two_threads_with_edits_of_their_own(tiny_of: Callable[..., Model], name: str) -> None:
    """An edit holds the model: no other thread's pass runs under it, nor without its own."""
    model = tiny_of(name)
    batch = model.batch(model.encode(TEXTS))
    factors = (0.0, 0.5, 1.0)

    def scaled(factor: float) -> Tensor:
        with model.edit(Edit(probabilities=lambda site, p: p * factor)):
            return model.logits(batch.inputs)

    expected = {factor: scaled(factor) for factor in factors}
    assert float((expected[0.0] - expected[1.0]).abs().max()) > 1e-3
    before, numbers = state(model), bits(model)
    barrier = Barrier(6)

    def work(number: int) -> list[Tensor]:
        barrier.wait()
        return [scaled(factors[number % 3]) for _ in range(4)]

    with ThreadPoolExecutor(6) as pool:
        for number, results in enumerate(pool.map(work, range(6))):
            for result in results:
                torch.testing.assert_close(result, expected[factors[number % 3]], rtol=0, atol=0)
    assert state(model) == before
    assert bits(model) == numbers


def test_two_adapters_of_one_network_take_turns(tiny_of: Callable[..., Model]) -> None:
    expected = explained(tiny_of("bert"))
    first = tiny_of("bert")
    second = Model(first.network, first.tokenizer)
    before, numbers = state(first), bits(first)
    with ThreadPoolExecutor(2) as pool:
        for results in pool.map(explained, [first, second] * 3):
            assert_same(results, expected, atol=1e-6)
    assert state(first) == before
    assert bits(first) == numbers


def test_within_no_grad_and_within_inference_mode(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bert")
    expected = explained(model)
    with torch.no_grad():
        assert_same(explained(model), expected)
    with torch.inference_mode(), pytest.raises(ModelError, match=r"torch\.inference_mode\(\)"):
        explained(model)
    assert_same(explained(model), expected)
