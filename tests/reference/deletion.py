"""Deletion metrics as their papers define them, written slowly.

Plain loops, one forward pass an input, nothing remembered, nothing shared with the package but
the adapter that turns arrays into logits.
"""

import itertools
import math

import numpy as np
import torch


def probability(model, row, label):
    """Probability of one class on one input."""
    inputs = {name: torch.tensor([values.tolist()]) for name, values in row.items()}
    logits = model.logits(inputs)[0]
    if len(logits) == 1:
        return torch.sigmoid(logits[0]).item()
    return torch.softmax(logits, 0)[label].item()


def without(model, encoding, operator, gone):
    """Return the input without the tokens at the positions in `gone`."""
    tokenizer = model.tokenizer
    row = {name: values.tolist() for name, values in encoding.row.items()}
    length = len(row["input_ids"])
    stays = [i for i in range(length) if i not in gone]
    if operator in ("mask", "pad", "unknown"):
        token = {
            "mask": tokenizer.mask_token_id,
            "pad": tokenizer.pad_token_id,
            "unknown": tokenizer.unk_token_id,
        }[operator]
        for i in gone:
            row["input_ids"][i] = token
    elif not stays:
        ids = (
            tokenizer.mask_token_id,
            tokenizer.pad_token_id,
            tokenizer.unk_token_id,
            tokenizer.eos_token_id,
            tokenizer.bos_token_id,
        )
        first = next(i for i in ids if i is not None)
        row = {name: [0] for name in row} | {"input_ids": [first], "attention_mask": [1]}
    elif operator == "delete":
        row = {name: [values[i] for i in stays] for name, values in row.items()}
    elif operator == "attention-mask":
        for i in gone:
            row["attention_mask"][i] = 0
        row = {name: values[: stays[-1] + 1] for name, values in row.items()}
    return {name: np.array(values) for name, values in row.items()}


def removal_counts(n):
    """Tokens gone at each point of a curve."""
    if n <= 10:
        return list(range(n + 1))
    return [round(n * i / 10) for i in range(11)]  # round() and rint both take the even neighbour


def curve(model, encoding, operator, label, order):
    """Points (share removed, score), tokens going in `order`."""
    n = len(order)
    return [
        (c / n, probability(model, without(model, encoding, operator, set(order[:c])), label))
        for c in removal_counts(n)
    ]


def area(points):
    """Area under the points by trapezoids."""
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))


def metrics(model, encoding, operator, label, order):
    """All metrics of one example; `order` is the most relevant token first."""
    n = len(order)
    morf = curve(model, encoding, operator, label, order)
    lerf = curve(model, encoding, operator, label, order[::-1])
    full = probability(model, encoding.row, label)
    loss_without, loss_only = [], []
    for percent in (1, 5, 10, 20, 50):
        k = math.ceil(percent * n / 100)
        top, rest = set(order[:k]), set(order[k:])
        loss_without.append(
            full - probability(model, without(model, encoding, operator, top), label)
        )
        loss_only.append(full - probability(model, without(model, encoding, operator, rest), label))
    return {
        "comprehensiveness": sum(loss_without) / 5,
        "sufficiency": sum(loss_only) / 5,
        "aopc_morf": full - area(morf),
        "aopc_lerf": full - area(lerf),
        "abpc": area(lerf) - area(morf),
    }


def greedy(score, positions, lowest):
    """Order found by removing, again and again, the token with the strongest effect.

    `score` takes the set of removed positions.
    """
    gone, left = [], list(positions)
    while left:
        best = min(left, key=lambda i: score({*gone, i}) * (1 if lowest else -1))
        gone.append(best)
        left.remove(best)
    return gone
