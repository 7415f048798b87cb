"""Relevance: input times gradient under rules, and the ledger that shows that none is lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xattn.errors import InputError, ModelError
from xattn.model.lrp import Gate, Part, Relevance
from xattn.model.operations import plain_name
from xattn.model.rules import COMPOSED, ROUNDING, SOFTMAX, depends, following
from xattn.types import Batch, Target

if TYPE_CHECKING:
    from xattn.model.adapter import Model

CLOSED = 1e-4
"""Largest gap of a ledger, relative to the score or the sum of its parts' absolute values."""
# What is linear but for a constant: its value at 0.
AFFINE = frozenset(
    {"add", "addbmm", "addmm", "baddbmm", "batch_norm", "cat", "concat", "concatenate", "conv1d",
     "conv2d", "hstack", "index_copy", "layer_norm", "linear", "masked_fill", "masked_scatter",
     "maximum", "minimum", "pad", "rsub", "scatter", "stack", "sub", "where"}
)  # fmt: skip


@dataclass(frozen=True)
class Ledger:
    """Where the relevance of an output went: the parts add up to the score.

    Examples
    --------
    >>> ledger = Ledger(2.0, 1.25, 0.5, 0.25, 0.0, 4.0, {})
    >>> ledger.gap, ledger.constants
    (0.0, 0.75)
    """

    score: float
    """The targets, added up over the batch."""
    embeddings: float
    """What the tokens' embeddings got: the sum of all scores."""
    biases: float
    """What vectors of parameters got that are added on the way."""
    positions: float
    """What everything else got that is added: positions, segments, learned tokens, numbers."""
    softmax: float
    """What came into being in softmaxes that kept their derivative (AttnLRP); else 0."""
    size: float
    """The sum of absolute values of all entries, which rounding goes by."""
    lost: Mapping[str, float] = field(default_factory=dict)
    """By function of torch, what it was given and did not hand on: what the gap is made of."""

    @property
    def constants(self) -> float:
        """What everything got that is added on the way."""
        return self.biases + self.positions

    @property
    def gap(self) -> float:
        """The score minus all parts."""
        return self.score - self.embeddings - self.constants - self.softmax

    @property
    def share(self) -> float:
        """The gap, relative to the score or to the parts where these are more."""
        parts = sum(map(abs, (self.embeddings, self.biases, self.positions, self.softmax)))
        return abs(self.gap) / max(abs(self.score), parts, 1e-12)


class Counting(Relevance):
    """Relevance that keeps an account of every function, while the target is differentiated."""

    def __init__(self, attention: Part, gate: Gate) -> None:
        super().__init__(attention, gate)
        self.biases, self.positions, self.size = 0.0, 0.0, 0.0
        self.made: defaultdict[str, float] = defaultdict(float)
        """By function, what came out of it minus what went in and what it added."""

    @property
    def softmaxes(self) -> float:
        """What came into being in softmaxes."""
        return sum((self.made.get(name, 0.0) for name in SOFTMAX), 0.0)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        base, in_place, _ = plain_name(getattr(func, "__name__", ""))
        passes = self.paused or not torch.is_grad_enabled() or base in COMPOSED
        if passes or not any(map(depends, (*args, *kwargs.values()))):
            return super().__torch_function__(func, types, args, kwargs)
        constant = None
        if base in AFFINE:
            with torch.no_grad():
                constant = func(*(_at_zero(a, in_place) for a in args),
                                **{k: _at_zero(v, False) for k, v in kwargs.items()})  # fmt: skip
        if in_place or base == "setitem":  # what is overwritten cannot be told from what was there
            result = super().__torch_function__(func, types, args, kwargs)
        else:
            args = tuple(self._twins(base, a, -1) for a in args)
            kwargs = {k: self._twins(base, v, -1) for k, v in kwargs.items()}
            result = super().__torch_function__(func, types, args, kwargs)
            result = self._twins(base, result, 1, fresh=not _places(result) & _places([*args]))
        if constant is not None and depends(result) and bool(constant.any()):
            is_bias = any(isinstance(v, nn.Parameter) and v.ndim == 1
                          for v in (*args, *kwargs.values()))  # fmt: skip
            self._added(base, result, constant.expand_as(result), is_bias, counted=not in_place)
        return result

    def _twins(self, base: str, value: Any, sign: int, *, fresh: bool = False) -> Any:
        """Return tensors that depend on the embeddings as ones that only this function knows.

        The derivative by a tensor says what all that read it got; that by a twin what one did.
        What shares memory must go on doing so, since networks write into views; what is `fresh`
        does not.
        """
        if isinstance(value, (list, tuple)) and depends(value):
            kind: Any = type(value)
            return kind([self._twins(base, each, sign, fresh=fresh) for each in value])
        if not depends(value):
            return value
        twin: Tensor = value.clone() if fresh else value.view_as(value)
        if value in self.activated:
            self.activated[twin] = True
        kept = twin.detach().clone()

        def count(gradient: Tensor) -> None:
            self.made[base] += sign * _sum(kept, gradient)

        twin.register_hook(count)  # type: ignore[no-untyped-call]
        return twin

    def _added(
        self, base: str, result: Tensor, constant: Tensor, is_bias: bool, *, counted: bool
    ) -> None:
        def count(gradient: Tensor) -> None:
            part = _sum(constant, gradient)
            self.size += _size(constant, gradient)
            if is_bias:
                self.biases += part
            else:
                self.positions += part
            if counted:
                self.made[base] -= part

        result.register_hook(count)  # type: ignore[no-untyped-call]


