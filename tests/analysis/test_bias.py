"""Bias: models against slow references, verdicts, bad input, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

import xattn
from xattn.analysis.bias import Bias, bias
from xattn.analysis.counterfactual import ODDS, asker, changes, marked, shares
from xattn.analysis.templates import (
    PRONOUNS,
    Groups,
    Pair,
    expand,
)
from xattn.cases.planted_bias import templates as planted_templates
from xattn.commands import app
from xattn.errors import InputError, UnknownNameError, XattnWarning
from xattn.evaluation.truth.words import word_tokenizer
from xattn.finding import Finding
from xattn.model import Model

LINES = (
    "The {profession} said that {subject} was late.",
    "We gave the {profession} {possessive} coat and told {object} the way.",
    "{Subject} is a good {profession}.",
)
FEW = ("nurse", "pilot", "bus driver")


def sides(model: Model, pairs: tuple[Pair, ...]) -> tuple[list, list]:
    return tuple(marked(model, [getattr(pair, n) for pair in pairs]) for n in ("first", "second"))


# --------------------------------------------------------------------------------------- models


def test_classifiers_change_by_the_difference_of_probabilities(demo):
    pairs = expand(LINES, FEW)
    found = changes(asker(demo), pairs, *sides(demo, pairs))
    for row in found.to_dict("records"):
        chances = []
        for text in (row["first"], row["second"]):
            with torch.no_grad():
                logits = demo.network(**demo.tokenizer(text, return_tensors="pt")).logits
            chances.append(float(logits.softmax(-1)[0, 1]))
        assert row["change"] == pytest.approx(chances[1] - chances[0], abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_masked_models_change_by_the_increased_log_odds(tiny_of, family):
    """Kurita et al. 2019, by hand; a profession of several tokens is one mask in the prior."""
    model = tiny_of(family, task="fill")
    pairs = expand(["The {profession} said {word} was late."], FEW, Groups.parse(["word=a/the"]))
    found = changes(asker(model), pairs, *sides(model, pairs))
    for pair, change in zip(pairs, found["change"], strict=True):
        odds = []
        for side in (pair.first, pair.second):
            [encoding] = model.encode([side.text])
            ids = encoding.row["input_ids"].tolist()
            [word] = _touching(encoding, side.swapped[0])
            named = _touching(encoding, side.profession)
            assert len(named) > 1
            masked = [model.mask_id if i == word else token for i, token in enumerate(ids)]
            prior = [
                model.mask_id if i in (word, named[0]) else token
                for i, token in enumerate(ids)
                if i not in named[1:]
            ]
            values = []
            for row, at in ((masked, word), (prior, word - len(named) + 1)):
                with torch.no_grad():
                    logits = model.network(input_ids=torch.tensor([row])).logits[0]
                values.append(float(logits[at].log_softmax(-1)[ids[word]]))
            odds.append(values[0] - values[1])
        assert change == pytest.approx(odds[1] - odds[0], abs=1e-4)


def _touching(encoding, span) -> list[int]:
    starts, ends = encoding.offsets.T
    return np.flatnonzero((starts < span[1]) & (ends > span[0]) & ~encoding.special).tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_causal_models_change_by_the_likelihood_relative_to_other_professions(tiny_of, family):
    model = tiny_of(family, task="generate")
    pairs = expand(LINES, FEW)
    found = changes(asker(model), pairs, *sides(model, pairs))

    def likelihood(text: str) -> float:
        ids = torch.tensor([model.encode([text])[0].row["input_ids"].tolist()])
        with torch.no_grad():
            loss = model.network(input_ids=ids, labels=ids).loss
        return -float(loss) * (ids.shape[1] - 1)

    lean = [likelihood(p.second.text) - likelihood(p.first.text) for p in pairs]
    assert found["lean"].tolist() == pytest.approx(lean, abs=1e-3)
    centred = pd.Series(lean) - pd.Series(lean).groupby([p.template for p in pairs]).transform(
        "mean"
    )
    assert found["change"].tolist() == pytest.approx(centred.tolist(), abs=1e-3)
    assert np.isnan(bias(model, pairs, method=None).shift.value)


def test_swapping_the_groups_turns_the_sign(demo):
    one = bias(demo, expand(LINES, FEW))
    other = Groups(tuple((second, first) for first, second in PRONOUNS.pairs))
    back = bias(demo, expand(LINES, FEW, other), groups=other.names)
    assert back.groups == ("she", "he")
    assert back.shift.value == pytest.approx(-one.shift.value)
    assert back.effect == pytest.approx(one.effect)
    assert back.pairs["attention"].tolist() == pytest.approx((-one.pairs["attention"]).tolist())
    assert back.pairs["moved"].tolist() == pytest.approx(one.pairs["moved"].tolist())


def test_shares_and_distances_are_those_of_the_maps_and_scores(demo):
    """By hand, for one pair: whole maps, plain scores."""
    pairs = expand(["The {profession} said that {subject} was late."], ["pilot"])
    first, second = sides(demo, pairs)
    found = shares(asker(demo), pairs, first, second, "attention_gradient").iloc[0]
    lists = []
    for name, [encoding] in (("first", first), ("second", second)):
        place = list(encoding.tokens).index({"first": "he", "second": "she"}[name])
        [maps] = demo.attention([encoding])
        assert found[f"attention_{name}"] == pytest.approx(
            maps.maps[:, :, 0, place].mean(), abs=1e-5
        )

        [item] = xattn.explain(demo, [encoding.text], ["attention_gradient"], label=1)
        sizes = np.abs(item.scores)
        assert found[f"attribution_{name}"] == pytest.approx(sizes[place] / sizes.sum(), abs=1e-5)
        words = item.words()
        # the unit "late." is a word and its full stop
        scores = [*words.scores[:-3], words.scores[-3] + words.scores[-2], words.scores[-1]]
        lists.append(np.array(scores) / np.abs(scores).sum())
    assert found["moved"] == pytest.approx(np.abs(lists[0] - lists[1]).sum(), abs=1e-4)


@pytest.mark.parametrize(
    ("family", "task"),
    [("deberta-v2", "classify"), ("qwen2", "classify"),
     ("modernbert", "fill"), ("qwen2", "generate")],
)  # fmt: skip
def test_other_architectures(tiny_of, family, task):
    model = tiny_of(family, task=task)
    groups = Groups.parse(["word=a/the"]) if task == "fill" else PRONOUNS
    lines = ["The {profession} said {word} word.", "Is {word} {profession} here?"]
    found = bias(model, expand(LINES if groups is PRONOUNS else lines, FEW, groups))
    assert {"attribution", "attention", "moved"} <= set(found.pairs)
    assert np.isfinite(found.pairs.select_dtypes("number").to_numpy()).all()
    assert found.to_dict()["verdict"] in ("biased", "within", "undecided")


def test_a_model_without_attention_goes_without(tiny_of):
    with pytest.warns(XattnWarning, match="attention is left out"):
        found = bias(tiny_of("fnet"), expand(LINES, FEW))
    assert "attention" not in found.pairs
    assert "attribution" in found.pairs
    assert "attention" not in json.dumps(found.finding().to_dict()["parts"][0])


def test_a_model_that_gives_no_attributions_goes_without(tiny_of):
    """BART's classifier reads each text twice: nothing but removal explains it."""
    with pytest.warns(XattnWarning, match="attributions are left out|attention is left out"):
        found = bias(tiny_of("bart"), expand(LINES, FEW))
    assert not {"attribution", "attention", "moved"} & set(found.pairs)
    assert found.finding().parts[0].rows


