"""The ledger of relevance closes on every architecture of the table, or the reason is known."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from xattn.model import borrow
from xattn.model.attach import BACKENDS
from xattn.model.relevance import CLOSED, Counting
from xattn.model.rules import ruled
from xattn.model.tap import Edit, Tap

LOST = {
    "ibert": "computes with whole numbers",
    "canine": "has no table of embeddings",
    "fsmt": "names no table of embeddings",
}


def tables(network: Any, picture: bool) -> list[nn.Module]:
    if picture:
        return [next(m for m in network.modules() if isinstance(m, nn.Conv2d))]
    if network.config.is_encoder_decoder:
        sides = (network.get_encoder(), network.get_decoder())
        return list(dict.fromkeys(side.get_input_embeddings() for side in sides))
    return [network.get_input_embeddings()]


def gap(architecture: Any, attention: Literal["coefficient", "derivative"]) -> float:
    """Return what is missing of an output, relative to the size of its parts."""
    network, found = architecture.attached()
    torch.manual_seed(0)
    for parameter in network.parameters():  # new networks have none that is not 0
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    leaves: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[-1].clone()

    rules = Counting(attention, "half")
    tap = Tap(network, [Edit(probabilities=lambda site, p: p)])
    backend = nullcontext() if found.backend == "maps" else BACKENDS[found.backend](network, tap)
    picture = architecture.inputs.__name__ == "image"
    handles = [table.register_forward_hook(hook) for table in tables(network, picture)]
    try:
        names = {site.module for site in found.sites}
        with (
            torch.enable_grad(),
            borrow.frozen(network),
            backend,
            ruled(network, rules, names),
        ):
            logits = architecture.logits(network, 9)
    finally:
        for handle in handles:
            handle.remove()
    y = logits.flatten()[:3].sum() if logits.ndim < 3 else logits[0, -1, :3].sum()
    slopes = torch.autograd.grad(y, leaves)
    own = [(t.detach().double() * g.double()).sum() for t, g in zip(leaves, slopes, strict=True)]
    parts = [float(sum(own)), rules.biases, rules.positions, rules.softmaxes]
    return abs(float(y.detach()) - sum(parts)) / max(abs(float(y)), *map(abs, parts))


def test_relevance_is_passed_on(architecture: Any, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["architecture"]
    if architecture.inputs.__name__ not in ("text", "image"):
        pytest.skip("takes more than one kind of input")
    if name in LOST:
        pytest.skip(LOST[name])
    assert gap(architecture, "coefficient") <= CLOSED
    assert gap(architecture, "derivative") <= CLOSED
