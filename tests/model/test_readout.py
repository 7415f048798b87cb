"""The readout, found by gradient: where each family's prediction is read from."""

from __future__ import annotations

from collections.abc import Callable

import torch

from xattn.model import Model
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