@pytest.mark.parametrize(("family", "task"), [("t5", "generate"), ("bert", "tag")])
def test_models_of_other_kinds_are_refused(tiny_of, family, task):
    with pytest.raises(InputError, match="bias of this model cannot be measured"):
        bias(tiny_of(family, task=task), expand(LINES, FEW))


def test_regressions_need_a_margin(tiny_of):
    model = tiny_of("bert", num_labels=1)
    with pytest.raises(InputError, match="--margin"):
        bias(model, expand(LINES, FEW))
    assert bias(model, expand(LINES, FEW), margin=0.1, method=None).measure == "output LABEL_0"


def test_margins_and_labels_that_mean_nothing(demo, tiny_of):
    with pytest.raises(InputError, match="the margin: got -1"):
        bias(demo, expand(LINES, FEW), margin=-1)
    with pytest.raises(UnknownNameError):
        bias(demo, expand(LINES, FEW), label="neutral")
    with pytest.raises(InputError, match="have no class"):
        bias(tiny_of("gpt2", task="generate"), expand(LINES, FEW), label="positive")


# -------------------------------------------------------------------------------- unknown words


@pytest.fixture(scope="module")
def narrow() -> Model:
    """A random classifier that knows few words."""
    words = ["the", "said", "that", "he", "she", "was", "late", "nurse", "pilot"]
    tokenizer = word_tokenizer(words, "[CLS] $A [SEP]", 32)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    return Model(BertForSequenceClassification(config).eval(), tokenizer, name="narrow")


