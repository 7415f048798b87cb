"""A real Llama with grouped queries, trained by others: its story, its maps, its gradients."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from xattn.model import Edit, Site
from xattn.model.attach import find_backend
from xattn.model.interface import interface
from xattn.model.softmax import softmax
from xattn.model.tap import Tap

BEGINNING = "Once upon a time"
# SHA-256 of the story that llama2.c prints in doc/stories260K.md for greedy decoding: 256 tokens.
KNOWN_STORY = "30b2ffb07967932a88bfdf5e23b517a6f4cfcf7231db9e537360d3c12a4e4d10"
BACKENDS = {"interface": interface, "softmax": softmax}


@pytest.fixture(scope="module")
def loader() -> ModuleType:
    path = Path(__file__).parents[1] / "reference" / "stories260k.py"
    spec = importlib.util.spec_from_file_location("reference_stories260k", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def storyteller(loader: ModuleType) -> tuple[Any, Any]:
    """The network and its tokenizer."""
    place = loader.folder()
    if place is None:
        pytest.skip(f"stories260K is not here; name its folder in {loader.VARIABLE}")
    network, tokenizer = loader.load(place)
    network.requires_grad_(False)
    return network, tokenizer


@pytest.fixture
def ids(storyteller: tuple[Any, Any]) -> Tensor:
    found: Tensor = storyteller[1](BEGINNING, return_tensors="pt")["input_ids"]
    return found


def test_the_greedy_story_is_the_known_one(storyteller: tuple[Any, Any], ids: Tensor) -> None:
    network, tokenizer = storyteller
    written = network.generate(
        ids, attention_mask=torch.ones_like(ids), max_length=257, do_sample=False
    )[0]
    story = tokenizer.decode(written, skip_special_tokens=True)
    assert story.startswith(BEGINNING)
    assert hashlib.sha256(story.encode()).hexdigest() == KNOWN_STORY, story
    # The tokenizer splits the story as the model wrote it.
    assert tokenizer(story)["input_ids"] == written.tolist()


def test_tokens_stand_where_the_text_has_them(storyteller: tuple[Any, Any]) -> None:
    tokenizer = storyteller[1]
    text = "Tim ate a café 🙂."
    coded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(coded["input_ids"], skip_special_tokens=True) == text
    pieces = tokenizer.convert_ids_to_tokens(coded["input_ids"])
    for piece, (start, end) in zip(pieces, coded["offset_mapping"], strict=True):
        if not piece.startswith("<"):
            assert text[start:end] in (piece, piece.lstrip())


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_with_the_tap_equal_logits_without(
    storyteller: tuple[Any, Any], ids: Tensor, backend: str
) -> None:
    network = storyteller[0]
    find_backend(network, lambda: network(ids).logits)  # raises where none is good enough
    plain = network(ids).logits
    seen: list[Site] = []

    def note(site: Site, probabilities: Tensor) -> Tensor:
        seen.append(site)
        return probabilities

    with BACKENDS[backend](network, Tap(network, (Edit(probabilities=note),))):
        tapped = network(ids).logits
    assert [site.module for site in seen] == [f"model.layers.{n}.self_attn" for n in range(5)]
    torch.testing.assert_close(tapped, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(ids).logits, plain, atol=0, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_maps_are_causal_and_rows_sum_to_one(storyteller: tuple[Any, Any], backend: str) -> None:
    network, tokenizer = storyteller
    ids = tokenizer("Once upon a time, there was a little girl.", return_tensors="pt")["input_ids"]
    maps: list[Tensor] = []

    def keep(site: Site, probabilities: Tensor) -> Tensor:
        maps.append(probabilities)
        return probabilities

    with BACKENDS[backend](network, Tap(network, (Edit(probabilities=keep),))):
        network(ids)
    assert len(maps) == 5
    for each in maps:
        assert each.shape == (1, 8, ids.shape[1], ids.shape[1])
        assert float(each.triu(1).abs().max()) == 0
        torch.testing.assert_close(each.sum(-1), torch.ones(each.shape[:-1]), atol=1e-5, rtol=0)
    # A trained model: its heads differ, though every two of them share their keys.
    assert float((maps[2][0, 0] - maps[2][0, 1]).abs().max()) > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_by_attention_equal_finite_differences(
    loader: ModuleType, storyteller: tuple[Any, Any], ids: Tensor, backend: str
) -> None:
    network = loader.load(loader.folder())[0].double()
    network.requires_grad_(False)
    target = int(network(ids).logits[0, -1].argmax())
    leaves: dict[Site, Tensor] = {}

    def leaf(site: Site, probabilities: Tensor) -> Tensor:
        leaves[site] = probabilities.requires_grad_()
        return leaves[site]

    def score(change: Callable[[Site, Tensor], Tensor]) -> Tensor:
        with BACKENDS[backend](network, Tap(network, (Edit(probabilities=change),))):
            result: Tensor = network(ids).logits[0, -1, target]
        return result

    # The first site is a leaf, and what follows from it is part of its graph.
    gradients = torch.autograd.grad(score(leaf), list(leaves.values()))
    generator = torch.Generator().manual_seed(1)
    for chosen, gradient in zip(leaves, gradients, strict=True):
        along = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)

        def shifted(step: float, chosen: Site = chosen, along: Tensor = along) -> float:
            return float(score(lambda site, p: p + step * along if site == chosen else p))

        # transformers takes norms and softmax in float32: a smaller step would be all rounding.
        numeric = (shifted(3e-3) - shifted(-3e-3)) / 6e-3
        assert float(gradient.abs().max()) > 1e-2
        assert float((gradient * along).sum()) == pytest.approx(numeric, rel=1e-2, abs=1e-3)
