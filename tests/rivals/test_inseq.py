"""Gradients and removals of a decoder's tokens equal those of inseq."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xattn
from xattn.model import Model

inseq = pytest.importorskip("inseq")
PROMPT, WRITTEN = "A clumsy bore", " sat"


def theirs(model: Model, method: str, **options: Any) -> np.ndarray[Any, Any]:
    """Return what inseq says of the prompt's tokens for the first token that follows them."""
    tokenizer = model.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.network.config._name_or_path = tokenizer.name_or_path = "tiny"
    loaded = inseq.load_model(model.network, method, tokenizer=tokenizer)
    out = loaded.attribute(
        PROMPT, PROMPT + WRITTEN, attributed_fn="logit", show_progress=False, **options
    )
    table = out.sequence_attributions[0].target_attributions[:, 0]
    count = len(model.encode([PROMPT])[0])
    return table[:count].double().numpy()  # type: ignore[no-any-return]


def ours(model: Model, spec: str) -> np.ndarray[Any, Any]:
    result = xattn.explain(model, [PROMPT], [spec], pairs=[WRITTEN], at=0)
    return result[0].scores[: len(model.encode([PROMPT])[0])].astype(np.float64)


@pytest.fixture
def decoder(tiny_of: Callable[..., Model]) -> Model:
    return tiny_of("gpt2", task="generate")


def test_saliency(decoder: Model) -> None:
    expected = np.linalg.norm(theirs(decoder, "saliency"), axis=-1)
    np.testing.assert_allclose(ours(decoder, "saliency"), expected, rtol=1e-4)


def test_input_x_gradient(decoder: Model) -> None:
    expected = theirs(decoder, "input_x_gradient").sum(-1)
    np.testing.assert_allclose(ours(decoder, "input_x_gradient"), expected, atol=1e-4)


def test_integrated_gradients(decoder: Model) -> None:
    expected = theirs(decoder, "integrated_gradients", n_steps=500).sum(-1)
    got = ours(decoder, "integrated_gradients:baseline=unk,tolerance=1e-4")
    np.testing.assert_allclose(got, expected, atol=5e-3 * np.abs(expected).max())
