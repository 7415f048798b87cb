"""What models are for, and what can be explained of them.

A task says how a network's output becomes logits ``[batch, position, class]``, and which places of
these a question means: the predicted class of a text, the tag of a word, the answer's start, each
token of a continuation. `Model` knows no more than that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto

from xattn.errors import InputError, ModelError, UnknownNameError
from xattn.types import Aim, Encoding, Link

if TYPE_CHECKING:
    from xattn.model.adapter import Model

At = str | int | None
Label = str | int
LONGEST_ANSWER = 30
"""Tokens of the longest answer that is looked for."""
Rows = Callable[[int], Tensor]
"""The logits ``[class]`` at a position."""


@dataclass(frozen=True)
class Question:
    """What a user wants explained, before a text is known."""

    label: Label | None = None
    """A class or vocabulary token by name or number; ``each`` for all classes; None for the
    predicted one."""
    against: Label | None = None
    """What is subtracted: explain why `label` rather than this."""
    at: At = None
    """Where the prediction is read, in the words of the task."""


class Task(ABC):
    """One kind of model."""

    name: str
    auto: str
    """The transformers class that loads such a model."""
    places: str
    """What `Question.at` can be."""
    first: At = None
    """Some place that every text has."""
    classes: bool = True
    """Whether the logits are of the classes that the configuration names."""
    placed: bool = True
    """Whether the logits have places: ``[batch, position, class]``."""
    inputs: frozenset[str] = frozenset({"text"})
    """What such a model takes: ``text``, ``picture`` or both."""

    def auto_class(self, config: Any) -> Any:
        """Return the transformers class that loads a model of this task."""
        return getattr(transformers, self.auto)

    def logits(self, output: Any, keep: Tensor | None, inputs: Any) -> Tensor:
        """Return ``[batch, class]`` or ``[batch, position, class]`` from a network's output.

        With `keep`, positions ``[position]``, only these.
        """
        logits: Tensor | None = getattr(output, "logits", None)
        if logits is None or logits.ndim != 3:
            raise wrong_output(self, output, logits, "[batch, position, class]")
        return logits if keep is None or logits.shape[1] == len(keep) else logits[:, keep]

    def link(self, network: Any) -> Link:
        """Return how a network's outputs become probabilities."""
        if not self.classes:
            return "softmax"
        problem = getattr(network.config, "problem_type", None)
        if problem == "multi_label_classification":
            return "sigmoid"
        one = problem is None and int(network.config.num_labels) == 1
        return "identity" if problem == "regression" or one else "softmax"

    @abstractmethod
    def positions(
        self, model: Model, encoding: Encoding, question: Question
    ) -> Sequence[int] | None:
        """Return which positions of the logits `aims` will ask for; None for all."""

    @abstractmethod
    def aims(
        self, model: Model, encoding: Encoding, rows: Rows, question: Question
    ) -> Iterator[Aim]:
        """Yield what is explained of one text."""


def wrong_output(task: Task, output: Any, logits: Tensor | None, expected: str) -> ModelError:
    """Return the error of a network that does not do what its task says."""
    return ModelError(
        f"the model does not serve the task {task.name}",
        got=f"{type(output).__name__} "
        + ("without logits" if logits is None else f"with logits of shape {list(logits.shape)}"),
        expected=f"logits {expected}",
        remedy=f"load it with {task.auto}",
    )


def no_place(task: Task, at: At) -> InputError:
    """Return the error of a place that the task or the text does not have."""
    return InputError(f"place (--at) of the task {task.name}", got=repr(at), expected=task.places)


def _class_aims(
    model: Model,
    logits: Tensor,
    question: Question,
    position: int = 0,
    where: str = "",
    at: At = None,
) -> Iterator[Aim]:
    """Yield one aim for the class that a question means at a position, or for each class."""
    if model.link == "identity":
        prediction = ", ".join(f"{x:.4g}" for x in logits.tolist())
        probability, best = None, 0
    else:
        sure = logits.sigmoid() if model.link == "sigmoid" else logits.softmax(-1)
        best = int(sure.argmax())
        prediction, probability = model.class_name(best), float(sure[best])
    if question.label == "each" and "each" not in model.labels:
        chosen = list(range(len(model.labels)))
    else:
        chosen = [best if question.label is None else model.label_id(question.label)]
    other = None if question.against is None else model.label_id(question.against)
    for label in chosen:
        if label == other:
            raise InputError(
                "a margin needs two classes",
                got=f"{model.class_name(label)!r} against itself",
                remedy="name another class with label (--label)",
            )
        words = model.class_name(label) + where
        yield Aim(
            label=(label,),
            position=(position,),
            words=words if other is None else f"{words} against {model.class_name(other)}",
            prediction=prediction,
            probability=probability,
            against=None if other is None else (other,),
            at=at,
        )


