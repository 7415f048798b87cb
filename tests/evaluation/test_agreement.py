"""Agreement between runs: the same texts, other seeds or checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import xattn
from xattn.commands import app
from xattn.errors import InputError
from xattn.evaluation import compare, load, load_dataset
from xattn.evaluation.agreement import between_runs
from xattn.model import Model


def test_runs_are_compared_method_by_method(demo: Model) -> None:
    texts = list(load_dataset(limit=4).texts)
    one = list(xattn.explain(demo, texts, ["rollout", "random"]))
    two = [replace(a, scores=-a.scores) if a.method == "rollout" else a for a in one]
    found = between_runs({"one": one, "two": two}).set_index("method")
    assert found.loc["rollout", "tau"] == pytest.approx(-1)
    assert found.loc["random", "tau"] == pytest.approx(1)
    assert found.loc["random", "overlap"] == 1
    assert (found["n"] == 4).all()


def test_only_what_runs_share_is_compared(demo: Model) -> None:
    texts = list(load_dataset(limit=3).texts)
    one = list(xattn.explain(demo, texts, ["rollout", "attention"]))
    two = list(xattn.explain(demo, texts[1:], ["rollout"]))
    found = between_runs({"one": one, "two": two})
    assert found["method"].tolist() == ["rollout"]
    assert found["n"].tolist() == [2]
    with pytest.raises(InputError, match="have no text in common"):
        between_runs({"one": one[:2], "two": two})
    with pytest.raises(InputError, match="runs to compare: got 1"):
        between_runs({"one": one})


def test_the_command_compares_folders(demo: Model, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        result = compare(demo, load_dataset(limit=4), ["smoothgrad:samples=3"], ["mask"], seed=seed)
        result.save(tmp_path / name)
    shown = CliRunner().invoke(app, ["agreement", str(tmp_path / "a"), str(tmp_path / "b")])
    assert shown.exit_code == 0, shown.output
    assert "smoothgrad:samples=3" in shown.output  # not folded
    same = CliRunner().invoke(app, ["agreement", str(tmp_path / "a"), f"{tmp_path}/b/../a"])
    assert same.exit_code == 2
    assert "is named twice" in same.output
    table = between_runs({n: load(tmp_path / n).attributions for n in ("a", "b")}).set_index(
        "method"
    )
    assert abs(table.loc["random", "tau"]) < 0.6
    assert np.isfinite(table.loc["random", "low"])
