"""Emphasis: what becomes of what a model writes when chosen heads look at a passage.

Post-hoc attention steering (PASTA; Zhang et al. 2023, Tell Your Model Where to Attend): heads are
chosen on some prompts by how well the model does with each steered alone, and the result is told on
others, against steering as many random heads, all heads, and towards a random passage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xattn.errors import InputError, ModelError
from xattn.evaluation.statistics import Interval, interval, paired_difference
from xattn.finding import Dot, Dots, Finding, Heatmap
from xattn.model import HeadProfile, Model, mark, profile_heads, steer
from xattn.types import Encoding, Floats

Span = tuple[int, int]
Heads = dict[int, list[int]]
MARK = "emphasis"
TRIED = (1, 2, 3, 4, 6, 8)
"""Numbers of heads that are tried on the prompts on which heads are chosen."""
DRAWS = 5


@dataclass(frozen=True, eq=False)
class Emphasis:
    """How often a model does what the emphasised passage asks for."""

    model: str
    profile: HeadProfile
    heads: Heads
    """The heads that were chosen, by layer."""
    right: Mapping[str, Floats]
    """By condition ``[prompt]``: whether what was wanted was written; a mean over draws in
    between. ``before``, ``steered``, ``random heads``, ``all heads``, ``random passage``."""
    chosen_on: int
    """Prompts on which heads were chosen; none of them is among the others."""

    def success(self, name: str) -> Interval:
        """Return the share of prompts on which what was wanted was written."""
        return interval(self.right[name], seed=0)

    def gain(self, over: str = "before") -> Interval:
        """Return how much more often steering gets what was wanted than another condition."""
        return paired_difference(self.right["steered"], self.right[over], seed=0)

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each condition: success and its interval."""
        rows = [(name, *self.success(name)[:3]) for name in self.right]
        return pd.DataFrame(rows, columns=["condition", "success", "low", "high"])

    def finding(self) -> Finding:
        """Return what reports show of it."""
        before, after, gain = self.success("before"), self.success("steered"), self.gain()
        named = ", ".join(f"{layer}.{head}" for layer, some in self.heads.items() for head in some)
        layers = sorted({layer for layer, _ in self.profile.heads})
        widest = 1 + max(head for _, head in self.profile.heads)
        alone = dict(zip(self.profile.heads, self.profile.scores.mean(0).tolist(), strict=True))
        others = ", ".join(
            f"{name} {self.success(name).mean:.0%}"
            for name in self.right
            if name not in ("before", "steered")
        )
        return Finding(
            "emphasis",
            "Emphasising a passage",
            f"{self.model} does what the emphasised passage asks for in {after.mean:.0%} of "
            f"{after.n} prompts instead of {before.mean:.0%} (gain {gain.mean:+.0%}, 95 % interval "
            f"{gain.low:+.0%} to {gain.high:+.0%}) when the heads (layer.head) {named} are steered "
            f"to it, which were chosen on {self.chosen_on} other prompts. For comparison: "
            f"{others}.".replace("-", "−"),
            (
                Dots(
                    "Success",
                    tuple(Dot(name, *self.success(name)[:3]) for name in self.right),
                    x_label="share of prompts",
                ),
                Heatmap(
                    "Each head steered alone",
                    tuple(str(layer) for layer in layers),
                    tuple(str(head) for head in range(widest)),
                    tuple(tuple(alone.get((la, head)) for head in range(widest)) for la in layers),
                    unit="success",
                    row_label="layer",
                    column_label="head",
                    low=0.0,
                    high=1.0,
                    note=f"Without steering {self.profile.unsteered.mean():.2f}.",
                ),
            ),
            () if gain.low > 0 else ("The gain may be chance: profile more heads or prompts.",),
        )

    def _repr_html_(self) -> str:
        return self.finding()._repr_html_()


