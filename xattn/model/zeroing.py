"""Zeroing: what leaves a layer if the value of one token is nothing there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from xattn.model.adapter import Model
from xattn.model.layers import Layer, at_layers
from xattn.model.mixing import Measure, Step, chunks, require_values, single
from xattn.model.tap import Edit, Site
from xattn.types import Batch


def repeated(inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Return the inputs of one text, as often as there are rows."""
    return {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in inputs.items()}


def zeroed_values(model: Model, text: Batch, measure: Measure) -> list[Step]:
    """Measure how much the vectors that leave a layer change without the value of one token there.

    Every layer is given what it is given in the true run: rows differ within a layer only.

    Parameters
    ----------
    model : Model
    text : Batch
        One text.
    measure : callable
        Takes the vectors without each token's value, ``[token, query, hidden]``, and the true ones.

    Returns
    -------
    list of Step
        One a layer, in order of computation.
    """
    require_values(model)
    layers = model.layers
    links = {link.site: link for link in model.links()}
    matrices: dict[Site, Tensor] = {}

    def follow(tokens: range) -> None:
        def zero(site: Site, values: Tensor) -> Tensor:
            if site not in links:
                return values
            keys = text.streams[links[site].keys]
            kept = 1 - single(tokens, keys, len(tokens), values)
            kept = torch.cat([torch.ones_like(kept[:1]), kept])
            return values * kept[:, None, :, None]

        def after(layer: Layer, returned: Tensor) -> Tensor:
            found = measure(returned[1:].float(), returned[0].float()).T
            if layer.site not in matrices:
                matrices[layer.site] = found.new_zeros(len(found), text.shape[1])
            matrices[layer.site][:, tokens.start : tokens.stop] = found
            return (
                returned[:1].expand_as(returned).clone()
            )  # the next layer is given the true vectors

        inputs = repeated(text.inputs, 1 + len(tokens))
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(model.borrowed(inputs, [Edit(values=zero)]))
            stack.enter_context(at_layers(model.network, layers, lambda layer, x: x, after))
            model.forward(inputs)

    for tokens in chunks(model, text):
        follow(tokens)
    return [(text.streams[layer.stream], matrices[layer.site]) for layer in layers]
