"""Pictures: patches are tokens, wherever the network puts them and whatever it puts before them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    IJepaConfig,
    PvtConfig,
    ResNetConfig,
    SegformerConfig,
    SiglipConfig,
    SwinConfig,
    ViTConfig,
)

import xattn
from xattn import evaluation, testing
from xattn.errors import AttentionError, InputError, ModelError
from xattn.model import Model, Suppress, mark
from xattn.model.entrances import grid
from xattn.model.tap import Edit, Site
from xattn.registry import Method
from xattn.registry import methods as registry
from xattn.report import page
from xattn.types import PICTURE

try:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
except ModuleNotFoundError:  # before image processors had several backends
    from transformers import ViTImageProcessor as ViTImageProcessorPil

METHODS = (
    "attention", "rollout", "flow", "attention_gradient", "integrated_gradients", "random",
)  # fmt: skip
SIDE, PATCH = 32, 8
SIZE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE,
    "patch_size": PATCH, "num_labels": 3,
}  # fmt: skip
LARGE = {"initializer_range": 0.25}  # small weights make every map uniform
WIDE = {**SIZE, **LARGE, "intermediate_size": 48}
FAMILIES: dict[str, tuple[Callable[[], Any], int]] = {
    "vit": (lambda: ViTConfig(**WIDE), 1),
    "deit": (lambda: DeiTConfig(**WIDE, architectures=["DeiTForImageClassification"]), 2),
    "dinov2": (lambda: Dinov2Config(**SIZE, **LARGE, mlp_ratio=2), 1),
    "registers": (lambda: Dinov2WithRegistersConfig(**SIZE, **LARGE, mlp_ratio=2), 5),
    "beit": (lambda: BeitConfig(**WIDE), 1),
    "ijepa": (lambda: IJepaConfig(**WIDE), 0),
    "siglip": (lambda: SiglipConfig(vision_config=WIDE, text_config=_SMALL, num_labels=3), 0),
}
"""With how many tokens of its own each puts before the patches."""
_SMALL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48
}  # fmt: skip
OTHERS: dict[str, Callable[[], Any]] = {
    "swin": lambda: SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4],
        window_size=4, num_labels=3,
    ),
    "pvt": lambda: PvtConfig(  # all patches look at all, and are merged then
        image_size=SIDE, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4], sequence_reduction_ratios=[1, 1, 1, 1], num_labels=3,
    ),
    "segformer": lambda: SegformerConfig(
        hidden_sizes=[16, 16, 32, 32], num_attention_heads=[1, 2, 2, 4], depths=[1, 1, 1, 1],
        num_labels=3,
    ),
    "resnet": lambda: ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=3
    ),
    "convnext": lambda: ConvNextConfig(
        hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=3
    ),
}  # fmt: skip
"""Whose attention is not between patches, or that have none."""


def processor(side: int = SIDE) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": side, "width": side})


def build(config: Any, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    network = AutoModelForImageClassification.from_config(config).eval()
    for name, parameter in network.named_parameters():
        if "classifier" in name:  # heads start with small weights
            torch.nn.init.normal_(parameter, 0, 0.3)
    return Model(network, processor(), name="tiny")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Model, int]:
    config, front = FAMILIES[request.param]
    return build(config()), front


@pytest.fixture(scope="module")
def vit() -> Model:
    return build(ViTConfig(**WIDE))


def test_patches_are_tokens_in_reading_order(family: tuple[Model, int]) -> None:
    model, front = family
    assert model.task.name == "image"
    [encoding] = model.encode([testing.PICTURES[0]])
    assert (model.front, len(encoding)) == (front, front + 16)
    assert encoding.tokens[front : front + 5] == ("0,0", "0,1", "0,2", "0,3", "1,0")
    assert encoding.special.tolist() == [True] * front + [False] * 16
    assert (encoding.segments == PICTURE).tolist() == (~encoding.special).tolist()
    assert encoding.picture is not None
    assert encoding.picture.size == (SIDE, SIDE)
    assert encoding.picture.boxes[5].tolist() == [8, 8, 16, 16]


def test_each_patch_stands_where_its_pixels_are_read(family: tuple[Model, int]) -> None:
    model, front = family
    [encoding] = model.encode([testing.PICTURES[0]])
    assert encoding.picture is not None
    rows = [encoding.row]
    for left, top, right, bottom in encoding.picture.boxes:
        pixels = encoding.row["pixel_values"].copy()
        pixels[:, top:bottom, left:right] += 1
        rows.append({"pixel_values": pixels})
    first = model.attach().sites[0]
    seen: list[Tensor] = []

    def record(site: Site, values: Tensor) -> Tensor:
        if site == first:
            seen.append(values)
        return values

    with model.edit(Edit(values=record)):
        model.logits(model.collate(rows))
    change = (seen[0][1:] - seen[0][:1]).abs().amax((1, 3))  # [changed patch, token]
    expected = torch.eye(16, dtype=torch.bool)
    assert torch.equal(change[:, front:] > 1e-6, expected)
    assert not bool((change[:, :front] > 1e-6).any())
    embeddings = model.embeddings(model.collate(rows))
    moved = (embeddings[1:] - embeddings[:1]).abs().amax(2)
    assert torch.equal(moved[:, front:] > 1e-6, expected)


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_what_they_declare(
    family: tuple[Model, int], name: str, check: Callable[[Model, Method], None]
) -> None:
    check(family[0], registry.build(name))


def test_a_black_baseline_is_not_the_default(vit: Model) -> None:
    testing.check_method("integrated_gradients:baseline=zero", vit)
    batch = vit.batch(vit.encode([testing.PICTURES[0]]))
    grey = np.full((40, 40, 3), round(255 * 0.5), dtype=np.uint8)
    plain = vit.embeddings(vit.batch(vit.encode([grey])).inputs)
    torch.testing.assert_close(vit.baseline(batch, "auto"), plain, atol=1e-4, rtol=0)
    assert not vit.baseline(batch, "zero").any()
    target = vit.target(batch)
    [score] = vit.score(batch.inputs, target, vit.baseline(batch, "auto"))
    expected = vit.logits(vit.batch(vit.encode([grey])).inputs)[0, target.label[0]]
    assert float(score) == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(InputError, match="expected auto or zero"):
        vit.baseline(batch, "mask")


def test_gradients_agree_with_finite_differences(family: tuple[Model, int]) -> None:
    front = family[1]
    # float32 differences would be all rounding
    model = Model(copy.deepcopy(family[0].network).double(), processor())
    batch = model.batch(model.encode(testing.PICTURES[:2]))
    target = model.target(batch)
    step = 1e-3
    embeddings = model.embeddings(batch.inputs)
    score, gradient = model.embedding_gradient(batch.inputs, embeddings, target)
    torch.testing.assert_close(score, model.score(batch.inputs, target), atol=1e-5, rtol=1e-5)
    assert not gradient[:, :front].any()  # no pixel stands behind these
    draw = torch.Generator().manual_seed(1)
    direction = torch.randn(embeddings.shape, generator=draw, dtype=torch.float64)
    ends = [
        model.score(batch.inputs, target, embeddings + sign * step * direction) for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    expected = (gradient * direction).sum((1, 2))
    torch.testing.assert_close(slope, expected, atol=5e-3, rtol=1e-2, check_dtype=False)
    trace = model.trace(batch, target, gradients=True)
    for link, maps, by_map in zip(trace.links, trace.maps, trace.gradients, strict=True):
        change = torch.randn(maps.shape, generator=draw, dtype=torch.float64)

        def moved(sign: int, link: Any = link, change: Tensor = change) -> Tensor:
            def add(site: Site, probabilities: Tensor) -> Tensor:
                return probabilities + sign * step * change * (site == link.site)

            with model.edit(Edit(probabilities=add)):
                return model.score(batch.inputs, target)

        slope = (moved(1) - moved(-1)) / (2 * step)
        expected = (by_map * change).sum((1, 2, 3))
        torch.testing.assert_close(slope, expected, atol=5e-3, rtol=1e-2, check_dtype=False)


@pytest.mark.parametrize("name", OTHERS)
def test_where_attention_is_not_between_patches_gradients_still_serve(name: str) -> None:
    model = build(OTHERS[name]())
    [encoding] = model.encode([testing.PICTURES[0]])
    rows, columns = grid(model.stem.module, (SIDE, SIDE))
    assert (model.front, len(encoding)) == (0, rows * columns)
    with pytest.raises(AttentionError, match="integrated_gradients"):
        xattn.explain(model, [encoding], ["rollout"])
    for method in ("integrated_gradients", "random"):
        for check in testing.CHECKS:
            check(model, registry.build(method))


def test_a_saved_model_is_known_for_what_it_is(vit: Model, tmp_path: Path) -> None:
    vit.network.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    loaded = xattn.load(tmp_path)
    assert loaded.task.name == "image"
    file = tmp_path / "noise.png"
    Image.fromarray(testing.PICTURES[0]).save(file)
    sources = [file, str(file), Image.open(file), testing.PICTURES[0]]
    encodings = loaded.encode(sources)
    for encoding in encodings:
        pixels = encoding.row["pixel_values"]
        assert np.array_equal(pixels, vit.encode([testing.PICTURES[0]])[0].row["pixel_values"])
    assert [e.text for e in encodings] == ["noise.png", "noise.png", "picture 2", "picture 3"]
    [result] = xattn.explain(loaded, [file], ["attention"])
    [expected] = xattn.explain(vit, [testing.PICTURES[0]], ["attention"])
    assert np.allclose(result.scores, expected.scores, atol=1e-6)


def test_a_picture_is_what_the_model_sees_of_it(vit: Model) -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, 32:] = (200, 100, 50)
    [encoding] = vit.encode([stripes])
    assert encoding.picture is not None
    assert encoding.picture.pixels.shape == (SIDE, SIDE, 3)
    assert encoding.picture.pixels[5, 3].tolist() == [0, 0, 0]
    assert encoding.picture.pixels[5, 28].tolist() == [200, 100, 50]


def test_transparency_is_white_and_cameras_are_believed(vit: Model, tmp_path: Path) -> None:
    clear = np.zeros((32, 32, 4), dtype=np.uint8)
    white = np.full((32, 32, 3), 255, dtype=np.uint8)
    first, second = vit.encode([clear, white])
    assert np.array_equal(first.row["pixel_values"], second.row["pixel_values"])
    upright = np.zeros((32, 32, 3), dtype=np.uint8)
    upright[:16] = 255
    image = Image.fromarray(np.rot90(upright).copy())
    exif = image.getexif()
    exif[0x0112] = 6  # turned a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    turned, straight = vit.encode([tmp_path / "turned.png", upright])
    assert np.array_equal(turned.row["pixel_values"], straight.row["pixel_values"])


def test_what_is_no_picture_is_refused(vit: Model, demo: Model, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    wrong: list[tuple[Any, str]] = [
        ("nowhere.png", "there is no such picture"),
        (tmp_path / "text.png", "cannot be read"),
        (np.zeros((4, 4, 3)), "expected uint8"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "expected uint8"),
        (7, "a file, a PIL image or an array"),
    ]
    for source, message in wrong:
        with pytest.raises(InputError, match=message):
            vit.encode([source])
    with pytest.raises(InputError, match="expected a list"):
        vit.encode("picture.png")
    with pytest.raises(InputError, match="no second text"):
        vit.encode([testing.PICTURES[0]], ["A film."])
    with pytest.raises(InputError, match="reads no texts"):
        vit.encode([testing.PICTURES[0]], pictures=[testing.PICTURES[0]])
    with pytest.raises(InputError, match="takes no pictures"):
        demo.encode(["A film."], pictures=[testing.PICTURES[0]])


def test_an_edit_changes_the_prediction_and_is_taken_back(vit: Model) -> None:
    inputs = vit.batch(vit.encode(testing.PICTURES[:2])).inputs
    before = vit.logits(inputs)
    with vit.edit(Edit(probabilities=lambda site, maps: torch.full_like(maps, 1 / 17))):
        assert float((vit.logits(inputs) - before).abs().max()) > 1e-3
    assert torch.equal(vit.logits(inputs), before)


def test_attention_to_a_marked_patch_is_suppressed(vit: Model) -> None:
    encodings = [mark(e, "it", positions=[6]) for e in vit.encode(testing.PICTURES[:2])]
    with vit.edit(Suppress("it")):
        for maps in vit.attention(encodings):
            assert maps.tokens[6] == "1,1"
            assert maps.maps[..., 6].max() < 1e-6
            assert np.allclose(maps.maps.sum(-1), 1, atol=1e-5)


def test_a_task_is_given_what_it_reads(vit: Model, demo: Model) -> None:
    with pytest.raises(ModelError, match="needs what reads a picture: got"):
        Model(vit.network, demo.tokenizer)
    with pytest.raises(ModelError, match="needs what reads a text: got"):
        Model(demo.network, processor())


def test_maps_are_labelled_by_patch(vit: Model) -> None:
    [maps] = vit.attention(vit.encode([testing.PICTURES[0]]))
    assert maps.maps.shape == (2, 4, 17, 17)
    assert maps.tokens[:3] == ("[added 0]", "0,0", "0,1")
    assert np.allclose(maps.maps.sum(-1), 1, atol=1e-5)
    assert maps.readout.argmax() == 0  # the class is read from the first token


# ------------------------------------------------------------------ a planted answer

RED, BLUE = (230, 60, 40), (40, 80, 230)


def planted(
    count: int, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return grey pictures with one bright patch, whose colour is the class, and its place."""
    draw = np.random.default_rng(seed)
    pictures = draw.integers(90, 130, (count, SIDE, SIDE, 3)).astype(np.uint8)
    labels, places = draw.integers(0, 2, count), draw.integers(0, 16, count)
    for picture, label, place in zip(pictures, labels, places, strict=True):
        top, left = (PATCH * part for part in divmod(int(place), 4))
        picture[top : top + PATCH, left : left + PATCH] = BLUE if label else RED
    return pictures, labels, places