class Classify(Task):
    """Sequence classification: one of several classes, several at once, or numbers."""

    name = "classify"
    auto = "AutoModelForSequenceClassification"
    places = "nothing: the class of the whole text is explained"
    placed = False

    def logits(self, output: Any, keep: Tensor | None, inputs: Any) -> Tensor:
        """Return ``[batch, class]``."""
        logits: Tensor | None = getattr(output, "logits", None)
        if logits is None or logits.ndim != 2:
            raise wrong_output(self, output, logits, "[batch, class]")
        return logits

    def positions(self, model: Model, encoding: Encoding, question: Question) -> Sequence[int]:
        """Return the only position."""
        if question.at is not None:
            raise no_place(self, question.at)
        return (0,)

    def aims(
        self, model: Model, encoding: Encoding, rows: Rows, question: Question
    ) -> Iterator[Aim]:
        """Yield the class of the text; by default the predicted one."""
        yield from _class_aims(model, rows(0), question)


class Image(Classify):
    """Image classification: one of several classes of a picture."""

    name = "image"
    auto = "AutoModelForImageClassification"
    places = "nothing: the class of the whole picture is explained"
    inputs = frozenset({"picture"})


class Match(Task):
    """Models of texts and pictures (CLIP, SigLIP): how well the text fits the picture."""

    name = "match"
    auto = "AutoModelForZeroShotImageClassification"
    places = "nothing: one number says how well text and picture fit"
    inputs = frozenset({"text", "picture"})
    classes = False
    placed = False

    def logits(self, output: Any, keep: Tensor | None, inputs: Any) -> Tensor:
        """Return ``[batch, 1]``: the similarity of each picture and its own text."""
        table: Tensor | None = getattr(output, "logits_per_image", None)
        if table is None or table.ndim != 2 or table.shape[0] != table.shape[1]:
            raise wrong_output(self, output, table, "[picture, text]")
        return table.diagonal()[:, None]

    def link(self, network: Any) -> Link:
        """Return ``sigmoid`` for networks that were trained to judge each pair for itself."""
        return "sigmoid" if hasattr(network, "logit_bias") else "identity"

    def positions(self, model: Model, encoding: Encoding, question: Question) -> Sequence[int]:
        """Return the only position."""
        if question.at is not None:
            raise no_place(self, question.at)
        return (0,)

    def aims(
        self, model: Model, encoding: Encoding, rows: Rows, question: Question
    ) -> Iterator[Aim]:
        """Yield the similarity of text and picture."""
        if question.label is not None or question.against is not None:
            raise InputError(
                "a match has no classes",
                got=f"label {question.label!r}, against {question.against!r}",
                remedy="explain each text by itself",
            )
        value = rows(0)[0]
        yield Aim(
            label=(0,),
            position=(0,),
            words="match of text and picture",
            prediction=f"match {float(value):.4g}",
            probability=float(value.sigmoid()) if model.link == "sigmoid" else None,
        )


class Tag(Task):
    """Token classification: a tag for each word, read at its first token."""

    name = "tag"
    auto = "AutoModelForTokenClassification"
    places = "a word of the text, its number from 0, token:NUMBER, or each"

    def positions(self, model: Model, encoding: Encoding, question: Question) -> None:
        """Return None: the default needs the tags of all words."""

    def aims(
        self, model: Model, encoding: Encoding, rows: Rows, question: Question
    ) -> Iterator[Aim]:
        """Yield the tag of a word or token; by default of each that is tagged other than O."""
        for position, word in self._words(model, encoding, rows, question.at):
            where = f" at {word!r}"
            again = f"token:{position}"
            yield from _class_aims(model, rows(position), question, position, where, again)

    def _words(self, model: Model, encoding: Encoding, rows: Rows, at: At) -> list[tuple[int, str]]:
        """Return the position and name of each place that `at` means."""
        texts = (encoding.text, encoding.pair or "")
        kept = encoding.removable
        first = [i for i in kept if i == 0 or encoding.words[i] != encoding.words[i - 1]]
        words = []
        for start in first:
            same = kept[
                (encoding.words[kept] == encoding.words[start])
                & (encoding.segments[kept] == encoding.segments[start])
            ]
            begin, end = encoding.offsets[same, 0].min(), encoding.offsets[same, 1].max()
            words.append((int(start), texts[encoding.segments[start]][begin:end]))
        if isinstance(at, str) and at.startswith("token:") and at[6:].isdecimal():
            number = int(at[6:])
            found = [(number, encoding.tokens[number])] if number in kept else []
        elif at == "each":
            found = words
        elif at is None:
            tagged = [w for w in words if model.class_name(int(rows(w[0]).argmax())) != "O"]
            found = tagged or words
        else:
            found = [w for w in words if w[1] == at]
            if not found and str(at).isdecimal() and int(at) < len(words):
                found = [words[int(at)]]
        if not found:
            raise no_place(self, at)
        return found


