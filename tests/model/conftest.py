"""Tiny random networks of many architectures, for the tap: each is one line of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from xattn.model.attach import BACKENDS, Attached, find_backend
from xattn.model.tap import Edit, Site, Tap

Inputs = dict[str, Tensor]
EVERYTHING = frozenset({"scores", "probabilities", "values", "outputs", "gradients"})


def text(network: Any, length: int) -> Inputs:
    """Two texts, the second one padded on the right."""
    ids = torch.randint(10, 60, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if network.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :-2].flip(0)
    return inputs


def image(network: Any, length: int) -> Inputs:
    config = getattr(network.config, "vision_config", network.config)
    generator = torch.Generator().manual_seed(length)
    side = config.image_size
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    return {"pixel_values": torch.randn(2, 3, height, width, generator=generator)}


def both(network: Any, length: int) -> Inputs:
    return {**text(network, length), **image(network, length)}


def speech(network: Any, length: int) -> Inputs:
    generator = torch.Generator().manual_seed(length)
    features = torch.randn(2, 8, 24, generator=generator)
    return {
        "input_features": features,
        "decoder_input_ids": text(network, length)["input_ids"],
    }


def patches(network: Any, length: int) -> Inputs:
    """A text with two images of different sizes, as Qwen2-VL takes them."""
    generator = torch.Generator().manual_seed(length)
    grid = torch.tensor([[1, 4, 4], [1, 2, 4]])
    count = grid.prod(-1)
    merged = (count // 4).tolist()
    ids = [1, 90, *[92] * merged[0], 91, 5, 90, *[92] * merged[1], 91, *range(10, 10 + length)]
    return {
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor([[int(i == 92) for i in ids]]),
        "pixel_values": torch.randn(int(count.sum()), 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": grid,
    }


@dataclass(frozen=True, eq=False)
class Architecture:
    """One line of the table: how to build a network and what is expected of it."""

    head: str
    """Class of the network, or what follows ``AutoModelFor``."""
    kind: str
    """What transformers calls the architecture."""
    sizes: dict[str, Any]
    backend: str = "interface"
    inputs: Callable[[Any, int], Inputs] = text
    causal: bool = False
    """Whether every map is of a decoder's tokens among themselves."""
    sink: bool = False
    """Whether rows may sum to less than one."""
    serves: frozenset[str] = EVERYTHING
    skipped: int = 0
    single: bool = False
    """Whether the network cannot compute in double precision (its masks do not survive it)."""
    note: str = ""

    def build(self) -> Any:
        """Return the network, in evaluation mode, the weights large enough to attend to something.

        With the usual small weights every map is uniform and every test passes.
        """
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.kind, **self.sizes)
        auto = getattr(transformers, f"AutoModelFor{self.head}", None)
        network = (
            getattr(transformers, self.head)(config) if auto is None else auto.from_config(config)
        )
        generator = torch.Generator().manual_seed(1)
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d, Conv1D)):
                with torch.no_grad():
                    module.weight.normal_(0, 0.25, generator=generator)
        for name, parameter in network.named_parameters():
            if name.endswith(("sinks", "relative_position_bias_table")):
                with torch.no_grad():
                    parameter.normal_(0, 0.5, generator=generator)
        return network.eval()

    @cache  # noqa: B019  the table lives as long as the tests
    def attached(self) -> tuple[Any, Attached]:
        """Return a network and what was seen when it was tapped; tests leave it as it is."""
        network = self.build()
        return network, find_backend(network, lambda: self.logits(network, 8))

    def logits(self, network: Any, length: int) -> Tensor:
        """Run the network on an input of about that length."""
        dtype = next(network.parameters()).dtype
        inputs = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in self.inputs(network, length).items()
        }
        torch.manual_seed(0)  # ViLT draws the order of its patches
        output = network(**inputs)
        found = output.get("logits", output.get("logits_per_image"))
        assert isinstance(found, Tensor)
        return found

    def tapped(self, edit: Edit, length: int = 9, network: Any = None) -> Tensor:
        """Return the logits with an edit."""
        original, found = self.attached()
        network = network or original
        with BACKENDS[found.backend](network, Tap(network, (edit,))):
            return self.logits(network, length)

    def maps(self, length: int = 9) -> dict[Site, Tensor]:
        """Return the map of every site."""
        maps: dict[Site, Tensor] = {}

        def keep(site: Site, probabilities: Tensor) -> Tensor:
            maps[site] = probabilities
            return probabilities

        with torch.no_grad():
            self.tapped(Edit(probabilities=keep), length)
        return maps


BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 99,
    "pad_token_id": 0,
}
LLAMA = {**BERT, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
MOE = {**LLAMA, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
       "moe_intermediate_size": 16, "experts_implementation": "eager"}  # fmt: skip
MLA = {**BERT, "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 8,
       "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 4,
       "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
       "moe_intermediate_size": 16, "experts_implementation": "eager"}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 99,
       "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "max_position_embeddings": 64, "vocab_size": 99, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2,
      "num_heads": 4, "vocab_size": 99, "decoder_start_token_id": 0}  # fmt: skip
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 99, "vocab_size": 99,
       "max_position_embeddings": 64}  # fmt: skip
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
       "intermediate_size": 48, "image_size": 16, "patch_size": 4}  # fmt: skip
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4],
        "window_size": 4}  # fmt: skip
TOWERS = {
    "text_config": {**BERT, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "gelu"},
    "vision_config": {**VIT, "hidden_act": "gelu"},
    "projection_dim": 16,
    "image_text_hidden_size": 16,
}
ENCODER, DECODER, TASK = "SequenceClassification", "CausalLM", "Seq2SeqLM"
CAUSAL = {"causal": True}
BY_SOFTMAX = {"backend": "softmax"}
READ_ONLY: dict[str, Any] = {"backend": "maps", "serves": frozenset()}


def _line(head: str, kind: str, sizes: dict[str, Any], **expected: Any) -> Architecture:
    return Architecture(head, kind, sizes, **expected)


