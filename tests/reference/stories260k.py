"""A story model of others to test against: ``stories260K`` in the format of llama2.c, version 0.

The weights are not part of this repository. They are looked for in the folder that the environment
variable ``XATTN_STORIES260K`` names, or else in ``../shared/data/stories260K`` beside the
repository; tests are skipped where neither holds them.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VARIABLE = "XATTN_STORIES260K"
BESIDE = Path(__file__).parents[3] / "shared" / "data" / "stories260K"
WEIGHTS, VOCABULARY = "stories260K.bin", "tok512.bin"


def folder() -> Path | None:
    """Return the folder that holds the model, or None."""
    place = Path(os.environ.get(VARIABLE, BESIDE))
    return place if (place / WEIGHTS).is_file() and (place / VOCABULARY).is_file() else None


def load(place: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Read model and tokenizer into memory.

    Parameters
    ----------
    place : Path
        A folder with ``stories260K.bin`` and ``tok512.bin``.
    """
    network = read_network((place / WEIGHTS).read_bytes())
    return network, read_tokenizer((place / VOCABULARY).read_bytes(), network.config)


def read_network(content: bytes) -> LlamaForCausalLM:
    """Turn seven integers and a run of float32 weights into a Llama.

    The weights follow in the order of the reads below; a positive vocabulary size says that the
    embedding is the output layer as well. After the last norm come tables of rotations, which
    transformers computes by itself.
    """
    hidden, inner, layers, heads, key_heads, vocabulary, context = struct.unpack_from("7i", content)
    if vocabulary < 0:
        raise ValueError("an output layer of its own is not expected here")
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    values = torch.from_numpy(np.frombuffer(content, "<f4", offset=7 * 4).copy())
    read = 0

    def take(*shape: int) -> Tensor:
        nonlocal read
        size = int(np.prod(shape))
        read += size
        return values[read - size : read].view(shape)

    key_width = hidden // heads * key_heads
    weights = {"model.embed_tokens.weight": take(vocabulary, hidden)}
    # One kind of matrix after the other, each for all layers.
    for name, shape in {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_width, hidden),
        "self_attn.v_proj": (key_width, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "mlp.up_proj": (inner, hidden),
    }.items():
        for layer, part in enumerate(take(layers, *shape)):
            pairs = {"self_attn.q_proj": heads, "self_attn.k_proj": key_heads}.get(name)
            weights[f"model.layers.{layer}.{name}.weight"] = _halves(part, pairs)
    weights["model.norm.weight"] = take(hidden)
    if len(values) - read != context * hidden // heads:
        raise ValueError("the file does not end with the tables of rotations")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    network = LlamaForCausalLM(config)
    network.load_state_dict(weights)
    return network.eval()


def _halves(matrix: Tensor, heads: int | None) -> Tensor:
    """Bring rows that are rotated together from neighbours into the two halves of a head."""
    if heads is None:
        return matrix
    return matrix.view(heads, -1, 2, matrix.shape[1]).transpose(1, 2).reshape(matrix.shape)


def read_tokenizer(content: bytes, config: LlamaConfig) -> PreTrainedTokenizerFast:
    """Turn scored pieces into a byte-pair encoding.

    A piece's score is minus the rank of its merge. Pieces 3 to 258 are single bytes, for what no
    piece writes; in the others, blanks are written as they are.
    """
    offset = struct.calcsize("i")  # behind the length of the longest piece
    vocabulary: dict[str, int] = {}
    scores: list[float] = []
    for index in range(config.vocab_size):
        score, length = struct.unpack_from("<fi", content, offset)
        offset += 8
        piece = content[offset : offset + length].decode()
        offset += length
        name = {0: "<unk>", 1: "<s>", 2: "</s>"}.get(index, piece)
        vocabulary[name] = index
        scores.append(score)
    ordinary = {piece: index for piece, index in vocabulary.items() if index > 258}
    merges = [
        (-scores[index], piece[:cut], piece[cut:])
        for piece, index in ordinary.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ordinary and piece[cut:] in ordinary
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for _, left, right in sorted(merges)],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=config.max_position_embeddings,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
