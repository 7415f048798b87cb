"""Marks: the tokens that were meant, in any batch, and nothing that was not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xattn.errors import InputError
from xattn.model import Model, mark
from xattn.model.operators import get_operator
from xattn.types import Encoding

TEXT = "A dull party; dull art, and DULL again."


def marked(encoding: Encoding, name: str = "m") -> list[str]:
    hit = encoding.row[f"mark:{name}"]
    return [token for token, m in zip(encoding.tokens, hit, strict=True) if m]


def test_words_are_found_wherever_they_occur(tiny: Model) -> None:
    encoding = tiny.encode([TEXT])[0]
    for options, expected in (
        ({"words": "dull"}, "dulldull"),
        ({"words": "dull", "ignore_case": True}, "dulldullDULL"),
        ({"words": ["party", "again"]}, "partyagain"),
        ({"words": "art"}, "art"),
        ({"words": "dull art"}, "dullart"),
    ):
        got = "".join(marked(mark(encoding, "m", **options)))
        assert got.replace(" ", "") == expected, options


def test_parts_of_words_only_when_asked(demo: Model) -> None:
    encoding = demo.encode(["partly"])[0]
    with pytest.raises(InputError, match=r"'art' is not in the text.*whole=False"):
        mark(encoding, "m", words="art")
    assert marked(mark(encoding, "m", words="art", whole=False))


def test_overlapping_phrases_are_all_found(demo: Model) -> None:
    encoding = demo.encode(["good good good bad"])[0]
    assert marked(mark(encoding, "m", words="good good")) == ["good"] * 3


def test_spans_hit_tokens_that_share_a_character(demo: Model) -> None:
    encoding = demo.encode([TEXT])[0]
    start = TEXT.index("dull")
    assert marked(mark(encoding, "m", spans=[(start + 1, start + 2)]))[0] == "dull"
    assert marked(mark(encoding, "m", spans=[(start - 1, start + 4)])) == ["dull"]


def test_all_bytes_of_one_character_are_marked(tiny_of: Callable[..., Model]) -> None:
    encoding = tiny_of("gpt2").encode(["A 🙂 film"])[0]
    hit = mark(encoding, "m", words="🙂").row["mark:m"]
    assert hit.sum() == sum((end > 2) and (start < 3) for start, end in encoding.offsets.tolist())
    assert hit.sum() > 1


def test_segments_of_a_pair(demo: Model) -> None:
    encoding = demo.encode(["A good film."], ["Was it good?"])[0]
    assert "".join(marked(mark(encoding, "m", segment=1))) == "Wasitgood?"
    assert mark(encoding, "m", words="good").row["mark:m"].sum() == 2
    second = mark(encoding, "m", words="good", segment=1).row["mark:m"]
    assert encoding.segments[np.flatnonzero(second)].tolist() == [1]
    assert marked(mark(encoding, "m", spans=[(0, 3)], segment=1)) == ["Was"]


def test_positions_count_from_both_ends(demo: Model) -> None:
    encoding = demo.encode(["Dull film"])[0]
    hit = mark(encoding, "m", positions=[0, -1]).row["mark:m"]
    assert hit.tolist() == [1, 0, 0, 1]


def test_ways_of_choosing_are_united_and_the_name_is_replaced(demo: Model) -> None:
    encoding = mark(demo.encode([TEXT])[0], "m", words="party", spans=[(0, 1)], positions=[0])
    assert marked(encoding) == ["[CLS]", "A", "party"]
    assert marked(mark(encoding, "m", words="again")) == ["again"]
    assert "mark:m" not in demo.encode([TEXT])[0].row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "chooses no token"),
        ({"words": []}, "chooses no token"),
        ({"words": " "}, "a word of mark 'm' is empty"),
        ({"words": "brilliant"}, "'brilliant' is not in the text"),
        ({"words": "PARTY"}, r"upper and lower case alike \(ignore_case=True\)"),
        ({"spans": [(3, 3)]}, r"is empty: got \(3, 3\)"),
        ({"spans": [(5, 2)]}, "runs backwards"),
        ({"spans": [(0, 400)]}, r"outside the text.*end <= 39"),
        ({"spans": [(-1, 2)]}, "outside the text"),
        ({"spans": [(1, 2)]}, r"no token of the model holds.*' '"),
        ({"positions": [99]}, "outside the text: got 99, expected -"),
        ({"segment": 1}, "segment of mark 'm': got 1, expected 0"),
    ],
)
def test_choices_that_cannot_be_meant(demo: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mark(demo.encode([TEXT])[0], "m", **options)


def test_a_mark_needs_a_name(demo: Model) -> None:
    with pytest.raises(InputError, match="needs a name"):
        mark(demo.encode([TEXT])[0], "", words="dull")


def test_marks_are_padded_with_zero_and_hidden_from_the_network(tiny: Model) -> None:
    short, long = tiny.encode(["Dull film.", "A long and rather dull film it is."])
    both = [mark(e, "m", words="film") for e in (short, long)]
    batch = tiny.batch(both)
    assert batch.inputs["mark:m"].shape == batch.inputs["input_ids"].shape
    assert int(batch.inputs["mark:m"][0, len(short) :].sum()) == 0
    assert tiny.logits(batch.inputs).equal(tiny.logits(tiny.batch([short, long]).inputs))


def test_a_batch_of_differing_marks_is_refused(demo: Model) -> None:
    first, second = demo.encode(["Dull film.", "Good film."])
    with pytest.raises(InputError, match=r"the same marks.*mark:m"):
        demo.batch([first, mark(second, "m", words="film")])


def test_marks_are_removed_with_their_tokens(demo: Model) -> None:
    encoding = mark(demo.encode(["A dull film, a dull plot."])[0], "m", words="dull")
    keep = np.ones((2, len(encoding)), dtype=bool)
    keep[0, np.flatnonzero(encoding.row["mark:m"])[0]] = False
    keep[1] = False
    one, none = get_operator("delete")(demo, encoding.row, keep)
    pieces = demo.tokenizer.convert_ids_to_tokens(one["input_ids"].tolist())
    assert [piece for piece, hit in zip(pieces, one["mark:m"], strict=True) if hit] == ["dull"]
    assert none["mark:m"].tolist() == [0]