class Answer(Task):
    """Extractive question answering: the text is the question, the pair the passage."""

    name = "answer"
    auto = "AutoModelForQuestionAnswering"
    places = "start, end or span"
    classes = False

    def logits(self, output: Any, keep: Tensor | None, inputs: Any) -> Tensor:
        """Return ``[batch, 2, token]``: the "classes" of start and end are the tokens."""
        start, end = getattr(output, "start_logits", None), getattr(output, "end_logits", None)
        if start is None or end is None:
            raise wrong_output(self, output, None, "of start and end")
        both = torch.stack([start, end], dim=1)
        if "attention_mask" in inputs:  # padding is no answer, however long the batch is
            lowest = torch.finfo(both.dtype).min
            both = both.masked_fill(inputs["attention_mask"][:, None] == 0, lowest)
        return both if keep is None else both[:, keep]

    def positions(self, model: Model, encoding: Encoding, question: Question) -> Sequence[int]:
        """Return start and end."""
        return (0, 1)

    def aims(
        self, model: Model, encoding: Encoding, rows: Rows, question: Question
    ) -> Iterator[Aim]:
        """Yield the start, end or both of an answer; by default of the best one's span."""
        at = "span" if question.at is None else question.at
        if at not in ("start", "end", "span"):
            raise no_place(self, question.at)
        if encoding.pair is None:
            raise InputError(
                "a question needs a passage", got="one text", remedy="give it as pair (--pair)"
            )
        if question.against is not None:
            raise InputError("an answer has no margin", got=f"against {question.against!r}")
        start_logits, end_logits = rows(0).log_softmax(-1), rows(1).log_softmax(-1)
        inside = np.flatnonzero(encoding.segments == 1)
        best = _best_span(start_logits, end_logits, inside)
        chosen = best if question.label is None else self._span(encoding, inside, question.label)
        places = {"start": (0,), "end": (1,), "span": (0, 1)}[at]
        yield Aim(
            label=tuple(chosen[p] for p in places),
            position=places,
            words=f"{at} of the answer {_between(encoding, *chosen)!r}",
            prediction=_between(encoding, *best),
            probability=float((start_logits[best[0]] + end_logits[best[1]]).exp()),
            at=at,
        )

    def _span(self, encoding: Encoding, inside: Any, label: Label) -> tuple[int, int]:
        """Return first and last token of an answer that is given by its words."""
        start = (encoding.pair or "").find(str(label))
        ends = start + len(str(label))
        touched = [i for i in inside if encoding.offsets[i, 1] > start >= 0]
        touched = [i for i in touched if encoding.offsets[i, 0] < ends]
        if not touched:
            raise InputError("the answer", got=repr(label), expected="words of the passage")
        return int(touched[0]), int(touched[-1])


