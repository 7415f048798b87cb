import pytest

from xattn.evaluation.agreement import agreement_by_text
from xattn.report.cautions import cautions, relative_gap
from xattn.report.ranking import ranking
from xattn.report.series import by_text

FEW = "Too few texts for a ranking"
CHANCE = "Some explanations are no better than chance"
WRONG = "The model is often wrong on these texts"
LAYER = "The result turns on the choice of the layer"
AGGREGATION = "The result turns on the choice of the aggregation"
FAMILIES = "Attention and gradients tell different stories"
MARKS = "The top token is often one that means little"
GAP = "Some scores do not sum to what they must"

LAYERS = {
    "areas": {"attention:layer=0": 0.1, "attention": 0.3, "integrated_gradients": 0.4},
    "parameters": {"attention:layer=0": {"layer": 0}, "attention": {"layer": -1}},
}


def titles(comparison):
    return {caution.title: caution for caution in found(comparison)}


def found(comparison):
    texts = by_text(comparison)
    places = ranking(comparison, "delete")
    return cautions(comparison, "delete", places, texts, agreement_by_text(texts))


def test_nothing_is_said_where_all_is_well(planted):
    assert found(planted()) == []


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        (FEW, {"count": 5}),
        (FEW, {"areas": {"flow": 0.3, "rollout": 0.3}, "spread": 0.2}),
        (CHANCE, {"areas": {"globenc": -0.005, "rollout": 0.3}}),
        (CHANCE, {"areas": {"globenc": -0.3, "rollout": 0.3}}),
        (WRONG, {"wrong": 20}),
        (LAYER, LAYERS),
        (AGGREGATION, {"areas": {"flow": 0.1, "rollout": 0.3, "integrated_gradients": 0.4}}),
        (FAMILIES, {"flipped": ("rollout",)}),
        (MARKS, {"top": {"rollout": 0}}),
        (MARKS, {"top": {"rollout": 5}}),
        (GAP, {"gap": 0.5}),
    ],
)
def test_a_planted_weakness_is_the_only_one_that_is_found(planted, title, fields):
    assert set(titles(planted(**fields))) == {title}


def test_layers_that_do_not_differ_are_passed_over(planted):
    areas = {"attention:layer=0": 0.3, "attention": 0.3, "integrated_gradients": 0.4}
    assert LAYER not in titles(planted(**{**LAYERS, "areas": areas}, spread=0.1))


def test_methods_that_differ_in_more_than_the_layer_are_not_compared(planted):
    parameters = {
        "attention:layer=0": {"layer": 0, "head": 2},
        "attention": {"layer": -1, "head": None},
    }
    assert LAYER not in titles(planted(**{**LAYERS, "parameters": parameters}))


def test_evidence_holds_the_numbers(planted):
    layer = titles(planted(**LAYERS))[LAYER].evidence
    assert "attention: layer -1 ABPC 0.30, layer 0 0.10, difference 0.20" in layer
    assert "20 of 40" in titles(planted(wrong=20))[WRONG].evidence
    assert "rollout 100%" in titles(planted(top={"rollout": 0}))[MARKS].evidence


def test_texts_without_labels_say_nothing_of_accuracy(planted):
    comparison = planted()
    comparison.examples["label"] = None
    assert found(comparison) == []


def test_relative_gap(planted):
    item = planted(count=1, gap=0.5).attributions[0]
    assert relative_gap(item) == pytest.approx(0.5 / abs(item.scores.sum() - 0.5))
