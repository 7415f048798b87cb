"""Blank-out, gradients and maps by layer against definitions written out slowly."""

from __future__ import annotations

from itertools import product
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

import xattn
from xattn.analysis.blankout import (
    CORRECTED,
    MAPS,
    MEASURES,
    PUBLISHED,
    RELATIVE,
    BlankOut,
    Reading,
    average_correlation,
    blank_out,
    dense_correlation,
    followed,
    uniform,
)
from xattn.cases.agreement import draw_prefixes, train_agreement
from xattn.errors import InputError, ModelError, UnknownNameError
from xattn.finding import Finding
from xattn.model import Model

Array = np.ndarray[Any, Any]
TEXTS = ["the old judge near the boats", "today the sailors that the nurse follows", "the judges"]


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def model(request: pytest.FixtureRequest) -> Model:
    """Return a model that has learned a little: maps that look at something."""
    causal = request.param == "decoder"
    return train_agreement(draw_prefixes(500, seed=0), causal=causal, width=16, steps=40)


@pytest.fixture(scope="module")
def found(model: Model) -> BlankOut:
    return blank_out(model, TEXTS, ["singular", "plural", "plural"])


def plain(model: Model, text: str, label: int) -> tuple[Array, Array, Array]:
    """Return head means ``[layer, query, key]``, blank-out and gradients, by the bare network."""
    network, tokenizer = model.network, model.tokenizer
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    network.set_attn_implementation("eager")
    with torch.no_grad():
        output = network(ids, output_attentions=True)
    means = torch.cat(output.attentions).double().mean(1).numpy()
    before = output.logits.softmax(-1)[0, label].item()
    changes = []
    for place in range(ids.shape[1]):
        blanked = ids.clone()
        blanked[0, place] = tokenizer.unk_token_id
        with torch.no_grad():
            changes.append(abs(network(blanked).logits.softmax(-1)[0, label].item() - before))
    words = network.get_input_embeddings()(ids).detach().requires_grad_()
    # decoders find the last token by the ids: give the mask and one text without padding
    logits = network(inputs_embeds=words).logits
    logits[0, label].backward()
    assert words.grad is not None
    return means, np.array(changes), words.grad[0].double().numpy()


def slow_maps(means: Array) -> dict[str, list[Array]]:
    """Return raw attention, rollout and flow of each layer as the published script builds them."""
    layers, count, _ = means.shape
    mixed = means + np.eye(count)
    mixed = mixed / mixed.sum(-1, keepdims=True)
    rolled = [mixed[0]]
    for layer in mixed[1:]:
        rolled.append(layer.dot(rolled[-1]))
    graph = nx.DiGraph()
    for level, i, j in product(range(layers), range(count), range(count)):
        graph.add_edge((level + 1, i), (level, j), capacity=mixed[level, i, j])
    flows = []
    for level in range(1, layers + 1):
        table = np.array(
            [[nx.maximum_flow_value(graph, (level, i), (0, j)) for j in range(count)]
             for i in range(count)]
        )  # fmt: skip
        flows.append(table / table.sum(1, keepdims=True))
    return {"raw": list(means), "rollout": rolled, "flow": flows}


def published(one: Array, other: Array) -> float:
    first, second = (pd.Series(x).rank(method="dense") for x in (one, other))
    count = len(one)
    return float(1 - 6 * np.sum(np.square(first - second)) / (count * (count**2 - 1.0)))


def spearman(one: Array, other: Array) -> float:
    return float(spearmanr(one, other).statistic)


@pytest.mark.parametrize("text", [0, 1])
def test_maps_blankout_and_gradients_are_those_of_the_script(
    model: Model, found: BlankOut, text: int
):
    means, blanked, gradient = plain(model, TEXTS[text], label=text)
    reading = found.readings[text]
    for name, tables in slow_maps(means).items():
        np.testing.assert_allclose(reading.maps[name], tables, atol=2e-6)
    np.testing.assert_allclose(reading.blankout, blanked, atol=1e-6)
    np.testing.assert_allclose(reading.gradients, np.linalg.norm(gradient, axis=1), atol=1e-6)


def clear(scores: Array) -> bool:
    """Return whether the order of scores is no matter of rounding."""
    return bool(np.diff(np.sort(scores)).min() > 1e-5 * np.ptp(scores))


