"""Whether the intersection of attention and gradients is more reliable than its parts.

    python benchmarks/consensus.py [--texts 60] [--only NAME ...] [--keep FOLDER]

Every definition of `consensus` over seven pairs, an attention method with a gradient method each,
is held against both its parts on the same texts: by deletion curves of three classifiers that were
trained on real or made texts, by what people marked, and by problems whose answers are known. For
each model, data set, pair and definition it prints consensus minus its better part (the one with
the higher mean on these texts) and minus each part, with 95 % bootstrap intervals, and a verdict:
better or worse if the interval leaves out 0 and Wilcoxon's test, corrected by Holm over all pairs,
definitions and parts of that column, says so at 5 %; else it cannot be told. A control crosses each
gradient method with random scores in place of attention. Sufficiency has its sign turned, so that
higher is better throughout.

The folders ``sst2_phrases`` and ``tweets_selected_text`` are looked for in ``../shared/data``
beside the repository or where the environment variable ``XATTN_DATA`` points; what needs them is
skipped without. Trained models are kept in a temporary folder between runs, and with ``--keep``
what was measured is kept as well, so that a run can go on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
)

import xattn
from xattn.demo.batches import PAD, bucketed_batches, pad, remove_tokens
from xattn.demo.data import load_corpus
from xattn.demo.descent import Descent
from xattn.demo.train import LABELS, MAX_TOKENS, encode, train_tokenizer
from xattn.evaluation import Dataset, compare, interval, load_dataset
from xattn.evaluation.truth import PROBLEMS
from xattn.evaluation.truth.questions import draw_questions, train_questions
from xattn.model import Model

DATA = Path(os.environ.get("XATTN_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
KEPT = Path(tempfile.gettempdir()) / "xattn-benchmarks"
"""Where trained models are kept."""

ATTENTION = ("attention", "rollout", "value_norm")
GRADIENT = ("input_x_gradient", "integrated_gradients", "attention_gradient")
PAIRS = [
    *((one, other) for one in ATTENTION[:2] for other in GRADIENT),
    ("value_norm", "integrated_gradients"),  # the dearest
]
DEFINITIONS = ("product", "minimum", "rank_minimum", "top_k")
"""The geometric mean orders tokens as the product does; only correlations tell it from that."""
METRICS = {
    "abpc": ("ABPC", 1),
    "abpc:ordering=absolute": ("ABPC by size", 1),
    "comprehensiveness": ("comprehensiveness", 1),
    "sufficiency": ("sufficiency", -1),
    "auprc": ("AUPRC", 1),
    "auprc:ordering=absolute": ("AUPRC by size", 1),
}
"""What each is called, and the sign of better. By size, no method knows what speaks against:
attention never does, and consensus has its signs from the gradients."""
CONTROL = "random"
KNOWN_ANSWER = "known answer"
NOTHING = 1e-4
"""Differences on a text that are no larger are rounding."""
KNOWN = 50
"""Texts of each problem whose answer is known."""
SHORT = {"attention": "att", "rollout": "roll", "value_norm": "norm", "input_x_gradient": "ixg",
         "integrated_gradients": "ig", "attention_gradient": "att-grad"}  # fmt: skip


def spec(attention: str, gradient: str, by: str) -> str:
    """Return consensus of a pair as text."""
    return f"consensus:attention={attention},gradient={gradient},by={by}"


SPECS = {(*pair, by): spec(*pair, by) for pair in PAIRS for by in DEFINITIONS}
CONTROLS = {(CONTROL, gradient, "product"): spec(CONTROL, gradient, "product")
            for gradient in GRADIENT}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """A model on a data set."""

    name: str
    model: Callable[[], Model]
    data: Callable[[], Dataset]
    operators: tuple[str, ...] = ("mask", "delete")
    needs: tuple[str, ...] = ()
    """Folders of data."""


# ------------------------------------------------------------------ models and data


def train_decoder(seed: int = 0) -> Model:
    """Train a decoder on SST-2, which takes a minute: Llama, 3 layers of 4 heads over 2 key heads.

    A third of the texts has tokens removed, so that they are nothing new to the model.
    """
    folder = KEPT / f"sst2-decoder-{seed}"
    if (folder / "config.json").exists():
        return xattn.load(str(folder))
    corpus = load_corpus(str(DATA / "sst2_phrases"), seed, 500)
    tokenizer = train_tokenizer([e.text for e in corpus.train if e.complete], 6000)
    data = encode(tokenizer, corpus.train, 2.0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=192, max_position_embeddings=MAX_TOKENS,
        pad_token_id=PAD, id2label=LABELS, label2id={v: k for k, v in LABELS.items()},
    )  # fmt: skip
    torch.manual_seed(seed)
    network = LlamaForSequenceClassification(config).train()
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([len(row) for row in data.ids])
    descent = Descent(network, 2e-3, -(-len(lengths) // 64), 0.05, 0.06)
    for batch in bucketed_batches(lengths, 64, generator):
        rate = torch.rand(len(batch), generator=generator)
        rate *= torch.rand(len(batch), generator=generator) < 1 / 3
        ids, attended = remove_tokens(pad([data.ids[i] for i in batch.tolist()]), rate, generator)
        logits = network(input_ids=ids, attention_mask=attended).logits
        descent.step(cross_entropy(logits, data.positive[batch].long(), label_smoothing=0.05))
    network.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return xattn.load(str(folder))


def kept(name: str, train: Callable[[], Model]) -> Model:
    """Return a model that is trained the first time it is asked for."""
    folder = KEPT / name
    if not (folder / "config.json").exists():
        model = train()
        model.network.save_pretrained(folder)
        assert model.tokenizer is not None
        model.tokenizer.save_pretrained(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    network = LlamaForSequenceClassification.from_pretrained(folder)
    return Model(network.eval(), tokenizer, name=name)


def dataset(name: str, texts: Sequence[str], **columns: Any) -> Dataset:
    """Return texts as a data set."""
    rows = {"pairs": None, "labels": None, "rationales": None, "kinds": None, **columns}
    ids = tuple(str(i) for i in range(len(texts)))
    return Dataset(name=name, texts=tuple(texts), ids=ids, fingerprint=name, **rows)


def phrases(count: int) -> Dataset:
    """Return sentences of SST-2's dev set, in natural spelling."""
    corpus = load_corpus(str(DATA / "sst2_phrases"), 0, 500)
    return dataset("sst2", [e.text for e in corpus.test[:count]])


