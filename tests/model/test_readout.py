"""The readout, found by gradient: where each family's prediction is read from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from xattn.model import Model, Site
from xattn.testing import TEXTS

FIRST = {"bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert"}


def test_readout_is_the_first_or_the_last_token(tiny: Model) -> None:
    batch = tiny.batch(tiny.encode(TEXTS))
    readout = tiny.trace(batch, tiny.target(batch)).readout
    expected = torch.zeros_like(readout)
    for i, encoding in enumerate(batch.encodings):
        first = tiny.name.removeprefix("tiny-") in FIRST
        expected[i, 0 if first else len(encoding) - 1] = 1
    torch.testing.assert_close(readout, expected)


def test_mean_pooling_reads_from_every_token_but_padding(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("modernbert")
    model.network.config.classifier_pooling = "mean"
    batch = model.batch(model.encode(TEXTS))
    readout = model.trace(batch, model.target(batch)).readout
    real = batch.real
    assert bool((readout[real] > 0).all())
    assert bool((readout[~real] == 0).all())
    torch.testing.assert_close(readout.sum(-1), torch.ones(3))


def test_a_short_way_to_the_readout_leads_to_the_same(tiny: Model) -> None:
    """Heads that read one position are differentiated no further than their own modules."""
    batch = tiny.batch(tiny.encode(TEXTS))
    target = tiny.target(batch)
    by_definition = tiny.trace(batch, target, gradients=True).readout
    torch.testing.assert_close(tiny.trace(batch, target).readout, by_definition)
    assert tiny.cut not in (None, *tiny.attach().sites)


@pytest.mark.parametrize(("family", "task"), [
    ("bert", "tag"), ("roberta", "answer"), ("bert", "fill"), ("llama", "generate"),
    ("gpt2", "generate"), ("bart", "generate"), ("t5", "generate"),
])  # fmt: skip
def test_the_short_way_serves_every_task(
    tiny_of: Callable[..., Model], family: str, task: str
) -> None:
    model = tiny_of(family, task=task)
    at = {"answer": "start", "generate": "next", "tag": "each", "fill": "token:1"}[task]
    pairs = ["Is it long?"] if task == "answer" else None
    encodings = model.encode(["Dull!"], pairs)
    for aim in model.aims(encodings, at=at)[0]:
        batch, target = model.batch(encodings), model.target_of([aim])
        by_definition = model.trace(batch, target, gradients=True).readout
        torch.testing.assert_close(model.trace(batch, target).readout, by_definition)


def test_no_cache_is_filled(tiny: Model) -> None:
    batch = tiny.batch(tiny.encode(TEXTS))
    with tiny.borrowed(batch.inputs):
        assert tiny.output(batch.inputs).get("past_key_values") is None


def test_several_positions_are_weighed_at_the_last_attention(
    tiny_of: Callable[..., Model],
) -> None:
    model = tiny_of("modernbert")
    model.network.config.classifier_pooling = "mean"
    batch = model.batch(model.encode(TEXTS))
    target = model.target(batch)
    expected = model.trace(batch, target, gradients=True).readout
    assert model.cut is None
    torch.testing.assert_close(model.trace(batch, target).readout, expected)
    model.cut = Site("model.final_norm", 0)  # had the probe been read from one token
    torch.testing.assert_close(model.trace(batch, target).readout, expected)