def emphasis(
    model: Model,
    prompts: Sequence[str],
    spans: Sequence[Sequence[Span]],
    wanted: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    alpha: float = 0.01,
    seed: int = 0,
) -> Emphasis:
    """Emphasise a passage of each prompt, and see whether the model does what it asks for.

    The first half of the prompts chooses the heads: each is steered alone, and of the best `TRIED`
    numbers of them the one that does best together is taken. The second half is what is told.

    Parameters
    ----------
    model : Model
        That generates.
    prompts : sequence of str
        Four or more.
    spans : sequence of sequence of (int, int)
        Characters of the passages that are emphasised, one or more in each prompt.
    wanted : sequence of str
        What the emphasised passage asks for: right is what begins with it.
    max_new_tokens : int, optional
        Length of what is written; as long as the longest that is wanted by default.
    alpha : float
        Factor of the attention to everything else; see `xattn.model.steer`.
    seed : int
        Of random heads and passages.

    Raises
    ------
    InputError
        If the numbers differ, a passage is empty or outside its prompt, or no token is asked for.
    ModelError
        If the model does not generate.
    """
    if model.task.name != "generate":
        raise ModelError("emphasis needs a model that generates", got=f"task {model.task.name}")
    if not len(prompts) == len(spans) == len(wanted) or len(prompts) < 4:
        raise InputError(
            "prompts, passages and what is wanted",
            got=f"{len(prompts)}, {len(spans)} and {len(wanted)}",
            expected="four or more, and as many of each",
        )
    if max_new_tokens is None:
        ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in wanted]
        max_new_tokens = max(map(len, ids))
    encodings = model.encode(list(prompts))
    marked = [mark(e, MARK, spans=some) for e, some in zip(encodings, spans, strict=True)]
    half = len(prompts) // 2

    def right(some: Sequence[Encoding], first: int, heads: Heads | None) -> Floats:
        with nullcontext() if heads is None else model.edit(steer(MARK, heads, alpha)):
            written = model.generate(list(some), max_new_tokens)
        texts = [(encoding.pair or "").strip() for encoding in written]
        pairs = zip(texts, wanted[first : first + len(some)], strict=True)
        return np.array([float(text.startswith(want.strip())) for text, want in pairs])

    def does(edited: Model) -> float:
        return float(right(marked[:half], 0, None).mean())

    profile = profile_heads(model, [does], MARK, alpha)
    count = len(profile.heads)
    options = [profile.top(n) for n in TRIED if n <= count]
    heads = max(options, key=lambda some: float(right(marked[:half], 0, some).mean()))
    size = sum(map(len, heads.values()))
    draw = np.random.default_rng(seed)
    drawn = [_heads(profile, draw.permutation(count)[:size].tolist()) for _ in range(DRAWS)]
    tested = marked[half:]
    elsewhere = [_elsewhere(encoding, draw) for encoding in tested]
    conditions = {
        "before": right(tested, half, None),
        "steered": right(tested, half, heads),
        "random heads": np.mean([right(tested, half, some) for some in drawn], axis=0),
        "all heads": right(tested, half, _heads(profile, list(range(count)))),
        "random passage": right(elsewhere, half, heads),
    }
    return Emphasis(model.name, profile, heads, conditions, half)


def _heads(profile: HeadProfile, chosen: Sequence[int]) -> Heads:
    heads: Heads = {}
    for number in sorted(chosen):
        layer, head = profile.heads[number]
        heads.setdefault(layer, []).append(head)
    return heads


def _elsewhere(encoding: Encoding, draw: np.random.Generator) -> Encoding:
    """Mark as many tokens in a row as are emphasised, at a random other place."""
    flags = encoding.row[f"mark:{MARK}"].astype(bool)
    size = int(flags.sum())
    places = encoding.removable
    starts = [i for i in range(len(places) - size + 1) if not flags[places[i : i + size]].any()]
    start = int(draw.choice(starts)) if starts else 0
    return mark(encoding, MARK, positions=places[start : start + size].tolist())
