"""The model adapter: texts and pictures in, targets, scores, attention and edits out.

`Model` is what everything in xattn reaches a model through. How its network is held, tapped and run
is the business of `xattn.model.runner`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from xattn.errors import AttentionError, InputError, ModelError, UnknownNameError
from xattn.model import batching, encoding, entrances, generation, images, prompts, provenance
from xattn.model.attach import Attached
from xattn.model.entrances import Entrance
from xattn.model.memory import tokens_within
from xattn.model.reduction import WHOLE, GradientReduction, Reduction
from xattn.model.runner import Runner
from xattn.model.tasks import Question
from xattn.model.trace import Link, Request, Trace, chain, maps_of, record, take
from xattn.types import Aim, AttentionMaps, Batch, Encoding, Quantity, Row, Target
from xattn.types import Link as OutputLink


class Model(Runner):
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
    memory : float, optional
        GiB that the activations of a forward and a backward pass may take: the budget then follows
        from what the network holds for a token of a long text. On a processor `budget` still holds.
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
        memory: float | None = None,
    ) -> None:
        super().__init__(network, tokenizer, task, name)
        self.revision = revision
        self.labels = self._class_names()
        """The classes by number; empty where they are the tokens of the vocabulary."""
        self.limit = None if self.tokenizer is None else images.token_limit(self)
        # A network that takes no mask (FNet) would read padding: its texts run one by one.
        masked = "attention_mask" in self.input_names or self.tokenizer is None
        self.budget = budget if masked else 0
        self._front: int | None = None
        if memory is not None and masked:
            fitting = tokens_within(self, memory)
            # processors are no faster for more tokens than that, accelerators are
            self.budget = min(budget, fitting) if self.device.type == "cpu" else fitting

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
    def link(self) -> OutputLink:
        """How the outputs become probabilities."""
        return self.task.link(self.network)

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
        fill = self.pad_id
        if fill is None:  # any id that no text uses will do: padding is masked
            used = {int(i) for row in rows for i in row.get("input_ids", ())}
            fill = next(i for i in range(len(used) + 1) if i not in used)
        return batching.pad(rows, fill, self.device)

    def probe(self) -> Batch:
        """Return two inputs of different lengths, to try the network on."""
        if self.reader is not None:
            return self.batch(images.probe(self, self._front or 0))
        return self.batch(prompts.probe(self))

    def chain(self, attached: Attached, widths: Sequence[int]) -> tuple[Link, ...]:
        """Return the sites between tokens, given the widths of the probe's streams."""
        if self.reader is None:
            return chain(attached.sites, attached.shapes, widths)
        self._front, links = images.links(self, attached, widths)
        return links

    @cached_property
    def entrances(self) -> list[Entrance]:
        """Where each stream comes in."""
        if self.reader is not None:
            return images.entrances(self)
        return entrances.of_texts(self.network, self.paired, self.token_id)

    @cached_property
    def stem(self) -> images.Stem:
        """Where pictures enter the network."""
        with torch.no_grad(), self.borrowed({}):
            return images.find_stem(self)

    @property
    def front(self) -> int:
        """How many tokens of its own the network puts before the patches of a picture."""
        with self.lock:
            if self._front is None:
                try:
                    self.attach()
                except AttentionError:  # without attention nothing tells, and nothing depends on it
                    self._front = 0
            return self._front or 0

    @property
    def _rows(self) -> int:
        """The number of tokens that the network knows."""
        return len(self.network.get_input_embeddings().weight)  # wrapped ones have no number

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
            self.borrowed,
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

        See `xattn.model.trace.take`: `reduce` says what is kept of each map, `gradients` whether
        the target is differentiated by the maps, too.
        """
        return take(self, batch, target, reduce=reduce, gradients=gradients)

    def record(self, batch: Batch, target: Target, request: Request) -> Trace:
        """Run forward once and backward once, recording all that several methods ask for.

        See `xattn.model.trace.record`.
        """
        return record(self, batch, target, request)

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
                results[position] = maps_of(trace, batch, i, chosen, stacks[chosen])
        return [results[i] for i in range(len(encodings))]

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
