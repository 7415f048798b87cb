"""What is installed is what stands in the repository."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path

import pytest

import xattn

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_folder_is_listed() -> None:
    folders = set()
    for top in ("xattn", "methods", "evaluation"):
        for init in (ROOT / top).rglob("__init__.py"):
            name = ".".join(init.parent.relative_to(ROOT).parts)
            folders.add(name if name.startswith("xattn") else f"xattn.{name}")
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("name", ["methods", "evaluation"])
def test_links_lead_to_the_top_level(name: str) -> None:
    link = ROOT / "xattn" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


def test_constraints_pin_every_dependency() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()
    }
    wanted = [
        *PROJECT["project"]["dependencies"],
        *itertools.chain(*PROJECT["project"]["optional-dependencies"].values()),
    ]
    assert {w.split(">=")[0] for w in wanted} <= pinned


def test_version_is_that_of_the_project() -> None:
    assert xattn.__version__ == PROJECT["project"]["version"]
    assert f"## {xattn.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {xattn.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_the_demo_models_are_small() -> None:
    assert xattn.demo.MODEL.joinpath("model.safetensors").stat().st_size <= 12e6
    assert xattn.demo.STORYTELLER.joinpath("model.safetensors").stat().st_size <= 6e6


def test_floors_are_kept() -> None:
    """Imports go down only; each module is listed with what it must not know."""
    import ast

    floors = [
        {
            "xattn.errors",
            "xattn.caution",
            "xattn.charts",
            "xattn.finding",
            "xattn.types",
            "xattn.render",
            "xattn.files",
            "xattn.demo",
            "xattn.picture",
            "xattn.units",
            "xattn.draw",
            "xattn.maxflow",
        },
        {"xattn.model", "xattn.registry", "xattn.data", "xattn.kinds"},
        {"xattn.methods"},
        {"xattn.explanations", "xattn.testing", "xattn.evaluation"},
        {"xattn.effects"},
        {"xattn.analysis"},
        {"xattn.cases"},
        {"xattn.report"},
        {"xattn.terminal", "xattn.options"},
        {"xattn.commands"},
        {"xattn.__main__"},
    ]

    def floor(module: str) -> int | None:
        for level, names in enumerate(floors):
            if any(module == name or module.startswith(name + ".") for name in names):
                return level
        return None

    for top in ("xattn", "methods", "evaluation"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if parts[0] == "xattn" else ("xattn", *parts))
            here = floor(name)
            if here is None:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            guarded = {
                id(node)
                for block in ast.walk(tree)
                if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
                for node in ast.walk(block)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module and id(node) not in guarded:
                    there = floor(node.module)
                    assert there is None or there <= here, f"{name} imports {node.module}"
