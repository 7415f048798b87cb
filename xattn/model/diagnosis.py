"""Diagnosis: in which module of a network numbers stop being numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xattn.types import Target

if TYPE_CHECKING:
    from xattn.model.runner import Runner


@contextmanager
def _outputs(network: nn.Module, *, rooted: bool) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield a list that will hold what each innermost module returned, with a gradient or not."""
    held: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            if not isinstance(first, Tensor) or not first.is_floating_point():
                return None
            if not rooted:
                held.append((name, first))
                return None
            if not first.requires_grad:
                first = first.detach().requires_grad_()
            held.append((name, first))
            # a view: modules behind may write into what they are given
            passed = first.view_as(first) if not first.is_leaf else first.clone()
            return (passed, *output[1:]) if isinstance(output, tuple) else passed

        return hook

    inner = [(n, m) for n, m in network.named_modules() if not any(True for _ in m.children())]
    handles = [module.register_forward_hook(keep(name)) for name, module in inner]
    try:
        yield held
    finally:
        for handle in handles:
            handle.remove()


def where_not_finite(
    model: Runner, inputs: Mapping[str, Tensor], target: Target | None = None
) -> str:
    """Return where the first number arises that is not finite, in words; empty if nowhere.

    Forward it is the first module that returns such a number, backward the module nearest to the
    output whose result has such a derivative.

    Parameters
    ----------
    model : Runner
    inputs : mapping
        As in `Batch.inputs`.
    target : Target, optional
        Without it only the way forward is looked at.

    Examples
    --------
    >>> import xattn
    >>> model = xattn.load()
    >>> batch = model.batch(model.encode(["Dull!"]))
    >>> where_not_finite(model, batch.inputs, model.target(batch))
    ''
    """
    rooted = target is not None
    with (
        torch.set_grad_enabled(rooted),
        model.borrowed(inputs),
        _outputs(model.network, rooted=rooted) as held,
    ):
        logits = model.task.logits(model.output(inputs), None, inputs)
        for name, output in held:
            if not bool(output.isfinite().all()):
                return f"the output of {name}"
        if target is None:
            return ""
        score = target(logits.float())
        sources = [output for _, output in held]
        found = torch.autograd.grad(score.sum(), sources, allow_unused=True)
    for (name, _), gradient in reversed(list(zip(held, found, strict=True))):
        if gradient is not None and not bool(gradient.isfinite().all()):
            return f"the gradient at the output of {name}"
    return ""
