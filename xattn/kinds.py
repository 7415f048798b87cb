"""Kinds of methods that `explain` serves better than a bare call: they share passes and totals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from xattn.model import Model
    from xattn.model.trace import Request, Trace
    from xattn.types import Batch, Target


class Traced(ABC):
    """A method that reads what one forward and one backward pass leave behind.

    Several that are asked together share these passes: `explain` adds up their requests.
    """

    @property
    @abstractmethod
    def request(self) -> Request:
        """What the method wants recorded."""

    @abstractmethod
    def read(self, model: Model, batch: Batch, trace: Trace) -> Tensor:
        """Return scores ``[batch, token]`` from a trace that holds what was requested."""

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        return self.read(model, batch, model.record(batch, target, self.request))


class Complete(ABC):
    """A method whose scores must sum to a known difference of the target."""

    @abstractmethod
    def attribute(self, model: Model, batch: Batch, target: Target) -> tuple[Tensor, Tensor]:
        """Return scores ``[batch, token]`` and what each text's must sum to, ``[batch]``."""

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return scores ``[batch, token]``."""
        return self.attribute(model, batch, target)[0]

    def difference(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return what the scores of each text must sum to, ``[batch]``."""
        return self.attribute(model, batch, target)[1]