ARCHITECTURES = {
    # encoders
    "bert": _line(ENCODER, "bert", BERT),
    "roberta": _line(ENCODER, "roberta", BERT),
    "xlm-roberta": _line(ENCODER, "xlm-roberta", BERT),
    "camembert": _line(ENCODER, "camembert", BERT),
    "electra": _line(ENCODER, "electra", {**BERT, "embedding_size": 16}),
    "distilbert": _line(ENCODER, "distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4,
                        "hidden_dim": 48, "max_position_embeddings": 64, "vocab_size": 99}),
    "albert": _line(ENCODER, "albert", {**BERT, "embedding_size": 16}),
    "mobilebert": _line(ENCODER, "mobilebert", {**BERT, "embedding_size": 16,
                        "intra_bottleneck_size": 16, "true_hidden_size": 16,
                        "normalization_type": "layer_norm"}),
    "modernbert": _line(ENCODER, "modernbert", {**BERT, "local_attention": 4,
                        "global_attn_every_n_layers": 2}),
    "ernie": _line(ENCODER, "ernie", BERT),
    "esm": _line("MaskedLM", "esm", {**BERT, "mask_token_id": 5}),
    "data2vec-text": _line(ENCODER, "data2vec-text", BERT),
    "deberta": _line(ENCODER, "deberta", {**BERT, "relative_attention": True,
                     "pos_att_type": ["c2p", "p2c"]}, **BY_SOFTMAX),
    "deberta-v2": _line(ENCODER, "deberta-v2", {**BERT, "relative_attention": True,
                        "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
                        "share_att_key": True}, **BY_SOFTMAX),
    "mpnet": _line(ENCODER, "mpnet", BERT, **BY_SOFTMAX),
    "xlm": _line(ENCODER, "xlm", XLM, **BY_SOFTMAX),
    "flaubert": _line(ENCODER, "flaubert", XLM, **BY_SOFTMAX),
    "roformer": _line(ENCODER, "roformer", {**BERT, "embedding_size": 32}, **BY_SOFTMAX),
    "rembert": _line(ENCODER, "rembert", {**BERT, "input_embedding_size": 16}, **BY_SOFTMAX),
    "big_bird": _line(ENCODER, "big_bird", BERT, **BY_SOFTMAX),
    "megatron-bert": _line(ENCODER, "megatron-bert", BERT, **BY_SOFTMAX),
    "convbert": _line(ENCODER, "convbert", {**BERT, "embedding_size": 32, "head_ratio": 2},
                      **BY_SOFTMAX),
    "squeezebert": _line(ENCODER, "squeezebert", {**BERT, "embedding_size": 32,
                         **{f"{x}_groups": 2 for x in ("q", "k", "v", "intermediate", "output")}},
                         **BY_SOFTMAX),
    "ibert": _line(ENCODER, "ibert", BERT, **BY_SOFTMAX),
    "canine": _line(ENCODER, "canine", {**BERT, "num_hash_buckets": 64, "num_hash_functions": 4,
                    "downsampling_rate": 2, "local_transformer_stride": 16},
                    single=True, **BY_SOFTMAX),
    "xlnet": _line(ENCODER, "xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48,
                   "vocab_size": 99}, **BY_SOFTMAX),
    "funnel": _line(ENCODER, "funnel", {"vocab_size": 99, "block_sizes": [1, 1], "d_model": 32,
                    "n_head": 4, "d_head": 8, "d_inner": 48}, **BY_SOFTMAX),
    "longformer": _line(ENCODER, "longformer", {**BERT, "attention_window": [4, 4]}, **READ_ONLY),
    # decoders
    "gpt2": _line(DECODER, "gpt2", GPT, **CAUSAL),
    "gpt_bigcode": _line(DECODER, "gpt_bigcode", {**GPT, "multi_query": True}, **CAUSAL),
    "openai-gpt": _line(DECODER, "openai-gpt", GPT, **BY_SOFTMAX, **CAUSAL),
    "ctrl": _line(DECODER, "ctrl", {**GPT, "dff": 48}, **CAUSAL),
    "gpt_neo": _line(DECODER, "gpt_neo", {"hidden_size": 32, "num_layers": 2, "num_heads": 4,
                     "attention_types": [[["global", "local"], 1]], "window_size": 4,
                     "vocab_size": 99, "max_position_embeddings": 64}, **BY_SOFTMAX, **CAUSAL),
    "gpt_neox": _line(DECODER, "gpt_neox", BERT, **CAUSAL),
    "gptj": _line(DECODER, "gptj", {**GPT, "rotary_dim": 4}, **BY_SOFTMAX, **CAUSAL),
    "codegen": _line(DECODER, "codegen", {**GPT, "rotary_dim": 4}, **BY_SOFTMAX, **CAUSAL),
    "opt": _line(DECODER, "opt", {**BERT, "ffn_dim": 48, "word_embed_proj_dim": 32}, **CAUSAL),
    "bloom": _line(DECODER, "bloom", {**GPT, "hidden_size": 32}, **BY_SOFTMAX, **CAUSAL),
    "mpt": _line(DECODER, "mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64,
                 "vocab_size": 99}, **BY_SOFTMAX, **CAUSAL),
    "falcon": _line(DECODER, "falcon", {**BERT, "multi_query": True}, **BY_SOFTMAX, **CAUSAL),
    "xglm": _line(DECODER, "xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 4,
                  "ffn_dim": 48, "vocab_size": 99, "max_position_embeddings": 64},
                  single=True, **BY_SOFTMAX, **CAUSAL),
    "trocr": _line(DECODER, "trocr", {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48,
                   "decoder_attention_heads": 4, "vocab_size": 99},
                   **BY_SOFTMAX, **CAUSAL),
    "phi": _line(DECODER, "phi", BERT, **CAUSAL),
    "phi3": _line(DECODER, "phi3", {**LLAMA, "sliding_window": None}, **CAUSAL),
    "llama": _line(DECODER, "llama", LLAMA, **CAUSAL),
    "mistral": _line(DECODER, "mistral", {**LLAMA, "sliding_window": 3}, **CAUSAL),
    "mixtral": _line(DECODER, "mixtral", MOE, **CAUSAL),
    "qwen2": _line(DECODER, "qwen2", LLAMA, **CAUSAL),
    "qwen3": _line(DECODER, "qwen3", LLAMA, **CAUSAL),
    "qwen2_moe": _line(DECODER, "qwen2_moe", {**MOE, "shared_expert_intermediate_size": 16},
                       **CAUSAL),
    "qwen3_moe": _line(DECODER, "qwen3_moe", MOE, **CAUSAL),
    "gemma": _line(DECODER, "gemma", LLAMA, **CAUSAL),
    "gemma2": _line(DECODER, "gemma2", {**LLAMA, "attn_logit_softcapping": 2.0,
                    "sliding_window": 3, "query_pre_attn_scalar": 8}, **CAUSAL,
                    note="the cap is small enough to matter"),
    "gemma3": _line(DECODER, "gemma3_text", {**LLAMA, "sliding_window": 3}, **CAUSAL),
    "cohere": _line(DECODER, "cohere", LLAMA, **CAUSAL),
    "olmo2": _line(DECODER, "olmo2", LLAMA, **CAUSAL),
    "starcoder2": _line(DECODER, "starcoder2", {**LLAMA, "sliding_window": 3}, **CAUSAL),
    "stablelm": _line(DECODER, "stablelm", LLAMA, **CAUSAL),
    "granite": _line(DECODER, "granite", LLAMA, **CAUSAL),
    "nemotron": _line(DECODER, "nemotron", LLAMA, **CAUSAL),
    "persimmon": _line(DECODER, "persimmon", LLAMA, **CAUSAL),
    "gpt_oss": _line(DECODER, "gpt_oss", {**MOE, "sliding_window": 3}, sink=True, **CAUSAL),
    "granite_swa": _line(DECODER, "granite_swa", LLAMA, sink=True, **CAUSAL),
    "deepseek_v2": _line(DECODER, "deepseek_v2", MLA, **CAUSAL),
    "deepseek_v3": _line(DECODER, "deepseek_v3", MLA, **CAUSAL),
    "deepseek_v32": _line(DECODER, "deepseek_v32", {**MLA, "index_n_heads": 2, "index_head_dim": 8,
                          "index_topk": 3}, **CAUSAL, note="a sparse choice of keys"),
    "qwen3_next": _line(DECODER, "qwen3_next", {**MOE, "layer_types": ["linear_attention",
                        "full_attention"], "shared_expert_intermediate_size": 16,
                        "linear_num_value_heads": 4, "linear_num_key_heads": 2,
                        "linear_key_head_dim": 8, "linear_value_head_dim": 8}, skipped=1, **CAUSAL),
    "jamba": _line(DECODER, "jamba", {**MOE, "attn_layer_period": 2, "attn_layer_offset": 1,
                   "mamba_dt_rank": 4, "mamba_d_state": 4, "use_mamba_kernels": False},
                   skipped=1, **CAUSAL),
    # encoder-decoders
    "t5": _line(TASK, "t5", T5),
    "mt5": _line(TASK, "mt5", T5),
    "umt5": _line(TASK, "umt5", T5),
    "longt5": _line(TASK, "longt5", {**T5, "local_radius": 3}, backend="mixed"),
    "switch": _line(TASK, "switch_transformers", {**T5, "num_experts": 2}),
    "bart": _line(TASK, "bart", BART),
    "mbart": _line(TASK, "mbart", BART),
    "marian": _line(TASK, "marian", {**BART, "scale_embedding": True}),
    "pegasus": _line(TASK, "pegasus", BART),
    "blenderbot": _line(TASK, "blenderbot", BART),
    "m2m_100": _line(TASK, "m2m_100", BART),
    "fsmt": _line(TASK, "fsmt", {**BART, "src_vocab_size": 99, "tgt_vocab_size": 99,
                  "langs": ["en", "de"]}, **BY_SOFTMAX),
    "mvp": _line(TASK, "mvp", BART, **BY_SOFTMAX),
    "prophetnet": _line(TASK, "prophetnet", {"hidden_size": 32, "num_encoder_layers": 2,
                        "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
                        "num_decoder_attention_heads": 4, "encoder_ffn_dim": 48,
                        "decoder_ffn_dim": 48, "vocab_size": 99, "max_position_embeddings": 64},
                        single=True, **BY_SOFTMAX),
    "led": _line(TASK, "led", {**BART, "attention_window": [4, 4],
                 "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
                 **READ_ONLY),
    "whisper": _line("WhisperForConditionalGeneration", "whisper", {**BART, "num_mel_bins": 8,
                     "max_source_positions": 12, "max_target_positions": 64}, inputs=speech),
    # images, and images with text
    "vit": _line("ImageClassification", "vit", VIT, inputs=image),
    "deit": _line("DeiTForImageClassification", "deit", VIT, inputs=image),
    "dinov2": _line("ImageClassification", "dinov2", VIT, inputs=image),
    "beit": _line("ImageClassification", "beit", {**VIT, "use_relative_position_bias": True},
                  inputs=image),
    "swin": _line("ImageClassification", "swin", SWIN, inputs=image),
    "swinv2": _line("ImageClassification", "swinv2", SWIN, inputs=image, **BY_SOFTMAX),
    "pvt_v2": _line("ImageClassification", "pvt_v2", {"image_size": 32, "hidden_sizes": [8, 16],
                    "num_encoder_blocks": 2, "depths": [1, 1], "num_attention_heads": [2, 4],
                    "patch_sizes": [7, 3], "strides": [4, 2], "sr_ratios": [2, 1],
                    "mlp_ratios": [2, 2]}, inputs=image, **BY_SOFTMAX),
    "segformer": _line("ImageClassification", "segformer", {"image_size": 32,
                       "hidden_sizes": [8, 16],
                       "num_encoder_blocks": 2, "depths": [1, 1], "num_attention_heads": [2, 4],
                       "patch_sizes": [7, 3], "strides": [4, 2], "sr_ratios": [2, 1],
                       "mlp_ratios": [2, 2]}, inputs=image),
    "siglip": _line("SiglipForImageClassification", "siglip", TOWERS, inputs=image),
    "clip": _line("CLIPModel", "clip", TOWERS, inputs=both),
    "blip": _line("BlipForConditionalGeneration", "blip", TOWERS, inputs=both, **BY_SOFTMAX),
    "vilt": _line("ViltForImageAndTextRetrieval", "vilt", {**BERT, **VIT}, inputs=both,
                  **BY_SOFTMAX),
    "qwen2_vl": _line("Qwen2VLForConditionalGeneration", "qwen2_vl", {
        "text_config": {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                        "mrope_section": [1, 1, 2]}},
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4,
                          "mlp_ratio": 2, "patch_size": 4, "in_channels": 3},
        "image_token_id": 92, "vision_start_token_id": 90, "vision_end_token_id": 91,
        "video_token_id": 93}, inputs=patches),
}  # fmt: skip


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    """Every architecture in turn."""
    return ARCHITECTURES[request.param]


@pytest.fixture(params=[name for name, line in ARCHITECTURES.items() if line.causal])
def decoder(request: pytest.FixtureRequest) -> Architecture:
    """Every architecture in turn that reads from left to right alone."""
    return ARCHITECTURES[request.param]


@pytest.fixture(params=[name for name, line in ARCHITECTURES.items() if line.serves])
def editable(request: pytest.FixtureRequest) -> Architecture:
    """Every architecture in turn whose attention can be edited and differentiated."""
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="session")
def architectures() -> dict[str, Architecture]:
    """The whole table."""
    return ARCHITECTURES
