"""Post-hoc attention steering (PASTA): make chosen heads look at what the user emphasises.

Zhang et al. 2023, Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from xattn.errors import InputError
from xattn.model.interventions import Intervenable
from xattn.model.places import Layout
from xattn.model.scaling import Scale
from xattn.types import Floats, Ints


def steer(
    mark: str,
    heads: Mapping[int, Sequence[int]],
    alpha: float = 0.01,
    *,
    stack: str | None = None,
) -> Scale:
    """Return PASTA: in chosen heads, look less at everything but the emphasised tokens.

    The attention of each row to the tokens of the prompt that are not marked is multiplied by
    `alpha`, and the row renormalised (equation 2). Tokens that are generated are left alone, as
    in the authors' implementation.

    Parameters
    ----------
    mark : str
        The emphasised tokens.
    heads : mapping of int to sequence of int
        Heads of each layer, for example `HeadProfile.top`.
    alpha : float
        0 or more, below 1; the authors use 0.01.
    stack : str, optional
        In models with several.

    Raises
    ------
    InputError
        If `alpha` would not steer.
    """
    if not 0 <= alpha < 1:
        raise InputError("alpha of steering", got=repr(alpha), expected="0 or more, below 1")
    return Scale(mark, alpha, others=True, heads=heads, stack=stack)


class Editable(Protocol):
    """What profiling asks of a model."""

    def edit(self, *edits: Intervenable) -> Any:
        """Open edits in a ``with`` block."""

    def layout(self) -> Layout:
        """Return layers and heads."""


Editing = TypeVar("Editing", bound=Editable)


@dataclass(frozen=True, eq=False)
class HeadProfile:
    """How well a model did with each head steered alone."""

    heads: tuple[tuple[int, int], ...]
    """``[head]``: layer and head."""
    scores: Floats
    """``[task, head]``: the higher, the better; in the unit of each task."""
    unsteered: Floats
    """``[task]``: the same without steering."""

    @property
    def ranks(self) -> Ints:
        """``[task, head]``: 0 for the best head of a task; ties go to the earlier head."""
        return np.argsort(np.argsort(-self.scores, axis=1, kind="stable"), axis=1)

    def top(self, count: int) -> dict[int, list[int]]:
        """Return the heads that are among the best `count` for every task, by layer.

        Raises
        ------
        InputError
            If `count` is out of range, or there is no such head.
        """
        if not 1 <= count <= len(self.heads):
            raise InputError("heads to choose", got=str(count), expected=f"1 to {len(self.heads)}")
        chosen: dict[int, list[int]] = {}
        for (layer, head), best in zip(
            self.heads, np.all(self.ranks < count, axis=0).tolist(), strict=True
        ):
            if best:
                chosen.setdefault(layer, []).append(head)
        if not chosen:
            raise InputError(
                "no head is among the best for every task",
                got=f"the best {count} of {len(self.scores)} tasks",
                remedy="choose more heads, or profile fewer tasks",
            )
        return chosen


def profile_heads(
    model: Editing,
    tasks: Sequence[Callable[[Editing], float]],
    mark: str,
    alpha: float = 0.01,
    *,
    heads: Mapping[int, Sequence[int]] | None = None,
    stack: str | None = None,
) -> HeadProfile:
    """Steer each head alone and see how well the model does: PASTA's model profiling.

    Parameters
    ----------
    model : Model
    tasks : sequence of callable
        Each runs the model on a few marked examples and returns how well it did, for example the
        accuracy of a classifier or the share of generated texts that follow the instruction.
    mark : str
        The emphasised tokens of the examples.
    alpha : float
        As in `steer`.
    heads : mapping of int to sequence of int, optional
        The heads to try; all by default. Every one costs a run of every task.
    stack : str, optional
        In models with several.
    """
    if not tasks:
        raise InputError("profiling needs a task", expected="one or more")
    layout = model.layout()
    tried = layout.select(None, heads, stack)
    if len({layout.stack(site) for site in tried}) > 1:
        raise InputError("layers are profiled within one stack", remedy="name it: stack='decoder'")
    sites = [site for site in layout.heads if layout.stack(site) == layout.stack(next(iter(tried)))]
    pairs = [(sites.index(site), head) for site in tried for head in tried[site]]
    scores = np.empty((len(tasks), len(pairs)))
    for column, (layer, head) in enumerate(sorted(pairs)):
        with model.edit(steer(mark, {layer: [head]}, alpha, stack=stack)):
            scores[:, column] = [task(model) for task in tasks]
    unsteered = np.array([task(model) for task in tasks], dtype=np.float64)
    return HeadProfile(tuple(sorted(pairs)), scores, unsteered)
