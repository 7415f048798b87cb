"""The model adapter: encode, batch, score, differentiate, tap and edit one Hugging Face model.

Every call hands the network back as it came, also after an exception or Ctrl-C: training mode,
gradient flags, attention implementation, hooks and configuration. Calls from several threads take
turns.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from xattn.errors import AttentionError, InputError, ModelError, UnknownNameError, XattnWarning
from xattn.model import (
    batching,
    borrow,
    encoding,
    generation,
    images,
    interventions,
    prompts,
    provenance,
    wrappers,
)
from xattn.model.attach import BACKENDS, Attached, find_backend
from xattn.model.entrances import Entrance, TokenEntrance
from xattn.model.interventions import Intervenable
from xattn.model.places import Layout
from xattn.model.reduction import WHOLE, GradientReduction, Reduction
from xattn.model.tap import Edit, Reading, Site, Tap
from xattn.model.tasks import Question, Task, get_task, task_of
from xattn.model.trace import Link, Trace, chain, readouts
from xattn.types import Aim, AttentionMaps, Batch, Encoding, Quantity, Row, Target
from xattn.types import Link as OutputLink


@dataclass
class Passes:
    """How many inputs went forward and backward through the network so far."""

    forward: int = 0
    backward: int = 0

    def copy(self) -> Passes:
        """Return the counts as they stand now."""
        return Passes(self.forward, self.backward)


class Model:
    """A network with its tokenizer (or what else reads its inputs) and its task.

    Parameters
    ----------
    network : transformers.PreTrainedModel
        Of any architecture; or a PEFT, compiled or parallel model around one, see
        `wrappers.unwrapped`. Compiled models run uncompiled here.
    tokenizer : transformers.PreTrainedTokenizerBase
        For models that see, their image processor; for models of texts and pictures, their
        processor, which holds both.
    task : str, optional
        One of `xattn.model.tasks.TASKS`; by default what the network's class was made for.
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
        task: str | None = None,
        name: str = "",
        revision: str | None = None,
        budget: int = 2048,
    ) -> None:
        self.network, self.shells = wrappers.unwrapped(network)
        network = self.network
        self.task: Task = task_of(type(network).__name__) if task is None else get_task(task)
        self.tokenizer, self.reader = images.parts(tokenizer, self.task)
        self.name = name or type(network).__name__
        self.revision = revision
        self.passes = Passes()
        self.labels = self._class_names()
        """The classes by number; empty where they are the tokens of the vocabulary."""
        self.limit = None if self.tokenizer is None else images.token_limit(self)
        self.input_names = images.input_names(self)
        # A network that takes no mask (FNet) would read padding: its texts run one by one.
        masked = "attention_mask" in self.input_names or self.tokenizer is None
        self.budget = budget if masked else 0
        # The model's own padding id counts, not the tokenizer's: decoder heads look for it.
        self._pad_id: int | None = getattr(network.config.get_text_config(), "pad_token_id", None)
        self._edits: tuple[Intervenable, ...] = ()
        self._attached: Attached | None = None
        self._links: tuple[Link, ...] = ()
        self._front: int | None = None
        self._lock = borrow.lock(self.network)

    def _class_names(self) -> tuple[str, ...]:
        if not self.task.classes:
            return ()
        named = self.network.config.id2label or {}
        return tuple(str(named.get(i, i)) for i in range(int(self.network.config.num_labels)))

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {type(self.network).__name__}, task {self.task.name}, "
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

    @property
    def link(self) -> OutputLink:
        """How the outputs become probabilities."""
        return self.task.link(self.network)

    @property
    def paired(self) -> bool:
        """Whether the model is an encoder-decoder that writes: two streams of tokens."""
        return self.task.name == "generate" and bool(self.network.config.is_encoder_decoder)

    # ------------------------------------------------------------------ texts

    def encode(
        self,
        texts: Sequence[str | prompts.Chat | images.Source],
        pairs: Sequence[str] | None = None,
        *,
        pictures: Sequence[images.Source] | None = None,
        truncate: bool = False,
    ) -> list[Encoding]:
        """Encode texts, or pairs of texts; see `xattn.model.encoding.encode`.

        For models that generate, the pair of a text is its continuation, and a text may be a chat:
        a list of messages with ``role`` and ``content``; see `xattn.model.prompts`. For models that
        see, the "texts" are pictures: files, PIL images or arrays ``[row, column, 3]`` of uint8.
        Models of both take texts and, as `pictures`, one for each; see `xattn.model.images`.
        """
        if self.reader is not None:
            return images.encode(self, texts, pairs, pictures, truncate=truncate)
        if pictures is not None:
            raise InputError(
                f"the task {self.task.name} takes no pictures",
                remedy="see the tasks image and match",
            )
        options: dict[str, Any] = {"limit": self.limit, "truncate": truncate}
        if self.task.name == "generate":
            chats = cast(Sequence[str | prompts.Chat], texts)
            encodings = prompts.encode(self.network, self.tokenizer, chats, pairs, **options)
        else:
            encodings = encoding.encode(self.tokenizer, texts, pairs, **options)  # type: ignore[arg-type]
        rows = self._rows
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
        """Collate encodings on the model's device, each stream padded on the right."""
        return Batch(tuple(encodings), self.collate([e.row for e in encodings]))

    def batches(self, encodings: Sequence[Encoding]) -> Iterator[tuple[list[int], Batch]]:
        """Yield positions and batches of similar length under the token budget."""
        for group in batching.buckets([len(e) for e in encodings], self.budget):
            yield group.tolist(), self.batch([encodings[i] for i in group])

    def collate(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        """Stack the model's input arrays, padded on the right; each ``[batch, token]``."""
        fill = self._pad_id
        if fill is None:  # any id that no text uses will do: padding is masked
            used = {int(i) for row in rows for i in row.get("input_ids", ())}
            fill = next(i for i in range(len(used) + 1) if i not in used)
        return batching.pad(rows, fill, self.device)

    def token_id(self, kind: str) -> int:
        """Return the id of the tokenizer's ``mask``, ``pad``, ``unk`` ... token, or of ``auto``."""
        return encoding.token_id(self.tokenizer, kind)

    def generate(
        self, encodings: Sequence[Encoding], max_new_tokens: int = 16, **options: Any
    ) -> list[Encoding]:
        """Let the model continue each prompt; open edits act on every step.

        Parameters
        ----------
        encodings : sequence of Encoding
            Without continuations.
        max_new_tokens : int
        **options
            As in `xattn.model.generation.generate`: ``seed``, ``num_beams``, ``do_sample`` ...

        Returns
        -------
        list of Encoding
            The prompts with what was written as their pairs.

        Raises
        ------
        InputError
            If a prompt leaves no room, or has a continuation already.
        ModelError
            If the network cannot generate.
        """
        if any(encoding.pair is not None for encoding in encodings):
            raise InputError("a prompt has a continuation already", remedy="pass the text alone")
        written = generation.generate(
            self.network,
            self.tokenizer,
            [encoding.row for encoding in encodings],
            self._borrowed,
            max_new_tokens=max_new_tokens,
            limit=self.limit,
            budget=self.budget,
            **options,
        )
        copies = len(written) // max(1, len(encodings))
        return [
            prompts.continued(
                self.network, self.tokenizer, encodings[i // copies], new.ids.tolist()
            )
            for i, new in enumerate(written)
        ]

    # ---------------------------------------------------------------- targets

    def aims(
        self,
        encodings: Sequence[Encoding],
        label: str | int | None = None,
        against: str | int | None = None,
        at: str | int | None = None,
    ) -> list[list[Aim]]:
        """Return what a question means in each text: one scalar of the output, or several.

        Parameters
        ----------
        encodings : sequence of Encoding
        label : str or int, optional
            A class or token of the vocabulary by name or number, ``each`` for all classes; what the
            model predicts by default.
        against : str or int, optional
            A class or token to subtract: explain why `label` rather than `against`. Texts that
            predict `against` themselves would have a margin of zero and are refused.
        at : str or int, optional
            Where the prediction is read: a word for token classification, ``start``, ``end`` or
            ``span`` for answers, ``next``, ``each``, ``whole`` or a number for continuations.

        Raises
        ------
        InputError
            For a class, token or place that the model or the text does not have.
        """
        found: dict[int, list[Aim]] = {}
        for positions, batch in self.batches(encodings):
            aims = self._aims(batch, Question(label, against, at))
            found.update(zip(positions, aims, strict=True))
        return [found[i] for i in range(len(encodings))]

    def _aims(
        self, batch: Batch, question: Question, logits: Tensor | None = None
    ) -> list[list[Aim]]:
        asked = [self.task.positions(self, e, question) for e in batch.encodings]
        keep: list[int] | None = None
        if logits is None:
            if all(positions is not None for positions in asked):
                keep = sorted({p for positions in asked for p in positions or ()})
            logits = self.logits(batch.inputs, keep)
        table = logits[:, None] if logits.ndim == 2 else logits
        place = {p: i for i, p in enumerate(range(table.shape[1]) if keep is None else keep)}

        def aims(index: int, encoding: Encoding) -> list[Aim]:
            return list(self.task.aims(self, encoding, lambda p: table[index, place[p]], question))

        return [aims(i, e) for i, e in enumerate(batch.encodings)]

    def target(
        self,
        batch: Batch,
        label: str | int | None = None,
        against: str | int | None = None,
        quantity: Quantity = "logit",
        *,
        at: str | int | None = None,
        logits: Tensor | None = None,
    ) -> Target:
        """Return what is explained: by default the logit of the prediction.

        Parameters
        ----------
        batch : Batch
        label, against, at
            As in `aims`; they must mean one thing in each text.
        quantity : {"logit", "log_probability", "probability"}
        logits : Tensor, optional
            All logits of the batch, where they are known already.
        """
        aims = self._aims(batch, Question(label, against, at), logits)
        if any(len(several) != 1 for several in aims):
            raise InputError(
                "one target a text",
                got=f"{max(map(len, aims))}",
                remedy="say where (at) and which (label), or use explain, which takes them all",
            )
        return self.target_of([aim for (aim,) in aims], quantity)

    def target_of(self, aims: Sequence[Aim], quantity: Quantity = "logit") -> Target:
        """Return the target of a batch whose texts have these aims."""
        width = max(len(aim.label) for aim in aims)
        if width == 1 and len({aim.against is None for aim in aims}) == 1:
            places = torch.tensor([aim.position[0] for aim in aims], device=self.device)
            labels = torch.tensor([aim.label[0] for aim in aims], device=self.device)
            others = [aim.against[0] for aim in aims if aim.against is not None]
            return Target(
                label=labels,
                against=torch.tensor(others, device=self.device) if others else None,
                quantity=quantity,
                position=places if self.task.placed else None,
                link=self.link,
            )

        def table(parts: Sequence[Sequence[int]]) -> Tensor:
            filled = [[*part, *[0] * (width - len(part))] for part in parts]
            return torch.tensor(filled, device=self.device)

        return Target(
            label=table([aim.label for aim in aims]),
            quantity=quantity,
            position=table([aim.position for aim in aims]),
            weight=table([[1] * len(aim.label) for aim in aims]),
            link=self.link,
        )

    def class_name(self, number: int) -> str:
        """Return the name of a class, or the text of a token of the vocabulary."""
        if self.labels:
            return self.labels[number]
        return str(self.tokenizer.decode([number])) or self.tokenizer.convert_ids_to_tokens(number)

    def label_id(self, label: str | int) -> int:
        """Return the number of a class, or of a token of the vocabulary, by name or number."""
        if not self.labels:
            return encoding.vocabulary_id(self.tokenizer, label, self._rows)
        if isinstance(label, str) and label in self.labels:
            return self.labels.index(label)
        if str(label).isdecimal() and int(label) < len(self.labels):
            return int(label)
        raise UnknownNameError("class", str(label), self.labels)

    @property
    def mask_id(self) -> int:
        """The id of the mask token; -1 if there is none."""
        number = self.tokenizer.mask_token_id
        return -1 if number is None else int(number)

    # ---------------------------------------------------------- forward passes

    def logits(self, inputs: Mapping[str, Tensor], keep: Sequence[int] | None = None) -> Tensor:
        """Return ``[batch, class]`` or ``[batch, position, class]`` float32, without gradients.

        With `keep`, only these positions, in this order.
        """
        chosen = None if keep is None else torch.tensor(keep, device=self.device)
        with torch.no_grad(), self._borrowed(inputs):
            return self._forward(inputs, chosen)

    def _forward(self, inputs: Mapping[str, Tensor], keep: Tensor | None = None) -> Tensor:
        pads = (self._pad_id, getattr(self.tokenizer, "pad_token_id", None))
        batching.refuse_left_padding(inputs, {i for i in pads if i is not None})
        logits = self.task.logits(self.output(inputs, keep), keep, inputs)
        self.passes.forward += len(logits)
        if not bool(logits.isfinite().all()):
            bad = int((~logits.flatten(1).isfinite().all(-1)).nonzero()[0])
            raise ModelError(
                f"the model's logits are not finite at input {bad} of the batch",
                got=str(logits[bad].flatten()[:8].tolist()),
                remedy="check the weights, or use --dtype float32",
            )
        return logits.float()

    def output(self, inputs: Mapping[str, Tensor], keep: Tensor | None = None) -> Any:
        """Return what the network returns."""
        given = {name: inputs[name] for name in self.input_names if name in inputs}
        if "pixel_values" in given:
            given["pixel_values"] = given["pixel_values"].to(self.dtype)
        if keep is not None and self._selects:
            given["logits_to_keep"] = keep
        return self.network(**given)

    @cached_property
    def _selects(self) -> bool:
        """Whether the network can leave out logits: vocabularies are large."""
        return "logits_to_keep" in inspect.signature(self.network.forward).parameters

    def _value(self, inputs: Mapping[str, Tensor], target: Target) -> Tensor:
        """Return the target ``[batch]`` of one forward pass."""
        if target.position is None:
            return target(self._forward(inputs))
        keep, place = torch.unique(target.position, return_inverse=True)
        return replace(target, position=place)(self._forward(inputs, keep))

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
    def _borrowed(
        self,
        inputs: Mapping[str, Tensor],
        recordings: Sequence[Edit] = (),
        readings: Sequence[Reading] = (),
    ) -> Iterator[Tap | None]:
        """Hold the network for one forward pass, with the open edits, recordings and readings.

        Yields the tap, if there is any reason to open one.
        """
        edits = (*self._edits, *recordings)
        with self._lock, ExitStack() as stack:
            stack.enter_context(wrappers.eager())
            stack.enter_context(borrow.frozen(self.network))
            stack.enter_context(borrow.padding_named(self.network, inputs))
            tap = None
            if edits or readings:
                backend = BACKENDS[self.attach().backend]
                plain = stack.enter_context(
                    interventions.resolved(self.network, edits, self.layout(), inputs)
                )
                tap = Tap(self.network, plain, readings)
                stack.enter_context(backend(self.network, tap))
            yield tap

    # ---------------------------------------------------------------- attention

    def trace(
        self,
        batch: Batch,
        target: Target,
        *,
        reduce: Reduction | None = WHOLE,
        gradients: bool | GradientReduction = False,
    ) -> Trace:
        """Run forward once, recording attention maps, and backward as far as needed.

        The readout is found by gradient and not by model family: positions mix in attention only,
        so the derivative of the target by the output of the *last* attention module is non-zero at
        exactly the positions that the prediction is read from. Its norm per position, normalised,
        is the readout.

        Parameters
        ----------
        batch : Batch
        target : Target
        reduce : Reduction, optional
            What is kept of each map: whole maps by default, nothing with None. Applied to runs of
            queries as they are computed, so that what is not needed is never held.
        gradients : bool or GradientReduction
            Also differentiate the target by every map, and keep the whole derivatives, or what the
            reduction makes of maps and derivatives: that computes each attention twice and holds a
            few queries of it. Without it, the backward pass is as short as the head of the model.

        Raises
        ------
        AttentionError
            If the model's attention cannot be reached, or its maps carry no gradients.
        """
        if gradients is True and reduce is not WHOLE:
            raise ValueError("gradients are taken of whole maps: do not reduce them")
        if gradients and "gradients" not in self.attach().serves:
            raise AttentionError(
                f"the attention maps of {type(self.network).__name__} carry no gradients",
                got=f"the backend {self.attach().backend}",
                remedy="use a method that needs no gradients of attention, such as attention",
            )
        with self._lock:
            links = self.links()
            sizes = {
                link.site: (batch.widths[link.queries], batch.widths[link.keys]) for link in links
            }
            maps: dict[Site, Tensor] = {}
            products: dict[Site, Tensor] = {}

            def record(site: Site, probabilities: Tensor) -> Tensor:
                # frozen parameters: the first map depends on nothing that has a gradient
                if site in sizes and not probabilities.requires_grad:
                    probabilities = probabilities.detach().requires_grad_()
                maps[site] = probabilities
                return probabilities

            recordings = [Edit(probabilities=record)] if gradients is True else []
            readings = []
            if reduce is not None and gradients is not True:
                readings.append(Reading(reduce, maps.__setitem__, sizes))
            if isinstance(gradients, GradientReduction):
                readings.append(Reading(gradients, products.__setitem__, sizes))
            with ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                tap = stack.enter_context(self._borrowed(batch.inputs, recordings, readings))
                last = {
                    link: stack.enter_context(borrow.output_of(self.network, link.site))
                    for link in readouts(links)
                }
                score = self._value(batch.inputs, target)
                kept = [maps[link.site] for link in links if maps]
                sources = [*(kept if gradients is True else tap.sources if tap is not None else ())]
                found = self._backward(score, [*sources, *(held[0] for held in last.values())])
        return Trace(
            score=score.detach(),
            links=links,
            streams=batch.streams,
            maps=tuple(m.detach() for m in kept),
            gradients=found[: len(kept)]
            if gradients is True
            else tuple(products[link.site] for link in links if products),
            readout=self._readout(batch, dict(zip(last, found[-len(last) :], strict=True))),
        )

    def _readout(self, batch: Batch, gradients: Mapping[Link, Tensor]) -> Tensor:
        """Return the normalised strength ``[batch, token]`` of gradients by the last outputs."""
        strength = torch.zeros(batch.shape, device=self.device)
        for link, gradient in gradients.items():
            count, width = len(batch), batch.widths[link.queries]
            if gradient.shape[:2] == (width, count) != (count, width):
                gradient = gradient.transpose(0, 1)  # laid out by token and text
            if gradient.ndim != 3 or gradient.shape[:2] != (count, width):
                raise AttentionError(
                    f"the output of {link.site} is not laid out by text and token",
                    got=str(list(gradient.shape)),
                    expected=f"[batch, token, hidden], beginning {[count, width]}",
                    remedy="use a method that does not need attention",
                )
            strength[:, batch.streams[link.queries]] = gradient.float().norm(dim=-1)
        strength = strength * batch.real
        total = strength.sum(-1, keepdim=True)
        if bool((total == 0).any()):
            raise AttentionError(
                "the prediction does not depend on the last attention layer",
                got="a zero gradient at " + ", ".join(str(link.site) for link in gradients),
                remedy="a probability near 0 or 1 has none: explain the logit (--quantity logit)",
            )
        return strength / total

    def attention(
        self, encodings: Sequence[Encoding], stack: str | None = None
    ) -> list[AttentionMaps]:
        """Return the attention maps of each text, for its predicted class or next token.

        Parameters
        ----------
        encodings : sequence of Encoding
        stack : str, optional
            ``encoder``, ``decoder`` or ``cross`` in encoder-decoders, ``text`` or ``image`` in
            models of both, the first by default.

        Raises
        ------
        AttentionError
            If the model's attention cannot be reached, or the layers have different numbers of
            heads.
        UnknownNameError
            For a stack that the model does not have.
        """
        results: dict[int, AttentionMaps] = {}
        for positions, batch in self.batches(encodings):
            aims = self._aims(batch, Question(at=self.task.first))
            trace = self.trace(batch, self.target_of([several[0] for several in aims]))
            stacks = trace.layers()
            chosen = next(iter(stacks)) if stack is None else stack
            if chosen not in stacks:
                raise UnknownNameError("stack", chosen, tuple(stacks))
            for i, position in enumerate(positions):
                results[position] = _maps_of(trace, batch, i, chosen, stacks[chosen])
        return [results[i] for i in range(len(encodings))]

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
        with self._lock:
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
        with self._lock:
            if self._attached is None:
                seeing = self.reader is not None
                probe = self.batch(images.probe(self) if seeing else prompts.probe(self))

                # what is computed at padding is nobody's business, and differs between backends
                real = probe.real[:, probe.streams[-1]]

                def forward() -> Tensor:
                    with self._borrowed(probe.inputs):
                        logits = self._forward(probe.inputs)
                    return logits[real] if logits.shape[:2] == real.shape else logits

                attached = find_backend(self.network, forward)
                if seeing:
                    self._front, self._links = images.links(self, attached, probe.widths)
                else:
                    self._links = chain(attached.sites, attached.shapes, probe.widths)
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
    def stem(self) -> images.Stem:
        """Where pictures enter the network."""
        with torch.no_grad(), self._borrowed({}):
            return images.find_stem(self)

    @property
    def front(self) -> int:
        """How many tokens of its own the network puts before the patches of a picture."""
        with self._lock:
            if self._front is None:
                try:
                    self.attach()
                except AttentionError:  # without attention nothing tells, and nothing depends on it
                    self._front = 0
            return self._front or 0

    # ---------------------------------------------------------------- embeddings

    @cached_property
    def _entrances(self) -> list[Entrance]:
        """Where each stream comes in."""
        if self.reader is not None:
            return images.entrances(self)
        network, token_id = self.network, self.token_id
        if not self.paired:
            return [TokenEntrance(network.get_input_embeddings(), "input_ids", token_id)]
        # some encoder-decoders never ask the table that the network itself names
        source, target = network.get_encoder(), network.get_decoder()
        return [
            TokenEntrance(source.get_input_embeddings(), "input_ids", token_id),
            TokenEntrance(target.get_input_embeddings(), "decoder_input_ids", token_id),
        ]

    @property
    def _rows(self) -> int:
        """The number of tokens that the network knows."""
        return int(self.network.get_input_embeddings().num_embeddings)

    def _side_by_side(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the streams' embeddings as one, the narrower filled up with zeros."""
        hidden = max(part.shape[-1] for part in parts)
        return torch.cat([pad(part, (0, hidden - part.shape[-1])) for part in parts], dim=1)

    def embeddings(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the token embeddings ``[batch, token, hidden]`` of all streams."""
        with torch.no_grad(), self._lock:
            return self._side_by_side([e.embeddings(inputs) for e in self._entrances]).detach()

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
            with torch.no_grad(), self._lock:
                replaced = self._side_by_side(
                    [e.baseline(batch.inputs, kind) for e in self._entrances]
                )
        return torch.where(batch.special[:, :, None], actual, replaced)

    def _embedded(
        self, inputs: Mapping[str, Tensor], embeddings: Tensor
    ) -> AbstractContextManager[None]:
        """Return a context in which the entrances return `embeddings` of all streams."""
        parts = torch.split(embeddings, [e.width(inputs) for e in self._entrances], dim=1)
        return borrow.embedded(
            [
                (entrance.module, entrance.output(inputs, part))
                for entrance, part in zip(self._entrances, parts, strict=True)
            ]
        )

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
        leaf = embeddings.detach().requires_grad_()
        with torch.enable_grad(), self._borrowed(inputs), self._embedded(inputs, leaf):
            score = self._value(inputs, target)
            (gradient,) = self._backward(score, [leaf])
        return score.detach(), gradient

    def score(
        self, inputs: Mapping[str, Tensor], target: Target, embeddings: Tensor | None = None
    ) -> Tensor:
        """Return the target ``[batch]``, optionally with other token embeddings."""
        swap = nullcontext() if embeddings is None else self._embedded(inputs, embeddings)
        with torch.no_grad(), self._borrowed(inputs), swap:
            return self._value(inputs, target)

    # ---------------------------------------------------------------- provenance

    def provenance(self) -> dict[str, Any]:
        """Return what identifies this model and how it was run."""
        return {
            "model": self.name,
            "revision": self.revision,
            "task": self.task.name,
            "shells": list(self.shells),
            **provenance.circumstances(self.network),
        }


def _maps_of(
    trace: Trace, batch: Batch, index: int, stack: str, layers: Sequence[int]
) -> AttentionMaps:
    """Cut the maps of one text in one stack out of a batch."""
    link = trace.links[layers[0]]
    encoding = batch.encodings[index]
    rows, columns = encoding.widths[link.queries], encoding.widths[link.keys]
    heads = {trace.maps[layer].shape[1] for layer in layers}
    if len(heads) > 1:
        raise AttentionError(
            f"the layers of {stack} attention have different numbers of heads",
            got=", ".join(map(str, sorted(heads))),
            remedy="record single layers with Model.trace",
        )
    stacked = torch.stack(
        [trace.maps[layer][index, :, :rows, :columns].float() for layer in layers]
    )
    tokens = np.array(encoding.tokens, dtype=object)
    readout = trace.readout[index, batch.streams[link.queries]][:rows]
    return AttentionMaps(
        tokens=tuple(tokens[encoding.streams == link.queries]),
        maps=stacked.cpu().numpy(),
        sites=tuple(str(trace.links[layer].site) for layer in layers),
        readout=readout.cpu().numpy(),
        keys=tuple(tokens[encoding.streams == link.keys]),
        stack=stack,
    )
