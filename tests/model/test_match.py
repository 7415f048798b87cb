"""Models of texts and pictures: both towers get scores, from one similarity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, CLIPConfig, CLIPProcessor, SiglipConfig

import xattn
from xattn import evaluation, testing
from xattn.errors import InputError, ModelError
from xattn.model import Model, Suppress, mark
from xattn.registry import Method
from xattn.registry import methods as registry
from xattn.types import PICTURE

try:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
except ModuleNotFoundError:  # before image processors had several backends
    from transformers import CLIPImageProcessor as CLIPImageProcessorPil

METHODS = (
    "attention", "rollout", "flow", "attention_gradient", "integrated_gradients",
    "integrated_gradients:baseline=zero", "random",
)  # fmt: skip
SEEN = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8, "initializer_range": 0.25,
}  # fmt: skip
# Narrower than the other tower: the streams' embeddings differ in width.
READ = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 48, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip


def build(family: str, tiny_of: Callable[..., Model]) -> Model:
    tokenizer = tiny_of("bert").tokenizer
    text = {**READ, "vocab_size": len(tokenizer)}
    config: Any = CLIPConfig(vision_config=SEEN, text_config=text, projection_dim=16)
    if family == "siglip":
        tokenizer.model_input_names = ["input_ids"]
        config = SiglipConfig(vision_config=SEEN, text_config={**text, "projection_size": 48})
    torch.manual_seed(0)
    network = AutoModel.from_config(config).eval()
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    return Model(network, SimpleNamespace(tokenizer=tokenizer, image_processor=images))


@pytest.fixture(scope="module", params=["clip", "siglip"])
def model(request: pytest.FixtureRequest, tiny_of: Callable[..., Model]) -> Model:
    return build(request.param, tiny_of)


@pytest.fixture(scope="module")
def clip(tiny_of: Callable[..., Model]) -> Model:
    return build("clip", tiny_of)


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_what_they_declare(
    model: Model, name: str, check: Callable[[Model, Method], None]
) -> None:
    check(model, registry.build(name))


def test_text_and_patches_are_tokens_of_one_encoding(clip: Model) -> None:
    assert clip.task.name == "match"
    [encoding] = clip.encode(["A film."], pictures=[testing.PICTURES[0]])
    length = encoding.widths[0]
    assert encoding.widths == (length, 17)
    assert encoding.tokens[:2] == ("[CLS]", "A")
    assert encoding.tokens[length : length + 2] == ("[added 0]", "0,0")
    assert (encoding.segments[length + 1 :] == PICTURE).all()
    assert [link.stack for link in clip.links()] == ["text", "text", "image", "image"]
    for stack, count in (("text", length), ("image", 17)):
        [maps] = clip.attention([encoding], stack)
        assert maps.maps.shape == (2, 4, count, count)


def test_the_target_is_the_networks_own_similarity(model: Model) -> None:
    encodings = testing.inputs(model)
    batch = model.batch(encodings)
    got = model.score(batch.inputs, model.target(batch))
    for i, encoding in enumerate(encodings):
        single = model.batch([encoding]).inputs
        with torch.no_grad():
            output = model.network(**single)
        torch.testing.assert_close(got[i], output.logits_per_image[0, 0], atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="a match has no classes"):
        model.aims(encodings, label=1)


def test_texts_are_filled_up_where_the_model_learned_them_so(
    tiny_of: Callable[..., Model],
) -> None:
    model = build("siglip", tiny_of)
    [encoding] = model.encode(["A film."], pictures=[testing.PICTURES[0]])
    assert encoding.widths[0] == READ["max_position_embeddings"]
    coded = model.tokenizer("A film.", padding="max_length", max_length=48)["input_ids"]
    assert encoding.row["input_ids"].tolist() == coded
    assert model.link == "sigmoid"
    [item] = xattn.explain(model, [encoding], ["integrated_gradients"], quantity="probability")
    with torch.no_grad():
        output = model.network(
            input_ids=torch.tensor([coded]),
            pixel_values=torch.from_numpy(encoding.row["pixel_values"])[None],
        )
    assert item.probability == pytest.approx(float(output.logits_per_image.sigmoid()), abs=1e-5)


def test_each_tower_is_followed_by_itself(clip: Model) -> None:
    batch = clip.batch(testing.inputs(clip)[:2])
    trace = clip.trace(batch, clip.target(batch))
    eye = torch.eye(17).repeat(2, 1, 1)
    product = eye
    for link, maps in zip(trace.links, trace.maps, strict=True):
        if link.stack == "image":
            product = (0.5 * eye + 0.5 * maps.mean(1)) @ product
    image = batch.streams[1]
    row = trace.readout[:, image]
    assert bool((row[:, 0] == row.sum(1)).all())  # the picture is read from its first token
    got = registry.build("rollout")(clip, batch, clip.target(batch))
    torch.testing.assert_close(got[:, image], (row[:, None] @ product)[:, 0], atol=1e-5, rtol=0)


def test_a_saved_model_is_known_for_what_it_is(clip: Model, tmp_path: Path) -> None:
    clip.network.save_pretrained(tmp_path)
    assert clip.reader is not None
    CLIPProcessor(clip.reader.processor, clip.tokenizer).save_pretrained(tmp_path)
    loaded = xattn.load(tmp_path)
    assert loaded.task.name == "match"
    options: Any = {"methods": ["attention"], "pictures": [testing.PICTURES[0]]}
    [got] = xattn.explain(loaded, ["A film."], **options)
    [expected] = xattn.explain(clip, ["A film."], **options)
    assert np.allclose(got.scores, expected.scores, atol=1e-6)


def test_attention_to_a_marked_patch_is_suppressed_in_its_tower(clip: Model) -> None:
    # as many words as patches: lengths do not tell the towers apart
    [encoding] = clip.encode(["a " * 15], pictures=[testing.PICTURES[0]])
    assert encoding.widths == (17, 17)
    before = {stack: clip.attention([encoding], stack)[0] for stack in ("text", "image")}
    [marked] = [mark(encoding, "it", positions=[17 + 6])]
    with clip.edit(Suppress("it", stack="image")):
        after = {stack: clip.attention([marked], stack)[0] for stack in ("text", "image")}
    assert np.allclose(after["text"].maps, before["text"].maps, atol=1e-6)
    assert before["image"].maps[..., 6].min() > 1e-5
    assert after["image"].maps[..., 6].max() < 1e-6


def test_a_text_without_a_picture_is_refused(clip: Model) -> None:
    for pictures in (None, []):
        with pytest.raises(InputError, match="takes a picture for each text"):
            clip.encode(["A film."], pictures=pictures)


def test_texts_with_pictures_are_not_compared(clip: Model) -> None:
    with pytest.raises(ModelError, match=r"texts with pictures cannot be compared: got .* match"):
        evaluation.compare(clip, evaluation.load_dataset(limit=1), ["random"])
