"""Finite differences in place of derivatives (DeepLIFT's rescale rule).

An input is compared with a baseline that went the same way before: ``Δf / Δx`` is the slope of
functions of single numbers, ``Δa · b̄ + ā · Δb`` the difference of products, and softmax and norms
are compositions of these. Differences add up exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xattn.errors import ModelError
from xattn.model.rules import ROUNDING, Function, Rules, following, held, valued
from xattn.types import Batch, Target

if TYPE_CHECKING:
    from xattn.model.adapter import Model

SUMS = 0.02
"""Largest gap of DeepLIFT's scores, relative to the difference that they must sum to, or to a tenth
of the sum of their absolute values where that is more."""


class Differences(Rules):
    """DeepLIFT's rescale rule: the first run is the baseline's, the second is compared with it."""

    def __init__(self) -> None:
        super().__init__()
        self._tape: list[tuple[Tensor, ...]] = []
        """What the functions of the baseline's run were given."""
        self._place: int | None = None
        """How far the second run is; None in the first."""

    def rewind(self) -> None:
        """Begin the second run."""
        self._place = 0

    @property
    def finished(self) -> bool:
        """Whether the second run has computed what the first did."""
        return self._place == len(self._tape)

    @staticmethod
    def parted(got: str) -> ModelError:
        """Return the error of two runs that cannot be compared step by step."""
        return ModelError(
            "DeepLIFT compares two runs that went different ways",
            got=got,
            remedy="experts are chosen by the input: use integrated_gradients",
        )

    def _before(self, *given: Tensor) -> tuple[Tensor, ...] | None:
        """Return what the same function was given in the baseline's run; None during that run."""
        if self._place is None:
            # clones, since networks may write into what they have used
            self._tape.append(tuple(tensor.detach().clone() for tensor in given))
            return None
        found = self._tape[self._place] if self._place < len(self._tape) else ()
        if [t.shape for t in found] != [t.shape for t in given]:
            raise self.parted(
                f"tensors of {[list(t.shape) for t in given]} for the text, "
                f"{[list(t.shape) for t in found]} for the baseline"
            )
        self._place += 1
        return found

    def number(self, x: Tensor, function: Function, name: str) -> Tensor:
        """Return ``f(x)`` with the slope ``Δf / Δx``, or the derivative where Δx is tiny."""
        found = self._before(x)
        if found is None:
            return function(x)
        return valued(x, lambda: function(x.detach()), _slope(function, x, found[0]))

    def statistic(self, base: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return a variance or norm as what it is composed of."""
        if base == "logsumexp":
            x, dim = args[0], args[1] if len(args) > 1 else kwargs["dim"]
            found = self._before(x)
            if found is None:
                return func(*args, **kwargs)
            weights = _log_sum_slopes(x, found[0], dim)
            keep = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
            path = (x * weights.to(x.dtype)).sum(dim, keepdim=keep)
            return valued(path, lambda: func(*map(held, args), **kwargs))
        x, order, dim, keep = _norm_of(base, args, kwargs)
        if order not in (2, "fro", None):
            raise ModelError(
                f"DeepLIFT has no rule for the function {base}",
                remedy="use integrated_gradients, which needs nothing of the architecture",
            )
        with self:
            return x.square().sum(dim, keepdim=keep).sqrt()

    def product(self, function: Callable[..., Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return a product with ``Δ(ab) = Δa · b̄ + ā · Δb``."""
        found = self._before(first, second)
        if found is None:
            return function(first, second)
        a, b = ((now.detach() + then) / 2 for now, then in zip((first, second), found, strict=True))
        path = function(first, b) + function(a, second)
        return valued(path, lambda: function(first.detach(), second.detach()))

    def solution(
        self, function: Callable[..., Tensor], read: Function, matrix: Tensor, right: Tensor
    ) -> Tensor:
        """Return the ``X`` of ``AX = B`` with ``ΔX = Ā⁻¹ (ΔB − ΔA · X̄)``."""
        found = self._before(matrix, right)
        if found is None:
            return function(matrix, right)
        now = function(matrix.detach(), right.detach())
        middle, mean = (matrix.detach() + found[0]) / 2, (now + function(*found)) / 2
        return valued(function(middle, right - read(matrix) @ mean), lambda: now)

    def softmax(self, x: Tensor, function: Function, dim: int, name: str) -> Tensor:
        """Return ``exp(x − log Σ exp x)``, each of these functions with the slope ``Δf / Δx``."""
        found = self._before(x)
        if found is None:
            return function(x)
        weights = _log_sum_slopes(x, found[0], dim)
        path = x.to(weights.dtype)
        path = path - (path * weights).sum(dim, keepdim=True)
        slope = None
        if name == "softmax":
            now, then = (_wide(t) for t in (x, found[0]))
            now, then = (t - t.logsumexp(dim, keepdim=True) for t in (now, then))
            slope = _quotients(now.exp() - then.exp(), now - then, ((now + then) / 2).exp())
        return valued(path, lambda: function(x.detach()), slope)


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor without derivative in double precision, where the device has it."""
    exact = torch.float32 if tensor.device.type == "mps" else torch.float64
    return tensor.detach().to(exact)


def _tiny(change: Tensor) -> Tensor:
    """Return where a difference is too small to divide by."""
    # the derivative in the middle is the quotient but for the square of the difference
    return ~(change.abs() > (1e-6 if change.dtype == torch.float64 else 1e-3))


def _quotients(change: Tensor, by: Tensor, derivative: Tensor) -> Tensor:
    """Return ``change / by``, or the derivative in the middle where that is 0 / 0."""
    tiny = _tiny(by)
    return torch.where(tiny, derivative, change / torch.where(tiny, torch.ones_like(by), by))


def _slope(function: Function, x: Tensor, before: Tensor) -> Tensor:
    """Return ``Δf / Δx`` of a function of single numbers, between two inputs."""
    now, then = _wide(x), _wide(before)
    middle = torch.where(torch.isfinite(now - then), (now + then) / 2, now).requires_grad_()
    with torch.enable_grad():
        [derivative] = torch.autograd.grad(function(middle).sum(), middle)
    change = function(now) - function(then)
    return _quotients(change, now - then, derivative).to(x.dtype)


def _log_sum_slopes(x: Tensor, before: Tensor, dim: int) -> Tensor:
    """Return the slopes of ``log Σ exp x`` by each ``x``, rescaled in three steps.

    Largest of both inputs first: so much is taken off that no sum is out of range.
    """
    now, then = _wide(x), _wide(before)
    level = torch.maximum(now.amax(dim, keepdim=True), then.amax(dim, keepdim=True))
    powers = [(t - level).exp() for t in (now, then)]
    each = _quotients(powers[0] - powers[1], now - then, ((now + then) / 2 - level).exp())
    sums = [power.sum(dim, keepdim=True) for power in powers]
    logs = [t.logsumexp(dim, keepdim=True) for t in (now, then)]
    return each * _quotients(logs[0] - logs[1], sums[0] - sums[1], 2 / (sums[0] + sums[1]))


def _norm_of(base: str, args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Any, Any, bool]:
    """Return what a norm is taken of, its order, along which axes, and whether these stay."""
    names = ("input", "ord" if base == "vector_norm" else "p", "dim", "keepdim")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x = given["input"] if "input" in given else given["x"]
    order = given.get(names[1]) if base in ("norm", "vector_norm") else 0
    return x, order, given.get("dim"), bool(given.get("keepdim", False))


def differences(model: Model, batch: Batch, target: Target, kind: str) -> tuple[Tensor, Tensor]:
    """Return DeepLIFT's scores ``[batch, token]`` and ``y(e) − y(e′)``, ``[batch]``.

    Parameters
    ----------
    model : Model
    batch : Batch
    target : Target
    kind : str
        The baseline; see `Runner.baseline`.

    Raises
    ------
    ModelError
        If the scores do not sum to the difference: some function of the network has no rule.
    """
    actual, start = model.embeddings(batch.inputs), model.baseline(batch, kind)
    rules = Differences()
    values = []
    for embeddings in (start, actual):
        leaf = embeddings.clone().requires_grad_()
        with following(model, batch, leaf, rules):
            logits, asked = model.logits_for(batch.inputs, target)
            values.append(asked(logits))
        if embeddings is start:
            values[0] = values[0].detach()
            rules.rewind()
    if not rules.finished:
        raise rules.parted("fewer steps for the text than for the baseline")
    before, value = values
    [gradient] = model.backward(value, [leaf])
    scores = ((actual - start).float() * gradient.float()).sum(-1)
    expected = value.detach() - before
    gap = (scores.sum(-1) - expected).abs()
    allowed = SUMS * expected.abs().maximum(scores.abs().sum(-1) / 10)
    # reduced precision: the outputs themselves are known so well only
    allowed = allowed + ROUNDING * torch.finfo(model.dtype).eps * (
        value.detach().abs() + before.abs()
    )
    if not bool((gap <= allowed).all()):
        worst = int((gap - allowed).argmax())
        raise ModelError(
            f"DeepLIFT's differences do not add up in {type(model.network).__name__}",
            got=f"{float(scores[worst].sum()):.4g} for a change of {float(expected[worst]):.4g}",
            remedy="use integrated_gradients, which needs nothing of the architecture",
        )
    return scores, expected
