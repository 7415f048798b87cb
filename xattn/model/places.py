"""Places: which tokens of the inputs the rows, queries and keys of an attention map are.

In one forward pass over whole texts that is plain. While text is generated it is not: with a
cache a pass holds one new query, keys grow, sliding windows keep the last ones only, static caches
have room that is not used yet, and beams repeat the texts. All of that arithmetic is here.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache, StaticLayer

from xattn.errors import AttentionError, InputError
from xattn.model import marks
from xattn.model.tap import Site

Heads = Sequence[int] | Mapping[int, Sequence[int]]
"""Heads of every chosen layer, or of each layer by itself."""
TARGET = "decoder_"
"""What the names of inputs begin with that belong to the decoder of an encoder-decoder."""

TEXT_STACKS = ("", "encoder", "decoder", "cross", "text")
"""Stacks that read the tokens of a text; others (``vision``) have tokens, and marks, of their own:
``vision_mark:``."""


@dataclass(frozen=True)
class Layout:
    """The attention sites of a model as people name them: stack, layer, head."""

    heads: Mapping[Site, int]
    """Number of heads of each site, in the order of computation."""
    stacks: Mapping[Site, str] = field(default_factory=dict)
    """The stack of each site, such as ``encoder``, ``decoder`` and ``cross``; sites that are not
    named here make up one nameless stack."""

    def stack(self, site: Site) -> str:
        """Return the name of a site's stack."""
        return self.stacks.get(site, "")

    def sides(self, site: Site) -> tuple[str, str]:
        """Return what the names of the inputs begin with that a site's queries and keys are of."""
        stack = self.stack(site)
        if stack == "image":  # of text and picture, the picture is the second
            return TARGET, TARGET
        if stack not in TEXT_STACKS:
            return f"{stack}_", f"{stack}_"
        if "cross" not in self.stacks.values():
            return "", ""
        return (
            TARGET if stack in ("decoder", "cross") else "",
            TARGET if stack == "decoder" else "",
        )

    def select(
        self, layers: Sequence[int] | None, heads: Heads | None, stack: str | None
    ) -> dict[Site, tuple[int, ...]]:
        """Return the chosen heads of each chosen site.

        Parameters
        ----------
        layers : sequence of int, optional
            Sites of a stack that are chosen, counted from 0, or from -1 at the last; all by
            default.
        heads : sequence of int, or mapping of layer to these, optional
            All by default. A mapping chooses the layers, too.
        stack : str, optional
            All by default; layers are counted within each.

        Raises
        ------
        InputError
            If something is out of range, or nothing is chosen.
        """
        known = list(dict.fromkeys(map(self.stack, self.heads)))
        if stack is not None and stack not in known:
            raise InputError(
                "unknown stack of attention",
                got=repr(stack),
                expected=" or ".join(map(repr, known)) if known != [""] else "none: there is one",
            )
        for kind, given in (("layers", layers), ("heads", heads)):
            if given is not None and not isinstance(given, Collection):
                raise InputError(
                    f"{kind} are given one by one", got=repr(given), expected=f"[{given!r}]"
                )
        if isinstance(heads, Mapping):
            if layers is not None:
                raise InputError(
                    "layers are named twice",
                    got=f"layers={layers!r} and heads by layer",
                    remedy="leave layers out",
                )
            layers = tuple(heads)
        if layers is not None and not len(layers):
            raise InputError("no layer is chosen", expected="one or more, or None for all")
        chosen: dict[Site, tuple[int, ...]] = {}
        for name in known if stack is None else [stack]:
            sites = [site for site in self.heads if self.stack(site) == name]
            where = f"of the {name} stack" if name else ""
            for layer in range(len(sites)) if layers is None else layers:
                site = sites[_index("layer", layer, len(sites), where)]
                count = self.heads[site]
                some = heads[layer] if isinstance(heads, Mapping) else heads
                picked = range(count) if some is None else some
                if not len(picked):
                    raise InputError("no head is chosen", expected="one or more, or None for all")
                at = f"in layer {layer}"
                numbers = {_index("head", head, count, at) for head in picked}
                chosen[site] = tuple(sorted(numbers.union(chosen.get(site, ()))))
        return chosen


def _index(kind: str, number: SupportsIndex, count: int, where: str) -> int:
    whole = not isinstance(number, (bool, str)) and isinstance(number, SupportsIndex)
    if not whole or not -count <= operator.index(number) < count:
        raise InputError(
            f"{kind} {where}".strip() + " is out of range",
            got=repr(number),
            expected=f"0 to {count - 1}, or -1 to -{count} from the last",
        )
    return operator.index(number) % count


