"""Where numbers stop being numbers: forward the first module, backward the last one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from xattn.errors import ModelError
from xattn.model import Model
from xattn.model.diagnosis import where_not_finite
from xattn.testing import TEXTS, network_state


def test_a_weight_that_is_no_number_is_named(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bert")
    batch = model.batch(model.encode(TEXTS))
    place = "bert.encoder.layer.1.intermediate.dense"
    model.network.get_submodule(place).weight.data[0, 0] = float("nan")
    before = network_state(model.network)
    assert where_not_finite(model, batch.inputs) == f"the output of {place}"
    with pytest.raises(ModelError, match=f"arisen in the output of {place}; check the weights"):
        model.logits(batch.inputs)
    assert network_state(model.network) == before


class Root(torch.nn.Module):
    """The identity where it is differentiable: the root of a square has no slope at 0."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.sqrt((hidden * 0) ** 2) + hidden


def test_a_slope_that_is_no_number_is_named(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bert")
    batch = model.batch(model.encode(TEXTS))
    target = model.target(batch)
    assert where_not_finite(model, batch.inputs, target) == ""
    layer = model.network.bert.encoder.layer[1].output
    layer.dense = torch.nn.Sequential(layer.dense, Root())
    found = where_not_finite(model, batch.inputs, target)
    assert found == "the gradient at the output of bert.encoder.layer.1.output.dense.0"
