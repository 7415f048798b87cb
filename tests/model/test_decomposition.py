"""Parts add up on every architecture that is claimed, and what is refused says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from xattn import testing
from xattn.errors import AttentionError, XattnError
from xattn.model import Model
from xattn.model.decomposition import attention_parts, layer_parts, output_parts
from xattn.model.frozen import Frozen
from xattn.model.lanes import Lanes, Sharing
from xattn.model.mixing import roll_out
from xattn.model.zeroing import zeroed_values
from xattn.registry import methods as registry
from xattn.types import Batch

try:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
except ModuleNotFoundError:  # before image processors had several backends
    from transformers import CLIPImageProcessor as CLIPImageProcessorPil
    from transformers import ViTImageProcessor as ViTImageProcessorPil

Tiny = Callable[..., Model]
EVERYTHING = frozenset({"attention", "block", "layer", "output", "zeroing"})
REFUSED = {
    "mobilebert": {"layer"},  # no residual connection around the last feed-forward block
    "convbert": {"attention"},  # the output projection mixes in a convolution
    "squeezebert": EVERYTHING,  # vectors are laid out by hidden and token
    "xlnet": EVERYTHING,  # by token and text
    "fsmt": EVERYTHING,
    "prophetnet": EVERYTHING,  # several streams in one attention
    "longformer": EVERYTHING,  # maps that can only be read
    "led": EVERYTHING,
    "swin": EVERYTHING,  # attention in windows, not between tokens
    "swinv2": EVERYTHING,
    "segformer": EVERYTHING,
    "pvt_v2": EVERYTHING,
}
NO_MODEL = {"canine", "whisper", "blip", "vilt", "qwen2_vl"}
"""Whose inputs `Model` does not read, for whatever method."""


def measure(parts: Tensor, whole: Tensor) -> Tensor:
    return parts.norm(dim=-1)


def wider(sizes: dict[str, Any], words: int) -> dict[str, Any]:
    """Return the sizes of a network with room for the tokenizer's words."""
    names = ("vocab_size", "n_words", "src_vocab_size", "tgt_vocab_size")
    return {
        name: wider(value, words) if isinstance(value, dict) else words if name in names else value
        for name, value in sizes.items()
    }


def adapted(architecture: Any, tokenizer: Any) -> tuple[Model, Batch]:
    """Return a model of an architecture, and an input."""
    sizes = wider(architecture.sizes, len(tokenizer))
    network = replace(architecture, sizes=sizes).build()
    head, inputs = architecture.head, architecture.inputs.__name__
    if inputs == "text":
        task = {"SequenceClassification": "classify", "MaskedLM": "fill"}.get(head, "generate")
        model = Model(network, tokenizer, task=task)
        pairs = ["warm and funny"] if task == "generate" else None
        text = "It begins [MASK], but" if task == "fill" else "It begins slowly, but"
        return model, model.batch(model.encode([text], pairs))
    side = getattr(network.config, "vision_config", network.config).image_size
    side = side[0] if isinstance(side, (list, tuple)) else side
    if inputs == "image":
        model = Model(network, ViTImageProcessorPil(size={"height": side, "width": side}))
        return model, model.batch(model.encode(testing.PICTURES[:1]))
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    model = Model(network, SimpleNamespace(tokenizer=tokenizer, image_processor=images))
    return model, model.batch(model.encode(["It begins"], pictures=testing.PICTURES[:1]))


def check(model: Model, batch: Batch, what: str) -> None:
    """Decompose; the ledgers of attention and layers are checked within."""
    if what == "output":
        target = model.target(batch, at=model.task.first)
        everything = [range(batch.shape[1])]
        rules: tuple[Sharing, ...] = ("absdot", "none")
        for rule in rules:
            parts, constant, score = output_parts(model, batch, target, rule, everything)
            largest = float(torch.stack([score.abs(), parts.abs().max(), constant.abs()]).max())
            assert float((parts.sum() + constant - score).abs()) <= 1e-4 * largest
            assert float(parts.abs().max()) > 1e-4 * largest
        return
    steps = (
        attention_parts(model, batch, measure)
        if what == "attention"
        else zeroed_values(model, batch, lambda without, whole: (without - whole).norm(dim=-1))
        if what == "zeroing"
        else layer_parts(model, batch, measure, what)  # type: ignore[arg-type]
    )
    assert steps
    for queries, matrix in steps:
        assert matrix.shape == (queries.stop - queries.start, batch.shape[1])
        assert bool((matrix.sum(-1) > 0).all())


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="the table says what transformers 5.23 does: which models it has, and how they attend",
)
def test_parts_add_up_or_are_refused(architecture: Any, tiny_of: Tiny) -> None:
    kind = architecture.kind.replace("gemma3_text", "gemma3")
    if kind in NO_MODEL:
        pytest.skip("no input of its kind is read")
    model, batch = adapted(architecture, tiny_of("bert").tokenizer)
    refused = REFUSED.get(kind, set())
    for what in sorted(EVERYTHING):
        if what in refused:
            with pytest.raises(AttentionError, match=r"(use|try) "):
                check(model, batch, what)
        else:
            check(model, batch, what)


