"""Induction heads are found where a decoder was trained to have them, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from xattn.analysis.induction import induction
from xattn.cases.repetition import draw_repeated, train_repetition
from xattn.commands import app
from xattn.commands import patterns as commands
from xattn.errors import InputError, ModelError
from xattn.model import Model


@pytest.fixture(scope="module")
def trained() -> Model:
    return train_repetition(steps=400)


def test_sequences_come_twice() -> None:
    drawn = draw_repeated(5, length=7, seed=0)
    assert drawn.shape == (5, 15)
    assert (drawn[:, 1:8] == drawn[:, 8:]).all()
    assert all(len(set(row[1:8])) == 7 for row in drawn.tolist())


def test_heads_are_found_and_everything_rests_on_them(trained: Model) -> None:
    found = induction(trained)
    assert found.told.mean() > 0.9
    assert found.blind.mean() < 0.1
    assert found.heads
    assert {layer for layer, _ in found.heads} == {1}  # the first looks back, the second matches
    assert found.previous.mean(0)[0].max() > 0.4
    assert found.cut is not None
    assert found.others is not None
    assert found.cut.mean() < 0.2
    assert (found.others.mean(1) > 0.8).all()
    assert found.lost is not None
    assert found.lost.low > 0.5


def test_prefix_matching_is_that_of_whole_maps(trained: Model) -> None:
    found = induction(trained, length=6, count=2)
    ids = []
    draw = np.random.default_rng(0)
    ordinary = np.arange(5, 65)
    for _ in range(2):
        half = draw.choice(ordinary, size=6, replace=False)
        ids.append([2, *half, *half])
    trained.network.set_attn_implementation("eager")
    with torch.no_grad():
        maps = trained.network(torch.tensor(ids), output_attentions=True).attentions
    for layer, table in enumerate(maps):
        expected = np.mean([table[:, :, q, q - 5].numpy() for q in range(7, 13)], axis=0)
        np.testing.assert_allclose(found.prefix[:, layer], expected, atol=1e-5)


def test_one_layer_and_no_training_have_none(tiny_of: Callable[..., Model]) -> None:
    untrained = induction(train_repetition(steps=0))
    assert untrained.heads == ()
    assert untrained.cut is None
    assert "No head looks" in untrained.finding().says
    one = induction(train_repetition(layers=1, steps=150))
    assert one.heads == ()
    assert one.told.mean() < 0.2


def test_what_cannot_be_tested_is_refused(demo: Model, trained: Model) -> None:
    with pytest.raises(ModelError, match="decoders that continue a text"):
        induction(demo)
    with pytest.raises(InputError, match="length 30"):
        induction(trained, length=30)
    with pytest.raises(InputError, match="expected length 3 to"):
        induction(trained, length=2)


def test_the_command_shows_them(trained: Model, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(commands, "train_repetition", lambda: trained)
    out = tmp_path / "numbers.json"
    result = CliRunner().invoke(app, ["patterns", "--induction", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "Induction heads (layer.head): 1." in result.output.replace("\n", " ")
    assert json.loads(out.read_text())["heads"]
