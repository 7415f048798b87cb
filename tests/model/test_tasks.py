"""Tasks and targets: what is explained equals what the network itself says, on every task."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3NextConfig

import xattn
from xattn import evaluation
from xattn.errors import InputError, ModelError, UnknownNameError, XattnWarning
from xattn.model import Model
from xattn.model.tasks import task_of
from xattn.types import Target

Tiny = Callable[..., Model]
METHODS = ("attention", "rollout", "flow", "integrated_gradients", "attention_gradient")
CASES: dict[str, tuple[str, list[str], list[str] | None, str | int | None]] = {
    "classify": ("bert", ["A clumsy film.", "A dull and heartless bore."], None, None),
    "classify a pair": ("bert", ["A clumsy film.", "Dull!"], ["It is long.", "Why, oh why?"], None),
    "tag": ("deberta-v2", ["A clumsy film.", "Dull, dull and heartless."], None, "each"),
    "answer": ("roberta", ["What is dull?", "Why?"], ["The film is dull.", "A bore it is."], None),
    "fill": ("bert", ["A [MASK] film.", "[MASK] and [MASK] a bore"], None, None),
    "generate": ("llama", ["A clumsy film", "The dull"], [" is a bore", " man and woman"], "each"),
    "generate the next": ("gpt2", ["A clumsy film", "The dull"], None, "next"),
    "generate the whole": ("qwen2", ["A clumsy film", "A"], [" is a bore", " man"], "whole"),
    "generate from a source": ("bart", ["A clumsy film", "The dull"], ["is a", "man or"], "each"),
    "generate all from a source": ("t5", ["A clumsy film", "A"], ["is a bore", "man"], "whole"),
}


@pytest.fixture(params=CASES)
def case(
    request: pytest.FixtureRequest, tiny_of: Tiny
) -> tuple[Model, list[str], list[str] | None, str | int | None]:
    family, texts, pairs, at = CASES[request.param]
    return tiny_of(family, task=request.param.split()[0]), texts, pairs, at


Case = tuple[Model, list[str], list[str] | None, str | int | None]


def test_every_method_explains_every_task(case: Case) -> None:
    model, texts, pairs, at = case
    encodings = model.encode(texts, pairs)
    result = xattn.explain(model, encodings, METHODS, at=at)
    aims = model.aims(encodings, at=at)
    assert len(result) == len(METHODS) * sum(map(len, aims))
    expected = [e.tokens for e, several in zip(encodings, aims, strict=True) for _ in several]
    assert [group[0].tokens for group in result.by_text()] == expected
    for item in result:
        if item.method in ("attention", "rollout"):
            assert float(item.scores.sum()) == pytest.approx(1, abs=1e-5)
        if item.method == "integrated_gradients":
            assert item.gap is not None
            assert abs(item.gap) < 0.1


def test_a_batch_says_what_single_texts_say(case: Case) -> None:
    model, texts, pairs, at = case
    together = list(xattn.explain(model, texts, METHODS, pairs=pairs, at=at))
    alone = [
        item
        for i, text in enumerate(texts)
        for item in xattn.explain(
            model, [text], METHODS, pairs=None if pairs is None else [pairs[i]], at=at
        )
    ]
    for a, b in zip(together, alone, strict=True):
        assert (a.target, a.prediction) == (b.target, b.prediction)
        assert a.probability == pytest.approx(b.probability, abs=1e-5)
        largest = max(1.0, float(abs(b.scores).max()))
        assert abs(a.scores - b.scores).max() <= 2e-5 * largest, a.method


def test_a_target_reads_the_networks_own_logits(case: Case) -> None:
    model, texts, pairs, at = case
    for encoding in model.encode(texts, pairs):
        batch = model.batch([encoding])
        with torch.no_grad():
            output = model.network(**batch.inputs)
        if model.task.name == "answer":
            table = torch.stack([output.start_logits[0], output.end_logits[0]])
        else:
            table = output.logits[0].view(-1, output.logits.shape[-1])
        for aim in model.aims([encoding], at=at)[0]:
            rows = table[list(aim.position)]
            picked = rows.gather(1, torch.tensor(aim.label)[:, None])[:, 0]
            log = (picked - rows.logsumexp(-1)).sum()
            for quantity, expected in (
                ("logit", picked.sum()), ("log_probability", log), ("probability", log.exp())
            ):  # fmt: skip
                target = model.target_of([aim], quantity)  # type: ignore[arg-type]
                got = model.score(batch.inputs, target)
                torch.testing.assert_close(got[0], expected, atol=1e-4, rtol=1e-4)


def test_several_targets_share_a_batch(case: Case) -> None:
    model, texts, pairs, at = case
    encodings = model.encode(texts, pairs)
    pairs_of = [(e, a) for e, several in zip(encodings, model.aims(encodings, at=at), strict=True)
                for a in several]  # fmt: skip
    batch = model.batch([e for e, _ in pairs_of])
    target = model.target_of([a for _, a in pairs_of])
    together = model.score(batch.inputs, target)
    for i, (encoding, aim) in enumerate(pairs_of):
        single = model.score(model.batch([encoding]).inputs, model.target_of([aim]))
        torch.testing.assert_close(together[i], single[0], atol=1e-4, rtol=1e-5)
        row = torch.tensor([i])
        part = {name: tensor[row] for name, tensor in batch.inputs.items()}
        torch.testing.assert_close(model.score(part, target[row])[0], single[0], atol=1e-4, rtol=0)


def test_rollout_and_attention_of_an_encoder_decoder_equal_products_of_whole_maps(
    tiny_of: Tiny,
) -> None:
    model = tiny_of("bart", task="generate")
    encodings = model.encode(["A clumsy film", "A"], ["is a bore", "man"])
    batch = model.batch(encodings)
    target = model.target(batch, at=1)
    trace = model.trace(batch, target)
    stacks = ["encoder", "encoder", "decoder", "cross", "decoder", "cross"]
    assert [link.stack for link in trace.links] == stacks
    source, size = batch.widths[0], batch.shape[1]
    assert batch.widths[0] != batch.widths[1]
    # the decoder reads </s> <s> first; the second token of the continuation is predicted at its
    # first
    assert [encodings[0].tokens[source + i] for i in range(3)] == ["</s>", "<s>", "is"]
    for i in range(2):
        expected_row = torch.zeros(size)
        expected_row[source + 2] = 1
        torch.testing.assert_close(trace.readout[i], expected_row, atol=1e-6, rtol=0)
    product = torch.eye(size).repeat(2, 1, 1)
    for link, maps in zip(trace.links, trace.maps, strict=True):
        layer = torch.eye(size).repeat(2, 1, 1)
        rows = slice(0, source) if link.stack == "encoder" else slice(source, size)
        columns = slice(source, size) if link.stack == "decoder" else slice(0, source)
        layer[:, rows] *= 0.5
        layer[:, rows, columns] += 0.5 * maps.mean(1)
        product = layer @ product
    got = xattn.registry.methods.build("rollout")(model, batch, target)
    torch.testing.assert_close(got, product[:, source + 2], atol=1e-5, rtol=0)
    last = xattn.registry.methods.build("attention")(model, batch, target)
    expected = torch.cat([trace.maps[5].mean(1)[:, 2], trace.maps[4].mean(1)[:, 2]], dim=1) / 2
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=0)


def test_nothing_flows_from_later_tokens(tiny_of: Tiny) -> None:
    for family in ("gpt2", "bart"):
        model = tiny_of(family, task="generate")
        result = xattn.explain(model, ["A dull"], METHODS, pairs=[" film or a bore"], at=1)
        written = np.flatnonzero(result[0].segments == 1)
        for item in result:
            assert abs(item.scores[written[1:]]).max() < 1e-6, (family, item.method)


def test_multi_label_and_regression(tiny_of: Tiny) -> None:
    model = tiny_of("bert", problem_type="multi_label_classification")
    [encoding] = model.encode(["A clumsy film."])
    logits = model.logits(model.batch([encoding]).inputs)[0]
    result = xattn.explain(model, [encoding], ["random"], label="each", quantity="probability")
    assert [item.target for item in result] == [f"probability of LABEL_{i}" for i in range(3)]
    assert result[0].probability == pytest.approx(float(logits.sigmoid().max()), abs=1e-6)
    target = model.target(model.batch([encoding]), label=0, quantity="log_probability")
    expected = logits[0].sigmoid().log()
    torch.testing.assert_close(model.score(model.batch([encoding]).inputs, target)[0], expected)

    model = tiny_of("bert", num_labels=1)
    [item] = xattn.explain(model, ["A clumsy film."], ["integrated_gradients"])
    value = float(model.logits(model.batch(model.encode(["A clumsy film."])).inputs)[0, 0])
    assert item.probability is None
    assert float(item.prediction) == pytest.approx(value, rel=1e-3)
    assert item.verdict == item.prediction
    with pytest.raises(InputError, match="no probabilities"):
        xattn.explain(model, ["A clumsy film."], ["random"], quantity="probability")


def test_the_answer_is_the_best_span_of_the_passage(tiny_of: Tiny) -> None:
    model = tiny_of("bert", task="answer")
    passage = "The film is dull and heartless, a clumsy bore."
    [encoding] = model.encode(["What is dull?"], [passage])
    [[aim]] = model.aims([encoding])
    start, end = model.logits(model.batch([encoding]).inputs)[0]
    inside = np.flatnonzero(encoding.segments == 1)
    spans = [(i, j) for i in inside for j in inside if i <= j < i + 30]
    best = max(spans, key=lambda span: float(start[span[0]] + end[span[1]]))
    assert aim.label == tuple(map(int, best))
    assert aim.prediction in passage
    named = model.aims([encoding], label="heartless, a", at="end")[0][0]
    assert encoding.tokens[named.label[0]] == "a"
    for question in ({"label": "nowhere"}, {"at": "middle"}, {"against": "film"}):
        with pytest.raises(InputError):
            model.aims([encoding], **question)
    with pytest.raises(InputError, match="a question needs a passage"):
        model.aims(model.encode(["What is dull?"]))


def test_words_are_tagged_at_their_first_token(tiny_of: Tiny) -> None:
    model = tiny_of("bert", task="tag")
    model.labels = ("O", "PER", "LOC")
    [encoding] = model.encode(["A heartless man."])
    logits = model.logits(model.batch([encoding]).inputs)[0]
    first = [i for i in encoding.removable
             if i == 1 or encoding.words[i] != encoding.words[i - 1]]  # fmt: skip
    tagged = [i for i in first if int(logits[i].argmax()) != 0] or first
    assert [aim.position for aim in model.aims([encoding])[0]] == [(int(i),) for i in tagged]
    every = model.aims([encoding], at="each")[0]
    assert [a.words.split(" at ")[1] for a in every] == ["'A'", "'heartless'", "'man'", "'.'"]
    [by_word] = model.aims([encoding], at="heartless")[0]
    [by_number] = model.aims([encoding], at="1")[0]
    assert by_word == by_number == every[1]
    [token] = model.aims([encoding], at="token:3", label="PER", against="O")[0]
    assert (token.position, token.label, token.against) == ((3,), (1,), (0,))
    for at in ("nobody", 9, "token:0", "token:x"):
        with pytest.raises(InputError, match="place"):
            model.aims([encoding], at=at)


def test_masks_are_kept_and_filled(tiny_of: Tiny) -> None:
    model = tiny_of("bert", task="fill")
    [encoding] = model.encode(["A [MASK] film, a [MASK]."])
    masks = np.flatnonzero(encoding.row["input_ids"] == model.tokenizer.mask_token_id)
    assert encoding.special[masks].all()  # the place of the answer is never removed
    assert [aim.position[0] for aim in model.aims([encoding])[0]] == masks.tolist()
    [aim] = model.aims([encoding], label="film", against="the", at=1)[0]
    assert aim.words == "'film' against 'the'"
    assert aim.label == (model.tokenizer.convert_tokens_to_ids("film"),)
    with pytest.raises(InputError, match="not one token"):
        model.aims([encoding], label="heartlessly")
    with pytest.raises(InputError, match="no mask to fill"):
        model.aims(model.encode(["A dull film."]))
    with pytest.raises(InputError, match="place"):
        model.aims([encoding], at=2)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_continuation_is_split_where_it_begins(tiny_of: Tiny, family: str) -> None:
    model = tiny_of(family, task="generate")
    prompt, rest = "A heartless man", " is dull. And long!"
    [encoding] = model.encode([prompt], [rest])
    [whole] = model.encode([prompt + rest])
    assert encoding.row["input_ids"].tolist() == whole.row["input_ids"].tolist()
    sources = (prompt, rest)
    for token, segment, (start, end) in zip(
        encoding.tokens, encoding.segments, encoding.offsets, strict=True
    ):
        assert segment < 0 or sources[segment][start:end] == token
    aims = model.aims([encoding], at="each")[0]
    assert len(aims) == int((encoding.segments == 1).sum())
    with pytest.raises(InputError, match="reaches from the text into its continuation"):
        model.encode(["It i"], ["s"])
    with pytest.raises(InputError, match="is empty"):
        model.encode(["A"], [" "])
    with pytest.raises(InputError, match="no continuation to explain"):
        model.aims(model.encode(["A"]), at="whole")
    with pytest.raises(InputError, match="one label for many tokens"):
        model.aims([encoding], label=" is")


def test_a_contrastive_next_token(tiny_of: Tiny) -> None:
    model = tiny_of("gpt2", task="generate")
    batch = model.batch(model.encode(["A dull film"]))
    logits = model.network(**batch.inputs).logits[0, -1]
    ids = [model.tokenizer.encode(word)[0] for word in (" is", " and")]
    target = model.target(batch, label=" is", against=" and", at="next")
    expected = logits[ids[0]] - logits[ids[1]]
    torch.testing.assert_close(model.score(batch.inputs, target)[0], expected, atol=1e-5, rtol=1e-5)


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<assistant>"


def test_the_template_of_a_chat_is_special(tiny_of: Tiny) -> None:
    model = tiny_of("llama", task="generate")
    chat = [{"role": "system", "content": "Be dull."}, {"role": "user", "content": "A film?"}]
    with pytest.raises(ModelError, match="no chat template"):
        model.encode([chat])
    model.tokenizer.chat_template = CHAT
    [encoding] = model.encode([chat])
    assert encoding.text == "Be dull.\nA film?"
    assert model.tokenizer.decode(encoding.row["input_ids"]) == (
        "<system>Be dull.</system><user>A film?</user><assistant>"
    )
    shown = [t for t, special in zip(encoding.tokens, encoding.special, strict=True) if not special]
    assert "".join(shown).replace(" ", "") == "Bedull.Afilm?"
    result = xattn.explain(model, [chat], ["integrated_gradients"], pairs=["No"], at=0)
    assert result[0].scores[result[0].special].tolist() == [0] * int(result[0].special.sum())
    with pytest.raises(InputError, match="role and content"):
        model.encode([[{"content": "A film?"}]])
    model.tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(InputError, match="no system"):
        model.encode([chat])


def test_tasks_are_known_by_the_class_of_the_network(tiny_of: Tiny) -> None:
    model = tiny_of("bert", task="tag")
    assert Model(model.network, model.tokenizer).task.name == "tag"
    assert task_of("GPT2LMHeadModel").name == "generate"
    assert task_of("").name == "classify"
    with pytest.raises(UnknownNameError, match="task"):
        Model(model.network, model.tokenizer, task="tags")
    wrong = Model(model.network, model.tokenizer, task="classify")
    inputs = wrong.batch(wrong.encode(["A"])).inputs
    with pytest.raises(ModelError, match="does not serve the task classify"):
        wrong.logits(inputs)


def test_an_encoder_decoder_that_classifies_is_refused_for_attention(tiny_of: Tiny) -> None:
    model = tiny_of("bart")
    batch = model.batch(model.encode(["A dull film.</s>"]))
    with pytest.raises(xattn.errors.AttentionError, match="reads each text twice"):
        model.trace(batch, model.target(batch))


def test_numbers_are_compared_as_they_are(tiny_of: Tiny) -> None:
    model = tiny_of("bert", problem_type="regression", num_labels=1)
    data = evaluation.load_dataset(limit=2)
    with pytest.raises(ModelError, match="predicts numbers: got quantity probability"):
        evaluation.compare(model, data, ["random"])
    metrics = ["comprehensiveness"]
    found = evaluation.compare(
        model, data, ["occlusion"], ["delete"], metrics=metrics, quantity="logit"
    )
    assert np.isfinite(found.scores["value"]).all()


def test_attention_is_kept_apart_by_stack(tiny_of: Tiny) -> None:
    model = tiny_of("bart", task="generate")
    encodings = model.encode(["A clumsy film"], ["is a bore"])
    sizes = {"encoder": (0, 0), "decoder": (1, 1), "cross": (1, 0)}
    for stack, (queries, keys) in sizes.items():
        [maps] = model.attention(encodings, stack)
        widths = encodings[0].widths
        assert maps.maps.shape[2:] == (widths[queries], widths[keys])
        np.testing.assert_allclose(maps.maps.sum(-1), 1, atol=1e-5)
        assert (maps.tokens == maps.keys) == (queries == keys)
    with pytest.raises(UnknownNameError, match="stack"):
        model.attention(encodings, "self")


def test_places_of_a_target_add_up_and_multiply() -> None:
    logits = torch.tensor([[[1.0, 2.0], [0.0, 3.0]], [[4.0, 1.0], [2.0, 2.0]]])
    label = torch.tensor([[1, 1], [0, 0]])
    where = torch.tensor([[0, 1], [0, 0]])
    weight = torch.tensor([[1, 1], [1, 0]])  # the second answer has one token only

    def value(quantity: str) -> Tensor:
        return Target(label, None, quantity, where, weight)(logits)  # type: ignore[arg-type]

    assert value("logit").tolist() == [5, 4]
    p = logits.softmax(-1)
    torch.testing.assert_close(
        value("probability"), torch.stack([p[0, 0, 1] * p[0, 1, 1], p[1, 0, 0]])
    )


def test_layers_without_attention_are_said(tiny_of: Tiny) -> None:
    kinds = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
    config = Qwen3NextConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, intermediate_size=48, layer_types=kinds, num_experts=2,
        num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, pad_token_id=0,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config).eval()
    model = Model(network, tiny_of("qwen2", task="generate").tokenizer)
    with pytest.warns(XattnWarning, match="2 layers of Qwen3NextForCausalLM mix tokens without"):
        assert len(model.attach().sites) == 2
    result = xattn.explain(model, ["A clumsy film"], ["rollout", "attention_gradient"], at="next")
    assert all(np.isfinite(item.scores).all() for item in result)
