"""Summing up, saving and loading."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from xattn.data import load_dataset
from xattn.errors import InputError, UnknownNameError
from xattn.evaluation import Comparison, compare, interval, load


@pytest.fixture(scope="module")
def result(demo):
    specs = ["integrated_gradients", "rollout:residual=0.3"]
    return compare(demo, load_dataset(limit=4), specs, ["delete"])


def made(**columns):
    """A comparison with given values (method -> list) of one operator for two metrics."""
    rows = [
        (i, method, "delete", metric, value)
        for metric in ("abpc", "sufficiency")
        for method, values in columns.items()
        for i, value in enumerate(values)
    ]
    names = ["example", "method", "operator", "metric", "value"]
    nothing = pd.DataFrame()
    scores = pd.DataFrame(rows, columns=names)
    return Comparison(scores, nothing, nothing, [], nothing, nothing, {"seed": 0})


GOOD = [0.5, 0.6, 0.7, 0.55, 0.65, 0.6]
BAD = [0.1, 0.2, 0.1, 0.15, 0.1, 0.2]


def test_summary_is_the_bootstrap_of_each_cell():
    row = made(random=BAD, good=GOOD).summary().set_index(["method", "metric"])
    expected = interval(np.array(GOOD), 0)
    assert tuple(row.loc[("good", "abpc"), ["mean", "low", "high", "n"]]) == expected


def test_beating_random_follows_the_direction_of_the_metric():
    versus = made(random=BAD, good=GOOD, same=BAD).versus_random()
    table = versus.set_index(["method", "metric"])
    assert table.loc[("good", "abpc"), "beats_random"]
    assert not table.loc[("good", "sufficiency"), "beats_random"]  # lower is better there
    assert table.loc[("good", "abpc"), "mean"] == pytest.approx(np.mean(GOOD) - np.mean(BAD))
    assert not table.loc[("same", "abpc"), "beats_random"]
    assert "random" not in versus["method"].tolist()


def test_examples_are_paired_whatever_their_order():
    comparison = made(random=BAD, good=[b + 0.1 for b in BAD])
    shuffled = dataclasses.replace(
        comparison, scores=comparison.scores.sample(frac=1, random_state=1)
    )
    row = shuffled.versus_random().iloc[0]
    assert row["low"] == pytest.approx(0.1)
    assert row["high"] == pytest.approx(0.1)


def test_leaderboard_puts_the_best_first():
    comparison = made(random=BAD, good=GOOD)
    assert comparison.leaderboard("delete", "abpc")["method"].tolist() == ["good", "random"]
    assert comparison.leaderboard("delete", "sufficiency")["method"].tolist() == ["random", "good"]


def test_leaderboard_of_what_was_not_measured():
    with pytest.raises(UnknownNameError, match="unknown operator: got 'mask', expected one of del"):
        made(random=BAD).leaderboard("mask", "abpc")
    with pytest.raises(UnknownNameError, match="unknown metric: got 'area'"):
        made(random=BAD).leaderboard("delete", "area")


def test_round_trip(result, tmp_path):
    result.save(tmp_path / "new" / "folder")
    back = load(tmp_path / "new" / "folder")
    for name in ("scores", "curves", "cost", "examples", "failures"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(result, name))
    assert back.provenance == result.provenance
    assert len(back.attributions) == len(result.attributions)
    for a, b in zip(back.attributions, result.attributions, strict=True):
        assert a.to_dict() == b.to_dict()
        assert a.scores.dtype == np.float32
    pd.testing.assert_frame_equal(back.summary(), result.summary())


def test_files(result, tmp_path):
    result.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "attributions.parquet", "cost.parquet", "curves.parquet", "examples.parquet",
        "failures.parquet", "scores.parquet", "summary.json",
    ]  # fmt: skip


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_nothing_half_written(error, result, tmp_path, monkeypatch):
    result.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write, calls = pd.DataFrame.to_parquet, []

    def fail_late(frame, path, **options):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise error("disk full")
        write(frame, path, **options)

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail_late)
    changed = dataclasses.replace(result, scores=result.scores.assign(value=0.0))
    with pytest.raises(InputError if error is OSError else error, match="disk full"):
        changed.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: got"):
        result.save(tmp_path / "file" / "folder")


@pytest.mark.parametrize("name", ["scores.parquet", "summary.json", "attributions.parquet"])
def test_damaged_files_are_refused(name, result, tmp_path):
    with pytest.raises(InputError, match="does not hold a comparison that can be read"):
        load(tmp_path)
    result.save(tmp_path)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(InputError, match="does not hold a comparison that can be read"):
        load(tmp_path)


def test_one_text_has_no_interval(demo, tmp_path):
    found = compare(demo, load_dataset(limit=1), ["rollout"], ["delete"])
    assert found.summary()["low"].isna().all()
    assert not found.versus_random()["beats_random"].any()
    found.save(tmp_path)
    assert "NaN" not in (tmp_path / "summary.json").read_text()
