"""Which method wins, at what cost: the page ``docs/methods.md``.

Run ``xattn compare --methods all --out FOLDER`` and then ``python benchmarks/which_method.py FOLDER
> docs/methods.md``. The page holds the leaderboard of that comparison (the demo model on the demo
reviews) with its costs, how often each method puts the planted word first on models whose decisive
word is known, and how much its scores change when the network's parameters are shuffled.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

import xattn
from xattn.data import load_dataset
from xattn.evaluation import Comparison, interval, load, randomisation
from xattn.evaluation.truth.planted import Kind, accuracy, plant, train_planted
from xattn.registry import methods as registry

TEXTS = 40
"""Planted texts and reviews of the two smaller tables."""


def verdict(low: float, high: float) -> str:
    """Say on which side of random an interval lies."""
    return "yes" if low > 0 else "worse" if high < 0 else "not to be told apart"


def leaderboard(result: Comparison) -> None:
    seconds = result.provenance["seconds"]["total"]
    operators = list(result.scores["operator"].unique())
    print(f"## Deletion curves\n\nThe demo model on {len(result.examples)} reviews, by")
    print(f"`{result.provenance['command']}`, in {seconds / 60:.1f} minutes on two cores. ABPC is")
    print("the area between the curves of tokens removed least and most relevant first, higher is")
    print("better; intervals are 95 % bootstrap intervals over texts; time and passes are those of")
    print("one text, where several methods read one pass their share of it.\n")
    versus = result.versus_random().set_index(["method", "operator", "metric"])
    cost = result.cost.groupby("method")[["seconds", "forward_passes", "backward_passes"]].mean()
    second = f" ABPC, {operators[1]} |" if len(operators) > 1 else ""
    print(f"| method | ABPC, {operators[0]} | 95 % interval | beats random |{second} ms | passes |")
    print("|---|---|---|---|" + ("---|" if second else "") + "---|---|")
    for row in result.leaderboard(operators[0], "abpc").itertuples():
        name = str(row.method)
        beats = "-"
        if name != "random":
            difference = versus.loc[(name, operators[0], "abpc")]
            beats = verdict(difference["low"], difference["high"])
        other = ""
        if second:
            table = result.leaderboard(operators[1], "abpc").set_index("method")
            other = f" {table.loc[name, 'mean']:.3f} |"
        spent = "- | - |"
        if name in cost.index:
            used = cost.loc[name]
            passes = f"{used['forward_passes']:.3g} + {used['backward_passes']:.3g}"
            spent = f"{1e3 * used['seconds']:.1f} | {passes} |"
        between = f"{row.low:.3f} to {row.high:.3f}"
        print(f"| {name} | {row.mean:.3f} | {between} | {beats} |{other} {spent}")
    for name, why in result.provenance["refused"].items():
        print(f"\n`{name}` takes no part: {why}.")


def planted(names: Sequence[str]) -> None:
    print("\n## Planted words\n\nSmall models that have learnt texts whose class one word decides")
    print(f"(`xattn.evaluation.truth.planted`), {TEXTS} new texts: how often it scores highest.\n")
    print("| method | encoder | 95 % interval | decoder | 95 % interval |\n|---|---|---|---|---|")
    kinds: tuple[Kind, ...] = ("encoder", "decoder")
    found: dict[str, list[str]] = {name: [] for name in names}
    means: dict[str, float] = dict.fromkeys(names, 0.0)
    drawn = plant(TEXTS, seed=1)
    for kind in kinds:
        model = train_planted(kind)
        right = accuracy(model, plant(500, seed=2))
        assert right > 0.99, f"the planted {kind} has not learnt its words: {right}"
        for name in names:
            first = []
            for key, item in zip(
                drawn.keys, xattn.explain(model, drawn.texts, [name]), strict=True
            ):
                first.append(float(item.scores[~item.special].argmax() == key))
            share = interval(np.array(first), seed=0)
            means[name] += share.mean
            found[name] += [f"{share.mean:.0%}", f"{share.low:.0%} to {share.high:.0%}"]
    for name in sorted(names, key=lambda name: -means[name]):
        print(f"| {name} | {' | '.join(found[name])} |")


def shuffled(names: Sequence[str]) -> None:
    print("\n## Shuffled parameters\n\nSpearman's correlation of the scores of the demo model with")
    print(
        "those of copies whose parameters are shuffled from the top down: the head, the layers as"
    )
    print(f"well, everything ({TEXTS // 2} reviews). What stays near 1 explains the text or the")
    print("architecture and not what the model has learnt (Adebayo et al. 2018).\n")
    print("| method | head | layers | everything |\n|---|---|---|---|")
    texts = list(load_dataset(limit=TEXTS // 2).texts)
    table = randomisation(xattn.load(), texts, names)
    cells = table.set_index(["method", "stage"])["mean"].unstack()
    for name, row in cells.sort_values("everything").iterrows():
        values = (f"{row[stage]:.2f}" if not pd.isna(row[stage]) else "-"
                  for stage in ("head", "layers", "everything"))  # fmt: skip
        print(f"| {name} | {' | '.join(values)} |")


def main(folder: str) -> None:
    warnings.simplefilter("ignore")
    result = load(folder)
    names = [name for name in registry.names() if name not in result.provenance["refused"]]
    print("# Which method wins\n\nMade by `benchmarks/which_method.py`; what it says holds for")
    print("these models and texts.\n")
    leaderboard(result)
    planted(names)
    shuffled(names)


if __name__ == "__main__":
    main(sys.argv[1])
