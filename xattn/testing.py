"""The conformance suite: what every explanation method has to keep, ours and yours.

A plug-in's author runs it on an own method with three lines::

    import xattn.testing
    def test_conforms():
        xattn.testing.check_method("my_method", xattn.load())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from xattn.model import Model
from xattn.registry import Completeness, Method
from xattn.registry import methods as registry
from xattn.types import Encoding

TEXTS = (
    "A clumsy, heartless bore.",
    "It begins slowly, but the last hour is a wonder: warm, funny and beautifully acted.",
    "Dull!",
)
"""Texts of different lengths, so that a batch of them is padded."""
PICTURES = tuple(
    np.random.default_rng(seed).integers(0, 256, (48, 40, 3), dtype=np.uint8) for seed in range(3)
)
"""Pictures of noise, for models that see; with a text each for models that read, too."""

INVARIANCE = 1e-5
"""Largest change of a score, relative to the largest (at least 1), by padding or batching."""
FEW = 6
"""Units of the inputs of methods that go through all coalitions."""
COMPLETENESS = 0.05
"""Largest completeness gap, relative to the difference that the scores must sum to, or to a tenth
of the sum of their absolute values where that is more: parts that cancel leave rounding behind."""


def state(model: Model) -> dict[str, Any]:
    """Return everything about a model that an explanation must not change."""
    return {**network_state(model.network), "vocabulary": model.tokenizer and len(model.tokenizer)}


def network_state(network: Any) -> dict[str, Any]:
    """Return everything about a network that an explanation must not change."""
    return {
        "training": [module.training for module in network.modules()],
        "gradient flags": [p.requires_grad for p in network.parameters()],
        "gradients": [p.grad is None for p in network.parameters()],
        "parameters": [(p.data_ptr(), p._version, p.dtype) for p in network.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in network.modules()
        ],
        "attention": [
            getattr(getattr(m, "config", None), "_attn_implementation", None)
            for m in network.modules()
        ],
        "config": network.config.to_dict(),
    }


def inputs(model: Model) -> list[Encoding]:
    """Return inputs of the kind that a model takes."""
    if model.reader is None:
        return model.encode(TEXTS)
    if model.tokenizer is None:
        return model.encode(PICTURES)
    return model.encode(TEXTS, pictures=PICTURES)


def _scores(model: Model, method: Method, encodings: Sequence[Encoding]) -> list[Tensor]:
    """Return the scores of each input, explained in one batch, without padding."""
    batch = model.batch(_grouped(method, encodings))
    scores = method(model, batch, model.target(batch, at=model.task.first))
    assert scores.shape == batch.shape, (
        f"{method.name}: scores {list(scores.shape)}, expected {list(batch.shape)}"
    )
    return [scores[i, torch.from_numpy(batch.columns(i))] for i in range(len(batch))]


def _grouped(method: Method, encodings: Sequence[Encoding]) -> Sequence[Encoding]:
    """Return inputs in a few units, if the method takes no more."""
    if method.declaration.units is None:
        return encodings
    few = min(method.declaration.units, FEW)
    return [replace(e, units=np.arange(len(e)) * few // len(e)) for e in encodings]


def _assert_close(method: Method, what: str, got: list[Tensor], expected: list[Tensor]) -> None:
    for text, (a, b) in enumerate(zip(got, expected, strict=True)):
        largest = float((a - b).abs().max())
        allowed = INVARIANCE * max(1.0, float(b.abs().max()))
        assert largest <= allowed, (
            f"{method.name}: {what} changes a score of text {text} by {largest:.2g}, "
            f"allowed {allowed:.1g}"
        )


def check_declaration(model: Model, method: Method) -> None:
    """Require a frozen dataclass with defaults for all fields, a docstring and a citation."""
    cls: type = type(method)
    assert is_dataclass(cls), f"{method.name} is not a dataclass"
    parameters: Any = vars(cls)["__dataclass_params__"]
    assert parameters.frozen, f"{method.name} is not frozen"
    for field in fields(cls):
        assert field.default is not MISSING, f"{method.name}.{field.name} has no default"
    assert method.declaration.citation.strip(), f"{method.name} names no source"
    assert (cls.__doc__ or "").strip(), f"{method.name} has no docstring"


def check_finite(model: Model, method: Method) -> None:
    """Require finite scores, one for each token."""
    for scores in _scores(model, method, inputs(model)):
        assert bool(scores.isfinite().all()), f"{method.name}: scores are not finite"


def check_deterministic(model: Model, method: Method) -> None:
    """Require the same scores from the same call, whatever the global random state."""
    first = _scores(model, method, inputs(model))
    torch.rand(7)
    _assert_close(method, "repeating the call", _scores(model, method, inputs(model)), first)


def check_batching(model: Model, method: Method) -> None:
    """Require that scores do not depend on the other texts of a batch, nor on padding."""
    together = _scores(model, method, inputs(model))
    alone = [_scores(model, method, [encoding])[0] for encoding in inputs(model)]
    _assert_close(method, "batching", together, alone)


def check_model_unchanged(model: Model, method: Method) -> None:
    """Require that the network is handed back as it came, in training mode as well."""
    for training in (False, True):
        model.network.train(training)
        try:
            before = state(model)
            _scores(model, method, inputs(model))
            after = state(model)
        finally:
            model.network.eval()
        for name, value in before.items():
            assert after[name] == value, f"{method.name}: changed the model's {name}"


def check_sign(model: Model, method: Method) -> None:
    """Require scores of an unsigned method not to be negative."""
    if not method.declaration.signed:
        for scores in _scores(model, method, inputs(model)):
            assert bool((scores >= 0).all()), f"{method.name} is declared unsigned"


def check_total(model: Model, method: Method) -> None:
    """Require scores to sum to what the method declares."""
    parts = _scores(model, method, inputs(model))
    sums = torch.stack([scores.sum() for scores in parts])
    if method.declaration.total == "one":
        worst = float((sums - 1).abs().max())
        assert worst <= 1e-5, f"{method.name}: scores sum to 1 only within {worst:.2g}"
    elif method.declaration.total == "difference":
        batch = model.batch(_grouped(method, inputs(model)))
        expected = cast(Completeness, method).difference(
            model, batch, model.target(batch, at=model.task.first)
        )
        gap = (sums - expected).abs()
        mass = torch.stack([scores.abs().sum() for scores in parts])
        allowed = COMPLETENESS * expected.abs().maximum(mass / 10)
        assert bool((gap <= allowed).all()), (
            f"{method.name}: completeness gaps {gap.tolist()}, allowed {allowed.tolist()}"
        )


CHECKS: tuple[Callable[[Model, Method], None], ...] = (
    check_declaration,
    check_finite,
    check_deterministic,
    check_batching,
    check_model_unchanged,
    check_sign,
    check_total,
)
"""All checks; each takes a model and a method and raises AssertionError."""


def check_method(method: str | Method, model: Model) -> None:
    """Run every check on one method.

    Parameters
    ----------
    method : str or Method
        A name, a name with options, or an instance.
    model : Model

    Raises
    ------
    AssertionError
        Naming the method, what it broke and by how much.
    """
    built = registry.build(method) if isinstance(method, str) else method
    for check in CHECKS:
        check(model, built)
