"""Numbers of heads against slow references and planted attention; names through the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor
from typer.testing import CliRunner

from xattn.analysis.looking import NUMBERS
from xattn.analysis.patterns import patterns
from xattn.commands import app
from xattn.errors import InputError
from xattn.finding import Finding
from xattn.model import Edit, Model, Site, Uniform

TEXTS = [
    "The film is dull, and the end of the film is worse. The actors try their best.",
    "Unwatchable twaddle.",
    "A warm, funny and wonderfully acted little film about nothing at all.",
]


def slow(model: Model, text: str) -> dict[str, np.ndarray]:
    """Return some numbers of each layer and head by loops over whole maps."""
    [encoding] = model.encode([text])
    [maps] = model.attention([encoding])
    layers, heads, size, _ = maps.maps.shape
    found = {name: np.full((layers, heads), np.nan) for name in NUMBERS}
    special = encoding.special
    strings = [token.strip().lower() for token in encoding.tokens]
    for layer in range(layers):
        for head in range(heads):
            rows = maps.maps[layer, head].astype(np.float64)
            here = {name: [] for name in NUMBERS}
            for q in range(size):
                row = rows[q]
                visible = int((maps.maps[layer, :, q] > 0).any(0).sum())
                here["entropy"].append(entropy(row))
                share = entropy(row) / np.log(visible) if visible > 1 else 1.0
                here["relative entropy"].append(share)
                here["distance"].append(sum(row[k] * abs(k - q) for k in range(size)))
                here["self"].append(row[q])
                if q:
                    here["previous"].append(row[q - 1])
                if q + 1 < size and (maps.maps[layer, :, q, q + 1] > 0).any():
                    here["next"].append(row[q + 1])
                here["first"].append(row[0])
                if special[1:].any():
                    here["separator"].append(sum(row[k] for k in range(1, size) if special[k]))
                same = [
                    k
                    for k in range(size)
                    if k != q and not special[k] and not special[q] and strings[k] == strings[q]
                    and (maps.maps[layer, :, q, k] > 0).any()
                ]  # fmt: skip
                if same:
                    here["same string"].append(sum(row[k] for k in same))
                here["top of row"].append(np.sort(row)[-3:].sum())
            for name, values in here.items():
                found[name][layer, head] = np.mean(values) if values else np.nan
            columns = np.sort(rows.sum(0))[::-1]
            most = max(1, round(0.1 * size))
            found["top columns"][layer, head] = columns[:most].sum() / columns.sum()
    return found


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_numbers_are_those_of_whole_maps(tiny_of: Callable[..., Model], family: str) -> None:
    model = tiny_of(family)
    result = patterns(model, TEXTS)
    checked = 0
    for number, text in enumerate(TEXTS):
        for name, values in slow(model, text).items():
            if np.isnan(values).all():
                continue
            got = result.numbers[number, ..., NUMBERS.index(name)]
            np.testing.assert_allclose(got, values, atol=1e-5, err_msg=f"{name} of {text}")
            checked += 1
    assert checked >= 24


def test_texts_do_not_change_each_other(demo: Model) -> None:
    together = patterns(demo, TEXTS)
    for number, text in enumerate(TEXTS):
        alone = patterns(demo, [text])
        place = [i for i, name in enumerate(NUMBERS) if name != "rare word"]  # of the data set
        np.testing.assert_allclose(
            together.numbers[number][..., place], alone.numbers[0][..., place], atol=1e-5
        )


def looking(at: Callable[[int], Tensor]) -> Edit:
    """Return an edit that makes every head look as it is told, and a little everywhere."""

    def change(site: Site, probabilities: Tensor) -> Tensor:
        queries, keys = probabilities.shape[-2:]
        wanted = at(keys)[-queries:].to(probabilities)
        return (0.999 * wanted + 0.001 / keys).expand_as(probabilities).contiguous()

    return Edit(probabilities=change)


def column(place: int) -> Callable[[int], Tensor]:
    def at(keys: int) -> Tensor:
        table = torch.zeros(keys, keys)
        table[:, place] = 1.0
        return table

    return at


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("diagonal", torch.eye),
        ("previous", lambda n: torch.diag(torch.ones(n - 1), -1)),
        ("next", lambda n: torch.diag(torch.ones(n - 1), 1)),
        ("first-token sink", column(0)),
        ("separator sink", column(-1)),
        ("vertical", column(3)),
    ],
)
def test_planted_attention_is_named_through_the_model(
    demo: Model, name: str, at: Callable[[int], Tensor]
) -> None:
    with demo.edit(looking(at)):
        found = patterns(demo, TEXTS[:1])
    assert {called for names in found.names for called in names} == {name}
    if name == "vertical":
        assert found.columns[0][0]["is"] > 0.9
        assert found.top(0, 0, 1).startswith("is 100%")


def test_even_attention_is_broad_and_equals_its_own_reference(demo: Model) -> None:
    with demo.edit(Uniform()):
        found = patterns(demo, TEXTS)
    assert {called for names in found.names for called in names} == {"broad"}
    level = np.broadcast_to(found.even[:, :, None], found.numbers.shape)
    np.testing.assert_allclose(found.numbers, level, atol=1e-6)


def test_encoder_decoders_have_three_stacks(tiny_of: Callable[..., Model]) -> None:
    model = tiny_of("bart", task="generate")
    found = patterns(model, model.encode(["a good film", "the end"], ["dull", "not so bad"]))
    assert {layer.split()[0] for layer in found.layers} == {"encoder", "decoder", "cross"}
    cross = [i for i, layer in enumerate(found.layers) if layer.startswith("cross")]
    assert np.isnan(found.numbers[:, cross][..., NUMBERS.index("self")]).all()
    heads = len(found.names[cross[0]])  # fewer than the encoder has
    assert np.isfinite(found.numbers[:, cross, :heads][..., NUMBERS.index("first")]).all()


def test_the_finding_holds_the_names(demo: Model) -> None:
    found = patterns(demo, TEXTS)
    finding = found.finding()
    assert Finding.from_dict(json.loads(json.dumps(finding.to_dict()))) == finding
    assert "16 heads" in finding.says
    frame = found.to_dataframe()
    assert set(frame["pattern"]) == {called for names in found.names for called in names}
    assert len(frame) == 16 * len(NUMBERS)


def test_no_text_is_told(demo: Model) -> None:
    with pytest.raises(InputError, match="no text to look for patterns in"):
        patterns(demo, [])


def test_the_command_names_and_writes(tmp_path: Path) -> None:
    asked = ["patterns", "--limit", "4", "--out", str(tmp_path), "--json", str(tmp_path / "x.json")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "the 16 heads of xattn.demo.sentiment are" in result.output.replace("\n", " ")
    assert "One head is not the model." in result.output.replace("\n", " ")
    assert len(json.loads((tmp_path / "x.json").read_text())) == 16 * len(NUMBERS)
    assert "<svg" in (tmp_path / "patterns.html").read_text()
    assert (tmp_path / "findings" / "heads.json").exists()
    wrong = CliRunner().invoke(app, ["patterns", "--limit", "1"])
    assert wrong.exit_code == 2