def test_correlations_as_published_and_as_corrected(model: Model, found: BlankOut):
    means, blanked, gradient = plain(model, TEXTS[0], label=0)
    special = found.readings[0].special
    row = int(special.argmax())  # [CLS], the only special token
    maps = slow_maps(means)
    checked = 0
    for measure, worth in zip(MEASURES, (blanked, np.linalg.norm(gradient, axis=1)), strict=True):
        for (number, name), layer in product(enumerate(MAPS), range(6)):
            largest, read = maps[name][layer].max(0), maps[name][layer][row][~special]
            for scores, truth, protocol in (
                (largest, worth, PUBLISHED),
                (read, worth[~special], CORRECTED),
            ):
                got = found.correlations(measure, protocol)[0, number, layer]
                if clear(scores) and clear(truth):
                    slow = published if protocol is PUBLISHED else spearman
                    assert got == pytest.approx(slow(scores, truth), abs=1e-9)
                    checked += 1
    assert checked >= 20


def test_derivatives_sum_to_nothing_where_blocks_begin_with_a_normalisation(model: Model):
    """Why gradients are taken by their length, and not by the absolute value of their sum."""
    gradient = plain(model, TEXTS[0], label=0)[2]
    assert (np.abs(gradient.sum(1)) < 1e-4 * np.abs(gradient).sum(1)).all()


def test_scores_of_the_last_layer_are_those_of_the_methods(model: Model, found: BlankOut):
    specs = ["attention", "rollout", "flow", "saliency", "attention:layer=2"]
    explained = xattn.explain(model, [TEXTS[1]], specs, label="plural")
    scores = [item.scores for item in explained]
    reading = found.readings[1]
    np.testing.assert_allclose(reading.scores("raw", 5, CORRECTED), scores[0], atol=1e-6)
    np.testing.assert_allclose(reading.scores("rollout", 5, CORRECTED), scores[1], atol=1e-6)
    flow = scores[2] / scores[2].sum()
    np.testing.assert_allclose(reading.scores("flow", 5, CORRECTED), flow, atol=2e-6)
    np.testing.assert_allclose(reading.gradients, scores[3], atol=1e-6)
    np.testing.assert_allclose(reading.scores("raw", 2, CORRECTED), scores[4], atol=1e-6)


def test_texts_in_batches_are_read_as_alone(model: Model, found: BlankOut):
    [alone] = blank_out(model, TEXTS[2:], ["plural"]).readings
    together = found.readings[2]
    assert alone.tokens == together.tokens
    assert {"the", "judges", "[CLS]"} == set(alone.tokens)
    np.testing.assert_allclose(alone.blankout, together.blankout, atol=1e-6)
    for name in MAPS:
        np.testing.assert_allclose(alone.maps[name], together.maps[name], atol=2e-6)


def test_the_predicted_class_is_asked_about_by_default(model: Model):
    labels = [item.prediction for item in xattn.explain(model, TEXTS, ["saliency"])]
    default, named = blank_out(model, TEXTS), blank_out(model, TEXTS, labels)
    for one, other in zip(default.readings, named.readings, strict=True):
        np.testing.assert_allclose(one.blankout, other.blankout, atol=1e-7)
        np.testing.assert_allclose(one.gradients, other.gradients, atol=1e-7)


def test_correlations_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = rng.integers(0, 4, size=(2, 7)).astype(float)
        assert dense_correlation(one, other) == pytest.approx(published(one, other))
        if np.ptp(one) and np.ptp(other):
            assert average_correlation(one, other) == pytest.approx(spearman(one, other))
    assert np.isnan(average_correlation(np.ones(4), np.arange(4.0)))
    assert np.isnan(average_correlation(np.arange(2.0), np.arange(2.0)))
    # what the formula makes of ties: "perfect" agreement of scores that say nothing at all
    assert dense_correlation(np.ones(4), np.ones(4)) == 1


def test_dense_ranks_without_ties_are_spearmans():
    one, other = np.random.default_rng(1).random((2, 9))
    assert dense_correlation(one, other) == pytest.approx(spearman(one, other))


