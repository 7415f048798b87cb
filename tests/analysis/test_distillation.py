"""Students beside their teacher: planted students, references, other tokenizers, bad input."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, spearmanr
from tokenizers import pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

import xattn
from xattn.analysis.distillation import Distillation, distillation, distillations
from xattn.analysis.distillation_finding import side_by_side
from xattn.analysis.matching import check_matching, halves, match
from xattn.analysis.similarity import FLOOR, MEASURES, compare_maps, compare_scores
from xattn.analysis.word_maps import layers_of, word_maps
from xattn.analysis.words import shared_words
from xattn.cases.students import HEADS, KINDS, LAYERS, pieces, reviews, train_student
from xattn.commands import app
from xattn.demo import STORYTELLER
from xattn.errors import InputError, UnknownNameError
from xattn.evaluation.statistics import paired_difference
from xattn.evaluation.truth.words import word_tokenizer
from xattn.finding import Heatmap, Table
from xattn.model import Model

TEXTS = [
    "A well-made film, and a joyless one.",
    "The jokes don't land; the leads do!",
    "A warm, witty story of two old friends.",
    "Nothing in this plot makes any sense.",
]


@pytest.fixture(scope="module")
def teacher() -> Model:
    return xattn.load()


@pytest.fixture(scope="module")
def storyteller() -> Model:
    return xattn.load(str(STORYTELLER))


@pytest.fixture(scope="module")
def students() -> dict[str, Model]:
    return {kind: train_student(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def found(teacher: Model, students: dict[str, Model]) -> dict[str, Distillation]:
    asked = reviews(teacher)[1].texts[:40]
    compared = distillations(teacher, list(students.values()), asked)
    return dict(zip(students, compared, strict=True))


def other_reader(words: list[str], **size: int) -> Model:
    """Return an untrained classifier of film reviews that reads other tokens."""
    tokenizer = word_tokenizer(sorted(words), "[CLS] $A", 64)
    names = {0: "negative", 1: "positive"}
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, **size}
    config = BertConfig(
        vocab_size=len(tokenizer), intermediate_size=32, pad_token_id=tokenizer.pad_token_id,
        id2label=names, label2id={v: k for k, v in names.items()}, initializer_range=0.5, **sizes,
    )  # fmt: skip
    return Model(BertForSequenceClassification(config).eval(), tokenizer, name="other")


# ------------------------------------------------------------------ the planted students


def test_the_order_of_students_comes_out(found: dict[str, Distillation]) -> None:
    js = {kind: one.values("maps", "js") for kind, one in found.items()}
    assert paired_difference(js["output"], js["attention"], 0).low > 0.01
    assert paired_difference(js["alone"], js["output"], 0).low > 0
    rank = {kind: one.values("maps", "rank") for kind, one in found.items()}
    assert paired_difference(rank["attention"], rank["output"], 0).low > 0.3
    for method in ("rollout", "integrated_gradients"):
        told = {kind: one.values(method, "rank") for kind, one in found.items()}
        for kind in ("attention", "output"):
            assert paired_difference(told[kind], told["alone"], 0).low > 0.1


def test_who_learns_from_the_teacher_answers_like_it(found: dict[str, Distillation]) -> None:
    assert found["attention"].agreement.mean > 0.9
    assert found["output"].agreement.mean > 0.9
    assert found["alone"].agreement.mean < 0.9


def test_the_heads_that_were_copied_are_found(found: dict[str, Distillation]) -> None:
    maps = found["attention"].maps
    assert maps.matched_layers() == LAYERS
    for student, teacher in LAYERS.items():
        assert maps.matched_heads(teacher, student) == HEADS
    half = next(halves(40))[0]
    assert maps.matched_layers(half) == LAYERS


def test_shuffling_takes_away_what_was_learnt(found: dict[str, Distillation]) -> None:
    one = found["attention"]
    floor = one.floor.whole[MEASURES.index("rank")]
    assert paired_difference(one.values("maps", "rank"), floor, 0).low > 0.3
    assert any("further from the teacher" in said for said in found["alone"].finding().cautions)


def test_students_side_by_side(found: dict[str, Distillation]) -> None:
    shown = side_by_side(list(found.values()))
    table = shown.parts[0]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == [f"student-{kind}" for kind in KINDS]
    assert "looks more like it than student-output" in shown.says
    other = distillation(*[xattn.load()] * 2, TEXTS, methods=[])
    with pytest.raises(InputError, match="one teacher and the same texts"):
        side_by_side([found["alone"], other])


def test_a_finding_shows_layers_and_texts(found: dict[str, Distillation]) -> None:
    one = found["alone"]
    finding = one.finding()
    assert "student-alone gives the answer of" in finding.says
    layers = next(part for part in finding.parts if part.title == "Layer by layer")
    assert isinstance(layers, Heatmap)
    assert np.shape(layers.values) == (2, 4)
    texts = next(part for part in finding.parts if part.title.startswith("Texts"))
    means = np.nanmean([one.values(what) for what in ("maps", *one.scores)], axis=0)
    assert isinstance(texts, Table)
    assert texts.rows[0][0] == one.texts[int(np.argmax(means))]
    assert finding.from_dict(finding.to_dict()) == finding
    assert "<svg" in one._repr_html_()


def test_a_given_map_is_kept(teacher: Model, students: dict[str, Model]) -> None:
    one = distillation(
        teacher, students["attention"], TEXTS, layers={0: 3, 1: 0}, heads={1: 2}, methods=[]
    )
    assert one.maps.matched_layers() == {0: 3, 1: 0}
    assert one.maps.matched_heads(3, 0) == {1: 2}
    js = MEASURES.index("js")
    expected = (one.maps.values[js, :, 3 * 4 + 2, 1] + one.maps.values[js, :, 2, 2 + 1]) / 2
    np.testing.assert_allclose(one.values("maps"), expected)


def test_pieces_have_one_class(teacher: Model) -> None:
    known, asked = reviews(teacher)
    assert not set(known.texts) & set(asked.texts)
    drawn = pieces(known, 50, seed=1)
    mine = {k: " ".join(t for t, c in zip(known.texts, known.labels, strict=True) if c == k)
            for k in (0, 1)}  # fmt: skip
    for text, label in zip(drawn.texts, drawn.labels, strict=True):
        assert set(text.split()) <= set(mine[label].split())
    with pytest.raises(UnknownNameError, match="student"):
        train_student("nobody")


# ------------------------------------------------------------------ measures


def test_measures_of_rows_are_those_of_scipy() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.dirichlet(np.ones(6), (3, 6)), draw.dirichlet(np.ones(6), (2, 6))
    found = dict(zip(MEASURES, compare_maps(one, other), strict=True))
    for a, b in itertools.product(range(3), range(2)):
        rows = list(zip(one[a], other[b], strict=True))
        wanted = {
            "kl": np.mean([entropy(p, np.maximum(q, FLOOR)) for p, q in rows]),
            "js": np.mean([jensenshannon(p, q, base=2) ** 2 for p, q in rows]),
            "cosine": np.mean([p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in rows]),
            "rank": np.mean([spearmanr(p, q).statistic for p, q in rows]),
        }
        for name, value in wanted.items():
            assert found[name][a, b] == pytest.approx(value, abs=1e-5), name


def test_measures_in_closed_form() -> None:
    here, there = np.eye(4)[None], np.roll(np.eye(4), 1, axis=1)[None]
    apart = compare_maps(here, there)[:, 0, 0]
    assert np.isnan(compare_maps(here, here)).all()  # each sees one word, as any model would
    both = np.concatenate([here, there])
    np.testing.assert_allclose(compare_maps(both, both)[:3, 0, 0], [0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(apart[:3], [-np.log(FLOOR), 1, 0], atol=1e-5)
    half = np.array([[[0.5, 0.5], [0.5, 0.5]]])
    sure = np.array([[[1.0, 0.0], [1.0, 0.0]]])
    assert compare_maps(sure, half)[0, 0, 0] == pytest.approx(np.log(2))
    assert np.isnan(compare_maps(sure, half)[3, 0, 0])  # two words have no order worth a name


def test_what_a_causal_mask_hides_does_not_count() -> None:
    draw = np.random.default_rng(1)
    mask = np.tril(np.ones((5, 5)))
    one, other = (draw.random((1, 5, 5)) * mask for _ in range(2))
    rows = [spearmanr(one[0, i, : i + 1], other[0, i, : i + 1]).statistic for i in range(2, 5)]
    assert compare_maps(one, other)[3, 0, 0] == pytest.approx(np.mean(rows))


def test_scores_with_signs() -> None:
    one, other = np.array([1.0, -2.0, 3.0]), np.array([1.0, 2.0, 3.0])
    kl, js, cosine, rank = compare_scores(one, other)
    assert (kl, js) == pytest.approx((0, 0))
    assert cosine == pytest.approx(6 / 14)
    assert rank == pytest.approx(0.5)
    assert np.isnan(compare_scores(one, np.zeros(3))).all()


def test_the_best_matching_is_the_best_of_all() -> None:
    costs = np.random.default_rng(2).random((5, 3))
    best = min(
        itertools.permutations(range(5), 3), key=lambda p: sum(costs[t, s] for s, t in enumerate(p))
    )
    assert match(costs, "best") == dict(enumerate(best))
    assert len(match(costs.T, "best")) == 3  # two of the student's five are left over
    assert match(costs.T, "uniform") == {0: 0, 1: 1, 2: 1, 3: 2, 4: 2}


@pytest.mark.parametrize("how", ["nearest", {0: 9}, {7: 0}, {}])
def test_a_matching_that_cannot_be(how: str | dict[int, int]) -> None:
    with pytest.raises(InputError, match="matching of layers"):
        check_matching("layers", how, 4, 2)


# ------------------------------------------------------------------ words


@pytest.mark.parametrize("text", TEXTS)
def test_words_of_two_tokenizers(teacher: Model, storyteller: Model, text: str) -> None:
    [one], [other] = teacher.encode([text]), storyteller.encode([text])
    words = shared_words(one, other)
    told = [word for word in words if not word.special]
    assert "".join(word.name for word in told) == text.replace(" ", "")
    for side, item in (("first", one), ("second", other)):
        tokens = [t for word in told for t in getattr(word, side)]
        assert tokens == sorted(set(tokens))
        for word in told:
            start, end = item.offsets[list(getattr(word, side))].T
            assert text[start.min() : end.max()].strip() == word.name


def test_words_that_only_one_model_cuts_are_one(teacher: Model) -> None:
    other = other_reader(["a", "well-made", "film", "and"])
    other.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    [one], [two] = (m.encode(["a well-made film and"]) for m in (teacher, other))
    words = shared_words(one, two)
    assert [word.name for word in words if not word.special] == ["a", "well-made", "film", "and"]
    assert len(words[2].first) >= 3
    assert len(words[2].second) == 1
    assert words[0].special  # [CLS] has a counterpart, [SEP] has none
    assert sum(word.special for word in words) == 1


def test_maps_between_words_are_sums_of_means(teacher: Model) -> None:
    [text] = teacher.encode([TEXTS[0]])
    parts = [(0,), (1, 2, 3), (4,), (5, 6)]
    [found], [kept] = word_maps(teacher, [text], [parts])
    [maps] = teacher.attention([text])
    slow = np.zeros((16, 4, 4))
    for head, matrix in enumerate(np.reshape(maps.maps, (16, len(text), len(text)))):
        for (i, own), (j, seen) in itertools.product(enumerate(parts), repeat=2):
            slow[head, i, j] = np.mean([sum(matrix[q, k] for k in seen) for q in own])
    np.testing.assert_allclose(found, slow, atol=1e-6)
    assert kept == pytest.approx(slow.sum(-1).mean(), abs=1e-6)  # in all layers, not in the last
    assert [layer.heads for layer in layers_of(teacher, text)] == [4] * 4


def test_other_tokenizers_layers_and_heads(teacher: Model) -> None:
    words = {word.strip(".,;!").lower() for text in TEXTS for word in text.split()}
    one = distillation(teacher, other_reader([*words]), TEXTS)
    assert one.maps.values.shape == (4, 4, 16, 9)
    assert np.isfinite(one.values("maps")).all()
    assert 0 < one.kept < 1
    deeper = distillation(other_reader([*words]), teacher, TEXTS, methods=[])
    assert len(deeper.maps.matched_layers()) == 3
    # what is left over on one half of the texts may not be on the other: no text is lost
    assert np.isfinite(deeper.values("maps")).all()
    assert any("belong to none" in said for said in deeper.finding().cautions)


def test_a_decoder_is_like_itself(storyteller: Model) -> None:
    one = distillation(storyteller, storyteller, ["Once upon a time", "Tom had a red ball"])
    for what in ("maps", "rollout", "integrated_gradients"):
        assert one.consistency(what).mean == pytest.approx(0, abs=1e-6)
        assert one.consistency(what, "rank").mean == pytest.approx(1)
    assert any("so few texts" in said for said in one.finding().cautions)


def test_all_methods_and_one_method_twice(teacher: Model) -> None:
    twice = ["rollout:residual=0.3", "rollout:residual=0.9"]
    one = distillation(teacher, teacher, TEXTS, methods=twice)
    assert list(one.scores) == twice
    every = distillation(teacher, teacher, TEXTS[:2], methods=["all"])
    assert {"rollout", "lime", "decompx"} <= set(every.scores)
    assert every.consistency("decompx", "rank").mean == pytest.approx(1)


def test_encoders_with_decoders(tiny_of: Callable[..., Model]) -> None:
    bart, t5 = tiny_of("bart", task="generate"), tiny_of("t5", task="generate")
    spoken = ["A fine film.", "A dull plot.", "Two old friends.", "No sense at all."]
    one = distillation(bart, t5, TEXTS, pairs=spoken, methods=["rollout"])
    assert np.isfinite(one.values("maps")).all()
    for s, t in one.maps.matched_layers().items():
        assert one.maps.student[s].stack == one.maps.teacher[t].stack
    assert len(one.maps.matched_layers()) == 6
    same = distillation(bart, bart, TEXTS, pairs=spoken, methods=["rollout"])
    assert same.consistency("maps").mean == pytest.approx(0, abs=1e-6)
    decoder = next(i for i, layer in enumerate(one.maps.teacher) if layer.stack == "decoder")
    with pytest.raises(InputError, match="layers of the same stack"):
        distillation(bart, bart, TEXTS, pairs=spoken, layers={0: decoder})
    with pytest.raises(InputError, match="stacks of the same kind"):
        distillation(bart, tiny_of("gpt2", task="generate"), TEXTS, pairs=spoken)


# ------------------------------------------------------------------ bad input


def test_those_that_cannot_be_aligned(teacher: Model, storyteller: Model) -> None:
    with pytest.raises(InputError, match="got classify and generate"):
        distillation(teacher, storyteller, TEXTS)
    stranger = other_reader(["a"])
    stranger.labels = ("dog", "cat")
    with pytest.raises(InputError, match="negative, positive and dog, cat"):
        distillation(teacher, stranger, TEXTS)
    with pytest.raises(InputError, match="two or more"):
        distillation(teacher, teacher, TEXTS[:1])
    with pytest.raises(InputError, match="too little in common"):
        distillation(teacher, teacher, ["Film", "Plot"])
    with pytest.raises(InputError, match="matching of heads"):
        distillation(teacher, teacher, TEXTS, heads={0: 4})


def test_classes_without_names_are_taken_by_number(teacher: Model) -> None:
    unnamed = other_reader(["a", "film"])
    unnamed.labels = ("LABEL_0", "LABEL_1")
    unnamed.network.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    one = distillation(teacher, unnamed, TEXTS, methods=[])
    assert {name for pair in one.answers for name in pair} <= {"negative", "positive"}


def test_the_command(students: dict[str, Model], tmp_path: Path) -> None:
    folders = []
    for kind in ("attention", "alone"):
        folders += ["--student", str(tmp_path / kind)]
        students[kind].network.save_pretrained(tmp_path / kind)
        students[kind].tokenizer.save_pretrained(tmp_path / kind)
    out, numbers = tmp_path / "out", tmp_path / "numbers.json"
    arguments = ["distill-check", *folders, "--limit", "6", "-m", "rollout"]
    ran = CliRunner().invoke(app, [*arguments, "--out", str(out), "--json", str(numbers)])
    assert ran.exit_code == 0, ran.output
    assert {page.name for page in out.glob("*.html")} == {
        "distillation.html", "distillation-attention.html", "distillation-alone.html",
    }  # fmt: skip
    kept = json.loads(numbers.read_text())
    assert next(one["layers"] for one in kept.values()) == {"0": 1, "1": 3}
    for wrong in ("--layers 0:x", "--layers 0:7", "--layers 0:1,0:2", "--heads nearest"):
        ran = CliRunner().invoke(app, [*arguments, *wrong.split()])
        assert ran.exit_code == 2
        assert "expected" in ran.output
    ran = CliRunner().invoke(app, ["distill-check", "--teacher", str(tmp_path / "attention")])
    assert ran.exit_code == 2
