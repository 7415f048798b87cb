"""Operators remove exactly the named tokens, by id."""

import numpy as np
import pytest

from xattn.errors import InputError, UnknownNameError
from xattn.evaluation import OPERATORS, get_operator

TEXT = "A dull film, but beautifully acted."


def apply(name, model, encoding, gone):
    keep = np.ones((1, len(encoding)), dtype=bool)
    keep[0, gone] = False
    [row] = get_operator(name)(model, encoding.row, keep)
    return {key: values.tolist() for key, values in row.items()}


@pytest.mark.parametrize("name", OPERATORS)
def test_keeping_everything_changes_nothing(name, demo):
    [encoding] = demo.encode([TEXT])
    row = apply(name, demo, encoding, [])
    assert row == {key: values.tolist() for key, values in encoding.row.items()}


@pytest.mark.parametrize("pair", [None, "It was far too long."])
@pytest.mark.parametrize("name", OPERATORS)
def test_matches_the_reference(name, pair, demo, reference):
    [encoding] = demo.encode([TEXT], None if pair is None else [pair])
    rng = np.random.default_rng(0)
    for size in range(len(encoding.removable) + 1):
        gone = rng.choice(encoding.removable, size, replace=False)
        expected = reference.without(demo, encoding, name, set(gone.tolist()))
        row = apply(name, demo, encoding, gone)
        assert row == {key: values.tolist() for key, values in expected.items()}


def test_pairs_keep_token_types_and_both_separators(demo):
    [encoding] = demo.encode(["good film"], ["bad film"])
    row = apply("delete", demo, encoding, [1, 4])  # CLS good film SEP bad film SEP
    assert demo.tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        "[CLS]", "film", "[SEP]", "film", "[SEP]",
    ]  # fmt: skip
    assert row["token_type_ids"] == [0, 0, 0, 1, 1]
    assert row["attention_mask"] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "token"), [("mask", "[MASK]"), ("pad", "[PAD]"), ("unknown", "[UNK]")]
)
def test_replaced_tokens_stay_attended(name, token, demo):
    [encoding] = demo.encode(["good film"])
    row = apply(name, demo, encoding, [1])
    assert demo.tokenizer.convert_ids_to_tokens(row["input_ids"])[1] == token
    assert row["attention_mask"] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["delete", "attention-mask"])
def test_empty_input_of_a_model_without_special_tokens(name, tiny_of):
    model = tiny_of("gpt2")
    [encoding] = model.encode([TEXT])
    assert not encoding.special.any()
    row = apply(name, model, encoding, np.arange(len(encoding)))
    assert row == {"input_ids": [model.tokenizer.eos_token_id], "attention_mask": [1]}


def test_a_decoder_does_not_read_a_hidden_tail(tiny_of):
    model = tiny_of("gpt2")
    [encoding] = model.encode([TEXT])
    tail = np.arange(3, len(encoding))
    assert apply("attention-mask", model, encoding, tail) == apply("delete", model, encoding, tail)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_hidden_tokens_do_not_matter_to_a_decoder(family, tiny_of):
    model = tiny_of(family)
    [encoding] = model.encode([TEXT])
    gone = encoding.removable[[0, 3, 4]]
    row = apply("attention-mask", model, encoding, gone)
    hidden = {key: np.array(values) for key, values in row.items()}
    other = {**hidden, "input_ids": hidden["input_ids"].copy()}
    other["input_ids"][gone] = 7
    a, b = (model.logits(model.collate([r])) for r in (hidden, other))
    untouched = model.logits(model.collate([encoding.row]))
    assert a.allclose(b, atol=1e-6)
    assert not a.allclose(untouched, atol=1e-3)


def test_a_missing_replacement_token_is_named(tiny_of):
    model = tiny_of("gpt2")
    [encoding] = model.encode([TEXT])
    with pytest.raises(InputError, match=r"has no mask token to put in place.*--operators"):
        apply("mask", model, encoding, [0])


def test_unknown_operator():
    with pytest.raises(UnknownNameError, match=r"unknown operator: got 'delet'.*mean 'delete'\?"):
        get_operator("delet")
