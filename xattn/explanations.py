"""`explain`: run methods on texts, check what they return, and wrap it with its cost."""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import or_
from typing import Any, TypeVar, cast, overload

import numpy as np
import pandas as pd
from torch import Tensor

from xattn import render
from xattn.errors import AttentionError, InputError, ModelError, XattnWarning
from xattn.kinds import Complete, Traced
from xattn.model import Model
from xattn.model.diagnosis import where_not_finite
from xattn.model.images import Source
from xattn.model.memory import Peak
from xattn.model.prompts import Chat
from xattn.model.runner import Passes
from xattn.registry import Completeness, Method
from xattn.registry import methods as registry
from xattn.types import Aim, Attribution, Batch, Encoding, Quantity, Target, Unit

T = TypeVar("T")

ALL = "all"
"""Stands for every registered method that takes the model and the texts."""
GAP = 0.05
"""Largest gap that goes without a warning, relative to what the scores must sum to."""
DEFAULT_METHODS = ("attention", "rollout", "flow", "integrated_gradients", "attention_gradient")


class Explanations(Sequence[Attribution]):
    """Attributions of several texts by several methods: all of text 0, then all of text 1 ..."""

    def __init__(
        self,
        items: Sequence[Attribution],
        per_text: int,
        cases: Sequence[tuple[Encoding, Aim]],
        by_token: Explanations | None = None,
    ) -> None:
        self._items = tuple(items)
        self._per_text = per_text
        self.cases = tuple(cases)
        """What was explained: a text, as often as it was asked about, and an aim each."""
        self.by_token = self if by_token is None else by_token
        """The same with a score for each token."""

    @overload
    def __getitem__(self, index: int) -> Attribution: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Attribution, ...]: ...
    def __getitem__(self, index: int | slice) -> Attribution | tuple[Attribution, ...]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        methods = [item.method for item in self._items[: self._per_text]]
        return f"Explanations(texts={len(self) // self._per_text}, methods={methods})"

    def by_text(self) -> Iterator[tuple[Attribution, ...]]:
        """Yield the attributions of each text, one a method."""
        for start in range(0, len(self), self._per_text):
            yield self._items[start : start + self._per_text]

    def by_method(self) -> Iterator[dict[str, Attribution]]:
        """Yield the attributions of each text by method, with options where one comes twice."""
        for group in self.by_text():
            counts = Counter(item.method for item in group)
            yield {
                item.method
                if counts[item.method] == 1
                else f"{item.method}:{','.join(f'{k}={v}' for k, v in item.parameters.items())}": (
                    item
                )
                for item in group
            }

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each text, method and token."""
        frames = [
            item.to_dataframe().assign(example=index // self._per_text, method=item.method)
            for index, item in enumerate(self._items)
        ]
        return pd.concat(frames, ignore_index=True)

    def to_json(self) -> str:
        """Return a JSON list with one object for each text and method."""
        return json.dumps([item.to_dict() for item in self._items], indent=2)

    def _repr_html_(self) -> str:
        return render.table(item.line() for item in self._items)


def explain(
    model: Model,
    texts: Sequence[str | Chat | Source] | Sequence[Encoding],
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    *,
    pairs: Sequence[str] | None = None,
    pictures: Sequence[Source] | None = None,
    label: str | int | None = None,
    against: str | int | None = None,
    at: str | int | None = None,
    quantity: Quantity = "logit",
    unit: Unit | Sequence[tuple[int, int]] = "token",
    truncate: bool = False,
    max_new_tokens: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Explanations:
    """Explain a model's predictions on texts by one or more methods.

    Parameters
    ----------
    model : Model
    texts : sequence of str or of Encoding
        For models that generate also chats: lists of messages with ``role`` and ``content``. For
        models that see, pictures: files, PIL images or arrays ``[row, column, 3]`` of uint8.
    methods : sequence of str or Method
        Names, names with options (``"rollout:residual=0.3"``) or instances; ``all`` for every
        registered one that takes the model and the longest of the texts, with a warning of the
        others.
    pairs : sequence of str, optional
        The second text of each pair; the continuation, for models that generate.
    pictures : sequence, optional
        For models of texts and pictures, the picture of each text.
    label, against : str or int, optional
        The class that is explained, by default each text's predicted one (``each`` for all of
        them); and the class that it is compared with.
    at : str or int, optional
        Where the prediction is read; see `Model.aims`. A text that is asked at several places has
        an explanation for each.
    quantity : {"logit", "log_probability", "probability", "lead"}
        The last is by how much the class's logit leads before all others.
    unit : {"token", "word", "sentence"} or sequence of (int, int)
        What gets a score; or spans of characters, beside which tokens stay alone. Methods that
        remove parts of the text remove whole units; the scores of the others are summed.
    truncate : bool
        Cut texts that are too long instead of refusing them.
    max_new_tokens : int
        Length of the continuations that are generated where none is given.
    progress : callable, optional
        Called with the number of texts that were finished.

    Returns
    -------
    Explanations
        Text by text, for each text target by target, and for each target in the order of `methods`.

    Raises
    ------
    InputError
        For a text or an option that cannot be used.
    ModelError
        If the model cannot serve a method, or scores are not finite.

    Examples
    --------
    >>> import xattn
    >>> result = xattn.explain(xattn.load(), ["A dull, lifeless film."], ["rollout"])
    >>> result[0].prediction
    'negative'
    """
    built = _built(methods)
    every = ALL in methods
    if not len(texts):
        raise InputError("no text is given", expected="one or more")
    encodings = _encoded(model, texts, pairs, pictures, truncate)
    if model.task.name == "generate" and at != "next" and all(e.pair is None for e in encodings):
        encodings = model.generate(encodings, max_new_tokens)
    if unit != "token":
        encodings = [encoding.in_units(unit) for encoding in encodings]
    asked = model.aims(encodings, label, against, at)
    cases = [(e, aim) for e, aims in zip(encodings, asked, strict=True) for aim in aims]
    if every:
        longest = max(cases, key=lambda case: len(case[0]))
        refused = _refused(model, longest, built, quantity)
        built = [method for method in built if method not in refused]
    result = explain_aims(model, cases, built, quantity, progress)
    if unit == "token":
        return result
    return Explanations([item.grouped(unit) for item in result], len(built), cases, result)


def expanded(methods: Sequence[T]) -> list[T | str]:
    """Return the methods that are named, ``all`` replaced by the names of all that are registered.

    Examples
    --------
    >>> "rollout" in expanded(["all"])
    True
    """
    return [name for m in methods for name in (registry.names() if m == ALL else [m])]


def refusals(
    model: Model,
    encodings: Sequence[Encoding],
    methods: Sequence[Method],
    *,
    label: str | int | None = None,
    at: str | int | None = None,
) -> dict[Method, str]:
    """Return which methods refuse a model or its texts, with what they say; and warn of each.

    Who asks for all methods asks for those that there are for this model and these texts.
    """
    refused: dict[Method, str] = {}
    for encoding, [aim, *_] in zip(encodings, model.aims(encodings, label, None, at), strict=True):
        refused.update(_refused(model, (encoding, aim), methods, "logit"))
    return refused


def _refused(
    model: Model, case: tuple[Encoding, Aim], methods: Sequence[Method], quantity: Quantity
) -> dict[Method, str]:
    refused: dict[Method, str] = {}
    for method in methods:
        try:
            explain_aims(model, [case], [method], quantity)
        except (InputError, ModelError, AttentionError) as error:
            refused[method] = str(error)
            warnings.warn(f"{method.name} is left out: {error}", XattnWarning, stacklevel=3)
    return refused


def _built(methods: Sequence[str | Method]) -> list[Method]:
    if not methods:
        raise InputError("no method is named", expected="one or more", remedy="see xattn methods")
    built = [registry.build(m) if isinstance(m, str) else m for m in expanded(methods)]
    return list(dict.fromkeys(built)) if ALL in methods else built


def explain_aims(
    model: Model,
    cases: Sequence[tuple[Encoding, Aim]],
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    quantity: Quantity = "logit",
    progress: Callable[[int], None] | None = None,
) -> Explanations:
    """Explain texts whose targets are chosen already; see `explain`.

    Parameters
    ----------
    model : Model
    cases : sequence of (Encoding, Aim)
        A text may come several times, with an aim each; see `Model.aims`.
    methods, quantity, progress
        As in `explain`; `progress` counts cases.
    """
    built = _built(methods)
    if any("attention" in method.declaration.needs for method in built):
        model.verify()  # which is nobody's cost
    results: dict[tuple[int, int], Attribution] = {}
    for positions, batch in model.batches([encoding for encoding, _ in cases]):
        aims = [cases[i][1] for i in positions]
        for number, outcome in _outcomes(model, built, batch, model.target_of(aims, quantity)):
            found = _attributions(model, built[number], batch, aims, quantity, outcome)
            for position, attribution in zip(positions, found, strict=True):
                results[position, number] = attribution
        if progress is not None:
            progress(len(positions))
    ordered = [results[i, j] for i in range(len(cases)) for j in range(len(built))]
    for number in range(len(built)):
        _warn_of_gaps(ordered[number :: len(built)])
    return Explanations(ordered, len(built), cases)


def _warn_of_gaps(items: Sequence[Attribution]) -> None:
    """Warn if scores of a method do not sum to what they must, naming the widest gap."""
    wide = []
    for item in items:
        if item.gap is not None:
            mass = float(np.abs(item.scores).sum())
            # parts that cancel leave rounding behind
            size = max(abs(float(item.scores.sum()) - item.gap), mass / 10)
            if abs(item.gap) > GAP * size:
                wide.append((abs(item.gap) / size, item))
    if wide:
        share, worst = max(wide, key=lambda pair: pair[0])
        warnings.warn(
            f"the scores of {worst.method} do not sum to what they must in {len(wide)} of "
            f"{len(items)} texts: the widest gap is {worst.gap:+.2g} ({share:.0%}) in "
            f"{worst.text[:40]!r}; it stands with the result, and more steps may close it",
            XattnWarning,
            stacklevel=3,
        )


def _encoded(
    model: Model,
    texts: Sequence[str | Chat | Source] | Sequence[Encoding],
    pairs: Sequence[str] | None,
    pictures: Sequence[Source] | None,
    truncate: bool,
) -> Sequence[Encoding]:
    if not isinstance(texts, str) and all(isinstance(text, Encoding) for text in texts):
        return cast(Sequence[Encoding], texts)
    inputs = cast(Sequence[str | Chat | Source], texts)
    return model.encode(inputs, pairs, pictures=pictures, truncate=truncate)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What one method said of a batch, and what it cost."""

    scores: Tensor
    """``[batch, token]``"""
    expected: Tensor | None
    """``[batch]``: what the scores must sum to, or None."""
    seconds: float
    passes: Passes
    memory: int | None


