"""What identifies a model and how it was run."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """Return the SHA-256 of all parameters: two models of one name may differ."""
    digest = hashlib.sha256()
    for name, parameter in network.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def circumstances(network: nn.Module) -> dict[str, Any]:
    """Return weights, size and where they run."""
    first = next(network.parameters())
    return {
        "weights": fingerprint(network),
        "architecture": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "device": str(first.device),
        "dtype": str(first.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
