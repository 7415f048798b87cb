"""Lookback: how much each head looks at the source, against what the model wrote itself.

Chuang et al. 2024, Lookback Lens: Detecting and Mitigating Contextual Hallucinations in Large
Language Models Using Only Attention Maps. In a decoder the two shares are parts of one row of
attention. In an encoder-decoder they are of two: cross-attention looks at the source, the
self-attention of the same decoder layer at what was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from xattn.errors import AttentionError, InputError
from xattn.model import Model, mark
from xattn.model.interventions import Intervention, key_flags
from xattn.model.marks import PREFIX
from xattn.model.places import Places
from xattn.model.reduction import key_mass
from xattn.model.tap import Edit, Site
from xattn.model.trace import Request
from xattn.types import Batch, Encoding, Floats, Ints

SOURCE = "source"
"""The mark of the tokens that are looked back at."""
Kind = Literal["mean", "mass"]
Span = tuple[int, int]
SINGLE = frozenset(
    {
        "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
        "no_repeat_ngram_size", "min_new_tokens", "use_cache", "cache_implementation", "seed",
        "eos_token_id", "bad_words_ids", "suppress_tokens",
    }
)  # fmt: skip
"""Options of generation under which one text is written, a token a step."""


@dataclass(frozen=True, eq=False)
class Lookback:
    """How much each head looked at the source and at the text so far, when it wrote each token."""

    tokens: tuple[str, ...]
    """``[token]``: what was written, special tokens left out."""
    source: Floats
    """``[token, layer, head]``: attention to all tokens of the source together, 0..1."""
    own: Floats
    """``[token, layer, head]``: attention to all tokens that were written before, 0..1."""
    source_count: int
    """Tokens of the source."""
    own_count: Ints
    """``[token]``: how many tokens had been written before."""

    def ratio(self, kind: Kind = "mean") -> Floats:
        """Return the lookback ratio ``source / (source + own)`` of each token, layer and head.

        Parameters
        ----------
        kind : {"mean", "mass"}
            ``mean``: of the mean attention to a token of the source and to a token of the model's
            own, as in the paper (equation 1). ``mass``: of the attention to all of them together,
            which falls as the text grows.

        Returns
        -------
        array
            ``[token, layer, head]``, 0..1. Before anything is written there is nothing but the
            source to look back at: the ratio of the first token is 1. It is 0 where a head looks at
            neither.
        """
        if kind not in get_args(Kind):
            raise InputError("kind of lookback ratio", got=repr(kind), expected="mean or mass")
        source, own = self.source, self.own
        if kind == "mean":
            source = source / self.source_count
            own = own / np.maximum(self.own_count, 1)[:, None, None]
        total = source + own
        ratio: Floats = np.divide(source, total, out=np.zeros_like(source), where=total > 0)
        return ratio

    def features(self, tokens: Sequence[int] | None = None, kind: Kind = "mean") -> Floats:
        """Return the ratios averaged over some tokens (all by default), ``[layer · head]``.

        Raises
        ------
        InputError
            If there is no such token.
        """
        chosen = np.arange(len(self.tokens)) if tokens is None else np.asarray(tokens, dtype=int)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(self.tokens):
            raise InputError(
                "tokens to average over",
                got=str(chosen.tolist()),
                expected=f"one or more of 0 to {len(self.tokens) - 1}",
            )
        features: Floats = self.ratio(kind)[chosen].mean(0).ravel()
        return features


@dataclass(frozen=True, eq=False)
class Watching(Intervention):
    """Write down where the last token looks in each step of generation; change nothing.

    In each step one product for all layers together: of the last rows of attention with a table
    that says which tokens are of the source and which the model wrote. That is cheap enough to be
    done while it writes.

    Attributes
    ----------
    mark : str
        The tokens of the source.
    found : list of (tuple of Site, Tensor)
        Step by step ``[site, row, head, 2]``: the attention to the source, and to what was written.
        Sites that see other keys (cross-attention, windows) have an entry of their own.
    """

    mark: str = SOURCE
    found: list[tuple[tuple[Site, ...], Tensor]] = field(default_factory=list, repr=False)

    needs = frozenset()

    def resolve(self, places: Places) -> Edit:
        """Return the recording for one batch."""
        layout = places.layout
        chosen = self.check(layout)
        marked = key_flags(places, chosen, self.mark, others=False)
        sites = [site for site in chosen if layout.stack(site) != "encoder"]
        table = _Table(places, marked)
        last = sites[-1]
        rows: dict[tuple[str, torch.Size], dict[Site, Tensor]] = {}

        def change(site: Site, p: Tensor) -> Tensor:
            places.note(site, p)  # where maps can only be read, nothing saw them before
            if site in known:
                row = p[:, :, -1]
                rows.setdefault((layout.stack(site), row.shape), {})[site] = row
                if site == last:  # of this step
                    for (_, shape), some in rows.items():
                        stacked = torch.stack(list(some.values())).detach().float()
                        self.found.append(
                            (tuple(some), stacked @ table.of(next(iter(some)), shape[0], shape[-1]))
                        )
                    rows.clear()
            return p

        known = frozenset(sites)
        return Edit(probabilities=change)

    def lookback(self, model: Model, written: Encoding) -> Lookback:
        """Return what was found while one text was written.

        Parameters
        ----------
        model : Model
        written : Encoding
            What `Model.generate` returned.

        Raises
        ------
        AttentionError
            If tokens were not written one by one.
        """
        by_site: dict[Site, list[Tensor]] = {}
        for sites, masses in self.found:
            for site, mass in zip(sites, masses, strict=True):
                by_site.setdefault(site, []).append(mass[0])
        tokens, start = _written(written), _start(written)
        steps = {len(parts) for parts in by_site.values()}
        if steps != {len(written) - start}:
            raise AttentionError(
                "the tokens were not written one by one",
                got=f"{max(steps, default=0)} steps for {len(written) - start} tokens",
                remedy="write without drafts and beams, or give the answer",
            )
        table = _stacked([torch.stack(parts) for parts in by_site.values()])[tokens - start]
        looks, wrote = _layers(model, list(by_site))
        return _lookback(written, table[..., 0][:, looks], table[..., 1][:, wrote])


class _Table:
    """Which keys of a site are tokens of the source, and which were written by the model."""

    def __init__(self, places: Places, marked: Mapping[Site, Tensor]) -> None:
        self.places, self.marked = places, marked
        paired = "cross" in places.layout.stacks.values()
        target = places.inputs.get("decoder_input_ids") if paired else places.inputs["input_ids"]
        self.start = 1 if target is None else target.shape[1]
        self.known: dict[tuple[str, int], Tensor] = {}

    def of(self, site: Site, count: int, keys: int) -> Tensor:
        """Return ``[row, key, 2]`` float32 for the keys that a site sees in this step."""
        first = self.places.first_key(site)
        stack = self.places.layout.stack(site)
        table = self.known.get((stack, count))
        if table is None or table.shape[1] < first + keys:
            table = self.known[stack, count] = self._made(site, count, 2 * (first + keys))
        return table[:, first : first + keys]

    def _made(self, site: Site, count: int, size: int) -> Tensor:
        """Return the table from the first token on, with room for tokens to come."""
        flags = self.marked.get(site)
        table = torch.zeros(count, size, 2, device=self.places.inputs["input_ids"].device)
        if flags is not None:
            self.places.keys(site, flags)  # refuses keys that are not the tokens of the text
            table[:, : flags.shape[1], 0] = flags.repeat_interleave(count // len(flags), 0)
        if self.places.layout.stack(site) != "cross":
            table[:, self.start :, 1] = 1
        return table


def placed(
    model: Model,
    prompt: str,
    source: str | Sequence[Span],
    answer: str | None = None,
    *,
    chat: bool = False,
    room: int = 0,
) -> Encoding:
    """Return a prompt whose source is marked, with an answer if there is one.

    Parameters
    ----------
    model : Model
        That generates.
    prompt : str
        What is asked.
    source : str or sequence of (int, int)
        What the answer shall rest on: a text, which is put before the prompt on lines of its own;
        or first and one-past-last characters of the parts of the prompt that are it.
    answer : str, optional
        What follows; without it the model is to write it.
    chat : bool
        Put prompt and source into the model's chat template, as the words of the user.
    room : int
        New tokens that must fit in behind the prompt.

    Raises
    ------
    InputError
        If the model does not generate, the source is empty or too long, or a span is not a part of
        the prompt.
    """
    if model.task.name != "generate":
        raise InputError(
            "grounding is a matter of models that write",
            got=f"the task {model.task.name}",
            expected="generate (a causal decoder or an encoder-decoder)",
        )
    text, spans = _with_source(prompt, source)
    if answer is not None and not answer.strip():
        raise InputError("the answer is empty", got=repr(answer), remedy="pass at least one word")
    if model.limit is not None:
        words = text if answer is None or model.paired else f"{text} {answer}"
        count = len(model.tokenizer(words, verbose=False)["input_ids"])
        room = 0 if model.paired else room
        if count + room > model.limit:
            raise InputError(
                "the source is too long for the model",
                got=f"{count} tokens with all that is asked"
                + (f", and {room} to be written" if room else ""),
                expected=f"at most {model.limit}",
                remedy="give the part of the source that matters, or ask for fewer new tokens",
            )
    if answer is not None and not chat and not model.paired:
        answer = " " + answer.lstrip()
    asked = [[{"role": "user", "content": text}] if chat else text]
    [encoding] = model.encode(asked, None if answer is None else [answer])
    return mark(encoding, SOURCE, spans=spans)


def _with_source(prompt: str, source: str | Sequence[Span]) -> tuple[str, list[Span]]:
    """Return the whole prompt, and which characters of it are the source."""
    if isinstance(source, str):
        if not source.strip():
            raise InputError("the source is empty", got=repr(source), expected="a text")
        source = source.strip()
        text = f"{source}\n{prompt.strip()}".strip()
        return text, [(0, len(source))]
    if not len(source):
        raise InputError("the source is empty", got="no span", expected="parts of the prompt")
    for start, end in source:
        if not 0 <= start < end <= len(prompt):
            raise InputError(
                "a span of the source is outside the prompt, or empty",
                got=f"({start}, {end})",
                expected=f"0 <= start < end <= {len(prompt)}",
            )
    lead = len(prompt) - len(prompt.lstrip())
    text = prompt.strip()
    moved = [(max(0, start - lead), min(len(text), end - lead)) for start, end in sorted(source)]
    return text, [span for span in moved if span[0] < span[1]]


def watched(
    model: Model, prompt: Encoding, max_new_tokens: int = 16, **options: Any
) -> tuple[Encoding, Lookback]:
    """Let a model write, and write down meanwhile how it looks back at the source.

    Parameters
    ----------
    model : Model
        That generates.
    prompt : Encoding
        With the tokens of the source marked: ``mark(encoding, SOURCE, ...)``.
    max_new_tokens : int
        1 or more.
    **options
        As in `Model.generate`, as far as they write one text, a token a step (`SINGLE`).

    Returns
    -------
    Encoding
        The prompt with what was written as its pair.
    Lookback

    Raises
    ------
    InputError
        For an unmarked prompt, another option, or if nothing but special tokens is written.
    AttentionError
        If the model's attention cannot be reached.
    """
    if options.keys() - SINGLE:
        raise InputError(
            "options of generation",
            got=", ".join(sorted(options.keys() - SINGLE)),
            expected="those that write one text, a token a step: " + ", ".join(sorted(SINGLE)),
        )
    watching = Watching()
    with model.edit(watching):
        [written] = model.generate([prompt], max_new_tokens, **options)
    return written, watching.lookback(model, written)


def lookbacks(model: Model, encodings: Sequence[Encoding]) -> list[Lookback]:
    """Return how a model looks back at the source when it reads given continuations.

    The same as if it had written them itself, from one pass over each text.

    Parameters
    ----------
    model : Model
        That generates.
    encodings : sequence of Encoding
        With continuations, and with the tokens of the source marked.

    Raises
    ------
    InputError
        For a text without a continuation or a mark.
    AttentionError
        If the model's attention cannot be reached.
    """
    found: dict[int, Lookback] = {}
    for positions, batch in model.batches(encodings):
        found.update(zip(positions, _lookbacks(model, batch), strict=True))
    return [found[i] for i in range(len(encodings))]


def _lookbacks(model: Model, batch: Batch) -> list[Lookback]:
    written = [_written(encoding) for encoding in batch.encodings]
    width = max(batch.widths)
    flags = torch.zeros(2, len(batch), width, device=model.device)
    for row, (encoding, tokens) in enumerate(zip(batch.encodings, written, strict=True)):
        flags[0, row, np.flatnonzero(_marked(encoding))] = 1
        before = encoding.widths[0] if len(encoding.widths) > 1 else 0
        flags[1, row, int(tokens[0]) - before : int(tokens[-1]) - before + 1] = 1
    source, own = key_mass(flags[0]), key_mass(flags[1])
    target = model.target_of([several[0] for several in model.aims(batch.encodings, at="next")])
    trace = model.record(batch, target, Request((source, own), readout=False))
    masses = [
        _stacked([trace.kept[what][site] for site in sites])
        for what, sites in zip((source, own), _layers(model, trace.sites), strict=True)
    ]
    results = []
    for row, (encoding, tokens) in enumerate(zip(batch.encodings, written, strict=True)):
        before = encoding.widths[0] if len(encoding.widths) > 1 else 0
        queries = tokens - before - 1  # a token is written by the one before it
        parts = [mass[row][..., queries].transpose(2, 0, 1) for mass in masses]
        results.append(_lookback(encoding, *parts))
    return results


def _layers(model: Model, sites: Sequence[Site]) -> tuple[list[int], list[int]]:
    """Return which of the sites look at the source, and which at what was written, by layer."""
    layout = model.layout()
    cross = [i for i, site in enumerate(sites) if layout.stack(site) == "cross"]
    if not cross:
        return (list(range(len(sites))),) * 2
    return cross, [i for i, site in enumerate(sites) if layout.stack(site) == "decoder"]


def _stacked(layers: Sequence[Tensor]) -> Floats:
    """Put the layers' ``[row, head, ...]`` beside each other: ``[row, layer, head, ...]``."""
    heads = sorted({layer.shape[1] for layer in layers})
    if len(heads) > 1:
        raise AttentionError(
            "the layers have different numbers of heads",
            got=" and ".join(map(str, heads)),
            remedy="lookback ratios are compared head by head: use attribution shares instead",
        )
    stacked: Floats = torch.stack(list(layers), 1).cpu().numpy()
    return stacked


