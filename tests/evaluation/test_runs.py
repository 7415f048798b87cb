"""Runs that are kept: resumed after kill -9, extended, refused, shared by processes, repeated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import xattn
from xattn.data import Dataset
from xattn.errors import InputError, UnknownNameError, XattnWarning
from xattn.evaluation import Comparison, Design, Scorer, Study, compare, load
from xattn.evaluation.store import SHARDS
from xattn.model import Model
from xattn.registry import methods as registry

METRICS = ["abpc", "normalised_aopc", "gini"]
TEXTS = [
    "A dull film.",
    "Good!",
    "I liked it a lot.",
    "Not bad.",
    "Dull and long.",
    "A joy to see.",
]


def dataset_of(texts: list[str]) -> Dataset:
    ids = tuple(f"n{i}" for i in range(len(texts)))
    return Dataset("made", tuple(texts), None, None, None, ids, None, "0" * 64)


def same(one: Comparison, other: Comparison) -> None:
    for name in ("scores", "curves", "examples"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    for a, b in zip(one.attributions, other.attributions, strict=True):
        assert a.method == b.method
        assert a.tokens == b.tokens
        assert (a.scores == b.scores).all()


def small(demo: Model, folder: Path | None = None, *more: str, **options: Any) -> Comparison:
    options = {"metrics": METRICS, "resume": folder is not None, "directory": folder} | options
    methods = ["rollout", "saliency", *more]
    return compare(demo, dataset_of(TEXTS), methods, ["delete"], **options)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xattn.evaluation.runner.BLOCK", 2)


def test_the_same_run_twice_is_the_same_bit_by_bit(demo: Model, tmp_path: Path) -> None:
    plain = small(demo)
    same(plain, small(demo))
    same(plain, small(demo, tmp_path))  # also through files
    same(plain, small(demo, tmp_path))  # also if nothing is left to do


def test_what_is_there_is_not_computed_again(demo: Model, tmp_path: Path) -> None:
    first = small(demo, tmp_path)
    scorer, before = Scorer(demo), demo.passes.copy()
    units = sorted(p.name for p in (tmp_path / SHARDS).iterdir())
    small(demo, tmp_path, scorer=scorer)
    assert scorer.run == 0
    assert demo.passes.backward - before.backward <= 2  # methods are tried on the shortest text
    assert sorted(p.name for p in (tmp_path / SHARDS).iterdir()) == units
    more = small(demo, tmp_path, "input_x_gradient", scorer=scorer)
    assert scorer.run < first.provenance["inputs"]["run"] / 4
    kept = more.scores[more.scores["method"] != "input_x_gradient"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first.scores)
    whole = small(demo, None, "input_x_gradient")
    values = [r.scores.sort_values(list(r.scores.columns[:4]))["value"] for r in (more, whole)]
    assert values[0].to_numpy() == pytest.approx(values[1].to_numpy(), abs=1e-5, nan_ok=True)


def test_a_metric_that_comes_later_needs_no_new_explanations(demo: Model, tmp_path: Path) -> None:
    small(demo, tmp_path)
    scorer, before = Scorer(demo), demo.passes.copy()
    found = small(demo, tmp_path, metrics=[*METRICS, "entropy", "comprehensiveness"], scorer=scorer)
    assert demo.passes.backward - before.backward <= 2
    assert scorer.run < 40
    assert set(found.scores["metric"]) == {*METRICS, "entropy", "comprehensiveness"}
    assert len(found.scores) == 6 * (4 * 3 + 3 * 2)  # the oracle's ranks have no Gini


CODE = f"""
import os, signal, sys
import xattn.evaluation.runner as runner
from xattn.data import Dataset
import xattn
texts = {TEXTS!r}
ids = tuple(f"n{{i}}" for i in range(len(texts)))
data = Dataset("made", tuple(texts), None, None, None, ids, None, "0" * 64)
runner.BLOCK = 2
def progress(done, total):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)
runner.compare(xattn.load(), data, ["rollout", "saliency"], ["delete"],
    metrics=["abpc", "normalised_aopc", "gini"], directory=sys.argv[1], progress=progress)
