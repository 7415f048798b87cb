"""How well patterns are named, and induction heads found: the figures of `xattn patterns`.

    python benchmarks/patterns.py [--count 400]

Maps whose pattern was drawn are named: clean ones, and with up to 40 % of every row elsewhere. Then
decoders of one, two, three and four layers learn to continue sequences that repeat themselves, and
are looked through for induction heads; an untrained one as well.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import xattn
from xattn.analysis.heads import rank_heads
from xattn.analysis.induction import induction
from xattn.analysis.naming import NAMES
from xattn.analysis.patterns import patterns
from xattn.cases.maps import confusion
from xattn.cases.repetition import train_repetition
from xattn.data import load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="maps of each pattern")
    count = parser.parse_args().count
    for noise in (0.0, 0.4):
        table = confusion(count, noise)
        share = table.trace() / table.sum()
        print(f"noise up to {noise:.0%}: {share:.2%} of {int(table.sum())} maps are named right")
        for row, name in enumerate(NAMES):
            wrong = {NAMES[i]: int(table[row, i]) for i in range(len(NAMES)) if i != row}
            wrong = {called: times for called, times in wrong.items() if times}
            print(f"  {name:>16}: {table[row, row] / count:.1%} {wrong or ''}")
    print()
    for layers, steps in ((1, 600), (2, 600), (3, 600), (4, 600), (3, 0)):
        start = time.perf_counter()
        model = train_repetition(layers=layers, steps=steps)
        seconds = time.perf_counter() - start
        found = induction(model)
        print(f"{steps} steps, {seconds:.0f} s: {found.finding().says}")
        print(f"  largest prefix matching by layer {np.round(found.prefix.mean(0).max(1), 2)}")
    print()
    model, texts = xattn.load(), load_dataset(limit=240).texts
    for what, result in (("patterns", patterns), ("heads", rank_heads)):
        start = time.perf_counter()
        found_in = result(model, texts)
        print(f"{what}, {len(texts)} texts, {time.perf_counter() - start:.1f} s")
        print(f"  {found_in.finding().says} {' '.join(found_in.finding().cautions)}")


if __name__ == "__main__":
    main()
