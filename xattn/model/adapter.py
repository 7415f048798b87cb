"""The model adapter: encode, batch, score, differentiate, tap and edit one Hugging Face classifier.

Every call hands the network back as it came, also after an exception or Ctrl-C: training mode,
gradient flags, attention implementation, hooks and configuration. Calls from several threads take
turns.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn.errors import AttentionError, InputError, ModelError, UnknownNameError
from xattn.model import batching, borrow, encoding, wrappers
from xattn.model.tap import BACKENDS, Edit, Site, Tap, find_backend
from xattn.types import AttentionMaps, Batch, Encoding, Quantity, Row, Target


@dataclass
class Passes:
    """How many inputs went forward and backward through the network so far."""

    forward: int = 0
    backward: int = 0

    def copy(self) -> Passes:
        """Return the counts as they stand now."""
        return Passes(self.forward, self.backward)


@dataclass(frozen=True, eq=False)
class Trace:
    """What one forward pass (and one backward pass) left behind.

    Maps and gradients are kept as they came, one tensor a site, in the order of computation.
    """

    score: Tensor
    """``[batch]``: the target."""
    sites: tuple[Site, ...]
    maps: tuple[Tensor, ...]
    """Per site ``[batch, head, query, key]``, or what `reduce` made of it."""
    gradients: tuple[Tensor, ...]
    """Per site the derivative of the target by the map, same shape; empty if not asked for."""
    readout: Tensor
    """``[batch, token]``: where the prediction is read from; rows sum to 1, 0 at padding."""


def _identity(maps: Tensor) -> Tensor:
    return maps


class Model:
    """A sequence classifier with its tokenizer.

    Parameters
    ----------
    network : transformers.PreTrainedModel
        A sequence classifier of any architecture; or a PEFT, compiled or parallel model around
        one, see `wrappers.unwrapped`. Compiled models run uncompiled here.
    tokenizer : transformers.PreTrainedTokenizerBase
    name : str
        What it is called in results.
    revision : str, optional
        Commit of a model from the Hub.
    budget : int
        Tokens that go through the network together; see `batching.buckets`.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        name: str = "",
        revision: str | None = None,
        budget: int = 2048,
    ) -> None:
        self.network, self.shells = wrappers.unwrapped(network)
        self.tokenizer = tokenizer
        network = self.network
        self.name = name or type(network).__name__
        self.revision = revision
        self.passes = Passes()
        count = int(network.config.num_labels)
        problem = network.config.problem_type
        if count < 2 or problem in ("regression", "multi_label_classification"):
            raise ModelError(
                f"{self.name} does not choose one of several classes",
                got=f"{count} outputs, problem type {problem}",
                expected="a classifier with two classes or more",
                remedy="name another model: regression and multi-label models are not served yet",
            )
        named = network.config.id2label or {}
        self.labels = tuple(str(named.get(i, i)) for i in range(count))
        self.limit = encoding.token_limit(network, tokenizer)
        self.input_names = encoding.input_names(network, tokenizer)
        # A network that takes no mask (FNet) would read padding: its texts run one by one.
        self.budget = budget if "attention_mask" in self.input_names else 0
        # The model's own padding id counts, not the tokenizer's: decoder heads look for it.
        self._pad_id: int | None = network.config.get_text_config().pad_token_id
        self._edits: tuple[Edit, ...] = ()
        self._verified: tuple[str, tuple[Site, ...]] | None = None
        self._lock = borrow.lock(self.network)

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {type(self.network).__name__}, {len(self.labels)} classes, "
            f"{self.dtype}, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where inputs go; see `wrappers.device`."""
        return wrappers.device(self.network)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return self.network.dtype  # type: ignore[no-any-return]

    # ------------------------------------------------------------------ texts

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, truncate: bool = False
    ) -> list[Encoding]:
        """Encode texts, or pairs of texts; see `xattn.model.encoding.encode`."""
        encodings = encoding.encode(
            self.tokenizer, texts, pairs, limit=self.limit, truncate=truncate
        )
        # the table may be wrapped (by PEFT), and then has no num_embeddings
        rows = len(self.network.get_input_embeddings().weight)
        largest = max((int(e.row["input_ids"].max()) for e in encodings), default=0)
        if largest >= rows:
            raise ModelError(
                "the tokenizer does not belong to the model",
                got=f"the token id {largest}",
                expected=f"less than the {rows} rows of the embedding table",
                remedy="load model and tokenizer from the same place",
            )
        return encodings

    def batch(self, encodings: Sequence[Encoding]) -> Batch:
        """Collate encodings on the model's device, padded on the right."""
        encodings = tuple(encodings)
        inputs = self.collate([e.row for e in encodings])
        special = torch.ones_like(inputs["attention_mask"], dtype=torch.bool)
        for i, e in enumerate(encodings):
            special[i, : len(e)] = torch.from_numpy(e.special)
        return Batch(encodings, inputs, special)

    def batches(self, encodings: Sequence[Encoding]) -> Iterator[tuple[list[int], Batch]]:
        """Yield positions and batches of similar length under the token budget."""
        for group in batching.buckets([len(e) for e in encodings], self.budget):
            yield group.tolist(), self.batch([encodings[i] for i in group])

    def collate(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Stack the model's input arrays, padded on the right; each ``[batch, token]``."""
        pad = self._pad_id
        if pad is None:  # any id that no text uses will do: padding is masked
            used = {int(i) for row in rows for i in row["input_ids"]}
            pad = next(i for i in range(len(used) + 1) if i not in used)
        return batching.pad(rows, pad, self.device)

    def token_id(self, kind: str) -> int:
        """Return the id of the tokenizer's ``mask``, ``pad``, ``unk`` ... token, or of ``auto``."""
        return encoding.token_id(self.tokenizer, kind)

    # ---------------------------------------------------------------- targets

    def target(
        self,
        batch: Batch,
        label: str | int | None = None,
        against: str | int | None = None,
        quantity: Quantity = "logit",
        *,
        logits: Tensor | None = None,
    ) -> Target:
        """Return what is explained: by default the logit of the predicted class.

        Parameters
        ----------
        batch : Batch
        label : str or int, optional
            A class by name or number; the predicted class of each example by default.
        against : str or int, optional
            A class to subtract: explain why `label` rather than `against`. Examples that predict
            `against` themselves would have a margin of zero and are refused.
        quantity : {"logit", "log_probability", "probability"}
        logits : Tensor, optional
            ``[batch, class]``, where they are known already.
        """
        if label is None:
            labels = (self.logits(batch.inputs) if logits is None else logits).argmax(-1)
        else:
            labels = torch.full((len(batch),), self.label_id(label), device=self.device)
        other = None
        if against is not None:
            other = torch.full_like(labels, self.label_id(against))
            if bool((other == labels).any()):
                raise InputError(
                    "a margin needs two classes",
                    got=f"{self.labels[int(other[0])]!r} against itself",
                    remedy="name another class with label (--label)",
                )
        return Target(labels, other, quantity)

    def label_id(self, label: str | int) -> int:
        """Return the number of a class given by name or number."""
        if isinstance(label, str) and label in self.labels:
            return self.labels.index(label)
        if str(label).isdecimal() and int(label) < len(self.labels):
            return int(label)
        raise UnknownNameError("class", str(label), self.labels)

    # ---------------------------------------------------------- forward passes

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return ``[batch, class]`` float32, without gradients."""
        with torch.no_grad(), self._borrowed(inputs):
            return self._forward(inputs)

    def _forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        pads = {i for i in (self._pad_id, self.tokenizer.pad_token_id) if i is not None}
        batching.refuse_left_padding(inputs, pads)
        output = self.network(**{name: inputs[name] for name in self.input_names})
        logits: Tensor | None = getattr(output, "logits", None)
        if logits is None or logits.ndim != 2:
            raise ModelError(
                "the model is not a sequence classifier",
                got=f"{type(self.network).__name__} with output "
                + ("without logits" if logits is None else f"of shape {list(logits.shape)}"),
                expected="logits [batch, class]",
                remedy="load it with AutoModelForSequenceClassification",
            )
        self.passes.forward += len(logits)
        if not bool(logits.isfinite().all()):
            bad = int((~logits.isfinite().all(-1)).nonzero()[0])
            raise ModelError(
                f"the model's logits are not finite at input {bad} of the batch",
                got=str(logits[bad].tolist()),
                remedy="check the weights, or use --dtype float32",
            )
        return logits.float()

    def _backward(self, score: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the derivative of each example's score by each source."""
        if torch.is_inference_mode_enabled():
            raise ModelError(
                "gradients cannot be taken within torch.inference_mode()",
                remedy="call it outside, or within torch.no_grad()",
            )
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
    def _borrowed(self, inputs: Mapping[str, Tensor], *recordings: Edit) -> Iterator[None]:
        """Hold the network for one forward pass, with the open edits and `recordings`."""
        edits = (*self._edits, *recordings)
        with self._lock, ExitStack() as stack:
            stack.enter_context(wrappers.eager())
            stack.enter_context(borrow.frozen(self.network))
            stack.enter_context(borrow.padding_named(self.network, inputs))
            if edits:
                backend, _ = self.attach()
                stack.enter_context(BACKENDS[backend](self.network, Tap(self.network, edits)))
            yield

    # ---------------------------------------------------------------- attention

    def trace(
        self,
        batch: Batch,
        target: Target,
        *,
        reduce: Callable[[Tensor], Tensor] = _identity,
        gradients: bool = False,
    ) -> Trace:
        """Run forward once, recording every attention map, and backward as far as needed.

        The readout is found by gradient and not by model family: positions mix in attention only,
        so the derivative of the target by the output of the *last* attention module is non-zero at
        exactly the positions that the prediction is read from. Its norm per position, normalised,
        is the readout.

        Parameters
        ----------
        batch : Batch
        target : Target
        reduce : callable
            Applied to each map ``[batch, head, query, key]`` as soon as it is computed, so that
            what is not needed is never held. Not together with `gradients`.
        gradients : bool
            Also differentiate the target by every map. Without it, the backward pass is as short
            as the head of the model.

        Raises
        ------
        AttentionError
            If the model's attention cannot be reached.
        """
        if gradients and reduce is not _identity:
            raise ValueError("gradients are taken of whole maps: do not reduce them")
        with self._lock:
            _, known = self.attach()
            sites: list[Site] = []
            maps: list[Tensor] = []

            def record(site: Site, probabilities: Tensor) -> Tensor:
                if gradients and not probabilities.requires_grad:
                    # frozen parameters: the first map depends on nothing that has a gradient
                    probabilities = probabilities.detach().requires_grad_()
                size = batch.input_ids.shape[1]
                if probabilities.shape[-2:] != (size, size):
                    raise AttentionError(
                        f"the attention at {site} is not between the tokens of the text",
                        got=str(list(probabilities.shape)),
                        expected=f"[batch, head, {size}, {size}]",
                        remedy="use a method that does not need attention",
                    )
                sites.append(site)
                maps.append(reduce(probabilities))
                return probabilities

            with ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                stack.enter_context(self._borrowed(batch.inputs, Edit(probabilities=record)))
                last = stack.enter_context(borrow.output_of(self.network, known[-1]))
                score = target(self._forward(batch.inputs))
                if last[0].shape[:2] != batch.input_ids.shape:
                    raise AttentionError(
                        f"the output of {known[-1]} is not laid out by text and token",
                        got=str(list(last[0].shape)),
                        expected=f"[batch, token, hidden], beginning {[*batch.input_ids.shape]}",
                        remedy="use a method that does not need attention",
                    )
                sources = [*(maps if gradients else ()), last[0]]
                derivatives = self._backward(score, sources)
        strength = derivatives[-1].float().norm(dim=-1) * batch.attention_mask
        total = strength.sum(-1, keepdim=True)
        if bool((total == 0).any()):
            raise AttentionError(
                "the prediction does not depend on the last attention layer",
                got=f"a zero gradient at {known[-1]}",
                remedy="a probability near 0 or 1 has none: explain the logit (--quantity logit)",
            )
        return Trace(
            score=score.detach(),
            sites=tuple(sites),
            maps=tuple(m.detach() for m in maps),
            gradients=derivatives[:-1],
            readout=strength / total,
        )

    def attention(self, encodings: Sequence[Encoding]) -> list[AttentionMaps]:
        """Return the attention maps of each text, for its predicted class."""
        results: dict[int, AttentionMaps] = {}
        for positions, batch in self.batches(encodings):
            trace = self.trace(batch, self.target(batch))
            for i, position in enumerate(positions):
                count = len(batch.encodings[i])
                stacked = torch.stack([m[i, :, :count, :count].float() for m in trace.maps])
                results[position] = AttentionMaps(
                    tokens=batch.encodings[i].tokens,
                    maps=stacked.cpu().numpy(),
                    sites=tuple(map(str, trace.sites)),
                    readout=trace.readout[i, :count].cpu().numpy(),
                )
        return [results[i] for i in range(len(encodings))]

    @contextmanager
    def edit(self, *edits: Edit) -> Iterator[None]:
        """Change attention for everything that is computed within the ``with`` block.

        Edits nest and apply in order; whatever is recorded sees the edited maps.

        Raises
        ------
        AttentionError
            If the model's attention cannot be reached: an edit is never silently ignored.
        """
        with self._lock:
            self.attach()
            before = self._edits
            self._edits = (*before, *edits)
            try:
                yield
            finally:
                self._edits = before

    def attach(self) -> tuple[str, tuple[Site, ...]]:
        """Return a backend that was seen to leave the logits alone, and the sites it reaches.

        Verified once per model on two texts of different lengths, so that padding is tried too.

        Raises
        ------
        AttentionError
            If there is no attention, or no backend reproduces the logits.
        """
        with self._lock:
            if self._verified is None:
                self._verified = self._find_backend()
            return self._verified

    def _find_backend(self) -> tuple[str, tuple[Site, ...]]:
        if self.network.config.is_encoder_decoder:
            raise AttentionError(
                f"{type(self.network).__name__} has several stacks of attention, which no method "
                "here puts together yet",
                got="an encoder-decoder",
                expected="an encoder or a decoder",
                remedy="use a method that does not need attention",
            )
        probe = self.batch(self.encode(["a b c d e f g h", "a b c"]))

        def forward() -> Tensor:
            with torch.no_grad(), self._borrowed(probe.inputs):
                return self._forward(probe.inputs)

        return find_backend(self.network, forward)

    # ---------------------------------------------------------------- embeddings

    def embeddings(self, input_ids: Tensor) -> Tensor:
        """Return the token embeddings ``[batch, token, hidden]`` of ids ``[batch, token]``."""
        with torch.no_grad(), self._lock:
            table: Tensor = self.network.get_input_embeddings()(input_ids)
            return table.detach()

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
            ``[batch, token, hidden]``: what the embedding table shall return.
        target : Target

        Returns
        -------
        score : Tensor
            ``[batch]``.
        gradient : Tensor
            ``[batch, token, hidden]``.
        """
        leaf = embeddings.detach().requires_grad_()
        with torch.enable_grad(), self._borrowed(inputs), borrow.embedded(self.network, leaf):
            score = target(self._forward(inputs))
            (gradient,) = self._backward(score, [leaf])
        return score.detach(), gradient

    def score(
        self, inputs: Mapping[str, Tensor], target: Target, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the target ``[batch]``, optionally with other token embeddings."""
        swap = nullcontext() if embeddings is None else borrow.embedded(self.network, embeddings)
        with torch.no_grad(), self._borrowed(inputs), swap:
            return target(self._forward(inputs))

    # ---------------------------------------------------------------- provenance

    def provenance(self) -> dict[str, Any]:
        """Return what identifies this model and how it was run."""
        return {
            "model": self.name,
            "revision": self.revision,
            "weights": self._fingerprint(),
            "architecture": type(self.network).__name__,
            "shells": list(self.shells),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        }

    def _fingerprint(self) -> str:
        """Return the SHA-256 of all weights: two models of one name may differ."""
        digest = hashlib.sha256()
        for name, tensor in wrappers.weights(self.network):
            digest.update(name.encode())
            digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