@pytest.fixture(scope="module")
def trained() -> Model:
    torch.manual_seed(0)
    network = AutoModelForImageClassification.from_config(
        ViTConfig(**{**SIZE, "num_labels": 2, "intermediate_size": 48})
    )
    pictures, labels, _ = planted(400, seed=1)
    pixels = processor()(images=list(pictures), return_tensors="pt")["pixel_values"]
    classes = torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(150):
        some = torch.randint(0, len(pixels), (32,))
        loss = torch.nn.functional.cross_entropy(
            network(pixel_values=pixels[some]).logits, classes[some]
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Model(network.eval(), processor(), name="planted")


def test_the_patch_that_decides_is_found_first(trained: Model) -> None:
    pictures, labels, places = planted(40, seed=9)
    result = xattn.explain(trained, list(pictures), METHODS)
    found: dict[str, list[bool]] = {name: [] for name in METHODS}
    largest: dict[str, list[bool]] = {name: [] for name in METHODS}
    for group, label, place in zip(result.by_text(), labels, places, strict=True):
        assert group[0].prediction == f"LABEL_{label}"
        for item in group:
            found[item.method].append(bool(item.patches.argmax() == place))
            largest[item.method].append(bool(abs(item.patches).argmax() == place))
    assert all(found["integrated_gradients"])
    # The gradient by a map is sure about the place, but not about the sign: attention rests on this
    # patch wholly, and what more of it would do, after the normalisation, is next to nothing.
    assert all(largest["attention_gradient"])
    # The network has nothing else to look at; that is why attention finds it here, in layers that
    # the class is read from.
    assert all(found["rollout"])
    assert np.mean(found["random"]) < 0.3


def test_pictures_are_compared_by_patches_that_are_painted_over(
    trained: Model, tmp_path: Path
) -> None:
    pictures, labels, _ = planted(8, seed=9)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        (tmp_path / "pictures" / f"{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{label}" / f"{number}.png")
    dataset = evaluation.load_dataset(tmp_path / "pictures")
    assert sorted(dataset.labels or ()) == sorted(labels.tolist())
    result = evaluation.compare(
        trained, dataset, ["integrated_gradients"], ["mask", "blur", "mean-colour"]
    )
    assert not len(result.failures)
    for operator in ("mask", "blur", "mean-colour"):
        means = result.table(operator, "comprehensiveness").mean()
        assert means["integrated_gradients"] > means["random"] + 0.1
        gap = result.table(operator, "abpc")
        assert (gap["oracle"] >= gap["integrated_gradients"] - 1e-6).all()
    text = page.render_report(result)
    assert text.count("<image") >= 3
    result.save(tmp_path / "run")
    again = evaluation.load(tmp_path / "run")
    assert page.render_report(again).count("<image") == text.count("<image")


def test_paint_is_put_on_the_patch_that_goes_and_nowhere_else(vit: Model) -> None:
    [encoding] = vit.encode([planted(1, seed=2)[0][0]])
    pixels = encoding.row["pixel_values"]
    keep = np.ones((1, len(encoding)), dtype=bool)
    keep[0, 1 + 5] = False  # behind CLS: second row, second column
    inside = np.zeros(pixels.shape, dtype=bool)
    inside[:, PATCH : 2 * PATCH, PATCH : 2 * PATCH] = True
    for name in ("mask", "mean-colour", "blur"):
        [row] = evaluation.get_operator(name)(vit, encoding.row, keep)
        painted = row["pixel_values"]
        assert np.array_equal(painted[~inside], pixels[~inside])
        assert not np.array_equal(painted[inside], pixels[inside])
        if name == "mean-colour":
            mean = np.broadcast_to(pixels.mean((1, 2), keepdims=True), pixels.shape)
            np.testing.assert_allclose(painted[inside], mean[inside], rtol=1e-6)
        if name == "blur":
            edges = [
                np.abs(np.diff(p[:, PATCH : 2 * PATCH, PATCH : 2 * PATCH])).mean()
                for p in (painted, pixels)
            ]
            assert edges[0] < edges[1] / 4
    with pytest.raises(InputError, match="cannot be removed by delete: expected one of mask"):
        evaluation.get_operator("delete")(vit, encoding.row, keep)