def _written(encoding: Encoding) -> Ints:
    """Return where the tokens of the continuation stand, special ones left out."""
    written = np.flatnonzero(encoding.segments == 1)
    if not len(written):
        raise InputError(
            "there is no continuation that could rest on the source",
            got=repr(encoding.pair or ""),
            expected="one token or more that is not special",
            remedy="give an answer, or let the model write more",
        )
    return written


def _start(encoding: Encoding) -> int:
    """Return where what was written begins: behind the prompt."""
    if len(encoding.widths) > 1:
        return encoding.widths[0] + 1  # the decoder's starting token was not written
    return int(_written(encoding)[0])


def _marked(encoding: Encoding) -> Ints:
    flags = encoding.row.get(PREFIX + SOURCE)
    if flags is None or not flags.any():
        raise InputError(
            "the text has no source",
            expected=f"a mark {SOURCE!r}",
            remedy=f"mark(encoding, {SOURCE!r}, spans=...)",
        )
    return flags


def _lookback(encoding: Encoding, source: Floats, own: Floats) -> Lookback:
    tokens = _written(encoding)
    return Lookback(
        tokens=tuple(encoding.tokens[i] for i in tokens),
        source=source.astype(np.float64),
        own=own.astype(np.float64),
        source_count=int(_marked(encoding).sum()),
        own_count=tokens - _start(encoding),
    )