@dataclass(eq=False)
class _Meter:
    """The time, the passes and the memory that a block takes."""

    model: Model
    seconds: float = 0.0
    memory: int | None = None
    passes: Passes = field(default_factory=Passes)

    @contextmanager
    def running(self) -> Iterator[None]:
        peak = Peak(self.model.device)
        with peak:
            before, start = self.model.passes.copy(), time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
        peaks = [m for m in (self.memory, peak.bytes) if m is not None]
        self.memory = max(peaks, default=None)
        self.passes.forward += self.model.passes.forward - before.forward
        self.passes.backward += self.model.passes.backward - before.backward


def _outcomes(
    model: Model, methods: Sequence[Method], batch: Batch, target: Target
) -> Iterator[tuple[int, _Outcome]]:
    """Run all methods on one batch; those that read a trace share one, and its cost."""
    traced = {i: method for i, method in enumerate(methods) if isinstance(method, Traced)}
    shared, trace = _Meter(model), None
    if len(traced) > 1:
        with shared.running():
            request = reduce(or_, (method.request for method in traced.values()))
            trace = model.record(batch, target, request)
    for number, method in enumerate(methods):
        own, expected = _Meter(model), None
        with own.running():
            if trace is not None and isinstance(method, Traced):
                scores = method.read(model, batch, trace)
                own.seconds += shared.seconds / len(traced)
                own.passes.forward += shared.passes.forward / len(traced)
                own.passes.backward += shared.passes.backward / len(traced)
                own.memory = shared.memory
            elif isinstance(method, Complete):
                scores, expected = method.attribute(model, batch, target)
            else:
                scores = method(model, batch, target)
        if expected is None and method.declaration.total == "difference":
            expected = cast(Completeness, method).difference(model, batch, target)
        yield number, _Outcome(scores, expected, own.seconds, own.passes, own.memory)


