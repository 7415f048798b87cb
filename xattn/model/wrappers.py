"""What stands around a network: wrappers that are taken off, and layers that look after weights.

A LoRA adapter, a compiled graph or a parallel module is a shell around a transformers model. xattn
works on the model inside: there are its configuration, its embedding table and its attention.
Nothing is imported for that: an object of a library can only exist where the library is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from xattn.errors import ModelError

# Shells whose ``forward`` does nothing but call the module under this attribute.
SHELLS = {
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.nn.parallel", "DataParallel"): "module",
    ("torch.nn.parallel", "DistributedDataParallel"): "module",
}


class Unwrapped(NamedTuple):
    """The transformers model inside an object, and what was taken off to reach it."""

    network: Any
    shells: tuple[str, ...]
    """Class names, outermost first; empty for a bare model."""


def unwrapped(network: nn.Module) -> Unwrapped:
    """Return the transformers model that computes what `network` computes.

    Adapters of PEFT that live in the layers (LoRA and its kin) stay where they are: the model
    inside computes with them. Compiled models are reached through their original module, which
    `eager` keeps from being compiled: hooks and edits inside a compiled graph may be ignored.

    Raises
    ------
    ModelError
        If there is no transformers model inside, or it computes something else than the wrapper:
        prompt and prefix tuning put vectors before the text that belong to no token, and some
        adapters (X-LoRA, Poly) decide outside of the model what their layers do.
    """
    shells: list[str] = []
    inside: Any = network
    while (inner := _inner(inside)) is not None:
        shells.append(type(inside).__name__)
        inside = inner
    # what a user builds need not be a PreTrainedModel, if it says what it is in the same way
    if not hasattr(inside, "config"):
        raise ModelError(
            "the network is not a transformers model",
            got=type(inside).__name__ + (f" inside {shells[-1]}" if shells else ""),
            expected="a PreTrainedModel, or one that is compiled or carries a PEFT adapter",
            remedy="load it with transformers' AutoModelForSequenceClassification",
        )
    return Unwrapped(inside, tuple(shells))


def _inner(shell: Any) -> Any:
    """Return what is directly inside a shell, or None."""
    for (module, name), attribute in SHELLS.items():
        if _is(shell, module, name):
            return getattr(shell, attribute)
    if not (_is(shell, "peft", "PeftModel") or _is(shell, "peft", "PeftMixedModel")):
        return None
    peft, tuner = sys.modules["peft"], shell.base_model
    # AdaLoRA adds a term to the training loss in its ``forward``, and nothing to the logits.
    plain = (sys.modules["peft.tuners.tuners_utils"].BaseTuner.forward, peft.AdaLoraModel.forward)
    if getattr(type(tuner), "forward", None) not in plain:
        kinds = {
            str(getattr(c.peft_type, "value", c.peft_type)) for c in shell.peft_config.values()
        }
        raise ModelError(
            "this kind of adapter does more than its layers do, so tokens alone cannot explain it",
            got=f"{type(shell).__name__} with " + ", ".join(sorted(kinds)),
            expected="an adapter inside the model's layers, such as LoRA",
            remedy="explain the base model, or train a LoRA adapter",
        )
    return tuner.model


def _is(thing: Any, module: str, name: str) -> bool:
    """Return whether `thing` is of the class called `name`, without importing its library."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(thing, kind)


def eager() -> AbstractContextManager[Any]:
    """Keep everything that is wrapped by ``torch.compile`` uncompiled for a while.

    Also a model or single layers compiled in place (``network.compile()``). Does nothing, and costs
    nothing, where the compiler was never loaded.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def device(network: nn.Module) -> torch.device:
    """Return the device that inputs go to.

    Where the parameters are; with a ``device_map`` of accelerate, where the first layer computes:
    parameters that are offloaded stand on the meta device in between.
    """
    for module in network.modules():
        place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if place is not None:
            return torch.device(place)
    return next(network.parameters()).device


def weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield everything that a checkpoint of the network holds, by name, as plain CPU tensors.

    Module by module, so that offloaded weights are fetched one layer at a time. Quantised weights
    come as their integers, scales and zero points. Shared tensors come once.
    """
    once = {name for name, _ in network.named_parameters()}
    tied = {name for name, _ in network.named_parameters(remove_duplicate=False)} - once
    for prefix, module in network.named_modules():
        with _fetched(module):
            for name, value in _saved(module, f"{prefix}." if prefix else "").items():
                if isinstance(value, Tensor) and name not in tied:
                    yield from _plain(name, value)


def _saved(module: nn.Module, prefix: str) -> dict[str, Any]:
    """Return what a checkpoint holds of one module, without the modules in it."""
    scales = getattr(getattr(module, "weight", None), "quant_state", None)
    if scales is not None:  # bitsandbytes' 4-bit layers change themselves when they are saved
        return {f"{prefix}weight": module.weight, f"{prefix}weight.absmax": scales.absmax}
    held: dict[str, Any] = {}
    # the part of ``state_dict`` that quantised layers override to add their scales
    module._save_to_state_dict(held, prefix, keep_vars=False)
    return held


def _fetched(module: nn.Module) -> AbstractContextManager[Any]:
    """Hold the offloaded weights of one module, where accelerate keeps them elsewhere."""
    if not getattr(getattr(module, "_hf_hook", None), "offload", False):
        return nullcontext()
    held: AbstractContextManager[Any] = sys.modules["accelerate.utils"].align_module_device(module)
    return held


def _plain(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the parts of a tensor subclass (torchao's quantised ones), or the tensor itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor.detach().cpu()
        return
    attributes, _ = tensor.__tensor_flatten__()
    for attribute in attributes:
        yield from _plain(f"{name}.{attribute}", getattr(tensor, attribute))
