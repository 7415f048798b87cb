"""Edits hold while text is generated: with every cache, with beams, samples and a draft model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    T5Config,
)

from xattn.errors import InputError, ModelError
from xattn.model import Edit, Mass, Permuted, Scale, Site, Suppress, Uniform, ZeroValues, borrow
from xattn.model.attach import BACKENDS
from xattn.model.generation import Generation, generate
from xattn.model.interventions import Intervenable, check, resolved
from xattn.model.places import Layout
from xattn.model.steering import steer
from xattn.model.tap import Tap
from xattn.types import Row

VOCABULARY = 50
SIZE = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCABULARY,
    "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.25,
    "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
WINDOW = 6
DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZE, num_key_value_heads=2),
    "gpt2": lambda: GPT2Config(
        n_embd=32, n_layer=3, n_head=4, n_positions=64, vocab_size=VOCABULARY,
        initializer_range=0.25, bos_token_id=1, eos_token_id=None,
    ),
    "qwen2": lambda: Qwen2Config(**SIZE, num_key_value_heads=2),
    "mistral": lambda: MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=WINDOW),
    # every second layer has a window, so one cache holds layers of different lengths
    "gemma2": lambda: Gemma2Config(
        **SIZE, num_key_value_heads=2, head_dim=8, sliding_window=WINDOW,
        attn_logit_softcapping=None, tie_word_embeddings=False,
    ),
    "falcon": lambda: FalconConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=VOCABULARY,
        initializer_range=0.25, bos_token_id=1, eos_token_id=None,
    ),
}  # fmt: skip
BACKEND = {"falcon": "softmax"}
NEW = 8


def newer(reason: str) -> pytest.MarkDecorator:
    """Skip a test on transformers older than the pinned one."""
    return pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason=reason)


class Letters:
    """A tokenizer as far as generation needs one."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(ord("0") + i) for i in ids)


def build(config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config).eval()


def row(*ids: int, **marks: Sequence[int]) -> Row:
    """A prompt and, for each mark, the positions of its tokens."""
    flags = {f"mark:{name}": np.isin(np.arange(len(ids)), at) for name, at in marks.items()}
    return {
        "input_ids": np.array(ids),
        "attention_mask": np.ones(len(ids), dtype=np.int64),
        **{name: values.astype(np.int64) for name, values in flags.items()},
    }


PROMPTS = [
    row(5, 9, 17, 3, 22, 41, 8, m=[2, 3]),
    row(30, 2, 11, 44, m=[1]),
    row(7, 7, 19, 23, 6, 40, 12, m=[5]),
]


def layout_of(network: Any, backend: str, inputs: Mapping[str, Tensor]) -> Layout:
    heads: dict[Site, int] = {}

    def count(site: Site, scores: Tensor) -> Tensor:
        heads[site] = scores.shape[1]
        return scores

    with torch.no_grad(), BACKENDS[backend](network, Tap(network, [Edit(scores=count)])):
        network(**inputs)
    stacks = {site: stack_of(site.module) for site in heads}
    return Layout(heads, stacks if network.config.is_encoder_decoder else {})


def stack_of(name: str) -> str:
    if "EncDec" in name or "encoder_attn" in name:
        return "cross"
    return "encoder" if "encoder." in name else "decoder"


class Writer:
    """A network and what the adapter does around it."""

    def __init__(self, network: Any, backend: str = "interface") -> None:
        self.network, self.backend = network, backend
        probe = {"input_ids": torch.tensor([[3, 4, 5]])}
        if network.config.is_encoder_decoder:
            probe["decoder_input_ids"] = torch.tensor([[0, 2]])
        self.layout = layout_of(network, backend, probe)

    @contextmanager
    def held(self, edits: Sequence[Intervenable], inputs: Mapping[str, Tensor]) -> Iterator[None]:
        with (
            borrow.frozen(self.network),
            resolved(self.network, edits, self.layout, inputs) as plain,
            BACKENDS[self.backend](self.network, Tap(self.network, plain)),
        ):
            yield

    def __call__(
        self, edits: Sequence[Intervenable] = (), rows: Sequence[Row] = PROMPTS, **options: Any
    ) -> list[Generation]:
        check(edits, self.layout, {"scores", "probabilities", "values", "outputs"})
        options = {"max_new_tokens": NEW, **options}
        return generate(self.network, Letters(), rows, partial(self.held, edits), **options)