def test_what_is_refused_names_the_layer_the_gap_and_another_method(
    architectures: dict[str, Any], tiny_of: Tiny
) -> None:
    model, batch = adapted(architectures["convbert"], tiny_of("bert").tokenizer)
    with pytest.raises(XattnError) as caught:
        attention_parts(model, batch, measure)
    message = str(caught.value)
    assert message.startswith("the parts do not add up at convbert.encoder.layer.0.attention.self")
    assert "got a gap of" in message
    assert "use value_zeroing" in message


def test_a_layer_without_a_way_round_its_feed_forward_block_is_refused(
    architectures: dict[str, Any], tiny_of: Tiny
) -> None:
    model, batch = adapted(architectures["mobilebert"], tiny_of("bert").tokenizer)
    with pytest.raises(AttentionError, match="what attention adds does not reach the vectors at"):
        layer_parts(model, batch, measure, "layer")


def test_runs_of_tokens_say_what_one_run_says(tiny_of: Tiny) -> None:
    model = tiny_of("bert")
    batch = model.batch(model.encode(["It begins slowly, but the last hour is a wonder."]))
    target = model.target(batch)
    whole = layer_parts(model, batch, measure, "block")
    count = batch.shape[1]
    alone = [range(i, i + 1) for i in range(count)]
    parts, *_ = output_parts(model, batch, target, "none", alone)
    expected, *_ = output_parts(model, batch, target, "none", [range(count)])
    torch.testing.assert_close(parts, expected)
    budget, model.budget = model.budget, 3 * count
    try:
        in_runs = layer_parts(model, batch, measure, "block")
    finally:
        model.budget = budget
    for (_, a), (_, b) in zip(whole, in_runs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(tiny_of: Tiny, dtype: torch.dtype) -> None:
    model = tiny_of("llama")
    exact, batch = {}, model.batch(model.encode([testing.TEXTS[1]]))
    names = ("value_norm", "globenc", "alti", "decompx", "value_zeroing")
    for name in names:
        exact[name] = registry.build(name)(model, batch, model.target(batch, label=0))
    model.network.to(dtype)
    for name in names:
        got = registry.build(name)(model, batch, model.target(batch, label=0))
        tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
        largest = float(exact[name].abs().max())
        assert float((got - exact[name]).abs().max()) < tolerance * largest, name


def test_pictures_are_served(tiny_of: Tiny) -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=32, patch_size=8, num_labels=3, initializer_range=0.25,
    )  # fmt: skip
    torch.manual_seed(0)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    model = Model(ViTForImageClassification(config).eval(), processor)
    for name in ("value_norm", "globenc", "alti", "decompx", "value_zeroing"):
        testing.check_method(name, model)


# ----------------------------------------------------------------- rules, one by one


def followed(function: Callable[[Tensor], Tensor], x: Tensor, sharing: Sharing = "none") -> Tensor:
    """Return the parts of f(x), where each number of the last axis is a part of x."""
    count = x.shape[-1]
    lanes = Lanes(count, sharing)
    mode = Frozen(lanes)
    parts = torch.zeros(lanes.total, *x.shape, dtype=x.dtype)
    for i in range(count):
        parts[i, ..., i] = x[..., i]
    with mode:
        result = function(mode.carry(x, parts))
        found = mode.parts(result)
    assert found is not None
    torch.testing.assert_close(found.sum(0), result)
    return found


WEIGHT = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
BIAS = torch.tensor([0.5, -1.0, 2.0]).double()


def in_place(x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    total[..., :1] = x[..., 2:]
    total += x
    total.mul_(2)
    total.index_add_(0, torch.tensor([1, 0]), x)
    return 3 - total / x.abs().sum()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nn.functional.linear(x, WEIGHT, BIAS),
        lambda x: torch.addmm(BIAS, x, WEIGHT, alpha=2, beta=3),
        lambda x: torch.nn.functional.layer_norm(x, (3,), BIAS, BIAS),
        lambda x: torch.nn.functional.rms_norm(x, (3,), BIAS),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        torch.nn.functional.gelu,
        lambda x: torch.nn.functional.silu(x) * (x @ WEIGHT),
        lambda x: torch.softmax(x, -1)[..., None] * x[..., None, :] + 1,
        lambda x: torch.einsum("ij,kj->ik", x, WEIGHT) - 2,
        lambda x: torch.cat([x, x * 2], -1).view(-1, 2).T.flatten(),
        in_place,
    ],
)
def test_the_parts_of_a_result_add_up_to_it(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    followed(function, x)


@pytest.mark.parametrize("sharing", ["absdot", "norm", "equal"])
def test_shared_biases_leave_nothing_over(sharing: Sharing) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    found = followed(lambda x: torch.nn.functional.linear(x, WEIGHT, BIAS), x, sharing)
    assert len(found) == 3
    products = x.T[:, :, None] * WEIGHT.T[:, None]  # [part, text, hidden]
    weights = {
        "absdot": (products @ BIAS).abs(),
        "norm": products.norm(dim=-1),
        "equal": torch.ones(3, 2).double(),
    }[sharing]
    weights = weights / weights.sum(0)
    torch.testing.assert_close(found, products + weights[..., None] * BIAS)


def test_an_unknown_function_does_not_add_up() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    with pytest.raises(AssertionError):
        followed(torch.sin, x)


def test_rows_are_carried_down() -> None:
    step = (slice(0, 2), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    down = roll_out(torch.tensor([0.5, 0.25, 0.25]), [step, step])
    torch.testing.assert_close(down, torch.tensor([0.125, 0.125, 0.75]))
