"""Decomposition: vectors as sums with one part for each token, through attention, layers, models.

Nothing is known of an architecture by name: a part is followed through whatever the network
computes (see `xattn.model.frozen`). What is handed out was seen to add up: the parts, what biases
add and what was left out on purpose must sum to what the network itself computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from xattn.errors import AttentionError, InputError
from xattn.model.adapter import Model
from xattn.model.attach import TOLERANCE
from xattn.model.frozen import Frozen, frozen
from xattn.model.lanes import Lanes, Sharing
from xattn.model.layers import Layer, at_layers, first_tensor
from xattn.model.mixing import REMEDY, Measure, Step, chunks, require_values, single
from xattn.model.tap import Change, Edit, Site
from xattn.types import Batch, Target

Point = Literal["block", "layer"]


@contextmanager
def _following(
    model: Model, inputs: Mapping[str, Tensor], mode: Frozen, values: Change | None = None
) -> Iterator[None]:
    """Hold the network for one forward pass that carries parts, attention held still."""
    edit = Edit(probabilities=lambda site, p: mode.drop(p), values=values)
    attention = frozenset(link.site.module for link in model.links())
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(model.lock)
        # before the tap: what follows softmaxes through a network must see them first
        stack.enter_context(frozen(model.network, mode, attention))
        stack.enter_context(model.borrowed(inputs, [edit]))
        yield


@dataclass(eq=False)
class _Account:
    """One vector of each token: what was measured of its parts, and whether they add up."""

    where: str
    matrix: Tensor
    """``[query, token]``"""
    followed: Tensor
    """``[query, hidden]``: the sum of the parts so far."""
    rest: Tensor
    """``[query, hidden]``: the vectors themselves, without what biases add."""

    def close(self, dtype: torch.dtype) -> None:
        """Raise `AttentionError` unless everything was accounted for."""
        gap = float((self.followed - self.rest).abs().max())
        scale = max(float(self.rest.abs().max()), float(self.followed.abs().max()))
        if not gap <= TOLERANCE.get(dtype, 1e-4) * scale:
            raise AttentionError(
                f"the parts do not add up at {self.where}",
                got=f"a gap of {gap / scale:.1e} of the largest number",
                expected="at most 1e-4",
                remedy=REMEDY,
            )


class _Pass:
    """One forward pass that follows the parts of some tokens."""

    def __init__(
        self, model: Model, text: Batch, tokens: range, measure: Measure, accounts: dict[Any, Any]
    ) -> None:
        self.model, self.text, self.tokens, self.measure = model, text, tokens, measure
        self.accounts = accounts
        self.links = model.links()
        self.numbers = {link.site: number for number, link in enumerate(self.links)}
        # one lane more than tokens: what attention adds, to see whether it arrives
        self.lanes, self.tracer = Lanes(len(tokens) + 1, aside=True), len(tokens)
        self.mode = Frozen(self.lanes, self.project)

    def project(self, number: int, product: Tensor) -> None:
        """Take what comes out of an attention's output projection."""
        parts = cast(Tensor, self.mode.parts(product))
        parts[self.tracer] = product

    def inject(self, site: Site, values: Tensor) -> Tensor:
        """Make the values of each token a part."""
        number = self.numbers.get(site)
        if number is None:
            return values
        keys = self.text.streams[self.links[number].keys]
        with self.mode.still():
            if values.shape[0] != 1 or values.shape[2] != keys.stop - keys.start:
                raise AttentionError(
                    f"the values at {site} are not laid out by text and token",
                    got=str(list(values.shape)),
                    remedy=REMEDY,
                )
            self.mode.awaiting = number
            mask = single(self.tokens, keys, self.lanes.total, values)
            return self.mode.carry(values, values * mask[:, None, None, :, None])

    def keep(self, key: Any, where: str, queries: int, vectors: Tensor) -> None:
        """Measure the parts of vectors ``[text, query, hidden]``, and take account."""
        parts, value, count = self.mode.parts(vectors), vectors.detach(), self.tracer
        if parts is None:
            raise AttentionError(
                f"no part of a token reaches the vectors at {where}", remedy=REMEDY
            )
        if value.shape[:-1] not in ((1, queries), (queries,)):  # GPT-2 folds texts and tokens
            raise AttentionError(
                f"the vectors at {where} are not laid out by text and token",
                got=str(list(value.shape)),
                expected=f"[1, {queries}, hidden]",
                remedy=REMEDY,
            )
        value = value.float().reshape(queries, -1)
        parts = parts.float().reshape(len(parts), queries, -1)
        if not bool(parts[self.tracer].any()):
            raise AttentionError(
                f"what attention adds does not reach the vectors at {where}",
                expected="a residual connection around the feed-forward block",
                remedy=REMEDY,
            )
        constant, left_out = parts[count + 1], parts[count + 2]
        whole = value - left_out
        if key not in self.accounts:
            matrix = whole.new_zeros(len(whole), self.text.shape[1])
            rest = whole - constant
            self.accounts[key] = _Account(where, matrix, torch.zeros_like(whole), rest)
        account = self.accounts[key]
        account.matrix[:, self.tokens.start : self.tokens.stop] = self.measure(
            parts[:count], whole
        ).T
        account.followed = account.followed + parts[:count].sum(0)

    def run(self) -> None:
        """Run the network."""
        with _following(self.model, self.text.inputs, self.mode, self.inject), self.watched():
            self.model.forward(self.text.inputs)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hold the hooks that this pass needs."""
        yield


class _AttentionPass(_Pass):
    """Follows values to the output projection of their attention, and no further."""

    def project(self, number: int, product: Tensor) -> None:
        super().project(number, product)
        link = self.links[number]
        self.keep(number, str(link.site), self.text.widths[link.queries], product)
        self.mode.drop(product)


class _LayerPass(_Pass):
    """Follows the vectors that enter a layer through it, past its feed-forward block."""

    def __init__(
        self,
        model: Model,
        text: Batch,
        tokens: range,
        measure: Measure,
        accounts: dict[Any, Any],
        point: Point,
    ) -> None:
        super().__init__(model, text, tokens, measure, accounts)
        self.point = point
        self.layers = model.layers  # found by running the network, so not within a pass
        self.layer: Layer | None = None

    def project(self, number: int, product: Tensor) -> None:
        super().project(number, product)
        self.mode.skipping, self.mode.left_out = True, False

    def before(self, layer: Layer, given: Tensor) -> Tensor:
        self.mode.skipping, self.mode.left_out, self.layer = False, False, layer
        stream = self.text.streams[layer.stream]
        with self.mode.still():
            mask = single(self.tokens, stream, self.lanes.total, given)
            return self.mode.carry(given, given * mask[:, None, :, None])

    def after(self, layer: Layer, returned: Tensor) -> Tensor:
        self.end(layer, returned)
        self.mode.skipping = False
        return self.mode.drop(returned)

    def end(self, layer: Layer, vectors: Tensor) -> None:
        """Take what a layer puts out, once."""
        if self.layer is not None:
            with self.mode.still():
                self.keep(layer.site, str(layer.site), vectors.shape[1], vectors)
            self.layer = None

    def meet(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """See whether a module is given the sum behind the feed-forward block: a norm follows."""
        given = first_tensor(args, kwargs) if self.mode.left_out and self.layer else None
        if given is not None and self.layer is not None and self.mode.parts(given) is not None:
            self.end(self.layer, given)

    @contextmanager
    def watched(self) -> Iterator[None]:
        layers, network = self.layers, self.model.network
        inside = {m for layer in layers for m in network.get_submodule(layer.site.module).modules()}
        met = inside if self.point == "block" else set()
        handles = [m.register_forward_pre_hook(self.meet, with_kwargs=True) for m in met]
        try:
            with at_layers(network, layers, self.before, self.after):
                yield
        finally:
            for handle in handles:
                handle.remove()


def attention_parts(model: Model, text: Batch, measure: Measure) -> list[Step]:
    """Measure what each token's value adds to the output of every attention.

    The parts of token ``i``'s output are ``Σ_h α_h[i, j] v_h[j] W_O`` for each token ``j``; with
    the bias of the output projection they sum to the output.

    Parameters
    ----------
    model : Model
    text : Batch
        One text.
    measure : callable
        See `Measure`.

    Returns
    -------
    list of Step
        One a link, in order of computation: ``[query, token]`` over the tokens of all streams.

    Raises
    ------
    AttentionError
        If the parts do not sum to the output.
    """
    require_values(model)
    accounts: dict[int, _Account] = {}
    for tokens in chunks(model, text):
        _AttentionPass(model, text, tokens, measure, accounts).run()
    links = model.links()
    _closed(model, [(n, str(link.site)) for n, link in enumerate(links)], accounts)
    return [(text.streams[link.queries], accounts[n].matrix) for n, link in enumerate(links)]


def layer_parts(model: Model, text: Batch, measure: Measure, point: Point) -> list[Step]:
    """Measure what each token's vector adds to those that leave every layer.

    The parts are those of attention, and each token's own vector by the residual connection, under
    the norms of the layer with the statistics of the true run. The feed-forward block is passed by
    in its residual connection. Between decoder and encoder, source tokens come in as values.

    Parameters
    ----------
    model : Model
    text : Batch
        One text.
    measure : callable
        See `Measure`.
    point : {"block", "layer"}
        At the output of the layer; or before the norm behind its feed-forward block, if there is
        one: that is the output of the attention block.

    Returns
    -------
    list of Step
        One a layer, in order of computation.

    Raises
    ------
    AttentionError
        If the parts and what was left out do not sum to the output.
    """
    require_values(model)
    accounts: dict[Site, _Account] = {}

    def follow(lean: bool) -> bool:
        accounts.clear()
        for tokens in chunks(model, text):
            run = _LayerPass(model, text, tokens, measure, accounts, point)
            run.mode.lean = lean
            run.run()
            if lean and run.mode.leaked:
                return False
        return True

    # queries, keys and values need no parts, unless something else leaves attention, too
    if not follow(lean=True):
        follow(lean=False)
    _closed(model, [(layer.site, str(layer.site)) for layer in model.layers], accounts)
    return [(text.streams[y.stream], accounts[y.site].matrix) for y in model.layers]


def _closed(model: Model, wanted: Sequence[tuple[Any, str]], accounts: Mapping[Any, Any]) -> None:
    """Require an account that closes of everything that is wanted."""
    for key, where in wanted:
        if key not in accounts:
            raise AttentionError(
                f"the output projection of the attention at {where} was not seen",
                remedy=REMEDY,
            )
        accounts[key].close(model.dtype)


def output_parts(
    model: Model, text: Batch, target: Target, sharing: Sharing, tokens: Sequence[range]
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the vectors that enter the first layers to the target.

    Parameters
    ----------
    model : Model
    text : Batch
        One text.
    target : Target
        Of it: a logit, or a difference of logits.
    sharing : {"absdot", "norm", "equal", "none"}
        See `frozen.Sharing`.
    tokens : sequence of range
        Which tokens in each pass; with shared biases all must be in one.

    Returns
    -------
    parts : Tensor
        ``[token]``
    constant : Tensor
        Scalar: what biases add that are not shared.
    score : Tensor
        Scalar: the target.
    """
    if target.quantity != "logit":
        raise InputError(
            "only logits are sums of parts",
            got=f"quantity {target.quantity}",
            expected="logit",
            remedy="use --quantity logit",
        )
    require_values(model)
    first = {layer.stream: layer for layer in reversed(model.layers)}
    found: list[Tensor] = []
    for run in tokens:
        mode = Frozen(Lanes(len(run), sharing))

        def enter(layer: Layer, given: Tensor, run: range = run, mode: Frozen = mode) -> Tensor:
            if first.get(layer.stream) is not layer:
                return given
            with mode.still():
                stream = text.streams[layer.stream]
                mask = single(run, stream, mode.lanes.total, given)
                return mode.carry(given, given * mask[:, None, :, None])

        starts = at_layers(model.network, tuple(first.values()), enter, lambda layer, x: x)
        with _following(model, text.inputs, mode), starts:
            score = model.value(text.inputs, target)
            parts = mode.parts(score)
        if parts is None:
            raise AttentionError(
                "no part of the input reaches the output",
                remedy="use a method that needs gradients only, such as integrated_gradients",
            )
        found.append(parts[: len(run), 0])
        constant, whole = parts[len(run) :].sum(), score[0]
    return torch.cat(found), constant, whole
