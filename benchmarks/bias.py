"""How well a bias is found where it is known: the figures of ``xattn bias``.

Run it with ``python benchmarks/bias.py``; it trains some 140 small models, which takes about ten
minutes. It prints, for classifiers, masked and causal models of `xattn.cases.planted_bias`:

- *growth*: the effect size at five strengths of the planted bias over several seeds, beside the
  planted size, how often it is called biased, and the rank correlation of strength and effect;
- *false alarms*: how often models that were trained without a bias are called biased, and how often
  they are called free of one; also of classifiers that were trained on so few texts that they have
  learnt by heart what is chance in them, and how far off 0 those really are;
- *the tests alone*: how often shift and spread are called larger than the margin when they are
  exactly as large, and how often the interval covers them, in simulated tables;
- *Winogender*: the correlation of the demo models' changes with the share of women in each
  occupation. It needs the folder ``winogender`` in ``../shared/data`` beside the repository or
  where the environment variable ``XATTN_DATA`` points, and is skipped without.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import get_args

import numpy as np
from scipy.stats import spearmanr

import xattn
from xattn.analysis.bias import Bias, bias
from xattn.analysis.components import Components
from xattn.analysis.schemas import read_pairs, read_statistics
from xattn.analysis.templates import expand
from xattn.cases.planted_bias import PROFESSIONS, Task, templates, train_biased, truth

DATA = Path(os.environ.get("XATTN_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
STRENGTHS = (0.1, 0.2, 0.4, 0.6, 0.8)
FEW = 300
"""Texts from which nothing but chance is learnt."""


def measured(strength: float, seed: int, task: Task, texts: int | None = None) -> Bias:
    """Train a model and measure it on the templates of its case."""
    few = {} if texts is None else {"texts": texts}
    pairs = expand(templates(), PROFESSIONS)
    return bias(train_biased(strength, seed, task=task, **few), pairs, method=None)


def growth(task: Task, seeds: int) -> None:
    found = [(s, measured(s, seed, task)) for s in STRENGTHS for seed in range(seeds)]
    for strength in STRENGTHS:
        here = [item for s, item in found if s == strength]
        effects = np.array([item.effect for item in here])
        flagged = sum(item.verdict == "biased" for item in here)
        print(
            f"  strength {strength:.1f}: planted {truth(strength, task):.3f}, measured "
            f"{effects.mean():.3f} ({effects.min():.3f} to {effects.max():.3f}), called biased "
            f"{flagged} of {len(here)}"
        )
    rho = spearmanr([s for s, _ in found], [item.effect for _, item in found]).statistic
    print(f"  rank correlation of strength and effect over {len(found)} models: {rho:.3f}")


def false_alarms(task: Task, seeds: int, texts: int | None = None) -> None:
    found = [measured(0.0, 1000 + seed, task, texts) for seed in range(seeds)]
    counts = {name: sum(item.verdict == name for item in found)
              for name in ("biased", "within", "undecided")}  # fmt: skip
    sizes = np.array([item.effect for item in found])
    print(
        f"  trained without{'' if texts is None else f' on {texts} texts'}: called biased "
        f"{counts['biased']} of {seeds}, within the margin {counts['within']}, undecided "
        f"{counts['undecided']}; effects up to {sizes.max():.3f} (margin {found[0].margin:.2f})"
    )


def simulated(tables: int) -> None:
    """Draw tables of 40 professions by 12 templates whose shift and spread equal the margin."""
    draw, margin = np.random.default_rng(0), 0.05
    wrong, covered = np.zeros(2), np.zeros(2)
    for _ in range(tables):
        values = margin + draw.normal(0, margin, (40, 1)) + draw.normal(0, 0.05, (1, 12))
        found = Components(tuple(values + draw.normal(0, 0.05, (40, 12))), crossed=True)
        estimates = found.shift(margin), found.spread(margin)
        wrong += [e.p < 0.05 for e in estimates]
        covered += [e.low <= margin <= e.high for e in estimates]
    for name, rate, share in zip(
        ("shift", "spread"), wrong / tables, covered / tables, strict=True
    ):
        print(f"  {name}: called larger in {rate:.1%}; covered by its interval in {share:.1%}")


def winogender() -> None:
    folder = DATA / "winogender"
    if not folder.is_dir():
        print(f"  skipped: {folder} is not there")
        return
    for task in ("classify", "generate"):
        found = bias(
            xattn.load(task=task),
            read_pairs(folder),
            statistics=read_statistics(folder),
            method=None,
        )
        print(f"  {found.finding().says}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=4, help="of each strength")
    parser.add_argument("--unbiased", type=int, default=20, help="models without a bias")
    parser.add_argument("--tables", type=int, default=1000, help="simulated")
    chosen = parser.parse_args()
    for task in get_args(Task):
        print(f"{task}:")
        growth(task, chosen.seeds)
        false_alarms(task, chosen.unbiased)
    false_alarms("classify", chosen.unbiased, FEW)
    print("simulated tables at the margin:")
    simulated(chosen.tables)
    print("Winogender:")
    winogender()


if __name__ == "__main__":
    main()