def accuracy(model: Model) -> float:
    """Return the share of the sentences of SST-2's dev set that a model classifies right."""
    examples = load_corpus(str(DATA / "sst2_phrases"), 0, 500).test
    right = 0
    for positions, batch in model.batches(model.encode([e.text for e in examples])):
        found = model.logits(batch.inputs).argmax(-1).tolist()
        right += sum(f == examples[i].label for f, i in zip(found, positions, strict=True))
    return right / len(examples)


def tweets(count: int) -> Dataset:
    """Return tweets with the passage that a person selected as the reason for their label."""
    table = pd.read_csv(DATA / "tweets_selected_text" / "kaggle_train.csv").dropna()
    table = table[table["sentiment"].isin(["positive", "negative"])]
    texts, spans = [], []
    for text, chosen in zip(table["text"], table["selected_text"], strict=True):
        start, length = text.find(chosen.strip()), len(chosen.strip())
        if start >= 0 and length < 0.5 * len(text.strip()) and text.isascii():
            texts.append(text)
            spans.append(((start, start + length),))
    return dataset("tweets", texts[:count], rationales=tuple(spans[:count]))


def stories(count: int) -> Dataset:
    """Return stories with questions."""
    drawn = draw_questions(count, seed=1)
    return dataset("questions", drawn.texts, pairs=drawn.pairs)


def trials(count: int) -> list[Trial]:
    """Return every model with every data set that suits it."""
    demo, sst, twt = xattn.load, ("sst2_phrases",), ("tweets_selected_text",)
    return [
        Trial("encoder, reviews", demo, lambda: load_dataset(limit=count)),
        Trial("encoder, SST-2", demo, lambda: phrases(count), needs=sst),
        Trial("encoder, tweets", demo, lambda: tweets(count), needs=twt),
        Trial("decoder, reviews", train_decoder, lambda: load_dataset(limit=count), needs=sst),
        Trial("decoder, SST-2", train_decoder, lambda: phrases(count), needs=sst),
        Trial("decoder, tweets", train_decoder, lambda: tweets(count), needs=(*sst, *twt)),
        Trial(
            "answers, questions",
            lambda: kept("questions", train_questions),
            lambda: stories(count),
            operators=("mask",),  # a story without a word is no story that the model knows
        ),
    ]


# ------------------------------------------------------------------ what is measured


