"""Half precision and quantised weights: the tap stays true, explanations stay those of float32."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    TorchAoConfig,
)

import xattn
from xattn.errors import ModelError
from xattn.model import Edit, Model
from xattn.model.interface import attention_implementation
from xattn.testing import TEXTS, state
from xattn.types import Batch

METHODS = ["rollout", "attention_gradient", "integrated_gradients"]
LONG = TEXTS[1]  # ranks of a few tokens say little


def watched(site: Any, tensor: Tensor) -> Tensor:
    return tensor


def tapped(model: Model, batch: Batch) -> Tensor:
    with model.edit(Edit(scores=watched, probabilities=watched, values=watched, outputs=watched)):
        return model.logits(batch.inputs)


def agreement(got: Model, exact: Model) -> list[float]:
    """Return the rank correlation of each method's scores with those of the exact model."""
    label = got.labels[0]
    pairs = zip(
        xattn.explain(got, [LONG], METHODS, label=label),
        xattn.explain(exact, [LONG], METHODS, label=label),
        strict=True,
    )
    return [float(spearmanr(a.scores, b.scores).statistic) for a, b in pairs]


@pytest.mark.parametrize(
    ("dtype", "least"), [(torch.bfloat16, 0.9), (torch.float16, 0.98)], ids=["bf16", "fp16"]
)
def test_half_precision(
    tiny_of: Callable[..., Model], family: str, dtype: torch.dtype, least: float
) -> None:
    exact, model = tiny_of(family), tiny_of(family)
    model.network.to(dtype)
    batch = model.batch(model.encode(TEXTS))
    before = state(model)
    with attention_implementation(model.network, "eager"):
        eager = model.logits(batch.inputs)
    # The same arithmetic but for softmax, which some models take in half precision: a last digit.
    # A model that cannot be switched to eager (ModernBERT before it followed the interface) keeps
    # its fused kernel, which rounds once where separate steps round often.
    digits = 2 if model.attach().backend == "interface" else 8
    digit = torch.finfo(dtype).eps * float(eager.abs().max())
    assert float((tapped(model, batch) - eager).abs().max()) <= digits * digit
    assert float((eager - exact.logits(batch.inputs)).abs().max()) > 0
    found = agreement(model, exact)
    assert min(found) >= least, found
    assert state(model) == before


# ----------------------------------------------------------------- 8-bit and 4-bit weights


def wide(model: Model) -> Model:
    """Return a model of the same family, wide enough for blocks of 64 weights."""
    config = copy.deepcopy(model.network.config)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config).eval()
    return Model(network, model.tokenizer)


def quantised(model: Model, folder: Path, quantisation: Any) -> Model:
    model.network.save_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(
        folder, quantization_config=quantisation, dtype=torch.float32
    )
    kinds = {type(parameter) for parameter in network.parameters()}
    assert kinds > {torch.nn.Parameter}, "nothing is quantised"
    return Model(network, model.tokenizer)


def assert_served(model: Model, exact: Model) -> None:
    """The tap computes what the model's own attention does, and nothing stays changed."""
    batch = model.batch(model.encode(TEXTS))
    plain = model.logits(batch.inputs)
    weights = model.provenance()["weights"]
    assert weights != exact.provenance()["weights"]
    assert float((plain - exact.logits(batch.inputs)).abs().max()) > 1e-3
    before = state(model)
    with attention_implementation(model.network, "eager"):
        eager = model.logits(batch.inputs)
    torch.testing.assert_close(tapped(model, batch), eager, rtol=0, atol=0)
    with model.edit(Edit(probabilities=lambda site, p: p * 0)):
        assert float((model.logits(batch.inputs) - plain).abs().max()) > 1e-2
    assert min(agreement(model, exact)) > -1  # finite
    torch.testing.assert_close(model.logits(batch.inputs), plain, rtol=0, atol=0)
    assert state(model) == before
    assert model.provenance()["weights"] == weights


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_torchao_weights_are_explained_as_what_they_stand_for(
    tiny_of: Callable[..., Model], tmp_path: Path, name: str, bits: int
) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    exact = wide(tiny_of(name))
    kind = torchao.IntxWeightOnlyConfig(
        weight_dtype=torch.int8 if bits == 8 else torch.int4, granularity=torchao.PerGroup(32)
    )
    model = quantised(exact, tmp_path, TorchAoConfig(kind))
    assert_served(model, exact)
    # the same integers as floating-point numbers must be explained the same
    rounded = wide(tiny_of(name))
    values = {
        n: p.dequantize() if hasattr(p, "qdata") else p for n, p in model.network.named_parameters()
    }
    rounded.network.load_state_dict(values, strict=False)
    assert min(agreement(model, rounded)) > 0.999


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_bitsandbytes_8_bit_weights(
    tiny_of: Callable[..., Model],
    tmp_path: Path,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    caplog.set_level(logging.ERROR, "bitsandbytes")  # it tells of every layer at every pass
    exact = wide(tiny_of(name))
    model = quantised(exact, tmp_path, BitsAndBytesConfig(load_in_8bit=True))
    assert_served(model, exact)
    assert min(agreement(model, exact)) > 0.9  # it rounds activations as well


def test_layers_that_pass_no_gradient_are_refused(tiny_of: Callable[..., Model]) -> None:
    # bitsandbytes' 4-bit layers are such on a CPU, in evaluation mode
    model = tiny_of("bert")
    batch = model.batch(model.encode(TEXTS))
    target = model.target(batch)
    for layer in model.network.bert.encoder.layer:
        dense = layer.attention.output.dense
        dense.forward = lambda x, forward=dense.forward: forward(x.detach())
    with pytest.raises(ModelError, match=r"passes no gradient.*4 of 4.*not quantised"):
        model.trace(batch, target, gradients=True)
