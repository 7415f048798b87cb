"""What the tests of the harness share: the slow reference and models with planted answers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xattn.evaluation import Case, get_operator, metrics
from xattn.model import batching
from xattn.model.game import Game, Worths
from xattn.model.scorer import Scorer
from xattn.types import Encoding, Target

SPECIALS = {"mask": 3, "pad": 0, "unk": 1, "auto": 3}


class ToyModel:
    """A classifier of two classes whose first probability is a given function of the ids.

    It offers what the harness uses of a model, and nothing else. Ids up to 4 are special: 2 stands
    for CLS, 3 for MASK, 4 for SEP.
    """

    labels = ("yes", "no")
    link = "softmax"
    budget = 256
    caches = False
    input_names = ("attention_mask", "input_ids")
    tokenizer = SimpleNamespace(
        mask_token_id=3, pad_token_id=0, unk_token_id=1, eos_token_id=None, bos_token_id=None
    )

    def __init__(self, probability: Callable[[list[int]], float]) -> None:
        self.probability = probability
        self.forwarded: list[tuple[int, ...]] = []

    def collate(self, rows: Any) -> Mapping[str, Tensor]:
        return batching.pad(rows, 0, torch.device("cpu"))

    def token_id(self, kind: str) -> int:
        return SPECIALS[kind]

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        result = []
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            seen = ids[mask > 0].tolist()
            self.forwarded.append(tuple(seen))
            p = torch.tensor(self.probability(seen), dtype=torch.float64)
            result.append(torch.stack([p.log(), (1 - p).log()]))
        return torch.stack(result).float()


def encoding_of(ids: list[int]) -> Encoding:
    """Return an encoding ``CLS ids SEP`` with one word a token."""
    full = np.array([2, *ids, 4])
    special = full <= 4
    text = " ".join(map(str, ids))
    starts = np.cumsum([0, *(len(str(i)) + 1 for i in ids)])[:-1]
    spans = [(0, 0), *((s, s + len(str(i))) for s, i in zip(starts, ids, strict=True)), (0, 0)]
    return Encoding(
        text=text,
        pair=None,
        row={"input_ids": full, "attention_mask": np.ones_like(full)},
        tokens=tuple(map(str, full)),
        special=special,
        offsets=np.array(spans),
        words=np.where(special, -1, np.arange(len(full)) - 1),
        segments=np.where(special, -1, 0),
    )


def game_of(model: Any, encoding: Encoding, operator: str = "delete", label: int = 0) -> Game:
    """Return the game of a text whose target is the probability of a class."""
    target = Target(torch.tensor([label]), quantity="probability", link=model.link)
    players = tuple(np.array([place]) for place in encoding.removable)
    return Game(model, encoding, target, get_operator(operator), players, len(encoding))


def value_of(case: Case, spec: str, worths: Worths | None = None) -> float:
    """Return a metric of a case."""
    metric = metrics.build(spec)
    if metric.declaration.quantity is not None:
        target = replace(case.game.target, quantity=metric.declaration.quantity)
        case = replace(case, game=replace(case.game, target=target))
    found = metric(case)
    if not isinstance(found, Generator):
        return found
    worths = Worths(Scorer(case.game.model)) if worths is None else worths
    return worths.play([(case.game, found)])[0]


@pytest.fixture(scope="session")
def played() -> Callable[..., Game]:
    """Make the game of a text: model, encoding, operator, label."""
    return game_of


@pytest.fixture(scope="session")
def value() -> Callable[..., float]:
    """Compute a metric of a case."""
    return value_of


@pytest.fixture
def toy() -> Callable[..., Any]:
    """Make a toy model from a function of the attended ids."""
    return ToyModel


@pytest.fixture
def encoded() -> Callable[[list[int]], Encoding]:
    """Make an encoding from ids."""
    return encoding_of


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The slow reference, tests/reference/deletion.py."""
    path = Path(__file__).parents[1] / "reference" / "deletion.py"
    spec = importlib.util.spec_from_file_location("reference_deletion", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