def _at_zero(value: Any, in_place: bool) -> Any:
    """Return an argument with zeros in place of what depends on the embeddings."""
    if isinstance(value, (list, tuple)):
        return type(value)(_at_zero(each, in_place) for each in value)
    if not isinstance(value, Tensor):
        return value
    return torch.zeros_like(value) if depends(value) else value.clone() if in_place else value


def _places(value: Any) -> set[int]:
    """Return where the memory of tensors is."""
    if isinstance(value, (list, tuple)):
        return set().union(*map(_places, value))
    return {value.untyped_storage().data_ptr()} if isinstance(value, Tensor) else set()


def _products(values: Tensor, gradient: Tensor) -> Tensor:
    if values.is_complex():
        values, gradient = torch.view_as_real(values), torch.view_as_real(gradient)
    # blocked scores may be minus infinity, with a derivative of 0
    return (values.double() * gradient.double()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _sum(values: Tensor, gradient: Tensor) -> float:
    return float(_products(values, gradient).sum())


def _size(values: Tensor, gradient: Tensor) -> float:
    return float(_products(values, gradient).abs().sum())


def relevance(
    model: Model, batch: Batch, target: Target, attention: Part, gate: Gate = "half"
) -> Tensor:
    """Return what each token's embedding got of the target, ``[batch, token]``.

    Parameters
    ----------
    model : Model
    batch : Batch
    target : Target
        Of a quantity other than the logit, the logits get what its derivative by them says.
    attention, gate
        See `rules.Relevance`.

    Raises
    ------
    ModelError
        If the ledger of the model was seen not to close.
    """
    check_closed(model, attention, gate)
    leaf = model.embeddings(batch.inputs).requires_grad_()
    with following(model, batch, leaf, Relevance(attention, gate)):
        logits, asked = model.logits_for(batch.inputs, target)
    with torch.enable_grad():
        [gradient] = model.backward(asked(logits), [leaf])
    return (leaf.detach().float() * gradient.float()).sum(-1)


def ledger(
    model: Model, batch: Batch, target: Target, attention: Part, gate: Gate = "half"
) -> Ledger:
    """Follow the relevance of the targets to every part that it can end in.

    Parameters
    ----------
    model : Model
    batch : Batch
    target : Target
        Logits.
    attention : {"coefficient", "derivative"}
        CP-LRP or AttnLRP.
    gate : {"half", "coefficient"}
        See `rules.Relevance`.

    Raises
    ------
    InputError
        For a probability: it is no sum of what the tokens contribute.
    """
    if target.quantity != "logit":
        raise InputError("quantity of a ledger", got=target.quantity, expected="logit")
    leaf = model.embeddings(batch.inputs).requires_grad_()
    rules = Counting(attention, gate)
    with following(model, batch, leaf, rules):
        logits, asked = model.logits_for(batch.inputs, target)
    with torch.enable_grad():
        score = asked(logits)
        [gradient] = model.backward(score, [leaf])
    softmax = rules.softmaxes
    return Ledger(
        score=float(score.detach().double().sum()),
        embeddings=_sum(leaf.detach(), gradient),
        biases=rules.biases,
        positions=rules.positions,
        softmax=softmax,
        size=rules.size + _size(leaf.detach(), gradient),
        lost={name: -part for name, part in rules.made.items() if name not in SOFTMAX and part},
    )


_closed: WeakKeyDictionary[nn.Module, dict[tuple[Part, Gate], Ledger]] = WeakKeyDictionary()


def check_closed(model: Model, attention: Part, gate: Gate) -> None:
    """Raise `ModelError` unless the ledger closes on the model's probe; tried once a model.

    A network whose relevance gets lost somewhere would give scores that mean nothing.
    """
    known, rules = _closed.setdefault(model.network, {}), (attention, gate)
    if rules not in known:
        passes = model.passes.copy()
        try:
            probe = model.probe()
            asked = model.aims(probe.encodings, at=model.task.first)
            target = model.target_of([aims[0] for aims in asked])
            known[rules] = ledger(model, probe, target, attention, gate)
        finally:
            model.passes = passes
    found = known[rules]
    rounding = ROUNDING * torch.finfo(model.dtype).eps * found.size
    if abs(found.gap) <= rounding or found.share <= CLOSED:  # nan is neither
        return
    worst = max(found.lost, key=lambda name: abs(found.lost[name]), default="")
    raise ModelError(
        f"relevance gets lost in {type(model.network).__name__}",
        got=f"parts that miss the output by {found.share:.2%}"
        + (f", most of it in the function {worst}" if worst else ""),
        expected="parts that add up to it",
        remedy="use integrated_gradients, which needs nothing of the architecture",
    )