def measured(trial: Trial) -> dict[str, pd.DataFrame]:
    """Return by what was measured the values ``[text, method]``: higher is better."""
    texts, found = trial.data(), {}
    metrics = [m for m in METRICS if "auprc" not in m or texts.rationales is not None]
    names = [*ATTENTION, *GRADIENT, *SPECS.values(), *CONTROLS.values()]
    result = compare(trial.model(), texts, names, trial.operators, metrics=metrics, beam=1)
    for metric in metrics:
        label, sign = METRICS[metric]
        for operator in trial.operators[: 1 if "auprc" in metric else None]:
            column = label if "auprc" in metric else f"{label}, {operator}"
            found[f"{trial.name}: {column}"] = sign * result.table(operator, metric)
    return found


def judged(name: str) -> dict[str, pd.DataFrame]:
    """Return how near each method comes to a known answer, ``[text, method]``."""
    problem = PROBLEMS[name](KNOWN, 1)
    names = [*ATTENTION, *GRADIENT, *SPECS.values(), *CONTROLS.values()]
    found = xattn.explain(problem.model, problem.texts, names, pairs=problem.pairs)
    rows = [[problem.judged(i, item) for item in items]
            for i, items in enumerate(found.by_text())]  # fmt: skip
    return {f"{KNOWN_ANSWER}, {name}: {problem.measure}": pd.DataFrame(rows, columns=names)}


