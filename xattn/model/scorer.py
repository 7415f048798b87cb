"""The scorer: every input goes through the model once, however often it is asked for.

Removing tokens by different methods, orders and fractions leads to the same inputs again and
again. They are told apart by their content, not by where they came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xattn.errors import ModelError
from xattn.model import Model
from xattn.model.batching import buckets
from xattn.model.prefixes import Prefixes
from xattn.types import Ints, Row, Target


class Scorer:
    """Scores inputs and remembers them until `clear`.

    Parameters
    ----------
    model : Model

    Attributes
    ----------
    asked : int
        Inputs that were asked for so far.
    run : int
        Inputs that went through the model so far.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.asked = 0
        self.run = 0
        self.prefixes = Prefixes(model)
        self.clear()

    def clear(self) -> None:
        """Forget all inputs; the counts stay."""
        self._known: dict[bytes, int] = {}
        """Content of an input -> its row in the table of logits."""
        self._logits = torch.empty(0, len(self.model.labels))
        self._places: dict[bytes, int] = {}
        """Content of an input and its target -> its place among the values."""
        self._values = np.empty(0)

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Return ``[input, class]`` float32 on the CPU.

        Parameters
        ----------
        rows : sequence of Row
            All with the same keys.
        """
        positions, missing = self._positions([_content(row) for row in rows], self._known)
        if missing:
            try:
                fresh = self.forward([rows[i] for i in missing])
            except BaseException:
                self.clear()  # the keys are noted already, but nothing stands behind them
                raise
            self._logits = torch.cat([self._logits, fresh])
        return self._logits[torch.from_numpy(positions)]

    def values(self, rows: Sequence[Row], target: Target) -> npt.NDArray[np.float64]:
        """Return the target of each input, ``[input]``, in the target's unit.

        Parameters
        ----------
        rows : sequence of Row
            All with the same keys.
        target : Target
            One an input.
        """
        if self.model.labels and target.position is None:
            table = self.logits(rows)
            return target.to("cpu")(table).double().numpy()
        asked = [target.quantity.encode() + f.tobytes() for f in target.table()]
        keys = [_content(row) + one for row, one in zip(rows, asked, strict=True)]
        positions, missing = self._positions(keys, self._places)
        if missing:
            try:
                fresh = self._run(rows, target, missing)
            except BaseException:
                self.clear()
                raise
            self._values = np.concatenate([self._values, fresh])
        return self._values[positions]

    def _positions(
        self, keys: Sequence[bytes], known: dict[bytes, int]
    ) -> tuple[npt.NDArray[np.int64], list[int]]:
        """Return where the result of each input stands or will stand, and which are new."""
        positions = np.empty(len(keys), dtype=np.int64)
        missing: list[int] = []
        for i, key in enumerate(keys):
            position = known.get(key)
            if position is None:
                position = known[key] = len(known)
                missing.append(i)
            positions[i] = position
        self.asked += len(keys)
        self.run += len(missing)
        return positions, missing

    def _run(
        self, rows: Sequence[Row], target: Target, which: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """Return the targets of some inputs, in groups of similar length."""
        values = np.empty(len(which))
        asked = target[torch.tensor(which, device=target.label.device)]
        shared = self._shared(lambda: self.prefixes.values([rows[i] for i in which], asked))
        if shared is not None:
            return shared.double().numpy()

        def run(group: Ints) -> None:
            here = [which[i] for i in group]
            inputs = self.model.collate([rows[i] for i in here])
            index = torch.tensor(here, device=target.label.device)
            values[group] = self.model.score(inputs, target[index]).double().cpu().numpy()

        self._grouped([length(rows[i]) for i in which], run)
        return values

    def scores(self, rows: Sequence[Row], labels: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the probability of each input's label, ``[input]``, 0..1.

        Parameters
        ----------
        rows : sequence of Row
        labels : sequence of int
            The class of each input.
        """
        target = Target(
            torch.tensor(labels, dtype=torch.int64),
            quantity="probability",
            link=self.model.link,
        )
        return target(self.logits(rows)).double().numpy()

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """Run inputs through the model in groups of similar length; ``[input, class]``.

        Where they begin alike and the model is causal, beginnings are run once.
        """
        shared = self._shared(lambda: self.prefixes.logits(rows))
        if shared is not None:
            return shared
        table = torch.empty(len(rows), len(self.model.labels))

        def run(group: Ints) -> None:
            inputs = self.model.collate([rows[i] for i in group])
            table[torch.from_numpy(group)] = self.model.logits(inputs).cpu()

        self._grouped([length(row) for row in rows], run)
        return table

    def _shared(self, run: Callable[[], Tensor | None]) -> Tensor | None:
        """Return what comes of shared beginnings; None if they do not serve."""
        try:
            return run()
        except torch.OutOfMemoryError:  # caches take memory that plain passes do not
            return None

    def _grouped(self, lengths: Sequence[int], run: Callable[[Ints], None]) -> None:
        """Run inputs in groups of similar length; a group that the memory lacks is halved."""
        waiting = buckets(lengths, self.model.budget)[::-1]
        while waiting:
            group = waiting.pop()
            try:
                run(group)
            except torch.OutOfMemoryError as error:
                if len(group) == 1:
                    raise ModelError(
                        "one forward pass does not fit the memory",
                        got=f"{lengths[group[0]]} tokens",
                        remedy="use shorter texts (--truncate) or --dtype bfloat16",
                    ) from error
                waiting += [group[len(group) // 2 :], group[: len(group) // 2]]


def length(row: Row) -> int:
    """Return how many tokens an input has, of a picture's none."""
    return sum(len(values) for name, values in row.items() if name.endswith("input_ids")) or 1


def _content(row: Row) -> bytes:
    """Return what tells an input from others."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(row):
        digest.update(f"{name}{row[name].shape}".encode() + row[name].tobytes())
    return digest.digest()
