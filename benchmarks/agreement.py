"""Attention, rollout and flow against blank-out and gradients, as Abnar & Zuidema 2020 had it.

    python benchmarks/agreement.py [--grammar] [--seeds 3] [--texts 500]

Models of 6 layers of 8 heads learn to say the number of a verb: a decoder, and an encoder as the
paper has it. On sentences whose templates they never saw, every token is blanked out, and raw
attention, rollout and flow of each layer are compared with what that changes, and with gradients:
as published, as corrected, and for the decoder relative to uniform attention; beside the table of
the paper. Then what the paper says of its table, claim by claim, over all models and for each.

Sentences are those of Marvin & Linzen 2018 in ``../shared/data/agreement_marvin_linzen`` beside the
repository or where the environment variable ``XATTN_DATA`` points; without that folder, or with
``--grammar``, those of `xattn.cases.agreement`. It takes some ten minutes on one core.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from xattn.analysis.blankout import FEWEST, MAPS, MEASURES, BlankOut, Protocol, blank_out
from xattn.cases.agreement import (
    LABELS,
    TABLES,
    Prefix,
    draw_prefixes,
    read_prefixes,
    right,
    split,
    train_agreement,
)

DATA = Path(os.environ.get("XATTN_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
FOLDER = DATA / "agreement_marvin_linzen"


def tried(prefixes: list[Prefix], seed: int, causal: bool, given: argparse.Namespace) -> BlankOut:
    """Train one model, say how good it is, and blank out what it was not trained on."""
    learned, asked = split(prefixes, seed)
    model = train_agreement(learned, causal=causal, seed=seed, width=given.width, steps=given.steps)
    fooled = [prefix for prefix in asked if prefix.attractor]
    print(f"seed {seed}: right {right(model, asked).mean():.1%} of {len(asked)}, ", end="")
    print(f"with attractors {right(model, fooled).mean():.1%} of {len(fooled)}")
    long = [prefix for prefix in asked if len(prefix.text.split()) >= FEWEST]
    order = np.random.default_rng(seed).permutation(len(long))[: given.texts]
    chosen = [long[i] for i in order]
    labels = [LABELS[prefix.plural] for prefix in chosen]
    return blank_out(model, [prefix.text for prefix in chosen], labels)


def table(found: BlankOut, protocol: Protocol, measure: str) -> pd.DataFrame:
    """Return one row a map, one column a layer: mean and standard deviation over texts."""
    frame = found.to_dataframe(protocol)
    frame = frame[frame["measure"] == measure]
    cells = [
        f"{mean:.2f} ± {std:.2f}" for mean, std in zip(frame["mean"], frame["std"], strict=True)
    ]
    rows = np.reshape(cells, (len(MAPS), found.layers))
    return pd.DataFrame(rows, list(MAPS), [f"L{k}" for k in range(1, found.layers + 1)])


def claimed(
    whole: BlankOut, each: list[BlankOut], measure: str, protocol: Protocol
) -> pd.DataFrame:
    """Return each claim over all texts and model by model; it holds if it does of all of these."""
    parts = [found.claims(measure, protocol) for found in each]
    rows = []
    for name, known in whole.claims(measure, protocol).items():
        means = [part[name].mean for part in parts]
        verdict = "undecided"
        if known.low > 0 and min(means) > 0:
            verdict = "holds"
        elif known.high < 0 and max(means) < 0:
            verdict = "the reverse holds"
        rows.append((name, known.said, ", ".join(f"{mean:+.2f}" for mean in means), verdict))
    return pd.DataFrame(rows, columns=["claim", "difference", "by model", "verdict"])


def show(frame: pd.DataFrame, index: bool) -> None:
    print(frame.to_string(index=index), end="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--grammar", action="store_true", help="sentences of our own grammar")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=500, help="of each model")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=700)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.grammar or not FOLDER.is_dir():
        print("sentences of our own grammar" + ("" if given.grammar else f" (no {FOLDER.name})"))
        prefixes = draw_prefixes(8000, seed=0)
    else:
        print(f"sentences of Marvin & Linzen ({FOLDER.name})")
        prefixes = read_prefixes(FOLDER)
    for measure in MEASURES:
        published = pd.DataFrame(TABLES[measure], [f"L{k}" for k in range(1, 7)]).T
        print(f"\npublished table, {measure}")
        show(published, index=True)
    for causal in (True, False):
        print(f"\n== {'decoder' if causal else 'encoder'}\n")
        each = [tried(prefixes, seed, causal, given) for seed in range(given.seeds)]
        readings = [reading for found in each for reading in found.readings]
        whole = BlankOut(each[0].model, tuple(readings))
        for measure in MEASURES:
            for protocol in whole.protocols:
                print(f"\n{measure}, {protocol.name}")
                show(table(whole, protocol, measure), index=True)
                show(claimed(whole, each, measure, protocol), index=False)
            print(f"what each choice makes of the last layer, {measure}")
            show(whole.choices(measure).round(2), index=False)


if __name__ == "__main__":
    main()
