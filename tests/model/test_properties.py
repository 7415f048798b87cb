"""Properties over random small networks, texts in many scripts, and random edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import xattn
from xattn.model import AblateHeads, Edit, Model, Permuted, Scale, Site, Uniform, ZeroValues, mark
from xattn.testing import state

Tiny = Callable[..., Model]
FIXED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SCRIPTS = (
    "A clumsy film.", "Über naïve façades", "e\u0301a\u0308o\u0302", "👩\u200d👩\u200d👧 film 🎬🏽",
    "שלום עולם", "مرحبا بالعالم", "電影很無聊。", "ภาพยนตร์", "a\u200bb\u200cc", "\ufeffdull",
    "x" * 30, "dull\u00a0\u2003film", "½ ﬁlm №", "नमस्ते दुनिया", "\U0001d518\U0001d52b",
)  # fmt: skip
texts = st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=3)
heads = st.sampled_from([1, 2, 4])


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a network: family, size, shared key heads, task, seed."""
    family = draw(st.sampled_from(["bert", "roberta", "electra", "llama", "qwen2", "gpt2"]))
    count = draw(heads)
    layers = draw(st.integers(1, 3))
    changes = {"num_hidden_layers": layers, "num_attention_heads": count}
    if family in ("llama", "qwen2"):
        changes["num_key_value_heads"] = draw(st.sampled_from([1, count]))
        changes["head_dim"] = 32 // count
    if family == "gpt2":
        changes = {"n_layer": layers, "n_head": count}
    task = draw(st.sampled_from(["classify", "tag"]))
    return {"family": family, "seed": draw(st.integers(0, 3)), "task": task, **changes}


@st.composite
def edits(draw: st.DrawFn) -> list[Any]:
    """Draw one to three edits; marks are called m."""
    layer = st.sampled_from([None, [0], [-1]])
    kinds = st.one_of(
        st.builds(
            Scale, st.just("m"), st.sampled_from([0.0, 0.5, 1.0, 8.0]),
            renormalize=st.booleans(), others=st.booleans(), layers=layer,
        ),
        st.builds(ZeroValues, st.just("m"), layers=layer),
        st.builds(Uniform, layers=layer),
        st.builds(Permuted, st.integers(0, 9), layers=layer),
        st.builds(AblateHeads, scale=st.sampled_from([0.0, 0.5]), layers=layer),
        st.sampled_from([
            Edit(scores=lambda site, s: s / 2),
            Edit(probabilities=lambda site, p: p.flip(1)),
            Edit(values=lambda site, v: v * 2, outputs=lambda site, z: -z),
        ]),
    )  # fmt: skip
    return draw(st.lists(kinds, min_size=1, max_size=3))


@FIXED
@given(shape=shapes(), words=texts, chosen=edits(), training=st.booleans())
def test_edits_are_finite_seen_and_undone_bit_by_bit(
    tiny_of: Tiny, shape: dict[str, Any], words: list[str], chosen: list[Any], training: bool
) -> None:
    model = tiny_of(**shape)
    encodings = [
        mark(e, "m", positions=[int(e.removable[0])]) for e in model.encode(words, truncate=True)
    ]
    batch = model.batch(encodings)
    model.network.train(training)
    before, plain = state(model), model.logits(batch.inputs)
    seen: list[Site] = []

    def see(site: Site, probabilities: Tensor) -> Tensor:
        seen.append(site)
        return probabilities

    with model.edit(*chosen, Edit(probabilities=see)):
        edited = model.logits(batch.inputs)
    assert bool(edited.isfinite().all())
    assert tuple(seen) == model.attach().sites
    assert state(model) == before
    assert torch.equal(model.logits(batch.inputs), plain)


@FIXED
@given(shape=shapes(), words=texts)
def test_maps_are_distributions_over_the_tokens_of_each_text(
    tiny_of: Tiny, shape: dict[str, Any], words: list[str]
) -> None:
    model = tiny_of(**shape)
    encodings = model.encode(words, truncate=True)
    for encoding, maps in zip(encodings, model.attention(encodings), strict=True):
        assert maps.maps.shape[2:] == (len(encoding), len(encoding))
        assert abs(maps.maps.sum(-1) - 1).max() < 1e-5
        assert maps.maps.min() >= 0


@FIXED
@given(shape=shapes(), words=texts)
def test_explanations_do_not_depend_on_the_other_texts(
    tiny_of: Tiny, shape: dict[str, Any], words: list[str]
) -> None:
    model = tiny_of(**shape)
    at = 0 if model.task.name == "tag" else None
    methods = ["rollout", "attention_gradient"]
    together = xattn.explain(model, words, methods, at=at, truncate=True)
    for text, group in zip(words, together.by_text(), strict=True):
        alone = xattn.explain(model, [text], methods, at=at, truncate=True)
        for a, b in zip(group, alone, strict=True):
            largest = max(1.0, float(abs(b.scores).max()))
            assert abs(a.scores - b.scores).max() <= 2e-5 * largest
