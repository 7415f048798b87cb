"""Every registered method keeps what it declares, on the demo model and on every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from xattn import testing
from xattn.model import Model
from xattn.registry import Declaration, Method, Registry
from xattn.registry import methods as registry
from xattn.types import Batch, Target


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names())
def test_on_the_demo_model(demo: Model, name: str, check: Callable[[Model, Method], None]) -> None:
    check(demo, registry.build(name))


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names())
def test_on_every_family(tiny: Model, name: str, check: Callable[[Model, Method], None]) -> None:
    check(tiny, registry.build(name))


@pytest.mark.parametrize(
    "spec",
    ["attention:layer=0,head=1", "rollout:residual=0.2", "flow:residual=0.0",
     "gradient_flow:weight=gradient", "gradient_flow:sink=common",
     "attention_gradient:layer=-1", "attention_gradient:positive=True",
     "integrated_gradients:baseline=pad", "integrated_gradients:baseline=zero"],
)  # fmt: skip
def test_with_other_options(demo: Model, spec: str) -> None:
    testing.check_method(spec, demo)


# The suite itself must be able to fail: one method that breaks each promise.

broken = Registry("xattn.methods", "method")


def wrong(
    name: str, *, signed: bool = True, total: str = "free"
) -> Callable[[Callable[[Model, Batch], Tensor]], Method]:
    def make(function: Callable[[Model, Batch], Tensor]) -> Method:
        @broken.registering(Declaration)(name, signed=signed, total=total, citation="none")  # type: ignore[arg-type]
        @dataclass(frozen=True)
        class Broken:
            """A method that breaks a promise."""

            def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
                return function(model, batch)

            def difference(self, model: Model, batch: Batch, target: Target) -> Tensor:
                return torch.ones(len(batch))

        return Broken()

    return make


def ones(batch: Batch) -> Tensor:
    return batch.real.float()


def freeze(model: Model, batch: Batch) -> Tensor:
    next(model.network.parameters()).requires_grad_(False)
    return ones(batch)


BREAKS = {
    "check_finite": wrong("nan")(lambda model, batch: ones(batch) * float("nan")),
    "check_deterministic": wrong("unseeded")(lambda model, batch: torch.rand(ones(batch).shape)),
    "check_batching": wrong("mixing")(
        lambda model, batch: ones(batch) * batch.inputs["input_ids"].shape[1]
    ),
    "check_sign": wrong("negative", signed=False)(lambda model, batch: -ones(batch)),
    "check_model_unchanged": wrong("freezing")(freeze),
    "check_total": wrong("incomplete", total="difference")(lambda model, batch: ones(batch)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_suite_catches_a_broken_method(tiny_of: Callable[..., Model], name: str) -> None:
    with pytest.raises(AssertionError, match=BREAKS[name].name):
        getattr(testing, name)(tiny_of("bert"), BREAKS[name])


def test_the_suite_catches_scores_that_do_not_sum_to_one(demo: Model) -> None:
    method = wrong("not_one", total="one")(lambda model, batch: ones(batch))
    with pytest.raises(AssertionError, match="sum to 1 only within"):
        testing.check_method(method, demo)
