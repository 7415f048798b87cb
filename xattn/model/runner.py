"""One network that is held, tapped, edited, and run forward and backward.

Every call hands the network back as it came, also after an exception or Ctrl-C: training mode,
gradient flags, attention implementation, hooks and configuration. Calls from several threads take
turns.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from xattn.errors import AttentionError, InputError, ModelError, XattnWarning
from xattn.model import batching, borrow, entrances, images, interventions, wrappers
from xattn.model.attach import BACKENDS, Attached, check_same, find_backend
from xattn.model.diagnosis import where_not_finite
from xattn.model.entrances import Entrance
from xattn.model.interventions import Intervenable
from xattn.model.layers import Layer, find_layers
from xattn.model.places import Layout
from xattn.model.tap import Edit, Reading, Site, Tap
from xattn.model.tasks import Task, get_task, task_of
from xattn.model.trace import Link, find_cut
from xattn.types import Batch, Target


@dataclass
class Passes:
    """How many inputs went forward and backward through the network so far."""

    forward: float = 0
    backward: float = 0

    def copy(self) -> Passes:
        """Return the counts as they stand now."""
        return Passes(self.forward, self.backward)


def without_padding(batch: Batch, logits: Tensor) -> Tensor:
    """Return the logits of tokens, ``[token, class]``, or all of them for whole inputs.

    What is computed at padding is nobody's business, and differs between backends.
    """
    real = batch.real[:, batch.streams[-1]]
    return logits[real] if logits.shape[:2] == real.shape else logits


class Runner(ABC):
    """What `Model` does to its network; it knows inputs as tensors and nothing of texts.

    Parameters
    ----------
    network : transformers.PreTrainedModel
        As in `Model`.
    tokenizer : object
        As in `Model`.
    task : str, optional
        As in `Model`.
    name : str
        As in `Model`.
    """

    def __init__(self, network: Any, tokenizer: Any, task: str | None, name: str) -> None:
        self.network, self.shells = wrappers.unwrapped(network)
        network = self.network
        self.task: Task = task_of(type(network).__name__) if task is None else get_task(task)
        self.tokenizer, self.reader = images.parts(tokenizer, self.task)
        self.name = name or type(network).__name__
        self.passes = Passes()
        self.budget = 1
        """Tokens that go through the network together."""
        self.input_names = images.input_names(self)
        # The model's own padding id counts, not the tokenizer's: decoder heads look for it.
        self.pad_id: int | None = getattr(network.config.get_text_config(), "pad_token_id", None)
        self.lock = borrow.lock(self.network)
        self._edits: tuple[Intervenable, ...] = ()
        self._attached: Attached | None = None
        self._links: tuple[Link, ...] = ()

    @abstractmethod
    def probe(self) -> Batch:
        """Return two inputs of different lengths, to try the network on."""

    @abstractmethod
    def chain(self, attached: Attached, widths: Sequence[int]) -> tuple[Link, ...]:
        """Return the sites between tokens, given the widths of the probe's streams."""

    @property
    @abstractmethod
    def entrances(self) -> Sequence[Entrance]:
        """Where each stream comes in."""

    @property
    def device(self) -> torch.device:
        """Where inputs go; see `wrappers.device`."""
        return wrappers.device(self.network)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return self.network.dtype  # type: ignore[no-any-return]

    @property
    def paired(self) -> bool:
        """Whether the model is an encoder-decoder that writes: two streams of tokens."""
        return self.task.name == "generate" and bool(self.network.config.is_encoder_decoder)

    def logits(self, inputs: Mapping[str, Tensor], keep: Sequence[int] | None = None) -> Tensor:
        """Return ``[batch, class]`` or ``[batch, position, class]`` float32, without gradients.

        With `keep`, only these positions, in this order.
        """
        chosen = None if keep is None else torch.tensor(keep, device=self.device)
        with torch.no_grad(), self.borrowed(inputs):
            return self.forward(inputs, chosen)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        keep: Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> Tensor:
        """Return the logits of one forward pass, in float32; within `borrowed`.

        With a `cache`, of tokens that go on from those in it, which grows.
        """
        pads = (self.pad_id, getattr(self.tokenizer, "pad_token_id", None))
        batching.refuse_left_padding(inputs, {i for i in pads if i is not None})
        logits = self.task.logits(self.output(inputs, keep, cache), keep, inputs)
        self.passes.forward += len(logits)
        if not bool(logits.isfinite().all()):
            bad = int((~logits.flatten(1).isfinite().all(-1)).nonzero()[0])
            where = where_not_finite(self, inputs)
            raise ModelError(
                f"the model's logits are not finite at input {bad} of the batch",
                got=str(logits[bad].flatten()[:8].tolist())
                + (f", arisen in {where}" if where else ""),
                remedy="check the weights, or use --dtype float32",
            )
        return logits.float()

    def output(
        self,
        inputs: Mapping[str, Tensor],
        keep: Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> Any:
        """Return what the network returns."""
        given: dict[str, Any] = {name: inputs[name] for name in self.input_names if name in inputs}
        if "pixel_values" in given:
            given["pixel_values"] = given["pixel_values"].to(self.dtype)
        if keep is not None and "logits_to_keep" in self._named:
            given["logits_to_keep"] = keep
        if "use_cache" in self._named:  # keys and values of all layers, which one pass never reads
            given["use_cache"] = cache is not None
        if cache is not None:
            given["past_key_values"] = cache
        return self.network(**given)

    @cached_property
    def _named(self) -> frozenset[str]:
        """The parameters that the network's ``forward`` names."""
        return frozenset(inspect.signature(self.network.forward).parameters)

    @property
    def edited(self) -> bool:
        """Whether something is being changed while the network runs."""
        return bool(self._edits)

    @property
    def caches(self) -> bool:
        """Whether the network remembers earlier tokens by their keys and values, and these alone.

        Hybrids keep states of other kinds as well, which cannot be cut into tokens.
        """
        if self.paired or not {"past_key_values", "use_cache"} <= self._named:
            return False
        layers = DynamicCache(config=self.network.config).layers
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

    def verify(self) -> None:
        """Verify everything that tracing relies on, once a model; later calls cost nothing.

        Raises
        ------
        AttentionError
            If the model's attention cannot be reached.
        """
        self.attach()
        _ = self.cut

    @cached_property
    def cut(self) -> Site | None:
        """Where the readout is found with a shorter backward pass; see `trace.find_cut`.

        Found once a model; the same pass tries the reading of maps by runs of queries.

        Raises
        ------
        AttentionError
            If that does not reproduce the logits.
        """
        with self.lock:
            open_edits, self._edits = self._edits, ()  # the probe carries no marks
            try:
                probe = self.probe()
                cut, logits = find_cut(self, probe)
                plain = self.logits(probe.inputs)
                check_same(
                    without_padding(probe, logits), without_padding(probe, plain), self.dtype
                )
                return cut
            finally:
                self._edits = open_edits

    def value(self, inputs: Mapping[str, Tensor], target: Target) -> Tensor:
        """Return the target ``[batch]`` of one forward pass."""
        logits, asked = self.logits_for(inputs, target)
        return asked(logits)

    def logits_for(self, inputs: Mapping[str, Tensor], target: Target) -> tuple[Tensor, Target]:
        """Return the logits that a target needs, and the target as it reads them."""
        if target.position is None:
            return self.forward(inputs), target
        keep, place = torch.unique(target.position, return_inverse=True)
        return self.forward(inputs, keep), replace(target, position=place)

    @staticmethod
    def require_gradients() -> None:
        """Raise `ModelError` where autograd cannot record what a backward pass needs."""
        if torch.is_inference_mode_enabled():
            raise ModelError(
                "gradients cannot be taken within torch.inference_mode()",
                remedy="call it outside, or within torch.no_grad()",
            )

    def backward(self, score: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the derivative of each example's score by each source."""
        self.passes.backward += len(score)
        # Examples do not mix, so the sum's gradient holds each example's own.
        found: tuple[Tensor, ...] = ()
        if score.requires_grad:
            derivatives = torch.autograd.grad(score.sum(), list(sources), allow_unused=True)
            found = tuple(d for d in derivatives if d is not None)
        if len(found) < len(sources):
            raise ModelError(
                "the model passes no gradient through all of its layers",
                got=f"{len(sources) - len(found)} of {len(sources)} derivatives missing",
                remedy="load it with weights that are not quantised, or use a method without "
                "gradients",
            )
        return found

    @contextmanager
    def borrowed(
        self,
        inputs: Mapping[str, Tensor],
        recordings: Sequence[Edit] = (),
        readings: Sequence[Reading] = (),
    ) -> Iterator[Tap | None]:
        """Hold the network for one forward pass, with the open edits, recordings and readings.

        Yields the tap, if there is any reason to open one.
        """
        edits = (*self._edits, *recordings)
        with self.lock, ExitStack() as stack:
            stack.enter_context(wrappers.eager())
            stack.enter_context(borrow.frozen(self.network))
            stack.enter_context(borrow.padding_named(self.network, inputs))
            if not inputs.keys().isdisjoint(entrances.BLANKS):
                blank = entrances.blanked(self.entrances, inputs)
                stack.enter_context(borrow.averaged(blank))
            tap = None
            if edits or readings:
                backend = BACKENDS[self.attach().backend]
                plain = stack.enter_context(
                    interventions.resolved(self.network, edits, self.layout(), inputs)
                )
                tap = Tap(self.network, plain, readings)
                stack.enter_context(backend(self.network, tap))
            yield tap

    @contextmanager
    def edit(self, *edits: Intervenable) -> Iterator[None]:
        """Change attention for everything that is computed within the ``with`` block.

        Edits and interventions nest and apply in order; whatever is recorded sees the edited maps.

        Raises
        ------
        InputError
            If a layer, head or stack does not exist.
        AttentionError
            If the model's attention cannot be reached: an edit is never silently ignored.
        """
        with self.lock:
            interventions.check(edits, self.layout(), self.attach().serves)
            before = self._edits
            self._edits = (*before, *edits)
            try:
                yield
            finally:
                self._edits = before

    def layout(self) -> Layout:
        """Return the attention sites as people name them: by stack, layer and head."""
        attached = self.attach()
        heads = {s: shape[0] for s, shape in zip(attached.sites, attached.shapes, strict=True)}
        several = self.paired or self.task.name == "match"
        stacks = {link.site: link.stack for link in self._links} if several else {}
        return Layout(heads, stacks)

    def attach(self) -> Attached:
        """Return a backend that was seen to leave the logits alone, and the sites it reaches.

        Verified once per model on two texts of different lengths, so that padding is tried too.

        Raises
        ------
        AttentionError
            If there is no attention, or no backend reproduces the logits.
        """
        with self.lock:
            if self._attached is None:
                probe = self.probe()

                def forward() -> Tensor:
                    with self.borrowed(probe.inputs):
                        return without_padding(probe, self.forward(probe.inputs))

                attached = find_backend(self.network, forward)
                self._links = self.chain(attached, probe.widths)
                self._attached = attached
                if attached.skipped:
                    warnings.warn(
                        f"{len(attached.skipped)} layers of {self.name} mix tokens without "
                        f"attention ({attached.skipped[0]} ...): attention methods see the other "
                        f"{len(attached.sites)} only",
                        XattnWarning,
                        stacklevel=2,
                    )
            return self._attached

    def links(self) -> tuple[Link, ...]:
        """Return the attention sites between tokens, in the order of computation.

        Raises
        ------
        AttentionError
            If there are none.
        """
        attached = self.attach()
        if not self._links:
            raise AttentionError(
                f"the attention of {type(self.network).__name__} is not between its tokens",
                got=f"heads, queries, keys {attached.shapes[0]} at {attached.sites[0]}",
                expected="as many queries and keys as tokens",
                remedy="use a method that does not need attention, such as integrated_gradients",
            )
        if self.network.config.is_encoder_decoder and not self.paired:
            raise AttentionError(
                f"{type(self.network).__name__} reads each text twice, in its encoder and its "
                "decoder: its attention is no chain over one sequence",
                remedy="compare what removing tokens does instead",
            )
        return self._links

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in the order of computation, found once a model; see `layers.find_layers`."""
        with self.lock:
            links, probe = self.links(), self.probe()
            shapes = [(len(probe), width) for width in probe.widths]
            return find_layers(self.network, links, shapes, lambda: self.logits(probe.inputs))

    # ---------------------------------------------------------------- embeddings

    def embeddings(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the token embeddings ``[batch, token, hidden]`` of all streams."""
        with torch.no_grad(), self.lock:
            parts = [entrance.embeddings(inputs) for entrance in self.entrances]
            return entrances.side_by_side(parts).detach()

    def baseline(self, batch: Batch, kind: str) -> Tensor:
        """Return embeddings without the input: special tokens stay, all others are replaced.

        Parameters
        ----------
        batch : Batch
        kind : str
            A token of the tokenizer as in `token_id`, or ``zero`` for a vector of zeros. Patches
            of a picture become those of a plain picture in the mean colour (``auto``), or zeros.

        Returns
        -------
        Tensor
            ``[batch, token, hidden]``.
        """
        actual = self.embeddings(batch.inputs)
        if kind == "zero":
            replaced = torch.zeros_like(actual)
        else:
            if kind != "auto" and self.tokenizer is None:
                raise InputError("baseline of a picture", got=repr(kind), expected="auto or zero")
            with torch.no_grad(), self.lock:
                parts = [entrance.baseline(batch.inputs, kind) for entrance in self.entrances]
                replaced = entrances.side_by_side(parts)
        return torch.where(batch.special[:, :, None], actual, replaced)

    def embedded(
        self, inputs: Mapping[str, Tensor], embeddings: Tensor
    ) -> AbstractContextManager[None]:
        """Return a context in which the entrances return `embeddings` of all streams."""
        return borrow.embedded(entrances.outputs(self.entrances, inputs, embeddings))

    @contextmanager
    def noisy(self, radius: float, seed: int) -> Iterator[None]:
        """Add noise to all embeddings within the ``with`` block.

        It is drawn evenly, for each token of the vocabulary by itself, so that a token has the same
        wherever it stands. The tokens that stand for nothing have none.

        Parameters
        ----------
        radius : float
            The largest of it, in units of the root mean square of the table's entries.
        seed : int
        """
        tables = {entrance.module: entrance.noise(radius, seed) for entrance in self.entrances}
        with self.lock, borrow.shaken(list(tables.items())):
            yield

    def embedding_gradient(
        self, inputs: Mapping[str, Tensor], embeddings: Tensor, target: Target
    ) -> tuple[Tensor, Tensor]:
        """Run with other token embeddings and differentiate the target by them.

        The ids are passed as well: some heads look for the padding token in them.

        Parameters
        ----------
        inputs : mapping
            As in `Batch.inputs`.
        embeddings : Tensor
            ``[batch, token, hidden]``: what the embedding tables shall return.
        target : Target

        Returns
        -------
        score : Tensor
            ``[batch]``.
        gradient : Tensor
            ``[batch, token, hidden]``.
        """
        self.require_gradients()
        leaf = embeddings.detach().requires_grad_()
        with torch.enable_grad(), self.borrowed(inputs), self.embedded(inputs, leaf):
            score = self.value(inputs, target)
            (gradient,) = self.backward(score, [leaf])
        return score.detach(), gradient

    def score(
        self, inputs: Mapping[str, Tensor], target: Target, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the target ``[batch]``, optionally with other token embeddings."""
        swap = nullcontext() if embeddings is None else self.embedded(inputs, embeddings)
        with torch.no_grad(), self.borrowed(inputs), swap:
            return self.value(inputs, target)