class Places:
    """Follows the forward passes over one batch and tells which tokens a site's axes are.

    Parameters
    ----------
    layout : Layout
    inputs : mapping of str to Tensor
        The batch, each ``[batch, token]``, marks included.
    """

    def __init__(self, layout: Layout, inputs: Mapping[str, Tensor]) -> None:
        self.layout, self.inputs = layout, inputs
        # What a cache grows by: the text itself, or the target text of an encoder-decoder.
        self._growing = TARGET if "cross" in layout.stacks.values() else ""
        self._seen, self._static = 0, False
        self._length: int | None = None
        self._shapes: dict[Site, torch.Size] = {}

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note where a forward pass begins; a forward pre-hook of the network.

        The cache itself is asked how much of the text it has seen, so that what is rolled back
        (assisted decoding) or filled in pieces (chunked prefill) needs no bookkeeping here.
        """
        cache = kwargs.get("past_key_values")
        self._seen = 0 if cache is None else int(cache.get_seq_length())
        inner = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        self._static = any(isinstance(layer, StaticLayer) for layer in getattr(inner, "layers", ()))
        names = [f"{self._growing}input_ids", f"{self._growing}inputs_embeds"]
        given = [kwargs.get(name) for name in names]
        if not self._growing and args:
            given.append(args[0])
        given.append(kwargs.get("labels") if self._growing else None)
        self._length = next((int(t.shape[1]) for t in given if isinstance(t, Tensor)), None)

    def note(self, site: Site, scores: Tensor) -> Tensor:
        """Note the shape of a site's scores ``[row, head, query, key]``; the first of its changes.

        Raises
        ------
        AttentionError
            At a site that was not there when layers were counted: what is chosen by layer would
            pass it by.
        """
        if site not in self.layout.heads:
            raise AttentionError(
                f"an edit met attention at {site}, which was not there when layers were counted",
                expected=f"one of {len(self.layout.heads)} known sites",
            )
        self._shapes[site] = scores.shape
        return scores

    def tokens(self, mark: str, site: Site, *, queries: bool = False) -> Tensor | None:
        """Return a mark of a site's keys (or queries), ``[batch, token]`` bool, if it is there."""
        side = self.layout.sides(site)[0 if queries else 1]
        values = self.inputs.get(f"{side}{marks.PREFIX}{mark}")
        return None if values is None else values.bool()

    def keys(self, site: Site, flags: Tensor) -> Tensor:
        """Return which keys of a site are flagged.

        Parameters
        ----------
        site : Site
        flags : Tensor
            ``[batch, token]`` bool, for the tokens of the inputs; generated ones are not flagged.

        Returns
        -------
        Tensor
            ``[row, 1, 1, key]`` bool.

        Raises
        ------
        AttentionError
            If the keys are not the tokens of the text.
        """
        rows, _, count, keys = self._shapes[site]
        query_side, key_side = self.layout.sides(site)
        if key_side == self._growing:
            self._check_queries(site, query_side, count)
            total = self._seen + count  # all tokens so far
            room = self._static and keys > total  # slots that hold nothing yet, behind the tokens
            if not (room or keys <= total):
                raise self._strange(site, f"{keys} keys", f"{total}")
            # Windows keep the last keys. Without a cache that has seen more, none can be missing.
            if keys < total and not self._seen:
                raise self._strange(site, f"{keys} keys", f"{total}")
            first = max(0, total - keys)
        else:
            if keys != flags.shape[1]:
                raise self._strange(site, f"{keys} keys", f"{flags.shape[1]}")
            first = 0
        return self._at(site, flags, first, keys, rows)[:, None, None, :]

    def queries(self, site: Site, flags: Tensor | Collection[int]) -> Tensor:
        """Return which queries of a site are flagged, ``[row or 1, 1, query, 1]`` bool.

        Parameters
        ----------
        site : Site
        flags : Tensor or collection of int
            ``[batch, token]`` bool, or positions, which may lie in text that is yet to come.
        """
        rows, _, count, _ = self._shapes[site]
        self._check_queries(site, self.layout.sides(site)[0], count)
        first = self.first_query(site)
        if isinstance(flags, Tensor):
            return self._at(site, flags, first, count, rows)[:, None, :, None]
        hit = [position in flags for position in range(first, first + count)]
        return torch.tensor(hit)[None, None, :, None]

    def first_query(self, site: Site) -> int:
        """Return the position of a site's first query in its text."""
        side = self.layout.sides(site)[0]
        if side != self._growing or not self._seen:
            return 0
        self._check_queries(site, side, self._shapes[site][2])
        return self._seen

    def first_key(self, site: Site) -> int:
        """Return the position of a site's first key in its text."""
        _, _, count, keys = self._shapes[site]
        growing = self.layout.sides(site)[1] == self._growing
        return max(0, self.first_query(site) + count - keys) if growing else 0

    def _check_queries(self, site: Site, side: str, count: int) -> None:
        """Refuse a site whose queries are not the tokens that the network was given."""
        ids = self.inputs.get(f"{side}input_ids")
        expected = self._length
        if side != self._growing:
            expected = None if ids is None else int(ids.shape[1])
        if expected is not None and count != expected:
            raise self._strange(site, f"{count} queries", f"{expected}")

    def _at(self, site: Site, flags: Tensor, first: int, count: int, rows: int) -> Tensor:
        """Return the flags ``[row, count]`` of positions from `first`; False beyond the inputs."""
        batch = flags.shape[0]
        if rows % batch:
            raise self._strange(site, f"{rows} rows", f"{batch}, or a multiple")
        part = flags.new_zeros(batch, count)
        here = flags[:, first : first + count]
        part[:, : here.shape[1]] = here
        # Beams and returned sequences repeat each text in place, and trade places only within it.
        return part.repeat_interleave(rows // batch, dim=0)

    def _strange(self, site: Site, got: str, expected: str) -> AttentionError:
        return AttentionError(
            f"the attention at {site} is not between the tokens of the text",
            got=got,
            expected=expected,
            remedy="choose other layers, or an intervention that needs no tokens",
        )