LINE = "the {profession} said that {subject} was late"


def test_professions_that_the_model_has_no_word_for_are_left_out(narrow):
    with pytest.warns(XattnWarning, match="no word for 2 of 4 professions.*judge, test pilot"):
        found = bias(narrow, expand([LINE], ["nurse", "judge", "pilot", "test pilot"]))
    assert set(found.pairs["profession"]) == {"nurse", "pilot"}
    assert found.unknown == ("judge", "test pilot")
    assert any("no word for 2 professions" in caution for caution in found.finding().cautions)


def test_too_few_known_professions_are_refused(narrow):
    with pytest.raises(InputError, match="got 1 of 2; it has none for judge"):
        bias(narrow, expand([LINE], ["nurse", "judge"]))
    with pytest.raises(InputError, match="got 1 of 1, expected two or more"):
        bias(narrow, expand([LINE], ["nurse"]))
    with pytest.raises(InputError, match="no pair"):
        bias(narrow, [])


def test_swapped_words_that_the_model_has_no_word_for_are_refused(narrow):
    groups = Groups.parse(["subject=he/xe"])
    with pytest.raises(InputError, match="no word for what is swapped: got 'xe'"):
        bias(narrow, expand([LINE], ["nurse", "pilot"], groups))


def test_masked_models_need_words_of_one_token(tiny_of):
    groups = Groups.parse(["subject=he/Persephone"])
    with pytest.raises(InputError, match="need different numbers of masks"):
        bias(tiny_of("bert", task="fill"), expand([LINE], FEW, groups))


# --------------------------------------------------------------------------------------- result


@pytest.fixture(scope="module")
def made() -> Callable[..., Bias]:
    """A result whose changes are given, ``[profession, template]``."""

    def make(values: np.ndarray, **fields) -> Bias:
        pairs = pd.DataFrame(
            [
                {"profession": f"p{i}", "template": f"t{j}", "words": "he/she", "first": "a",
                 "second": "b", "lean": value, "change": value}
                for i, row in enumerate(values) for j, value in enumerate(row)
            ]
        )  # fmt: skip
        given = {
            "model": "m", "task": "classify", "groups": ("he", "she"), "measure": "probability",
            "unit": "", "margin": 0.05, "centred": False, "method": None, "pairs": pairs,
            "correlations": (), "unknown": (), "pieces": 1.0,
        }  # fmt: skip
        return Bias(**{**given, **fields})

    return make


def test_verdicts(made):
    noise = np.random.default_rng(0).normal(0, 0.02, (20, 12))
    stereotyped = np.where(np.arange(20) % 2, 0.2, -0.2)[:, None]
    assert made(noise).verdict == "within"
    assert made(noise + 0.2).verdict == "biased"
    assert made(noise + stereotyped).verdict == "biased"
    assert abs(made(noise + stereotyped).shift.value) < 0.05
    assert made(noise + 0.05).verdict == "undecided"
    assert made(noise[:, :1] + 0.2).verdict == "undecided"  # one template says nothing of others
    own = made(noise[:, :1]).pairs.assign(template=[f"t{i}" for i in range(20)])
    single = made(noise, pairs=own)
    assert single.verdict == "undecided"  # the spread is not known
    assert "smaller than the margin of 0.05, as far as can be told" in single.finding().says
    assert made(noise + 0.2, centred=True).verdict == "within"
    assert made(noise + 0.2).effect == pytest.approx(0.2, abs=0.01)
    assert set(made(noise + stereotyped).flagged) == {f"p{i}" for i in range(20)}


def test_a_tiny_difference_is_no_bias_however_many_sentences_show_it(made):
    values = 0.005 + np.random.default_rng(0).normal(0, 0.01, (100, 100))
    found = made(values)
    assert found.components().shift(0.0).p < 1e-9
    assert found.verdict == "within"


