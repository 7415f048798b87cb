"""What control by attention does: boilerplate that misleads, and instructions that compete.

    python benchmarks/control.py [--seeds 3] [--clauses unfair_tos_en.tsv]

A classifier learns from passages whose boilerplate goes with the label, and is asked about passages
where it is the other way round. Accuracy before, with attention to the boilerplate suppressed
(known passages, and passages found by the tool), with random passages of that length suppressed,
and with the boilerplate deleted. Then a decoder that by habit follows the last of two instructions
is steered to the first one (PASTA), with heads that were chosen on other prompts.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from xattn.analysis.control import control, find_misleading
from xattn.analysis.emphasis import emphasis
from xattn.cases.contracts import (
    MISLEADING,
    assemble,
    read_sentences,
    train_contracts,
    write_sentences,
)
from xattn.cases.instructions import draw_instructions, train_instructions

KNOWN, ASKED = 150, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clauses", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for seed in range(given.seeds):
        if given.clauses is None:
            learned, new = write_sentences(2 * seed), write_sentences(2 * seed + 1)
        else:
            learned, new = read_sentences(given.clauses)
        model = train_contracts(assemble(learned, 1500, seed, MISLEADING), seed)
        known = assemble(learned, KNOWN, 1000 + seed, 1 - MISLEADING)
        asked = assemble(new, ASKED, 2000 + seed, 1 - MISLEADING)
        found = find_misleading(model, known.texts, known.labels, asked.texts)
        result = control(model, asked.texts, asked.labels, asked.boilerplate, found=found)
        print(f"seed {seed}: {result.finding().says}")
        print(result.to_dataframe().round(3).to_string(index=False))
        looks = ", ".join(f"{name} {share.mean:.2f}" for name, share in result.looks.items())
        print(f"on the boilerplate ({result.size.mean:.2f} of the tokens): {looks}")
        print(f"found by the tool: precision and recall {result.overlap}\n")
        drawn = draw_instructions(400, seed=9 + seed)
        wanted = [first for first, _ in drawn.answers]
        steered = emphasis(
            train_instructions(seed), drawn.prompts, [[s] for s in drawn.first], wanted
        )
        print(f"seed {seed}: {steered.finding().says}\n")


if __name__ == "__main__":
    main()
