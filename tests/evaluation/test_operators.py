"""Operators remove exactly the named tokens, by id."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import BertConfig, BertForMaskedLM

import xattn
from xattn.errors import InputError, UnknownNameError
from xattn.evaluation import OPERATORS, compare, get_operator, load_dataset
from xattn.model import drawing
from xattn.model.drawing import DRAWS
from xattn.model.entrances import TokenEntrance
from xattn.model.game import games, worth
from xattn.model.operators import drawing_from
from xattn.model.scorer import Scorer

TEXT = "A dull film, but beautifully acted."
IDS = ("delete", "mask", "pad", "unknown", "attention-mask")
"""What works on the ids alone."""


def apply(name, model, encoding, gone):
    keep = np.ones((1, len(encoding)), dtype=bool)
    keep[0, gone] = False
    [row] = get_operator(name)(model, encoding.row, keep)
    return {key: values.tolist() for key, values in row.items()}


@pytest.mark.parametrize("name", IDS)
def test_keeping_everything_changes_nothing(name, demo):
    [encoding] = demo.encode([TEXT])
    row = apply(name, demo, encoding, [])
    assert row == {key: values.tolist() for key, values in encoding.row.items()}


@pytest.mark.parametrize("pair", [None, "It was far too long."])
@pytest.mark.parametrize("name", IDS)
def test_matches_the_reference(name, pair, demo, reference):
    [encoding] = demo.encode([TEXT], None if pair is None else [pair])
    rng = np.random.default_rng(0)
    for size in range(len(encoding.removable) + 1):
        gone = rng.choice(encoding.removable, size, replace=False)
        expected = reference.without(demo, encoding, name, set(gone.tolist()))
        row = apply(name, demo, encoding, gone)
        assert row == {key: values.tolist() for key, values in expected.items()}


def test_what_is_joined_and_read_again_is_another_text(demo):
    """The example of docs/evaluation.md."""
    tokenizer = demo.tokenizer
    [encoding] = demo.encode(["My interest evaporated well before the killer was unmasked."])
    gone = encoding.removable[
        tokenizer.convert_ids_to_tokens(encoding.row["input_ids"])[1:-1].index("##ap")
    ]
    keep = np.arange(len(encoding)) != gone
    [row] = get_operator("delete")(demo, encoding.row, keep[None])
    [again] = demo.encode([tokenizer.decode(row["input_ids"], skip_special_tokens=True)])
    assert tokenizer.convert_ids_to_tokens(row["input_ids"])[3:6] == ["ev", "##ora", "##ted"]
    assert tokenizer.convert_ids_to_tokens(again.row["input_ids"])[3:5] == ["evo", "##rated"]
    whole, removed, other = (
        float(demo.logits(demo.collate([r])).softmax(-1)[0, demo.label_id("positive")])
        for r in (encoding.row, row, again.row)
    )
    assert [round(p, 2) for p in (whole, removed, other)] == [0.23, 0.13, 0.69]
    assert [round(whole - removed, 2), round(other - whole, 2)] == [0.09, 0.46]


def test_how_often_what_is_joined_is_another_text(demo):
    """The count of docs/evaluation.md."""
    encodings = demo.encode(load_dataset().texts)
    left = [np.delete(e.row["input_ids"], gone).tolist() for e in encodings for gone in e.removable]
    joined = demo.tokenizer.batch_decode(left, skip_special_tokens=True)
    again = demo.tokenizer(joined)["input_ids"]
    assert len(left) == 3731
    assert sum(a != b for a, b in zip(left, again, strict=True)) == 93


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


@pytest.fixture(scope="module")
def teller(demo, tmp_path_factory):
    """A masked language model that was never trained, with the words of the demo model."""
    torch.manual_seed(0)
    network = BertForMaskedLM(
        BertConfig(
            vocab_size=len(demo.tokenizer), hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=16, initializer_range=1.0,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("teller")
    network.save_pretrained(folder)
    demo.tokenizer.save_pretrained(folder)
    return folder


def test_the_mean_embedding_is_what_the_network_is_given(demo):
    [encoding] = demo.encode([TEXT])
    keep = np.ones((2, len(encoding)), dtype=bool)
    keep[1, [2, 5]] = False
    rows = get_operator("mean-embedding")(demo, encoding.row, keep)
    target = demo.target(demo.batch([encoding] * 2), quantity="logit")
    found = Scorer(demo).values(rows, target)
    table = demo.network.get_input_embeddings().weight.detach()
    inputs = demo.collate([encoding.row] * 2)
    embeddings = demo.embeddings(inputs)
    embeddings[1, [2, 5]] = table.mean(0)
    expected = demo.score(inputs, target, embeddings)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert abs(found[0] - found[1]) > 1e-3


class Scaled(torch.nn.Embedding):
    """As Gemma and BART do."""

    def forward(self, input):
        return 3 * super().forward(input)


def test_the_mean_is_of_what_the_module_returns_and_follows_its_table():
    module = Scaled(9000, 4)
    entrance = TokenEntrance(module, "input_ids", lambda kind: 0)
    torch.testing.assert_close(entrance.mean().float(), 3 * module.weight.mean(0))
    with torch.no_grad():
        module.weight.add_(1.0)
    torch.testing.assert_close(entrance.mean().float(), 3 * module.weight.mean(0))


def test_blank_tokens_of_a_batch_are_its_own(demo):
    texts = demo.encode([TEXT, "Dull, but the two leads are good."])
    keeps = [np.ones((1, len(e)), dtype=bool) for e in texts]
    keeps[0][0, 2] = keeps[1][0, 4] = False
    operator = get_operator("mean-embedding")
    rows = [
        row for e, keep in zip(texts, keeps, strict=True) for row in operator(demo, e.row, keep)
    ]
    together = demo.logits(demo.collate(rows))
    alone = torch.cat([demo.logits(demo.collate([row])) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_data_puts_tokens_of_the_texts_in_place(demo):
    texts = ["good good good", "boring"]
    operator = drawing_from(get_operator("data"), demo, texts)
    pool = {int(i) for i in demo.tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]}
    [encoding] = demo.encode([TEXT])
    gone = encoding.removable[[1, 3, 4]]
    keep = np.ones((2, len(encoding)), dtype=bool)
    keep[0, gone[:2]] = keep[1, gone] = False
    rows = operator(demo, encoding.row, keep)
    assert len(rows) == 2 * DRAWS
    for number, row in enumerate(rows):
        kept = keep[number // DRAWS]
        assert np.array_equal(row["input_ids"][kept], encoding.row["input_ids"][kept])
        assert set(row["input_ids"][~kept].tolist()) <= pool
    # the same numbers decide for both: what goes in both is replaced alike
    for draw in range(DRAWS):
        both = [rows[draw]["input_ids"], rows[DRAWS + draw]["input_ids"]]
        assert np.array_equal(both[0][gone[:2]], both[1][gone[:2]])
    drawn = [row["input_ids"][gone[0]] for row in operator(demo, encoding.row, keep)]
    assert drawn == [row["input_ids"][gone[0]] for row in rows]


def test_frequent_tokens_are_drawn_more_often(demo):
    operator = drawing_from(get_operator("data"), demo, ["good good good boring"])
    good = demo.tokenizer("good", add_special_tokens=False)["input_ids"][0]
    found = []
    for encoding in demo.encode(load_dataset(limit=60).texts):
        [*rows] = operator(demo, encoding.row, encoding.special[None])
        found += [row["input_ids"][encoding.removable] == good for row in rows]
    assert 0.7 < np.concatenate(found).mean() < 0.8


def test_what_is_drawn_from_is_read_once_a_block(demo, monkeypatch):
    pools, by_texts = [], drawing.by_texts
    monkeypatch.setattr(
        drawing, "by_texts", lambda model, texts: pools.append(texts) or by_texts(model, texts)
    )
    dataset = load_dataset(limit=3)
    # flip watches another quantity, so there are two games of each text
    compare(demo, dataset, ["random"], ["data"], metrics=["flip", "comprehensiveness"])
    assert pools == [dataset.texts] * 2  # it is tried with the same pool first


def test_worth_is_the_mean_of_what_is_drawn(demo):
    operator = drawing_from(get_operator("data"), demo, list(load_dataset(limit=5).texts))
    encodings = demo.encode([TEXT])
    batch = demo.batch(encodings)
    target = demo.target(batch, quantity="probability")
    [game] = games(demo, batch, target, operator)
    coalition = np.ones((1, len(game)), dtype=bool)
    coalition[0, 1:4] = False
    rows, expanded = game.inputs(coalition)
    each = Scorer(demo).values(rows, expanded)
    assert each.shape == (DRAWS,)
    assert np.ptp(each) > 0
    [value] = worth(Scorer(demo), [game], [coalition])
    assert value == pytest.approx(each.mean(), abs=1e-12)


def test_a_language_model_fills_in_what_it_finds_likely(demo, teller):
    operator = get_operator(f"masked-lm:{teller}")
    [encoding] = demo.encode([TEXT])
    keep = np.ones((1, len(encoding)), dtype=bool)
    keep[0, encoding.removable[[1, 4]]] = False
    rows = operator(demo, encoding.row, keep)
    masked = np.where(keep[0], encoding.row["input_ids"], demo.tokenizer.mask_token_id)
    told = chances(teller, demo.tokenizer, masked)
    for row in rows:
        assert np.array_equal(row["input_ids"][keep[0]], encoding.row["input_ids"][keep[0]])
        for place in np.flatnonzero(~keep[0]):
            assert told[place, row["input_ids"][place]] > 0.5 / len(demo.tokenizer)


def chances(teller, tokenizer, ids):
    """Return what the language model says of each place, ``[token, vocabulary]``."""
    with torch.no_grad():
        logits = xattn.load(str(teller), task="fill").network(input_ids=torch.tensor(ids)[None])
    found = logits.logits[0].double().numpy()
    found[:, tokenizer.all_special_ids] = -np.inf
    found = np.exp(found - found.max(1, keepdims=True))
    return found / found.sum(1, keepdims=True)


def test_the_draws_are_those_of_the_slow_way(demo, teller):
    [encoding] = demo.encode([TEXT])
    ids = encoding.row["input_ids"]
    rng = np.random.default_rng(3)
    keep = (rng.random((9, len(encoding))) < 0.5) | encoding.special
    keep[0], keep[1] = True, encoding.special
    rows = get_operator(f"masked-lm:{teller}")(demo, encoding.row, keep)
    numbers = drawing._numbers(ids)
    for i, kept in enumerate(keep):
        told = chances(teller, demo.tokenizer, np.where(kept, ids, demo.tokenizer.mask_token_id))
        for draw in range(DRAWS):
            expected = ids.copy()
            for place in np.flatnonzero(~kept):
                total = 0.0
                for token, chance in enumerate(told[place]):  # noqa: B007
                    total += chance
                    if total >= numbers[draw, place]:
                        break
                expected[place] = token
            assert np.array_equal(rows[i * DRAWS + draw]["input_ids"], expected)


def test_tokens_are_drawn_as_often_as_they_are_likely(demo, teller, monkeypatch):
    draws = 4000
    monkeypatch.setattr(drawing, "DRAWS", draws)
    [encoding] = demo.encode([TEXT])
    keep = np.ones((1, len(encoding)), dtype=bool)
    place = encoding.removable[2]
    keep[0, place] = False
    rows = drawing.by_model(str(teller))(demo, encoding.row, keep)
    drawn = np.array([row["input_ids"][place] for row in rows])
    masked = np.where(keep[0], encoding.row["input_ids"], demo.tokenizer.mask_token_id)
    told = chances(teller, demo.tokenizer, masked)[place]
    counts = np.bincount(drawn, minlength=len(told))
    often = np.argsort(-told)[:20]
    parts = [np.append(of[often], of.sum() - of[often].sum()) for of in (counts, told * draws)]
    assert parts[1].min() > 5
    assert chisquare(*parts).pvalue > 0.01


def test_what_cannot_be_drawn_is_told(demo, teller, tiny_of):
    encoding = demo.encode([TEXT])[0]
    keep = encoding.special[None]
    with pytest.raises(InputError, match="from the data of a single text"):
        get_operator("data")(demo, encoding.row, keep)
    with pytest.raises(InputError, match="masked-lm:FOLDER"):
        get_operator("masked-lm")(demo, encoding.row, keep)
    other = tiny_of("bert")
    row = other.encode([TEXT])[0].row
    with pytest.raises(InputError, match="has another vocabulary than"):
        get_operator(f"masked-lm:{teller}")(other, row, np.ones((1, len(row["input_ids"])), bool))
    for name in ("mask:x", "mask:"):
        with pytest.raises(UnknownNameError, match=f"unknown operator: got '{name}'"):
            get_operator(name)
    with pytest.raises(InputError, match="cannot be removed by blur: expected one of delete"):
        get_operator("blur")(demo, encoding.row, keep)


def test_methods_are_compared_under_every_way_for_texts(demo, teller):
    ways = [name for name in OPERATORS if OPERATORS[name].remove and name != "masked-lm"]
    ways.append(f"masked-lm:{teller}")
    result = compare(demo, load_dataset(limit=4), ["occlusion"], ways)
    assert not len(result.failures)
    for way in ways:
        table = result.table(way, "abpc")
        assert (table["oracle"] >= table["occlusion"] - 1e-9).all()
        assert table["occlusion"].mean() > table["random"].mean()