def _best_span(start: Tensor, end: Tensor, inside: Any) -> tuple[int, int]:
    """Return first and last token of the most probable answer."""
    positions = torch.as_tensor(inside, device=start.device)
    joint = start[positions][:, None] + end[positions][None, :]
    allowed = torch.ones_like(joint, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    flat = int(joint.masked_fill(~allowed, -torch.inf).argmax())
    return int(inside[flat // len(inside)]), int(inside[flat % len(inside)])


def _between(encoding: Encoding, first: int, last: int) -> str:
    return (encoding.pair or "")[int(encoding.offsets[first, 0]) : int(encoding.offsets[last, 1])]


def _token_aim(
    model: Model, logits: Tensor, position: int, label: int | None, against: Label | None, at: At
) -> Aim:
    """Return the aim of one vocabulary token at a position; by default the predicted one."""
    best = int(logits.argmax())
    chosen = best if label is None else label
    other = None if against is None else model.label_id(against)
    if chosen == other:
        raise InputError(
            "a margin needs two tokens",
            got=f"{model.class_name(chosen)!r} against itself",
            remedy="name another token with label (--label)",
        )
    words = repr(model.class_name(chosen))
    return Aim(
        label=(chosen,),
        position=(position,),
        words=words if other is None else f"{words} against {model.class_name(other)!r}",
        prediction=model.class_name(best),
        probability=float(logits.softmax(-1)[best]),
        against=None if other is None else (other,),
        at=at,
    )


class Fill(Task):
    """Masked language models: the token that belongs in place of a mask."""

    name = "fill"
    auto = "AutoModelForMaskedLM"
    places = "the number of a mask in the text, from 0, each, or token:NUMBER"
    first = "token:0"
    classes = False

    def positions(self, model: Model, encoding: Encoding, question: Question) -> Sequence[int]:
        """Return the masks that the question means."""
        masks = np.flatnonzero(encoding.row["input_ids"] == model.mask_id).tolist()
        at = "each" if question.at is None else question.at
        if isinstance(at, str) and at.startswith("token:"):
            if not at[6:].isdecimal() or int(at[6:]) >= len(encoding):
                raise no_place(self, at)
            return [int(at[6:])]
        if not masks:
            raise InputError(
                "the text has no mask to fill",
                got=repr(encoding.text[:60]),
                expected="the tokenizer's mask token somewhere, for example [MASK] or <mask>",
            )
        if at == "each":
            return masks
        if not str(at).isdecimal() or int(at) >= len(masks):
            raise no_place(self, at)
        return [masks[int(at)]]

    def aims(
        self, model: Model, encoding: Encoding, rows: Rows, question: Question
    ) -> Iterator[Aim]:
        """Yield the token at each mask; by default the predicted one."""
        label = None if question.label is None else model.label_id(question.label)
        for position in self.positions(model, encoding, question):
            again = f"token:{position}"
            yield _token_aim(model, rows(position), position, label, question.against, again)


class Generate(Task):
    """Language models: each token of a continuation, all of it, or the next token.

    The continuation is the pair of the encoding. In encoder-decoders it is what the decoder reads.
    """

    name = "generate"
    auto = "AutoModelForCausalLM"
    first = "next"
    classes = False
    places = "next, each, whole, or the number of a token of the continuation, from 0"

    def auto_class(self, config: Any) -> Any:
        """Return the class of decoders or of encoder-decoders."""
        name = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else self.auto
        return getattr(transformers, name)

    def positions(self, model: Model, encoding: Encoding, question: Question) -> Sequence[int]:
        """Return where the tokens that the question means are predicted: one place before."""
        start = int((encoding.streams < encoding.streams[-1]).sum())
        written = np.flatnonzero(encoding.segments == 1) - start
        at = "each" if question.at is None else question.at
        if at == "next":
            first = int(written[0]) if len(written) else encoding.widths[-1]
            return [first - 1]
        if not len(written):
            raise InputError(
                "there is no continuation to explain",
                got=repr(encoding.text[-60:]),
                remedy="give one as pair (--pair), let the model generate it, or explain the next "
                "token (--at next)",
            )
        if at in ("each", "whole"):
            return (written - 1).tolist()
        if not str(at).isdecimal() or int(at) >= len(written):
            raise no_place(self, at)
        return [int(written[int(at)]) - 1]

    def aims(
        self, model: Model, encoding: Encoding, rows: Rows, question: Question
    ) -> Iterator[Aim]:
        """Yield the aims of the tokens that the question means."""
        positions = self.positions(model, encoding, question)
        ids = encoding.row["decoder_input_ids" if len(encoding.widths) > 1 else "input_ids"]
        if question.at == "whole":
            if question.label is not None or question.against is not None:
                raise InputError(
                    "a whole continuation has no label and no margin",
                    remedy="explain one token of it (--at NUMBER)",
                )
            logits = torch.stack([rows(p) for p in positions]).log_softmax(-1)
            written = [int(ids[p + 1]) for p in positions]
            total = sum(float(row[token]) for row, token in zip(logits, written, strict=True))
            yield Aim(
                label=tuple(written),
                position=tuple(positions),
                words="the whole continuation",
                prediction=encoding.pair or "",
                probability=float(np.exp(total)),
                at="whole",
            )
            return
        if question.label is not None and len(positions) > 1:
            raise InputError(
                "one label for many tokens",
                got=repr(question.label),
                remedy="name the token that it stands for (--at next or a number)",
            )
        for number, position in enumerate(positions):
            label = int(ids[position + 1]) if position + 1 < len(ids) else None
            label = label if question.at != "next" else None
            if question.label is not None:
                label = model.label_id(question.label)
            at = number if question.at in (None, "each") else question.at
            yield _token_aim(model, rows(position), position, label, question.against, at)


TASKS: dict[str, Task] = {
    task.name: task for task in (Classify(), Tag(), Answer(), Fill(), Generate(), Image(), Match())
}

ENDINGS = {
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "answer",
    "ForMaskedLM": "fill",
    "ForCausalLM": "generate",
    "LMHeadModel": "generate",
    "ForConditionalGeneration": "generate",
    "ForImageClassification": "image",
}
"""How the name of a network's class ends, and the task it was made for."""


def task_of(architecture: str) -> Task:
    """Return the task of a network class by its name; `Classify` if the name says nothing."""
    for ending, name in ENDINGS.items():
        if architecture.endswith(ending):
            return TASKS[name]
    # these are called by the family alone, such as CLIPModel
    names = modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
    return TASKS["match" if architecture in names else "classify"]


def get_task(name: str) -> Task:
    """Return a task by name.

    Raises
    ------
    UnknownNameError
        Naming the tasks that there are.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, tuple(TASKS))
    return TASKS[name]
