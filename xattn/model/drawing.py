"""Removal by drawing: other tokens stand in the place of those that go.

A mask is a sight that many models never saw in training, and a hole in the text is another text.
What stands in place of a token may be drawn instead: from the texts of a data set, or from what a
masked language model finds likely there (Kim et al. 2020, Interpretation of NLP Models through
Input Marginalization, EMNLP). Several inputs are drawn, and what they are worth is averaged.

What is drawn depends on the text alone, not on what else was drawn before: the same numbers decide
for all coalitions of a text, so that these differ by what stays, and a run that is repeated gets
the same inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch

from xattn.errors import InputError
from xattn.model.adapter import Model
from xattn.model.batching import buckets
from xattn.model.loading import load
from xattn.types import Bools, Floats, Ints, Row

MASKED_LM = "masked-lm"
DRAWS = 4
"""Inputs that stand for one."""

Drawing = Callable[[Model, Row, Bools], list[Row]]


def _numbers(ids: Ints) -> Floats:
    """Return numbers in [0, 1) that belong to a text, ``[draw, token]``."""
    seed = hashlib.blake2b(np.ascontiguousarray(ids).tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(seed)).random((DRAWS, len(ids)))


def _ids(row: Row) -> str:
    return next(name for name in row if name.endswith("input_ids"))


def without_texts(model: Model, row: Row, keep: Bools) -> list[Row]:
    """Raise `InputError`: it is not known what texts to draw from."""
    raise InputError(
        "tokens cannot be drawn from the data of a single text",
        remedy="use data when methods are compared on several texts (xattn compare)",
    )


def without_model(model: Model, row: Row, keep: Bools) -> list[Row]:
    """Raise `InputError`: it is not known what language model to ask."""
    raise InputError(
        "the masked language model is not named", expected=f"its folder or name: {MASKED_LM}:FOLDER"
    )


def by_texts(model: Model, texts: Sequence[str]) -> Drawing:
    """Return the removal that draws from all tokens of some texts, the frequent ones more often.

    Parameters
    ----------
    model : Model
    texts : sequence of str

    Raises
    ------
    InputError
        If the texts have no token.
    """
    found = model.tokenizer(list(texts), add_special_tokens=False, truncation=False)["input_ids"]
    pool = np.array([i for ids in found for i in ids], dtype=np.int64)
    if not len(pool):
        raise InputError("there is no token in the texts to draw from", got=f"{len(texts)} texts")

    def remove(model: Model, row: Row, keep: Bools) -> list[Row]:
        name = _ids(row)
        drawn = pool[(_numbers(row[name]) * len(pool)).astype(np.int64)]
        rows: list[Row] = []
        for kept in keep:
            rows += [{**row, name: np.where(kept, row[name], other)} for other in drawn]
        return rows

    return remove


def by_model(source: str) -> Drawing:
    """Return the removal that asks a masked language model, given all tokens that stay.

    Parameters
    ----------
    source : str
        Folder or Hub name of a masked language model with the vocabulary of the explained one.
    """

    def remove(model: Model, row: Row, keep: Bools) -> list[Row]:
        teller = _teller(source, str(model.device))
        _check_vocabulary(model, teller, source)
        name = _ids(row)
        masked = [
            {**row, name: np.where(kept, row[name], teller.token_id("mask"))} for kept in keep
        ]
        numbers = _numbers(row[name])
        rows: list[Row] = [{} for _ in range(len(keep) * DRAWS)]
        for group in buckets([len(row[name])] * len(keep), teller.budget):
            found = _drawn(teller, [masked[i] for i in group], ~keep[group], numbers)
            for i, drawn in zip(group.tolist(), found, strict=True):
                for draw, new in enumerate(drawn):
                    ids = row[name].copy()
                    ids[~keep[i]] = new
                    rows[i * DRAWS + draw] = {**row, name: ids}
        return rows

    return remove


def _drawn(teller: Model, rows: Sequence[Row], gone: Bools, numbers: Floats) -> Iterator[Ints]:
    """Yield the tokens that are drawn for each input, ``[draw, token that is gone]``.

    One input after the other: probabilities of all at once would take most of the memory.
    """
    inputs = teller.collate([{n: row[n] for n in teller.input_names if n in row} for row in rows])
    with torch.no_grad():
        logits = teller.output(inputs).logits
    never = torch.tensor(teller.tokenizer.all_special_ids, device=logits.device)
    for own, places in zip(logits, torch.from_numpy(gone).to(logits.device), strict=True):
        chances = own[places].double().index_fill(-1, never, -torch.inf).softmax(-1)
        levels = torch.from_numpy(numbers.T).to(logits.device)[places].contiguous()
        # the token at which the sum of the chances passes the number
        passed = torch.searchsorted(chances.cumsum(-1), levels).clamp(max=chances.shape[-1] - 1)
        drawn: Ints = passed.T.cpu().numpy()
        yield drawn


@cache
def _teller(source: str, device: str) -> Model:
    return load(source, task="fill", device=device)


def _check_vocabulary(model: Model, teller: Model, source: str) -> None:
    if model.tokenizer.get_vocab() != teller.tokenizer.get_vocab():
        raise InputError(
            f"{source} has another vocabulary than {model.name}",
            got=f"{len(teller.tokenizer.get_vocab())} tokens",
            expected=f"the same {len(model.tokenizer.get_vocab())}",
            remedy="name a masked language model with the tokenizer of the explained model",
        )
