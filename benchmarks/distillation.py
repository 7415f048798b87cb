"""Whether students come out in the order in which they were made.

    python benchmarks/distillation.py [--seeds 3]

Trains the three students of `xattn.cases.students` with several seeds (20 seconds a seed) and
compares each with the demo model on the reviews that none of them has learnt from: same answers,
Jensen-Shannon divergence of maps (bits), Spearman's correlation of maps and of explanations, each
beside that of the student with its parameters shuffled; paired differences between students with
95 % intervals; and how many of the layers and heads that a student was taught from are found.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import xattn
from xattn.analysis.distillation import METHODS, Distillation, distillations
from xattn.analysis.similarity import MEASURES
from xattn.cases.students import HEADS, KINDS, LAYERS, reviews, train_student
from xattn.evaluation.statistics import paired_difference


def line(found: Distillation) -> str:
    """Return the figures of one student."""
    floor = found.floor.whole.mean(1)
    said = [f"{found.student}: same answers {found.agreement.mean:.0%}"]
    for measure in ("js", "rank"):
        value = found.consistency("maps", measure)
        shuffled = floor[MEASURES.index(measure)]
        said.append(
            f"maps {measure} {value.mean:.3f} ({value.low:.3f} to {value.high:.3f}; "
            f"shuffled {shuffled:.3f})"
        )
    said += [f"{name} rank {found.consistency(name, 'rank').mean:.3f}" for name in METHODS]
    return ", ".join(said)


def main() -> None:
    """Train, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    teacher = xattn.load()
    asked = reviews(teacher)[1].texts
    layers = heads = ordered = 0
    for seed in range(given.seeds):
        print(f"seed {seed}, {len(asked)} reviews")
        found = distillations(teacher, [train_student(kind, seed) for kind in KINDS], asked)
        for one in found:
            print(f"  {line(one)}")
        apart = [
            paired_difference(far.values("maps"), near.values("maps"), seed=0)
            for near, far in pairwise(found)
        ]
        for (near, far), value in zip(pairwise(KINDS), apart, strict=True):
            print(f"  maps, {far} − {near}: {value.mean:.3f} ({value.low:.3f} to {value.high:.3f})")
        ordered += all(value.low > 0 for value in apart)
        maps = found[0].maps
        matched = maps.matched_layers()
        layers += sum(matched.get(s) == t for s, t in LAYERS.items())
        heads += sum(
            maps.matched_heads(t, s).get(own) == head
            for s, t in LAYERS.items()
            for own, head in HEADS.items()
        )
    print(f"order attention, output, alone in {ordered} of {given.seeds} seeds")
    print(f"layers found {layers} of {given.seeds * len(LAYERS)}, ", end="")
    print(f"heads {heads} of {given.seeds * len(LAYERS) * len(HEADS)}")


if __name__ == "__main__":
    main()
