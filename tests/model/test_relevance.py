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
    "longformer": "blocked scores are minus infinity, which times 0 is no number",
    "led": "blocked scores are minus infinity, which times 0 is no number",
    "falcon": "adds its position bias where the rules do not see it",
}
LOST_IN_SOFTMAX = {"swinv2": "scales scores by a logit that depends on them"}


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
    ends = [leaves, rules.leaves, [s for s, _ in rules.softmaxes], [p for _, p in rules.softmaxes]]
    sources = [tensor for group in ends for tensor in group]
    slopes = iter(torch.autograd.grad(y, sources, allow_unused=True))
    sums, sizes = [], []
    for group in ends:
        pairs = [(t.detach().double(), g) for t, g in zip(group, slopes, strict=False)]
        products = [(t * g).nan_to_num(0, 0, 0) for t, g in pairs if g is not None]
        sums.append(sum(float(p.sum()) for p in products))
        sizes.append(sum(float(p.abs().sum()) for p in products))
    missing = float(y) - (sums[0] + sums[1] - sums[2] + sums[3])
    return abs(missing) / max(sizes[0] + sizes[1], abs(float(y)))


def test_relevance_is_passed_on(architecture: Any, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["architecture"]
    if architecture.inputs.__name__ not in ("text", "image"):
        pytest.skip("takes more than one kind of input")
    if name in LOST:
        pytest.skip(LOST[name])
    assert gap(architecture, "coefficient") <= CLOSED
    if name not in LOST_IN_SOFTMAX:
        assert gap(architecture, "derivative") <= CLOSED