def test_relative_scores_change_ranks_in_decoders_only(model: Model, found: BlankOut):
    causal = model.name.endswith("decoder")
    assert found.protocols == (PUBLISHED, CORRECTED, RELATIVE)[: 3 if causal else 2]
    same = [
        np.allclose(
            found.correlations(m, RELATIVE)[:2, :2], found.correlations(m, CORRECTED)[:2, :2]
        )
        for m in MEASURES
    ]
    assert all(same) is not causal


def test_uniform_attention_has_relative_scores_of_one():
    means = np.tril(np.random.default_rng(2).random((3, 5, 5)) + 0.1)
    means /= means.sum(-1, keepdims=True)
    even = uniform(means)
    np.testing.assert_allclose(even[0, 3], [0.25, 0.25, 0.25, 0.25, 0])
    readout = np.eye(5)[4]
    maps, worth = followed(even), np.arange(5.0)
    reading = Reading(tuple("abcde"), np.zeros(5, bool), readout, maps, maps, worth, worth)
    for name in MAPS:
        np.testing.assert_allclose(reading.scores(name, 2, RELATIVE), np.ones(5))


def planted(count: int, noise: float) -> BlankOut:
    """Return texts in which the first layer's attention says what words are worth, others not."""
    rng = np.random.default_rng(3)
    readings = []
    for _ in range(count):
        means = rng.dirichlet(np.ones(6), size=(4, 6))
        worth = means[0, 2] + noise * rng.random(6)
        special, readout = np.arange(6) == 2, np.eye(6)[2]
        followed_ = followed(means)
        even = followed(uniform(means))
        readings.append(Reading(tuple("abcdef"), special, readout, followed_, even, worth, worth))
    return BlankOut("planted", tuple(readings))


def test_a_planted_layer_is_found():
    frame = planted(40, noise=0.0).to_dataframe()
    raw = frame[(frame["map"] == "raw") & (frame["measure"] == "blank-out")].set_index("layer")
    assert raw["mean"][1] == pytest.approx(1)
    assert raw["n"].eq(40).all()
    assert (raw["mean"][2:].abs() < 0.3).all()
    claims = planted(40, noise=0.05).claims("blank-out", CORRECTED)
    assert claims["raw attention: first layer over the mean of the others"].low > 0.3
    assert claims["rollout over raw attention, last layer"].n == 40


def test_choices_lead_from_published_to_corrected(found: BlankOut):
    for measure in MEASURES:
        steps = found.choices(measure)
        last = found.protocols[-1]
        for row, protocol in ((0, PUBLISHED), (3, CORRECTED), (-1, last)):
            expected = np.nanmean(found.correlations(measure, protocol)[:, :, -1], axis=0)
            np.testing.assert_allclose(steps[list(MAPS)].to_numpy()[row], expected)


def test_short_texts_have_no_order_and_are_not_counted(found: BlankOut):
    frame = found.to_dataframe()
    assert frame["n"].max() == 2  # "the judges" has two words
    assert found.to_dataframe(PUBLISHED)["n"].max() == 3


def test_the_finding_holds_its_numbers(found: BlankOut):
    finding = found.finding()
    assert Finding.from_dict(finding.to_dict()).says == finding.says
    assert "over 3 texts" in finding.says
    assert "<svg" in found._repr_html_()


def test_bad_input_is_told(demo: Model, model: Model):
    with pytest.raises(InputError, match="texts to blank out"):
        blank_out(model, [])
    with pytest.raises(InputError, match="2 texts, 1 labels"):
        blank_out(model, TEXTS[:2], ["plural"])
    with pytest.raises(UnknownNameError, match="dual"):
        blank_out(model, TEXTS[:1], ["dual"])
    with pytest.raises(InputError, match="measure"):
        blank_out(demo, ["A dull film."]).correlations("gold", CORRECTED)
    with pytest.raises(ModelError, match="classifiers"):
        blank_out(xattn.load(task="generate"), TEXTS)


def test_texts_that_are_all_short_give_no_numbers_and_no_warnings(model: Model):
    found = blank_out(model, TEXTS[2:])
    assert found.to_dataframe()["mean"].isna().all()
    assert found.choices("blank-out").iloc[3][list(MAPS)].isna().all()
    assert "—" in found.finding().says
