"""Lookback: how much each head looks at the source, against what the model wrote itself.

Chuang et al. 2024, Lookback Lens: Detecting and Mitigating Contextual Hallucinations in Large
Language Models Using Only Attention Maps. In a decoder the two shares are parts of one row of
attention. In an encoder-decoder they are of two: cross-attention looks at the source, the
self-attention of the same decoder layer at what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from xattn.errors import AttentionError, InputError
from xattn.model import Model
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

    One product for each layer, of the last row of attention with a table that says which tokens are
    of the source and which the model wrote: that is cheap enough to be done while it writes.

    Attributes
    ----------
    mark : str
        The tokens of the source.
    found : list of (Site, Tensor)
        In the order of computation: ``[row, head, 2]``, the attention to the source and to what was
        written.
    """

    mark: str = SOURCE
    found: list[tuple[Site, Tensor]] = field(default_factory=list, repr=False)

    needs = frozenset()

    def resolve(self, places: Places) -> Edit:
        """Return the recording for one batch."""
        layout = places.layout
        chosen = self.check(layout)
        marked = key_flags(places, chosen, self.mark, others=False)
        paired = "cross" in layout.stacks.values()
        sites = [site for site in chosen if layout.stack(site) != "encoder"]
        target = places.inputs.get("decoder_input_ids") if paired else places.inputs["input_ids"]
        start = 1 if target is None else target.shape[1]
        tables: dict[tuple[str, int], Tensor] = {}
        seen: set[Site] = set()

        def table(site: Site, rows: int, size: int) -> Tensor:
            """Return ``[row, key, 2]``, for the keys from the first token on; it may be longer."""
            stack = layout.stack(site)
            known = tables.get((stack, rows))
            if known is None or known.shape[1] < size:
                known = torch.zeros(rows, 2 * size, 2)
                if site in marked:
                    flags = marked[site].cpu()
                    known[:, : flags.shape[1], 0] = flags.repeat_interleave(rows // len(flags), 0)
                if stack != "cross":
                    known[:, start:, 1] = 1
                known = tables[stack, rows] = known.to(places.inputs["input_ids"].device)
            return known

        def change(site: Site, p: Tensor) -> Tensor:
            places.note(site, p)  # where maps can only be read, nothing saw them before
            if site in sites:
                if site not in seen and site in marked:
                    places.keys(site, marked[site])  # refuses keys that are not the text's tokens
                    seen.add(site)
                first = places.first_key(site)
                stop = first + p.shape[-1]
                known = table(site, p.shape[0], stop)[:, first:stop].to(p.device)
                self.found.append((site, p[:, :, -1].detach().float() @ known))
            return p

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
        sites = list(dict.fromkeys(site for site, _ in self.found))
        kept = [tensor for _, tensor in self.found]
        steps = len(kept) // max(1, len(sites))
        tokens = _written(written)
        if steps * len(sites) != len(kept) or steps != len(written) - _start(written):
            raise AttentionError(
                "the tokens were not written one by one",
                got=f"{steps} steps for {len(written) - _start(written)} tokens",
                remedy="write without drafts and beams, or give the answer",
            )
        layers = _layers(model, sites)
        found = torch.stack([_same_heads(tensor, kept[0]) for tensor in kept])[:, 0]
        table = found.view(steps, len(sites), -1, 2).cpu().numpy()[tokens - _start(written)]
        return _lookback(written, table[..., 0][:, layers[0]], table[..., 1][:, layers[1]])


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
    layers = _layers(model, trace.sites)
    first = trace.kept[source][layers[0][0]]
    masses = [
        torch.stack([_same_heads(trace.kept[what][site], first) for site in sites], 1)
        for what, sites in zip((source, own), layers, strict=True)
    ]
    results = []
    for row, (encoding, tokens) in enumerate(zip(batch.encodings, written, strict=True)):
        before = encoding.widths[0] if len(encoding.widths) > 1 else 0
        queries = tokens - before - 1  # a token is written by the one before it
        parts = [mass[row][:, :, queries].permute(2, 0, 1).cpu().numpy() for mass in masses]
        results.append(_lookback(encoding, *parts))
    return results


def _layers(model: Model, sites: Sequence[Site]) -> tuple[list[int], list[int]]:
    """Return which of the sites look at the source, and which at what was written, by layer."""
    layout = model.layout()
    cross = [i for i, site in enumerate(sites) if layout.stack(site) == "cross"]
    if not cross:
        return (list(range(len(sites))),) * 2
    return cross, [i for i, site in enumerate(sites) if layout.stack(site) == "decoder"]


def _same_heads(tensor: Tensor, first: Tensor) -> Tensor:
    if tensor.shape[1] != first.shape[1]:
        raise AttentionError(
            "the layers have different numbers of heads",
            got=f"{first.shape[1]} and {tensor.shape[1]}",
            remedy="lookback ratios are compared head by head: use attribution shares instead",
        )
    return tensor


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