@pytest.fixture(scope="module", params=DECODERS)
def writer(request: pytest.FixtureRequest) -> Writer:
    return Writer(build(DECODERS[request.param]()), BACKEND.get(request.param, "interface"))


@pytest.fixture(scope="module")
def llama() -> Writer:
    return Writer(build(DECODERS["llama"]()))


def ids(written: Sequence[Generation]) -> list[list[int]]:
    return [w.ids.tolist() for w in written]


def recording(into: list[tuple[Site, Tensor]]) -> Edit:
    def keep(site: Site, p: Tensor) -> Tensor:
        into.append((site, p))
        return p

    return Edit(probabilities=keep)


EDITS: dict[str, tuple[Intervenable, ...]] = {
    "none": (),
    "suppress": (Suppress("m"),),
    "some heads, late queries": (Scale("m", 20.0, heads=[0, 3], queries=range(3, 10**9)),),
    "steer": (steer("m", {0: [0, 1], 2: [2]}),),
    "permuted": (Permuted(5, layers=[-1]),),
    "uniform": (Uniform(layers=[1]),),
    "composed": (Suppress("m", layers=[0]), Scale("m", 9.0, renormalize=False, layers=[2])),
}


@pytest.mark.parametrize("name", EDITS)
def test_with_a_cache_as_without(writer: Writer, name: str) -> None:
    edits = EDITS[name]
    plain = ids(writer(use_cache=False))
    without = ids(writer(edits, use_cache=False))
    assert (without != plain) == (name != "none")
    assert ids(writer(edits)) == without
    assert {len(written) for written in without} == {NEW}


@pytest.mark.parametrize("name", ["none", "suppress", "composed", "permuted"])
def test_static_caches_with_room_and_windows(writer: Writer, name: str) -> None:
    edits = EDITS[name]
    assert ids(writer(edits, cache_implementation="static")) == ids(writer(edits))


@newer("prefill in pieces fails by itself there")
def test_prefill_in_pieces(llama: Writer) -> None:
    edits = EDITS["composed"]
    assert ids(llama(edits, prefill_chunk_size=3)) == ids(llama(edits))


def test_prompts_in_batches_as_alone(writer: Writer) -> None:
    edits = EDITS["some heads, late queries"]
    together = writer(edits)
    alone = [writer(edits, [prompt])[0] for prompt in PROMPTS]
    assert ids(together) == ids(alone)


@pytest.mark.parametrize("name", ["none", "suppress", "steer"])
def test_beams(writer: Writer, name: str) -> None:
    edits = EDITS[name]
    options = {"num_beams": 3, "num_return_sequences": 2}
    cached = ids(writer(edits, **options))
    assert cached == ids(writer(edits, use_cache=False, **options))
    alone = [written for prompt in PROMPTS for written in ids(writer(edits, [prompt], **options))]
    assert cached == alone
    assert len(cached) == 2 * len(PROMPTS)


def test_samples_are_those_of_the_seed_and_of_no_other_prompt(writer: Writer) -> None:
    edits = EDITS["suppress"]
    options = {"do_sample": True, "num_return_sequences": 2}
    state = torch.random.get_rng_state()
    first = ids(writer(edits, seed=1, **options))
    assert torch.random.get_rng_state().equal(state)
    assert ids(writer(edits, seed=1, use_cache=False, **options)) == first
    assert ids(writer(edits, seed=2, **options)) != first
    assert ids(writer(edits, PROMPTS[2:3], seed=1, **options)) == first[4:6]


