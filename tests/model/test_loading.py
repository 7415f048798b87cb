"""Loading: what cannot be used is refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import xattn
from xattn import demo as shipped
from xattn.errors import InputError, ModelError, UnknownNameError
from xattn.model import Model


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(shipped.MODEL, folder)
    return folder


def test_a_saved_model_comes_back_the_same(tiny: Model, tmp_path: Path) -> None:
    tiny.network.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    back = xattn.load(tmp_path)
    text = ["A dull film."]
    expected = tiny.logits(tiny.batch(tiny.encode(text)).inputs)
    torch.testing.assert_close(back.logits(back.batch(back.encode(text)).inputs), expected)


def test_missing_folder() -> None:
    with pytest.raises(ModelError, match=r"no such model folder: got ./nowhere"):
        xattn.load("./nowhere")


def test_unknown_hub_name_names_the_network() -> None:
    with pytest.raises(ModelError, match=r"nobody/nothing cannot be loaded.*the network"):
        xattn.load("nobody/nothing")


def test_damaged_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"damaged.*download or save it again"):
        xattn.load(copy)


def test_damaged_config(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        xattn.load(copy)


def test_a_model_without_a_trained_head(tiny_of: Callable[..., Model], tmp_path: Path) -> None:
    model = tiny_of("bert")
    model.network.bert.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no trained weights for 2 parameters.*classifier"):
        xattn.load(tmp_path)


def test_a_folder_without_tokenizer(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer|cannot be loaded"):
        xattn.load(copy)


def test_a_tokenizer_of_another_model(demo: Model, tiny_of: Callable[..., Model]) -> None:
    model = Model(tiny_of("bert").network, demo.tokenizer)
    with pytest.raises(ModelError, match="the tokenizer does not belong to the model"):
        model.encode(["An unforgettable masterpiece of melancholy."])


def test_not_finite_logits(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bert")
    with torch.no_grad():
        model.network.classifier.bias[1] = float("nan")
    with pytest.raises(ModelError, match="logits are not finite"):
        xattn.explain(model, ["A film."], ["rollout"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_served(dtype: str) -> None:
    model = xattn.load(dtype=dtype)
    result = xattn.explain(model, ["A dull film."])
    exact = xattn.explain(xattn.load(), ["A dull film."])
    assert str(model.dtype) == f"torch.{dtype}"
    for a, b in zip(result, exact, strict=True):
        assert abs(a.scores - b.scores).max() < 0.1 * abs(b.scores).max()


def test_unknown_device_dtype_and_class(demo: Model) -> None:
    with pytest.raises(InputError, match="device: got 'tpu'"):
        xattn.load(device="tpu")
    with pytest.raises(InputError, match="dtype: got 'int8', expected one of float32"):
        xattn.load(dtype="int8")
    with pytest.raises(UnknownNameError, match=r"unknown class: got 'positiv'.*mean 'positive'"):
        demo.label_id("positiv")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    for a, b in zip(
        xattn.explain(xattn.load(device="cuda"), ["A dull film."]),
        xattn.explain(xattn.load(), ["A dull film."]),
        strict=True,
    ):
        assert abs(a.scores - b.scores).max() < 1e-3