def _attributions(
    model: Model,
    method: Method,
    batch: Batch,
    aims: Sequence[Aim],
    quantity: Quantity,
    outcome: _Outcome,
) -> Iterator[Attribution]:
    """Check what one method said of a batch; yield what it says of each text."""
    scores, expected = outcome.scores, outcome.expected
    if scores.shape != batch.shape:
        raise ModelError(
            f"the method {method.name} returned scores of the wrong shape",
            got=str(list(scores.shape)),
            expected=f"[batch, token] = {list(batch.shape)}",
        )
    table = scores.detach().float().cpu().numpy()
    for i, (encoding, aim) in enumerate(zip(batch.encodings, aims, strict=True)):
        row = table[i, batch.columns(i)].astype(np.float32)
        if not np.isfinite(row).all():
            where = where_not_finite(model, batch.inputs, model.target_of(aims, quantity))
            raise ModelError(
                f"the method {method.name} returned scores that are not finite",
                got=f"{row[~np.isfinite(row)][0]} in {encoding.text[:60]!r}"
                + (f", arisen in {where}" if where else ""),
                remedy="use --dtype float32 or other options of the method",
            )
        total = float(row.sum(dtype=np.float64))
        yield Attribution(
            text=encoding.text,
            pair=encoding.pair,
            tokens=encoding.tokens,
            offsets=encoding.offsets,
            picture=encoding.picture,
            segments=encoding.segments,
            word_ids=encoding.words,
            scores=row,
            method=method.name,
            parameters=parameters(method),
            target=f"{quantity.replace('_', ' ')} of {aim.words}",
            prediction=aim.prediction,
            probability=aim.probability,
            signed=method.declaration.signed,
            gap=None if expected is None else total - float(expected[i]),
            seconds=outcome.seconds / len(batch),
            forward_passes=outcome.passes.forward / len(batch),
            backward_passes=outcome.passes.backward / len(batch),
            memory=outcome.memory,
        )


def parameters(method: Method) -> dict[str, Any]:
    """Return the hyper-parameters of a method with their values."""
    return asdict(method)  # type: ignore[call-overload, no-any-return]
