"""A tokenizer of whole words, for models that are made here."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_tokenizer(
    words: Sequence[str], single: str, longest: int, pair: str | None = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows some words; the five special tokens come first.

    Parameters
    ----------
    words : sequence of str
    single, pair : str
        How special tokens frame a text and a pair, for example ``[CLS] $A [SEP]``.
    longest : int
        The most tokens of an input.
    """
    numbers = {word: number for number, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = [(name, numbers[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=frame
    )
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=longest,
        model_input_names=names if pair is None else [*names, "token_type_ids"],
    )
