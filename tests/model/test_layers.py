"""Layers are found by watching: what passes vectors on, with one attention in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xattn.model import Model
from xattn.testing import network_state

WHERE = {
    "bert": "bert.encoder.layer.",
    "distilbert": "distilbert.transformer.layer.",
    "deberta-v2": "deberta.encoder.layer.",
    "modernbert": "model.layers.",
    "gpt2": "transformer.h.",
    "llama": "model.layers.",
}


@pytest.mark.parametrize("family", WHERE)
def test_a_layer_is_what_the_model_calls_a_layer(
    tiny_of: Callable[..., Model], family: str
) -> None:
    model = tiny_of(family)
    before = network_state(model.network)
    assert [str(layer.site) for layer in model.layers] == [WHERE[family] + str(i) for i in range(3)]
    assert [layer.links for layer in model.layers] == [(0,), (1,), (2,)]
    assert network_state(model.network) == before


def test_one_module_called_three_times_is_three_layers(tiny_of: Callable[..., Model]) -> None:
    sites = [layer.site for layer in tiny_of("albert").layers]
    assert len({site.module for site in sites}) == 1
    assert [site.call for site in sites] == [0, 1, 2]


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_layer_of_a_decoder_attends_to_two_streams(
    tiny_of: Callable[..., Model], family: str
) -> None:
    model = tiny_of(family, task="generate")
    assert [layer.stream for layer in model.layers] == [0, 0, 1, 1]
    stacks = [[model.links()[i].stack for i in layer.links] for layer in model.layers]
    assert stacks == [["encoder"], ["encoder"], ["decoder", "cross"], ["decoder", "cross"]]