"""


def test_a_killed_run_goes_on_where_it_stopped(demo: Model, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    there = sorted(p.name for p in (tmp_path / SHARDS).iterdir())
    assert len(there) == 2
    (tmp_path / SHARDS / ".half").mkdir()  # what a kill in the middle of writing leaves
    result = small(demo, tmp_path)
    after = sorted(p.name for p in (tmp_path / SHARDS).iterdir())
    assert len(after) == 3
    assert after[:2] == there
    same(result, small(demo))


@pytest.mark.parametrize(("options", "name"), [
    ({"seed": 7}, r"design\.seed.*: got 7, expected 0"),
    ({"unit": "word"}, r"design\.unit.*: got word, expected token"),
    ({"quantity": "logit"}, r"design\.quantity"),
    ({"label": "positive"}, r"design\.label"),
])  # fmt: skip
def test_another_run_is_refused_with_the_difference(
    options: Any, name: str, demo: Model, tmp_path: Path
) -> None:
    small(demo, tmp_path)
    with pytest.raises(InputError, match=rf"the run in .* is another one: it differs in {name}"):
        small(demo, tmp_path, **options)


def test_other_models_code_and_data_are_refused(
    demo: Model, tiny_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(demo, tmp_path)
    with pytest.raises(InputError, match="differs in model"):
        small(tiny_of("bert"), tmp_path)
    other = dataset_of(["A dull film.", "Good!"])
    with pytest.raises(InputError, match=r"differs in data\.n"):
        compare(demo, other, ["rollout"], ["delete"], directory=tmp_path, resume=True)
    monkeypatch.setattr("xattn.evaluation.runner.code", lambda: "other")
    with pytest.raises(InputError, match="differs in code"):
        small(demo, tmp_path)
    assert small(demo, tmp_path, resume=False)  # anew


def test_a_text_that_fails_does_not_stop_the_others(demo: Model, tmp_path: Path) -> None:
    texts = ["A dull film.", "very " * 200 + "dull", "Good!", "One of the best films of the year."]
    found = compare(demo, dataset_of(texts), ["rollout"], ["delete"], directory=tmp_path)
    [failure] = found.failures.itertuples()
    assert failure.id == "n1"
    assert "too long" in failure.error
    assert found.examples["id"].tolist() == ["n0", "n2", "n3"]
    assert found.scores["example"].nunique() == 3
    found.save(tmp_path)
    pd.testing.assert_frame_equal(load(tmp_path).failures, found.failures)


def test_a_method_that_fails_on_a_text_is_told(demo: Model) -> None:
    texts = ["Good!", "A film that is, all things considered, a little too long for what it says."]
    methods = ["exact_shapley", "rollout"]
    found = compare(demo, dataset_of(texts), methods, ["delete"], metrics=["gini"])
    [failure] = found.failures.itertuples()
    assert (failure.id, failure.method) == ("n1", "exact_shapley")
    assert "at most 12 units" in failure.error
    table = found.table("delete", "abpc")
    assert np.isnan(table.loc[1, "exact_shapley"])
    assert not np.isnan(table.loc[1, "rollout"])


def test_a_plugin_that_breaks_is_told_and_the_others_go_on(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    occlusion = registry.get("occlusion")
    attribute = occlusion.__call__

    def breaks(self: Any, model: Model, batch: Any, target: Any) -> Any:
        if any("lot" in encoding.text for encoding in batch.encodings):
            raise RuntimeError("a shape that does not fit")
        return attribute(self, model, batch, target)

    monkeypatch.setattr(occlusion, "__call__", breaks)
    found = small(demo, None, "occlusion")
    [failure] = found.failures.itertuples()
    assert (failure.id, failure.method) == ("n2", "occlusion")
    assert failure.error == "RuntimeError: a shape that does not fit"
    assert found.table("delete", "abpc")["rollout"].notna().all()
    assert (
        found.table("delete", "abpc")["occlusion"].isna().tolist()
        == [False] * 2 + [True] + [False] * 3
    )


def test_a_text_measured_in_two_parts_is_told_once(demo: Model) -> None:
    from xattn.evaluation.block import Findings
    from xattn.evaluation.comparison import assembled

    found = Findings()
    for probability in (0.9, 0.9000001):  # another batch, another last digit
        found.examples.append((0, 0, "probability of good", "good", probability))
    design = Design.of(["rollout"], ["gini"], ["delete"])
    result = assembled(found, dataset_of(["A dull film."]), design, demo.labels, {"seed": 0})
    assert result.examples["probability"].tolist() == [0.9]


def test_what_is_refused_is_left_out_under_its_own_name(demo: Model) -> None:
    methods = ["all", "exact_shapley:operator=mask"]
    data = dataset_of(["A film that is, all things considered, a little too long for its story."])
    with pytest.warns(XattnWarning, match="exact_shapley is left out"):
        found = compare(demo, data, methods, ["delete"], metrics=["gini"])
    assert set(found.provenance["refused"]) == {"exact_shapley", "exact_shapley:operator=mask"}
    assert not len(found.failures)


def test_memory_that_runs_out_halves_the_batch(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, logits, sizes = small(demo), demo.logits, []

    def scarce(inputs: Any, *others: Any) -> Any:
        if len(inputs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("planted")
        sizes.append(len(inputs["input_ids"]))
        return logits(inputs, *others)

    monkeypatch.setattr(demo, "logits", scarce)
    found = small(demo)
    assert max(sizes) <= 3
    assert not len(found.failures)
    a, b = found.scores["value"].to_numpy(), expected.scores["value"].to_numpy()
    assert a == pytest.approx(b, abs=1e-5, nan_ok=True)


def test_processes_share_the_work(demo: Model, tmp_path: Path) -> None:
    found = small(demo, tmp_path, jobs=2, loader=partial(xattn.load))
    a, b = found.scores, small(demo).scores
    assert a.drop(columns="value").equals(b.drop(columns="value"))
    assert a["value"].to_numpy() == pytest.approx(b["value"].to_numpy(), abs=1e-5, nan_ok=True)
    with pytest.raises(InputError, match="jobs: got 2, expected 1, or a loader"):
        small(demo, jobs=2)


@pytest.mark.parametrize(("family", "task", "pairs", "at"), [
    ("gpt2", "generate", (" dull and", " good"), None),
    ("bert", "tag", None, "each"),
    ("t5", "generate", (" sat there", " lay"), "whole"),
    ("bert", "fill", None, None),
    ("bert", "answer", ("The film is dull.", "It was long."), "span"),
])  # fmt: skip
def test_every_task_is_compared(
    family: str, task: str, pairs: Any, at: Any, tiny_of: Any, tmp_path: Path
) -> None:
    model = tiny_of(family, task=task)
    texts = ("A [MASK] film.", "It [MASK].") if task == "fill" else ("A clumsy film", "It was")
    data = Dataset("made", texts, pairs, None, None, ("a", "b"), None, "0" * 64)
    metrics = ["abpc", "flip", "normalised_aopc"]
    found = compare(model, data, ["input_x_gradient"], ["delete"], metrics=metrics, at=at,
                    directory=tmp_path)  # fmt: skip
    assert not len(found.failures)
    each = found.examples.groupby("id").size()
    if (task, at) in (("generate", None), ("tag", "each")):
        assert (each > 1).any()
    values = found.scores[found.scores["metric"] == "abpc"]["value"]
    assert np.isfinite(values).all()
    assert len(values) == len(found.examples) * 3


@pytest.mark.parametrize("unit", ["word", "sentence"])
def test_whole_units_go(unit: Any, demo: Model) -> None:
    text = "It starts slow. The acting is unbelievably wonderful! I would see it again."
    found = compare(demo, dataset_of([text]), ["rollout"], ["delete"], metrics=["flip"], unit=unit)
    assert found.unit == unit
    count = {"word": 16, "sentence": 3}[unit]  # marks are words of their own
    value = found.table("delete", "flip").loc[0, "rollout"] * count
    assert 0 < value <= count
    assert value == pytest.approx(round(value))


# ------------------------------------------------------------------------------- studies


def test_a_study_reproduces_its_run(demo: Model, tmp_path: Path) -> None:
    study = Study(methods=("rollout", "attention:layer=0"), limit=3, operators=("delete",),
                  metrics=("abpc", "gini"), seed=3)  # fmt: skip
    first = study.run(tmp_path / "one")
    told = Study.read(tmp_path / "one" / "study.yaml")
    assert told == study
    begun: list[Study] = []  # it is there from the beginning, for a run that is killed
    study.run(
        tmp_path / "begun",
        progress=lambda *_: begun.append(Study.read(tmp_path / "begun" / "study.yaml")),
    )
    assert begun[0] == study
    same(first, told.run(tmp_path / "two"))
    same(first, told.run(tmp_path / "one", resume=True))


def test_studies_in_toml_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('methods = ["rollout"]\nlimit = 2\nmemory = 1\n')
    (tmp_path / "s.yaml").write_text("methods: [rollout]\nlimit: 2\nmemory: 1.0\n")
    expected = Study(methods=("rollout",), limit=2, memory=1.0)
    assert Study.read(tmp_path / "s.toml") == Study.read(tmp_path / "s.yaml") == expected


@pytest.mark.parametrize(("text", "error", "message"), [
    ("method: [rollout]", UnknownNameError, "unknown field of .*: got 'method'"),
    ("limit: many", InputError, "limit in .*: got 'many', expected int"),
    ("unit: page", InputError, "unit in .*: got 'page', expected token or word"),
    ("methods: rollout", InputError, "methods in .*: got 'rollout', expected a list"),
    ("- rollout", InputError, "got list, expected fields with values"),
    ("a: [", InputError, "cannot be read"),
])  # fmt: skip
def test_studies_that_make_no_sense(text: str, error: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(error, match=message):
        Study.read(tmp_path / "s.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        Study.read(tmp_path / "none.yaml")


def test_nothing_is_left_behind_where_nothing_can_be_written(demo: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        small(demo, tmp_path / "file" / "run")