def once(
    name: str, folder: Path | None, measure: Callable[[], dict[str, pd.DataFrame]]
) -> dict[str, pd.DataFrame]:
    """Return what was measured and kept, or else measure and keep it."""
    if folder is None:
        return measure()
    path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.parquet"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        parts = [table.assign(column=column) for column, table in measure().items()]
        pd.concat(parts).to_parquet(path)
    columns = pd.read_parquet(path).groupby("column", sort=False)
    return {str(column): table.drop(columns="column") for column, table in columns}


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Return consensus minus each part and the better one, with interval and verdict."""
    rows, tests = [], []
    for (attention, gradient, by), name in {**SPECS, **CONTROLS}.items():
        parts = [p for p in (attention, gradient) if p != CONTROL]
        best = max(parts, key=lambda p: table[p].mean())
        for part in parts:
            gaps = (table[name] - table[part]).dropna().to_numpy()
            gaps = np.where(np.abs(gaps) < NOTHING, 0.0, gaps)
            found = interval(gaps, seed=0)
            tests.append(wilcoxon(gaps).pvalue if gaps.any() else 1.0)
            rows.append((attention, gradient, by, part, part == best, *found))
    columns = ["attention", "gradient", "by", "part", "better", "mean", "low", "high", "n"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["p"] = multipletests(tests, method="holm")[1]
    sure = frame["p"] < 0.05
    frame["verdict"] = np.select(
        [sure & (frame["low"] > 0), sure & (frame["high"] < 0)], ["better", "worse"], "="
    )
    return frame


# ------------------------------------------------------------------ what is printed


def cell(row: Any) -> str:
    return f"{row.mean:+.3f} [{row.low:+.3f}, {row.high:+.3f}] {row.verdict}"


def told(frame: pd.DataFrame, table: pd.DataFrame) -> None:
    """Print one column: every pair and definition against the better part and each."""
    print("| pair | definition | parts | − better part | − attention | − gradients |")
    print("|---|---|---|---|---|---|")
    lines = {(row.attention, row.gradient, row.by, row.part): row for row in frame.itertuples()}
    for attention, gradient, by in SPECS:
        one, other = (lines[attention, gradient, by, part] for part in (attention, gradient))
        means = f"{table[attention].mean():.3f}, {table[gradient].mean():.3f}"
        print(
            f"| {SHORT[attention]} × {SHORT[gradient]} | {by} | {means} "
            f"| {cell(one if one.better else other)} | {cell(one)} | {cell(other)} |"
        )


def counted(frames: dict[str, pd.DataFrame]) -> None:
    """Print how often consensus is better and worse than its better part, and than each."""
    whole = pd.concat([f.assign(column=name) for name, f in frames.items()])
    real, control = (whole[(whole["attention"] != CONTROL) == side] for side in (True, False))
    print("\n## Counts\n\n| | better | worse | cannot be told |\n|---|---|---|---|")

    def line(name: str, part: pd.DataFrame) -> None:
        counts = Counter(part["verdict"])
        total = max(1, len(part))
        shares = (f"{counts[v]} ({counts[v] / total:.0%})" for v in ("better", "worse", "="))
        print(f"| {name} | {' | '.join(shares)} |")

    line("than the better part", real[real["better"]])
    sized = real["column"].str.contains("by size")
    known = real["column"].str.contains(KNOWN_ANSWER)
    line("… by signed scores", real[real["better"] & ~sized & ~known])
    line("… by size", real[real["better"] & sized])
    line("… known answers", real[real["better"] & known])
    for by in DEFINITIONS:
        line(f"… {by}", real[real["better"] & (real["by"] == by)])
    for attention, gradient in PAIRS:
        here = real["better"] & (real["attention"] == attention) & (real["gradient"] == gradient)
        line(f"… {SHORT[attention]} × {SHORT[gradient]}", real[here])
    line("than the attention part", real[real["part"] == real["attention"]])
    line("than the gradient part", real[real["part"] == real["gradient"]])
    product = real[(real["by"] == "product") & (real["part"] == real["gradient"])]
    line("product, than the gradient part", product)
    line("control: gradients × random, than gradients", control)
    print("\n| model, data, measure | better | worse | cannot be told |\n|---|---|---|---|")
    for name, frame in frames.items():
        line(name, frame[(frame["attention"] != CONTROL) & frame["better"]])


def overview(tables: dict[str, pd.DataFrame]) -> None:
    """Print the means of the parts and the best consensus of each column, by masks."""
    print("\n## Means\n\n| model, data, measure | " + " | ".join(SHORT.values()), end="")
    print(" | best consensus | |\n|" + "---|" * (len(SHORT) + 3))
    for name, table in tables.items():
        if name.endswith("delete"):  # they say the same
            continue
        sign = -1 if name.split(": ")[1].startswith("sufficiency") else 1
        means = table.mean()
        best = max(SPECS, key=lambda key: means[SPECS[key]])
        cells = " | ".join(f"{sign * means[part]:.3f}" for part in SHORT)
        title = f"{SHORT[best[0]]} × {SHORT[best[1]]}, {best[2]}"
        print(f"| {name} | {cells} | {sign * means[SPECS[best]]:.3f} | {title} |")


def matrix(frames: dict[str, pd.DataFrame], measure: str) -> None:
    """Print consensus minus its better part by one measure, or for known answers; no intervals."""
    known = measure == KNOWN_ANSWER
    picked = {
        name: frame[frame["better"]]
        for name, frame in frames.items()
        if name.startswith(KNOWN_ANSWER) == known and (known or name.endswith(f": {measure}"))
    }
    if not picked:
        return
    signs = {"better": " +", "worse": " −", "=": ""}
    titles = [
        name.removeprefix(f"{KNOWN_ANSWER}, ").removesuffix(f": {measure}") for name in picked
    ]
    print(f"\n## Consensus minus its better part: {measure}\n")
    print(f"| pair | definition | {' | '.join(titles)} |\n|---|---|{'---|' * len(picked)}")
    for attention, gradient, by in SPECS:
        cells = []
        for frame in picked.values():
            here = (frame["attention"] == attention) & (frame["gradient"] == gradient)
            row = frame[here & (frame["by"] == by)].iloc[0]
            cells.append(f"{row['mean']:+.3f}{signs[row['verdict']]}")
        print(f"| {SHORT[attention]} × {SHORT[gradient]} | {by} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--texts", type=int, default=60, help="of each data set")
    parser.add_argument("--only", nargs="*", help="trials and problems whose names hold this")
    parser.add_argument("--keep", type=Path, help="folder of what was measured: read, or written")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    frames: dict[str, pd.DataFrame] = {}
    tables: dict[str, pd.DataFrame] = {}

    if (DATA / "sst2_phrases").is_dir():
        print(f"Right on SST-2: encoder {accuracy(xattn.load()):.1%}, ", end="")
        print(f"decoder {accuracy(train_decoder()):.1%}\n")
    print("## Every pair and definition")
    wanted: dict[str, Callable[[], dict[str, pd.DataFrame]]] = {}
    for trial in trials(given.texts):
        missing = [folder for folder in trial.needs if not (DATA / folder).is_dir()]
        if missing:
            print(f"\n{trial.name}: skipped, {DATA} has no {', '.join(missing)}")
        else:
            wanted[trial.name] = partial(measured, trial)
    wanted |= {f"{KNOWN_ANSWER}, {name}": partial(judged, name) for name in PROBLEMS}
    for name, measure in wanted.items():
        if given.only and not any(part in name for part in given.only):
            continue
        for column, table in once(name, given.keep, measure).items():
            tables[column], frames[column] = table, differences(table)
            print(f"\n### {column} ({len(table)} texts)\n")
            told(frames[column], table)
    counted(frames)
    overview(tables)
    for one in ("ABPC, mask", "ABPC by size, mask", "AUPRC", "AUPRC by size", KNOWN_ANSWER):
        matrix(frames, one)


if __name__ == "__main__":
    main()