@newer("assisted decoding fails by itself there")
@pytest.mark.parametrize("name", ["none", "suppress", "permuted"])
@pytest.mark.parametrize("draft", ["lookup", "model"])
def test_assisted_decoding_writes_what_plain_decoding_does(
    writer: Writer, name: str, draft: str
) -> None:
    edits = EDITS[name]
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 2}
    if draft == "model":
        options = {"assistant_model": build(writer.network.config, seed=3)}
    assert ids(writer(edits, **options)) == ids(writer(edits))


def test_one_blocked_token_changes_decode_steps(writer: Writer) -> None:
    prompt = PROMPTS[:1]
    edits = [Suppress("m", queries=range(8, 10**9)), ZeroValues("m", layers=[0])]
    for edit in edits[: 1 if writer.backend == "softmax" else 2]:
        logits = []

        def keep(module: Any, args: Any, output: Any, into: list[Tensor] = logits) -> None:
            into.append(output.logits[0, -1])

        handle = writer.network.register_forward_hook(keep)
        try:
            writer([edit], prompt)
            edited, logits[:] = logits[:], []
            writer((), prompt)
        finally:
            handle.remove()
        if isinstance(edit, Suppress):
            # queries from 8 on are generated ones: the prompt's own pass is untouched
            torch.testing.assert_close(edited[0], logits[0], atol=1e-5, rtol=1e-5)
        assert float((edited[2] - logits[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("cache", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_the_mass_on_the_context_is_that_of_eager_maps(
    writer: Writer, cache: dict[str, Any]
) -> None:
    prompt = PROMPTS[0]
    length = len(prompt["input_ids"])
    reading = Mass("m", heads=[1, 3])
    [written] = writer([reading], [prompt], **cache)
    text = torch.tensor([[*prompt["input_ids"].tolist(), *written.ids.tolist()]])
    whole: list[tuple[Site, Tensor]] = []
    with torch.no_grad(), writer.held([recording(whole)], {"input_ids": text}):
        writer.network(input_ids=text)
    hit = torch.from_numpy(prompt["mark:m"])
    for site, maps in whole:
        steps = [mass for s, mass in reading.found if s == site]
        assert len(steps) == NEW
        # the query that writes each token, and what of the mark its window still holds
        expected = (maps[0, [1, 3], length - 1 : -1, :length] * hit).sum(-1)
        got = torch.stack([mass[0, :, -1] for mass in steps], -1)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_nothing_is_left_changed(writer: Writer) -> None:
    def state() -> dict[str, Any]:
        network = writer.network
        return {
            "training": [module.training for module in network.modules()],
            "hooks": [
                (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()
            ],
            "config": network.config.to_dict(),
            "generation": network.generation_config.to_dict(),
            "implementation": network.config._attn_implementation,
            "weights": [(p.data_ptr(), p._version, p.requires_grad) for p in network.parameters()],
        }

    before, plain = state(), ids(writer())
    writer(EDITS["composed"], num_beams=2)
    with pytest.raises(InputError, match="no mark 'n'"):
        writer([Suppress("n")])
    assert state() == before
    assert ids(writer()) == plain


def test_the_end_of_a_text_is_kept_and_what_follows_is_cut(llama: Writer) -> None:
    [first, second, *_] = writer_rows = ids(llama())
    end = first[3]
    results = llama(eos_token_id=[end, VOCABULARY - 1])
    for full, result in zip(writer_rows, results, strict=True):
        ends = [i for i, token in enumerate(full) if token in (end, VOCABULARY - 1)]
        assert result.ids.tolist() == (full[: ends[0] + 1] if ends else full)
    assert results[0].ids[-1] == end
    assert len(results[0].text) == len(results[0].ids)
    assert second


# --------------------------------------------------------------- encoder-decoders


def _t5() -> Writer:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        eos_token_id=None, pad_token_id=0, decoder_start_token_id=0, initializer_factor=3.0,
    )  # fmt: skip
    return Writer(build(config), "softmax")


def _bart() -> Writer:
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=3,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=64, init_std=0.1, bos_token_id=1,
        eos_token_id=None, forced_eos_token_id=None, pad_token_id=0, decoder_start_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    return Writer(build(config))


@pytest.fixture(scope="module", params=[_t5, _bart])
def translator(request: pytest.FixtureRequest) -> Writer:
    writer: Writer = request.param()
    return writer


STACKED: dict[str, tuple[Intervenable, ...]] = {
    "none": (),
    "everywhere": (Suppress("m"),),
    "encoder": (Suppress("m", stack="encoder"),),
    "cross": (Scale("m", 30.0, stack="cross", layers=[0, -1], queries=range(1, 99)),),
    "decoder": (Uniform(stack="decoder"),),
    "permuted": (Permuted(2, stack="cross"), Permuted(2, stack="decoder")),
}


@newer("random weights are drawn otherwise there, and need not let each edit change the text")
@pytest.mark.parametrize("name", STACKED)
def test_encoder_decoders(translator: Writer, name: str) -> None:
    edits = STACKED[name]
    without = ids(translator(edits, use_cache=False))
    assert (without != ids(translator())) == (name != "none")
    assert ids(translator(edits)) == without
    beams = {"num_beams": 3, "num_return_sequences": 3}
    assert ids(translator(edits, **beams)) == ids(translator(edits, use_cache=False, **beams))
    assert ids(translator(edits)) == [
        w for prompt in PROMPTS for w in ids(translator(edits, [prompt]))
    ]


def test_stacks_are_apart(translator: Writer) -> None:
    seen: list[tuple[Site, Tensor]] = []
    translator([Suppress("m", stack="cross"), recording(seen)], PROMPTS[:1])
    hit = PROMPTS[0]["mark:m"].astype(bool)
    for site, p in seen:
        if translator.layout.stack(site) == "cross":
            assert float(p[..., hit].abs().max()) == 0
        elif translator.layout.stack(site) == "encoder":
            assert float(p[..., hit].max()) > 0.01


def test_marks_of_the_target_text(translator: Writer) -> None:
    prefix = {"decoder_input_ids": np.array([0, 5, 9]), "decoder_mark:d": np.array([0, 1, 0])}
    rows = [{**PROMPTS[0], **prefix}]
    seen: list[tuple[Site, Tensor]] = []
    edits = [Suppress("d"), recording(seen)]
    [written] = translator(edits, rows)
    assert len(written.ids) == NEW
    assert ids(translator(edits, rows, use_cache=False)) == [written.ids.tolist()]
    decoder = [p for site, p in seen if translator.layout.stack(site) == "decoder"]
    assert all(float(p[..., 1].abs().max()) == 0 for p in decoder)
    with pytest.raises(InputError, match=r"no mark 'd' where.*got marks 'm', 'd'"):
        translator([Suppress("d", stack="cross")], rows)


def test_stacks_and_their_layers_are_checked(translator: Writer) -> None:
    with pytest.raises(InputError, match=r"layer of the encoder stack is out of range: got 2"):
        translator([Suppress("m", layers=[2])])
    with pytest.raises(InputError, match=r"unknown stack.*'vision', expected 'encoder' or"):
        translator([Suppress("m", stack="vision")])


# -------------------------------------------------------------------- refusals


def test_no_room_no_tokens_no_head(llama: Writer) -> None:
    with pytest.raises(InputError, match=r"prompt 0 leaves no room for 8 new tokens: got 7 tokens"):
        llama(limit=14)
    with pytest.raises(InputError, match="max_new_tokens: got 0, expected 1 or more"):
        llama(max_new_tokens=0)
    with pytest.raises(ModelError, match="the model cannot generate text: got LlamaModel"):
        generate(llama.network.model, Letters(), PROMPTS, partial(llama.held, ()), max_new_tokens=1)
    with pytest.raises(InputError, match="got assistant_early_exit; draft with prompt_lookup"):
        llama(assistant_early_exit=1)
    with pytest.raises(InputError, match="carry the same marks"):
        llama(rows=[row(1, 2), row(3, 4, m=[0])])
