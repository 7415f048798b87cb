"""Relevance: input times gradient under rules, and the ledger that shows that none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xattn.errors import AttentionError, ModelError
from xattn.model.operations import LINEAR, ORDER, plain_name
from xattn.model.rules import (
    Differences,
    Gate,
    Part,
    Relevance,
    Rules,
    depends,
    norm_arguments,
    ruled,
)
from xattn.model.tap import Edit
from xattn.types import Batch, Target

if TYPE_CHECKING:
    from xattn.model.adapter import Model

CLOSED = 1e-3
"""Largest gap of a ledger, relative to the sum of the absolute values of its parts."""


@dataclass(frozen=True)
class Ledger:
    """Where the relevance of an output went: the parts add up to the score."""

    score: float
    """The targets, added up over the batch."""
    embeddings: float
    """What the tokens' embeddings got."""
    constants: float
    """What everything that is added on the way got: biases, positions, segments, learned tokens."""
    softmax: float
    """What came into being in softmaxes that kept their derivative (AttnLRP); else 0."""
    size: float
    """The sum of absolute values of all entries: what the gap is measured by."""

    @property
    def gap(self) -> float:
        """The score minus all parts."""
        return self.score - self.embeddings - self.constants - self.softmax


class Counting(Relevance):
    """Relevance whose additive constants are leaves, so that their share can be told."""

    def __init__(self, attention: Part, gate: Gate) -> None:
        super().__init__(attention, gate)
        self.leaves: list[Tensor] = []
        """The constants that were added on the way."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, follow = kwargs or {}, super().__torch_function__
        if self.paused or not torch.is_grad_enabled():
            return func(*args, **kwargs)

        def ruled_function(*given: Any, **named: Any) -> Any:
            return follow(func, types, given, named)

        return self._added(func, ruled_function, args, kwargs)

    def _added(self, original: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute a function under the rules, and count the constant that it adds."""
        if not any(map(depends, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        base, in_place, _ = plain_name(getattr(original, "__name__", ""))
        if base in ("add", "sub", "rsub") and len(args) > 1:
            result = func(*args, **kwargs)
            constants = [value for value in args[:2] if not depends(value)]
            if not constants:
                return result
            nothing = [torch.zeros_like(v) if depends(v) else v for v in args[:2]]
            plain = getattr(torch, base) if in_place else original
            with torch.no_grad():
                effect = plain(*nothing, *args[2:], **kwargs).expand_as(result)
            return self._counted(result, effect)
        if base in LINEAR:
            result = func(*args, **kwargs)
            given = {**dict(zip(ORDER[base], args, strict=False)), **kwargs}
            bias = given.get(LINEAR[base][2])
            if bias is None or depends(bias):
                return result
            effect = (bias * given.get("beta", 1)).detach()
            if base == "conv1d":
                effect = effect[:, None]
            return self._counted(result, effect.expand_as(result))
        if base == "layer_norm":
            bias = norm_arguments(args, kwargs, ("weight", "bias", "eps"))[3]
            result = func(*args, **kwargs)
            return result if bias is None else self._counted(result, bias.expand_as(result))
        if base in ("cat", "stack", "concat"):
            parts = [p if depends(p) or not p.is_floating_point() else self._leaf(p)
                     for p in args[0]]  # fmt: skip
            return func(parts, *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _leaf(self, constant: Tensor) -> Tensor:
        leaf = constant.detach().clone().requires_grad_()
        self.leaves.append(leaf)
        return leaf

    def _counted(self, result: Tensor, effect: Tensor) -> Tensor:
        leaf = self._leaf(effect)
        return result + (leaf - leaf.detach())  # the value stays, and the leaf takes its part


@contextmanager
def _following(model: Model, batch: Batch, leaf: Tensor, rules: Rules) -> Iterator[None]:
    """Run the network with other embeddings under rules."""
    model.require_gradients()
    attached = model.attach()
    names = frozenset(site.module for site in attached.sites)
    # attention in whole steps, so that they are seen one by one
    steps = [Edit(probabilities=lambda site, p: p)] if attached.backend != "maps" else []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(model.borrowed(batch.inputs, steps))
        stack.enter_context(model.embedded(batch.inputs, leaf))
        stack.enter_context(ruled(model.network, rules, names))
        yield


def relevance(
    model: Model, batch: Batch, target: Target, attention: Part, gate: Gate = "half"
) -> Tensor:
    """Return what each token's embedding got of the target, ``[batch, token]``.

    Parameters
    ----------
    model : Model
    batch : Batch
    target : Target
    attention, gate
        See `rules.Relevance`.

    Raises
    ------
    ModelError
        If the ledger of the model was seen not to close.
    """
    check_closed(model, attention, gate)
    leaf = model.embeddings(batch.inputs).requires_grad_()
    with _following(model, batch, leaf, Relevance(attention, gate)):
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
        Logits: other quantities are no sums.
    attention : {"coefficient", "derivative"}
        CP-LRP or AttnLRP.
    gate : {"half", "coefficient"}
        See `rules.Relevance`.
    """
    leaf = model.embeddings(batch.inputs).requires_grad_()
    rules = Counting(attention, gate)
    with _following(model, batch, leaf, rules):
        logits, asked = model.logits_for(batch.inputs, target)
    with torch.enable_grad():
        score = asked(logits).sum()
        scores, probabilities = ([pair[i] for pair in rules.softmaxes] for i in (0, 1))
        sources = [leaf, *rules.leaves, *scores, *probabilities]
        found = torch.autograd.grad(score, sources, allow_unused=True)

    def entries(tensors: list[Tensor], gradients: tuple[Tensor | None, ...]) -> tuple[float, float]:
        products = [
            (t.detach() * g).nan_to_num(nan=0.0, neginf=0.0, posinf=0.0).double()
            for t, g in zip(tensors, gradients, strict=True)
            if g is not None
        ]
        return (
            sum(float(p.sum()) for p in products),
            sum(float(p.abs().sum()) for p in products),
        )

    first, second = 1 + len(rules.leaves), 1 + len(rules.leaves) + len(scores)
    own, size = entries([leaf], found[:1])
    added, more = entries(rules.leaves, found[1:first])
    before, _ = entries(scores, found[first:second])
    after, _ = entries(probabilities, found[second:])
    return Ledger(float(score.detach()), own, added, after - before, size + more)


_closed: WeakKeyDictionary[nn.Module, dict[tuple[Part, Gate], float]] = WeakKeyDictionary()


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
            found = ledger(model, probe, target, attention, gate)
            known[rules] = abs(found.gap) / max(found.size, abs(found.score), 1e-9)
        finally:
            model.passes = passes
    if not known[rules] <= CLOSED:  # nan is not, either
        raise ModelError(
            f"relevance gets lost in {type(model.network).__name__}",
            got=f"parts that miss the output by {known[rules]:.1%} of their size",
            expected="parts that add up to it",
            remedy="use integrated_gradients, which needs nothing of the architecture",
        )


def differences(model: Model, batch: Batch, target: Target, kind: str) -> tuple[Tensor, Tensor]:
    """Return DeepLIFT's scores ``[batch, token]`` and ``y(e) − y(e′)``, ``[batch]``.

    Parameters
    ----------
    model : Model
    batch : Batch
    target : Target
    kind : str
        The baseline; see `Runner.baseline`.
    """
    actual, start = model.embeddings(batch.inputs), model.baseline(batch, kind)
    leaf = actual.clone().requires_grad_()
    pair = torch.arange(len(batch), device=actual.device).repeat(2)
    doubled = replace(
        batch,
        encodings=batch.encodings * 2,
        inputs={name: tensor[pair] for name, tensor in batch.inputs.items()},
    )
    both = torch.cat([leaf, start])
    try:
        with _following(model, doubled, both, Differences()):
            logits, asked = model.logits_for(doubled.inputs, target[pair])
            value = asked(logits)
    except NotImplementedError as error:
        raise AttentionError(
            f"DeepLIFT has no rule for a function of {type(model.network).__name__}",
            got=str(error),
            remedy="use integrated_gradients, which needs nothing of the architecture",
        ) from error
    [gradient] = model.backward(value[: len(batch)], [leaf])
    scores = ((actual - start).float() * gradient.float()).sum(-1)
    reached = value.detach()
    return scores, reached[: len(batch)] - reached[len(batch) :]