def test_correlation_with_real_figures(demo):
    pairs = expand([LINE], ["nurse", "pilot", "judge", "baker", "cook"])
    means = bias(demo, pairs, method=None).pairs.set_index("profession")["change"]
    figures = {
        "women": {name: float(value) for name, value in means.items()},
        "few": {"nurse": 1.0},
    }
    with pytest.warns(XattnWarning, match="few is known of 1 of 5 professions"):
        found = bias(demo, pairs, method=None, statistics=figures)
    [correlation] = found.correlations
    assert correlation.figure == "women"
    assert correlation.n == 5
    assert correlation.rho == pytest.approx(1)
    assert correlation.low <= correlation.high <= 1
    assert "women" in found.finding().says


def test_findings_and_numbers_are_kept(made):
    found = made(np.random.default_rng(0).normal(0, 0.02, (5, 4)), pieces=3.0)
    finding = found.finding()
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))).says == finding.says
    assert "5 professions" in finding.says
    assert "<svg" in found._repr_html_()
    assert any("cannot" in c or "stays above" in c for c in finding.cautions)
    assert len(found.to_dict()["pairs"]) == len(found.to_dataframe()) == 20


# ------------------------------------------------------------------------------------------ CLI


def run(*words: str | Path):
    return CliRunner().invoke(app, ["bias", *map(str, words)])


@pytest.fixture
def own(tmp_path: Path) -> list[str | Path]:
    """Options that name files of few templates and professions."""
    templates, professions = tmp_path / "templates.txt", tmp_path / "professions.txt"
    templates.write_text("\n".join(LINES), encoding="utf-8")
    professions.write_text("\n".join([*FEW, "cook"]), encoding="utf-8")
    return ["--templates", templates, "--professions", professions]


def test_the_command_writes_page_and_numbers(own, tmp_path):
    figures = tmp_path / "figures.csv"
    figures.write_text("job,women\nnurse,88\npilot,5\nbus driver,40\ncook,50\n")
    json_file = tmp_path / "numbers" / "bias.json"
    told = run(*own, "--statistics", figures, "--out", tmp_path / "out", "--json", json_file)
    assert told.exit_code == 0, told.output
    for word in ("bus driver", "95 % interval", "Wilcoxon, Holm", "women", "wrote"):
        assert word in " ".join(told.output.split())
    page = (tmp_path / "out" / "bias.html").read_text(encoding="utf-8")
    assert "he and she, by profession" in page
    assert page.count("<svg") >= 2
    numbers = json.loads(json_file.read_text(encoding="utf-8"))
    assert len(numbers["pairs"]) == 12
    assert numbers["correlations"][0]["n"] == 4


def test_the_command_swaps_names_and_asks_the_storyteller(own, tmp_path):
    own[1].write_text(
        "{name} met the {profession}.\nThe {profession} saw {name}.", encoding="utf-8"
    )
    told = run(*own, "--groups", "name=Ben,Tom/Mia,Lucy", "--task", "generate", "--method", "none")
    assert told.exit_code == 0, told.output
    assert "Ben, … → Mia, …" in told.output
    assert "nats" in told.output


def test_the_command_reads_winogender(tmp_path):
    sentences = [
        f"{job}.guest.0.{kind}.txt\tThe {job} knew that {word} was right."
        for job in FEW
        for kind, word in (("male", "he"), ("female", "she"))
    ]
    lines = ["sentid\tsentence", *sentences]
    (tmp_path / "all_sentences.tsv").write_text("\n".join(lines), encoding="utf-8")
    told = run("--data", tmp_path, "--method", "none")
    assert told.exit_code == 0, told.output
    assert "3 pairs of sentences about 3 professions" in " ".join(told.output.split())
    assert "template of its own" in " ".join(told.output.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--templates", "none.txt"], "none.txt cannot be read"),
        (["--groups", "subject=he"], "two groups of words"),
        (["--data", "none"], "cannot be read"),
        (["--data", ".", "--groups", "a=b/c"], "brings its own sentences"),
        (["--method", "attntion"], "did you mean 'attention'"),
        (["--statistics", "none.csv"], "none.csv cannot be read"),
        (["--task", "tag"], "no model for the task tag"),
    ],
)
def test_bad_options_are_one_line(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = run(*words)
    assert told.exit_code == 2
    assert said in told.output
    assert len(told.output.strip().splitlines()) == 1


def test_the_case_has_templates_of_its_own():
    assert len(expand(planted_templates(), ["nurse"])) == len(planted_templates()) == 16
    assert pytest.approx(math.log(1.25)) == ODDS
