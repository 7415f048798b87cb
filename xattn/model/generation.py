"""Generation: text that a model writes, under whatever edits are open.

What is written for a prompt does not depend on the other prompts. Prompts share a batch only if
they are equally long, so there is no padding, which decoders with absolute positions, windows or
linear biases would each have to be told about in another way; and whatever draws random numbers,
or stops by criteria of its own, runs one prompt at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xattn.errors import InputError, ModelError
from xattn.model import batching, marks
from xattn.model.interface import quiet
from xattn.types import Ints, Row

TOGETHER = frozenset(
    {
        "num_beams", "num_return_sequences", "length_penalty", "early_stopping", "use_cache",
        "cache_implementation", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size",
        "bad_words_ids", "eos_token_id", "pad_token_id", "forced_bos_token_id",
        "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "prefill_chunk_size",
    }
)  # fmt: skip
"""Options under which prompts may share a batch: each row is treated by itself."""


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model wrote after one prompt."""

    ids: Ints
    """``[token]``: the new tokens, up to and with the one that ends the text, if it was written."""
    text: str
    """The new tokens as text, without special ones."""


def generate(
    network: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    held: Callable[[Mapping[str, Tensor]], AbstractContextManager[Any]],
    *,
    max_new_tokens: int,
    seed: int = 0,
    limit: int | None = None,
    budget: int = 2048,
    **options: Any,
) -> list[Generation]:
    """Let a network go on writing.

    Parameters
    ----------
    network : transformers.PreTrainedModel
        A decoder with a language model head, or an encoder-decoder.
    tokenizer : PreTrainedTokenizer
    rows : sequence of Row
        The prompts (in an encoder-decoder the sources), arrays ``[token]``, marks included.
    held : callable
        Opens everything that shall hold during one call of the network's ``generate``, given that
        call's inputs: evaluation mode, the tap, edits resolved for these inputs.
    max_new_tokens : int
        1 or more.
    seed : int
        Where sampling starts, for each prompt anew; the global random state is left alone.
    limit : int, optional
        Most tokens that the network can read, prompt and new ones together.
    budget : int
        Tokens that go through the network together; see `batching.buckets`.
    **options
        Passed to ``generate`` of transformers: ``num_beams``, ``do_sample``, ``temperature`` ...
        Greedy by default, whatever the checkpoint's own configuration says.

    Returns
    -------
    list of Generation
        In the order of the prompts; with ``num_return_sequences`` that many for each in a row.

    Raises
    ------
    InputError
        If a prompt leaves no room, prompts carry different marks, or an option would change the
        network.
    ModelError
        If the network cannot generate.
    """
    if not (hasattr(network, "can_generate") and network.can_generate()):
        raise ModelError(
            "the model cannot generate text",
            got=type(network).__name__,
            expected="a causal language model or an encoder-decoder",
            remedy="load it with AutoModelForCausalLM or AutoModelForSeq2SeqLM",
        )
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise InputError("max_new_tokens", got=repr(max_new_tokens), expected="1 or more")
    if "assistant_early_exit" in options:  # it cuts the network's own configuration short
        raise InputError(
            "a network that drafts for itself is changed by it, and stays changed after an error",
            got="assistant_early_exit",
            remedy="draft with prompt_lookup_num_tokens or another assistant_model",
        )
    if limit is not None and not network.config.is_encoder_decoder:
        for number, row in enumerate(rows):
            if len(row["input_ids"]) + max_new_tokens > limit:
                raise InputError(
                    f"prompt {number} leaves no room for {max_new_tokens} new tokens",
                    got=f"{len(row['input_ids'])} tokens",
                    expected=f"at most {limit} with the new ones",
                    remedy="shorten it, or ask for fewer",
                )
    marks.check_same(rows)
    options = {
        "do_sample": False,
        "num_beams": 1,
        "pad_token_id": _pad_id(network),
        "disable_compile": True,  # a compiled step would not pass through the tap
        **options,
    }
    alone = bool(options["do_sample"]) or not TOGETHER.issuperset(
        options.keys() - {"do_sample", "disable_compile"}
    )
    copies = int(options.get("num_return_sequences", 1) or 1)
    width = max(copies, int(options["num_beams"] or 1))  # rows that each prompt becomes
    results: dict[int, list[Generation]] = {}
    for group in _groups(rows, 1 if alone else budget, max_new_tokens, width):
        inputs = batching.pad([rows[i] for i in group], 0, network.device)
        written = _run(network, inputs, held, seed, max_new_tokens, options)
        for place, position in enumerate(group):
            block = written[place * copies : (place + 1) * copies]
            results[position] = [_finish(network, tokenizer, ids, options) for ids in block]
    return [result for i in range(len(rows)) for result in results[i]]


def _pad_id(network: Any) -> int:
    """Return what ended rows are filled with while others go on; it is cut off again."""
    config = network.generation_config
    ends = _ends(network, {})
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    return ends[0] if ends else 0


def _ends(network: Any, options: Mapping[str, Any]) -> list[int]:
    """Return the tokens that end a text."""
    given = options.get("eos_token_id", network.generation_config.eos_token_id)
    if given is None:
        return []
    return [int(i) for i in np.atleast_1d(np.asarray(given))]


def _groups(rows: Sequence[Row], budget: int, new: int, width: int) -> list[list[int]]:
    """Return the positions of prompts that run together: of one length, under the budget."""
    by_length: dict[tuple[int, ...], list[int]] = {}
    for position, row in enumerate(rows):
        lengths = tuple(len(row[name]) for name in sorted(row))
        by_length.setdefault(lengths, []).append(position)
    groups = []
    for lengths, positions in by_length.items():
        size = max(1, budget // (width * (max(lengths) + new)))
        groups += [positions[i : i + size] for i in range(0, len(positions), size)]
    return groups


def _run(
    network: Any,
    inputs: Mapping[str, Tensor],
    held: Callable[[Mapping[str, Tensor]], AbstractContextManager[Any]],
    seed: int,
    max_new_tokens: int,
    options: Mapping[str, Any],
) -> Ints:
    """Return the new tokens of a group of equally long prompts, ``[row, new token]``."""
    given = {name: tensor for name, tensor in inputs.items() if marks.PREFIX not in name}
    devices = [network.device] if network.device.type == "cuda" else []
    # quiet: a checkpoint's own max_length is outdone on purpose
    with held(inputs), quiet(), torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        output = network.generate(**given, max_new_tokens=max_new_tokens, **options)
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompt = given["input_ids"]
    if network.config.is_encoder_decoder:
        # The target text begins with the start token, which transformers puts before a prefix
        # that lacks it.
        prompt = given.get("decoder_input_ids", sequences[:, :1])
        if not bool((sequences[:1, : prompt.shape[1]] == prompt[:1]).all()):
            sequences = sequences[:, 1:]
    new: Ints = sequences[:, prompt.shape[1] :].cpu().numpy()
    return new


def _finish(network: Any, tokenizer: Any, ids: Ints, options: Mapping[str, Any]) -> Generation:
    """Cut off what follows the end of one text."""
    ended = np.flatnonzero(np.isin(ids, _ends(network, options)))
    ids = ids[: ended[0] + 1] if len(ended) else ids
    return Generation(ids, tokenizer.decode(ids.tolist(), skip_special_tokens=True))
