"""How well grounding works where the answer is known, what it costs, and what it says of real text.

Run it with ``python benchmarks/grounding.py``; it takes a few minutes. It prints

- *detection*: AUROC of ungrounded against grounded answers of the decoder of
  `xattn.cases.stories`, asked with and without the supporting fact: by a detector that was trained
  on labels (cross-validated over stories) and by the score without labels; 95 % intervals;
- *citations*: how often the sentence that a method cites first is the supporting fact, for the
  whole answer and for the one word that had to be known; beside chance;
- *streaming*: the time of generation with lookback ratios over that without, on the demo decoder:
  the median of interleaved pairs, processor time on one thread;
- *bAbI*: the same decoder on real stories of bAbI's task 1, its words replaced by those that the
  decoder knows: how often it answers rightly, and how often the fact is cited that the data names;
- *BEGIN*: AUROC on real answers (Wizard of Wikipedia) of those that are not fully attributable
  against those that are, as the demo decoder reads them.

The last two need the folders ``babi`` and ``begin`` in ``../shared/data`` beside the repository or
where the environment variable ``XATTN_DATA`` points, and are skipped without.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import xattn
from xattn.analysis.detector import Examples, Labelled, auroc, out_of_fold, unsupervised
from xattn.analysis.grounding import ground
from xattn.analysis.lookback import Lookback, lookbacks, placed, watched
from xattn.cases.stories import (
    MOST,
    PEOPLE,
    PLACES,
    Story,
    answers,
    draw_stories,
    draw_twins,
    train_stories,
)
from xattn.errors import XattnWarning
from xattn.evaluation.statistics import Interval
from xattn.model import Model

DATA = Path(os.environ.get("XATTN_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
METHODS = (
    "occlusion", "attention", "rollout", "flow", "value_norm", "value_zeroing", "globenc", "alti",
    "attention_gradient", "generic_attention", "gradient_flow", "integrated_gradients",
    "input_x_gradient", "saliency", "deeplift", "cp_lrp", "attnlrp", "consensus", "random",
)  # fmt: skip


def shown(area: Interval) -> str:
    return f"{area.mean:.3f} ({area.low:.3f} to {area.high:.3f}), n = {area.n}"


def table_of(found: Sequence[Lookback], ungrounded: Sequence[bool], sources: Sequence[int]) -> None:
    """Print the AUROC of a cross-validated detector and of the score without labels."""
    labels = np.array(ungrounded)
    features = np.stack([lookback.features() for lookback in found])
    made = Examples(features, labels, np.array(sources))
    scores = np.array([unsupervised(lookback) for lookback in found])
    print(f"  supervised    {shown(auroc(labels, out_of_fold(made)))}")
    print(f"  unsupervised  {shown(auroc(labels, scores))}")


def detection(model: Model, count: int) -> None:
    twins = draw_twins(count, seed=101)
    told = [story for pair in twins for story in pair]
    written = answers(model, told)
    right = np.array([a == story.answer for a, story in zip(written, told, strict=True)])
    grounded = np.array([story.grounded for story in told])
    print(f"answers as the story says {right[grounded].mean():.1%}, from memory where it is silent")
    print(f"  {right[~grounded].mean():.1%} (others are not asked about)")
    kept = np.flatnonzero(right)
    encodings = [placed(model, told[i].question, told[i].source, written[i]) for i in kept]
    table_of(lookbacks(model, encodings), (~grounded[kept]).tolist(), (kept // 2).tolist())


def citations(model: Model, stories: Sequence[Story], methods: Sequence[str]) -> None:
    """Print recall at 1 of the supporting fact, method by method."""
    hits = {name: [0, 0] for name in methods}
    for story in stories:
        found = ground(model, story.question, story.source, answer=story.answer, methods=methods)
        start, end = story.place
        known = [i for i, (a, b) in enumerate(found.offsets) if a < end and b > start]
        for name, count in zip(methods, hits.values(), strict=True):
            for place, tokens in enumerate((range(len(found.tokens)), known)):
                best = found.cited(tokens, name)
                count[place] += bool(best) and best[0].sentence == story.fact
    chance = np.mean([1 / len(story.sentences) for story in stories])
    print(f"recall at 1 over {len(stories)} stories (chance {chance:.2f}): whole answer, the word")
    for name, (whole, word) in sorted(hits.items(), key=lambda item: -item[1][0]):
        print(f"  {name:22}{whole / len(stories):6.3f}{word / len(stories):8.3f}")


def streaming(pairs: int) -> None:
    model = xattn.load(task="generate")
    source = "There once was a girl called Mia. She had a red ball. One day she went to the park."
    prompt = placed(model, "", source, room=160)
    options = {"min_new_tokens": 160}

    def seconds(run: Callable[[], object]) -> float:
        start = time.process_time()  # of this process: others on the machine do not count
        run()
        return time.process_time() - start

    ratios = []
    for number in range(pairs + 2):
        plain = seconds(lambda: model.generate([prompt], 160, **options))
        watching = seconds(lambda: watched(model, prompt, 160, **options))
        if number >= 2:  # the first ones set things up
            ratios.append(watching / plain)
    low, high = np.percentile(ratios, [25, 75])
    print(f"time with lookback over time without: median {statistics.median(ratios):.3f}")
    print(f"  (quartiles {low:.3f} to {high:.3f}, {pairs} interleaved pairs of 160 tokens)")


def babi(model: Model, count: int) -> None:
    path = DATA / "babi" / "en" / "qa1_single-supporting-fact_test.txt"
    if not path.is_file():
        print(f"skipped: no {path}")
        return
    stories = known_words(path)[:count]
    written = answers(model, stories)
    right = [s for s, answer in zip(stories, written, strict=True) if answer == s.answer]
    print(f"{len(right)} of {len(stories)} questions of at most {MOST} sentences answered rightly;")
    print("of these,", end=" ")
    citations(model, right, ("occlusion", "attention", "attnlrp", "cp_lrp", "random"))


def known_words(path: Path) -> list[Story]:
    """Return bAbI's stories in the decoder's own words: people, places and verbs one for one."""
    people: dict[str, str] = {}
    places: dict[str, str] = {}
    stories: list[Story] = []
    told: dict[int, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        number, _, rest = line.partition(" ")
        told = {} if number == "1" else told
        text, *answered = (part.strip() for part in rest.split("\t"))
        words = text.rstrip(".?").split()
        if not answered:
            name = people.setdefault(words[0], PEOPLE[len(people) % len(PEOPLE)])
            place = places.setdefault(words[-1], PLACES[len(places) % len(PLACES)])
            told[int(number)] = f"{name} went to the {place}."
        elif len(told) <= MOST:
            name = people[words[-1]]
            answer = f"{name} is in the {places[answered[0]]}."
            fact = list(told).index(int(answered[1]))
            stories.append(Story(tuple(told.values()), f"Where is {name}?", answer, fact))
    return stories


def begin(count: int) -> None:
    path = DATA / "begin" / "wow" / "begin_test_wow.tsv"
    if not path.is_file():
        print(f"skipped: no {path}")
        return
    model = xattn.load(task="generate")
    frame = pd.read_csv(
        path, sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False
    ).sample(frac=1, random_state=0)
    rows: list[Labelled] = []
    for row in frame.itertuples():
        verdict = str(row.begin_label).strip()
        if verdict not in ("Fully attributable", "Not fully attributable"):
            continue
        answer = str(row.response).strip()
        spans = () if verdict.startswith("Fully") else ((0, len(answer)),)
        rows.append(Labelled(str(row.knowledge), answer, spans, str(row.message).strip()))
    encodings, kept = [], []
    for row in rows:
        if len(kept) == count:
            break
        try:
            encodings.append(placed(model, row.question, row.source, row.answer))
            kept.append(row)
        except xattn.errors.InputError:  # longer than the decoder reads: counted below
            continue
    tried = rows.index(kept[-1]) + 1
    numbers: dict[str, int] = {}
    sources = [numbers.setdefault(row.source, len(numbers)) for row in kept]
    print(f"{len(kept)} of {tried} answers that fit into {model.limit} tokens")
    table_of(lookbacks(model, encodings), [bool(row.ungrounded) for row in kept], sources)
    length = np.array([-len(row.answer) for row in kept], dtype=float)
    print(f"  shortness     {shown(auroc(np.array([bool(r.ungrounded) for r in kept]), length))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stories", type=int, default=200, help="of detection, with twins")
    parser.add_argument("--cited", type=int, default=60, help="stories of the citations")
    parser.add_argument("--pairs", type=int, default=25, help="of the times of streaming")
    parser.add_argument("--answers", type=int, default=1000, help="of BEGIN")
    options = parser.parse_args()
    warnings.simplefilter("ignore", XattnWarning)
    torch.set_num_threads(1)
    start = time.process_time()
    model = train_stories()
    print(f"decoder trained in {time.process_time() - start:.0f} s of processor time")
    print("\ndetection")
    detection(model, options.stories)
    print("\ncitations")
    drawn = [s for s in draw_stories(2 * options.cited, 102, silent=0) if len(s.sentences) > 2]
    citations(model, drawn[: options.cited], METHODS)
    print("\nstreaming")
    streaming(options.pairs)
    print("\nbAbI, task 1")
    babi(model, options.stories)
    print("\nBEGIN, Wizard of Wikipedia")
    begin(options.answers)


if __name__ == "__main__":
    main()
