"""The registry: names, options from text, and a third party's package."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from xattn.errors import InputError, UnknownNameError, XattnError
from xattn.methods.rollout import Rollout
from xattn.registry import Declaration, Registry, defaults
from xattn.registry import methods as registry


def test_every_file_of_the_package_is_a_method() -> None:
    import xattn.methods

    files = {p.stem for folder in xattn.methods.__path__ for p in Path(folder).glob("*.py")}
    assert files - {"__init__"} == set(registry.names())


def test_options_from_text() -> None:
    assert registry.build("rollout:residual=0.25") == Rollout(residual=0.25)
    assert defaults(registry.get("attention")) == {"layer": -1, "head": None}
    built = registry.build("integrated_gradients: baseline=pad, steps=8")
    assert (built.baseline, built.steps) == ("pad", 8)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rollout:residul=1", "unknown option of rollout: got 'residul'.*mean 'residual'"),
        ("rollout:residual", "option of rollout: got 'residual', expected residual=VALUE"),
        ("rollout:residual=high", "residual of rollout: got 'high', expected float"),
    ],
)
def test_wrong_options(spec: str, message: str) -> None:
    with pytest.raises(XattnError, match=message):
        registry.build(spec)


def test_a_name_is_taken_once() -> None:
    mine = Registry("xattn.methods", "method")

    def add() -> None:
        @mine.registering(Declaration)("same", signed=True, total="free", citation="none")
        @dataclass(frozen=True)
        class Same:
            pass

    add()
    with pytest.raises(XattnError, match=r"two methods are called 'same': got .*Same.*Same"):
        add()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("attention:layer=1.5", "layer of attention: got '1.5', expected int"),
        ("attention:layer=True", "layer of attention: got 'True', expected int"),
        ("attention_gradient:layer=x", "got 'x', expected int"),
        ("integrated_gradients:baseline=mean", "got 'mean', expected 'auto', 'mask', 'pad'"),
        ("random:seed=abc", "seed of random: got 'abc', expected int"),
    ],
)
def test_options_of_the_wrong_type(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(spec)


def test_a_class_that_is_no_dataclass_is_refused() -> None:
    class Plain:
        pass

    add = Registry("xattn.methods", "method").registering(Declaration)(
        "plain", signed=True, total="free", citation="none"
    )
    with pytest.raises(XattnError, match="'plain' is not a dataclass"):
        add(Plain)


PLUGIN = '''
from dataclasses import dataclass
from xattn.registry import register

@register("length", signed=False, total="free", citation="nobody 2026")
@dataclass(frozen=True)
class Length:
    """The number of characters of each token."""
    power: float = 1.0
    def __call__(self, model, batch, target):
        import torch
        scores = torch.zeros(batch.inputs["input_ids"].shape)
        for i, e in enumerate(batch.encodings):
            scores[i, :len(e)] = torch.tensor([float(len(t)) for t in e.tokens]) ** self.power
        return scores
'''
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "xattn-length"
version = "1.0"
[project.entry-points."xattn.methods"]
length = "xattn_length"
broken = "xattn_length_missing"
[tool.setuptools]
py-modules = ["xattn_length"]
"""
SCRIPT = """
import warnings, xattn, xattn.testing
from xattn.registry import methods
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert "length" in methods.names() and "rollout" in methods.names()
assert any("'broken'" in str(w.message) for w in caught), caught
try:
    methods.get("broken")
except xattn.registry.XattnError as error:
    print(error)
model = xattn.load()
item = xattn.explain(model, ["A dull film."], ["length:power=2"])[0]
print(item.scores.tolist())
xattn.testing.check_method("length", model)
"""


def test_an_installed_package_adds_a_method(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "xattn_length.py").write_text(PLUGIN)
    (source / "pyproject.toml").write_text(PROJECT)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
               "--no-build-isolation", "--target", str(site), str(source)]  # fmt: skip
    subprocess.run(install, check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    broken, scores = done.stdout.strip().splitlines()[-2:]
    assert "the method 'broken' cannot be loaded: got ModuleNotFoundError" in broken
    assert scores == "[25.0, 1.0, 16.0, 16.0, 1.0, 25.0]"


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry.get("atention")
    assert str(caught.value).startswith("unknown method: got 'atention', expected one of a")
    assert str(caught.value).endswith("did you mean 'attention'?")


def test_errors_are_one_line() -> None:
    error = InputError("a\nb", got="c", expected="d", remedy="e\n f")
    assert str(error) == "a b: got c, expected d; e f"
