"""What identifies a model and how it was run."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import torch

from xattn.model import wrappers


def fingerprint(network: Any) -> str:
    """Return the SHA-256 of all weights: two models of one name may differ."""
    digest = hashlib.sha256()
    for name, tensor in wrappers.weights(network):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def circumstances(network: Any) -> dict[str, Any]:
    """Return weights, size and where they run."""
    return {
        "weights": fingerprint(network),
        "architecture": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "device": str(wrappers.device(network)),
        "dtype": str(network.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
