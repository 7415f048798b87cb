"""Whether explanations that `xattn explain` warns of are really less faithful.

    python benchmarks/cautions.py [--limit 240] [--model FOLDER --data FILE]

Every text is explained by attention and by rollout, and looked through for the three mistakes. Then
tokens are masked in the order of the scores: if a warning is worth its place, attention that is
warned of finds less of what the prediction rests on (comprehensiveness is lower, sufficiency and
the area between the curves say the same) than attention that is not.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
from scipy.stats import mannwhitneyu

import xattn
from xattn.analysis.cautions import cautions
from xattn.data import load_dataset
from xattn.evaluation import compare, interval

ASKED = ("attention", "rollout")
MEASURED = {"comprehensiveness": 1, "sufficiency": -1, "abpc": 1}
"""Metrics, and the sign of better."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--limit", type=int, default=240)
    given = parser.parse_args()
    model, dataset = xattn.load(given.model), load_dataset(given.data, limit=given.limit)
    warned: defaultdict[str, list[bool]] = defaultdict(lambda: [False] * len(dataset))
    for number, text in enumerate(dataset.texts):
        for caution in cautions(model, xattn.explain(model, [text], ASKED)):
            warned[caution.title][number] = True
    anything = np.any(list(warned.values()), axis=0)
    result = compare(model, dataset, ASKED, ["mask"], metrics=list(MEASURED), beam=1)
    print(f"{model.name}, {len(dataset)} texts; differences are warned minus not warned\n")
    for title, flags in {**warned, "any of them": anything.tolist()}.items():
        told = np.array(flags)
        print(f"{title}: in {told.sum()} of {len(told)} texts ({told.mean():.0%})")
        if min(told.sum(), (~told).sum()) < 5:
            print("  too few on one side to compare")
            continue
        for metric, sign in MEASURED.items():
            table = result.table("mask", metric)
            for method in ASKED:
                values = table[method].to_numpy()
                one, other = (interval(values[side], seed=0) for side in (told, ~told))
                p = mannwhitneyu(
                    sign * values[told], sign * values[~told], alternative="less"
                ).pvalue
                print(
                    f"  {method:>9} {metric:>17}: warned {one.mean:.3f} [{one.low:.3f}, "
                    f"{one.high:.3f}], not {other.mean:.3f} [{other.low:.3f}, {other.high:.3f}], "
                    f"less faithful: p = {p:.2g}"
                )


if __name__ == "__main__":
    main()
