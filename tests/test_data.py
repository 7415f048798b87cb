"""Data sets from files, from the Hub and from xattn itself, and what is wrong with them."""

import hashlib
import json

import datasets
import pandas as pd
import pytest

from xattn.data import Dataset, load_dataset
from xattn.demo import REVIEWS
from xattn.errors import InputError, UnknownNameError


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_the_demo_reviews():
    data = load_dataset()
    assert len(data) == 240
    assert set(data.labels) == {"negative", "positive"}
    assert data.pairs is None
    assert "negation" in data.kinds
    assert data.fingerprint == hashlib.sha256(REVIEWS.read_bytes()).hexdigest()
    assert data.ids[0] == "r001"
    start, end = data.rationales[0][0]
    assert data.texts[0][start:end].strip() == data.texts[0][start:end] != ""


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_says_the_same(suffix, tmp_path):
    frame = pd.DataFrame(
        {
            "text": ['He said "no", twice', "null\u2028 null"],
            "label": [0, 1],
            "rationale": ["0-2", ""],
        }
    )
    path = tmp_path / f"films.{suffix}"
    {
        "csv": lambda: frame.to_csv(path, index=False),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True, force_ascii=False),
        "parquet": lambda: frame.to_parquet(path),
    }[suffix]()
    data = load_dataset(path)
    assert data.name == "films"
    assert data.texts == tuple(frame["text"])
    assert data.labels == (0, 1)
    assert data.rationales == (((0, 2),), ())
    assert data.ids == ("1", "2")
    assert data.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_columns_are_guessed(write):
    data = load_dataset(write("a.csv", "hypothesis,premise,labels\nb,a,x\n"))
    assert (data.texts, data.pairs, data.labels) == (("a",), ("b",), ("x",))
    assert load_dataset(write("b.csv", "id,review\n7,good\n")).texts == ("good",)
    assert load_dataset(write("c.csv", "question,sentence\nq,s\n")).pairs == ("s",)


def test_columns_can_be_named(write):
    path = write("a.csv", "text,pair,label,x,y,why\nt,p,l,x1,y1,0-1\n")
    data = load_dataset(
        path, text_column="x", pair_column="y", label_column="text", rationale_column="why"
    )
    assert (data.texts, data.pairs, data.labels) == (("x1",), ("y1",), ("t",))
    assert data.rationales == (((0, 1),),)
    assert load_dataset(path, text_column="x").pairs is None
    assert load_dataset(path).pairs == ("p",)


def test_rationales_as_lists(write):
    lines = [{"text": "good film", "rationale": [[0, 4]]}, {"text": "bad", "rationale": None}]
    path = write("a.jsonl", "\n".join(map(json.dumps, lines)))
    assert load_dataset(path).rationales == (((0, 4),), ())


def test_limit_takes_the_top_and_ignores_what_is_below(write):
    path = write("a.csv", "text,label\na,x\nb,y\n,\n")
    assert load_dataset(path, limit=2).texts == ("a", "b")
    assert len(load_dataset(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,x\n ,y\n,z\n", r"missing texts in column 'text' of a: got 2 in rows 2, 3;"),
        ("text,label\na,x\nb,\n", r"missing labels in column 'label' of a: got 1 in row 2;"),
        ("text,label\na,x\nb\n", r"missing labels in column 'label' of a: got 1 in row 2;"),
        ("premise,hypothesis\na,\n", r"missing texts in column 'hypothesis' of a: got 1 in row 1"),
        ("text,rationale\nab,0-3\n", r"no spans .* 'rationale' of a: got 1 in row 1"),
        ("text,rationale\nab,x\n", r"no spans .* 'rationale' of a: got 1 in row 1"),
        (
            "a,b\n1,2\n",
            r"a has no column that is known to hold texts: got a, b, expected one of te",
        ),
        ("text\n", r"a is empty: expected at least one row"),
        ("", r"a.csv is empty: expected a header"),
        ("text,label\na, b,x\n", r"a.csv cannot be read: got ValueError: rows have more cells"),
        ("text\n1\n1,2,3\n", r"a.csv cannot be read: got ParserError"),
        (b"text\n\xff\xfe\xfa\n", r"a.csv cannot be read: got UnicodeDecodeError.*in UTF-8"),
    ],
)
def test_damaged_csv(content, message, write):
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(write("a.csv", content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ', r"a.jsonl cannot be read: got ValueError: line 2"),
        ("a.jsonl", '{"text": "a"}\n3\n', r"a.jsonl cannot be read: .*line 2 is not an object"),
        (
            "a.jsonl",
            '{"text": 3}\n',
            r"values that are no text in column 'text' of a: got 1 in row 1",
        ),
        ("a.parquet", b"PAR1 no", r"a.parquet cannot be read: got ArrowInvalid"),
        ("a.xlsx", b"", r"a.xlsx is not a kind of file .*: got '.xlsx', expected one of .csv"),
        ("plain", b"", r"plain is not a kind of file that can be read: got no suffix"),
    ],
)
def test_other_damaged_files(name, content, message, write):
    with pytest.raises(InputError, match=message):
        load_dataset(write(name, content))


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no such file: got .*nothing\.csv; check"):
        load_dataset(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match=r"no such file: got reviews\.xlsx"):
        load_dataset("reviews.xlsx")
    with pytest.raises(InputError, match="holds no picture"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "option", ["text_column", "pair_column", "label_column", "rationale_column"]
)
def test_unknown_columns(option):
    with pytest.raises(
        UnknownNameError, match=r"unknown column of reviews: got 'txt', expected one"
    ):
        load_dataset(**{option: "txt"})


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one(limit):
    with pytest.raises(InputError, match=f"limit: got {limit}, expected 1 or more"):
        load_dataset(limit=limit)


def test_a_data_set_from_the_hub(monkeypatch):
    asked = []

    def fake(name, split=None):
        asked.append((name, split))
        rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]})
        splits = datasets.DatasetDict({"train": rows, "validation": rows.select([1])})
        return splits if split is None else splits[split]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    chosen = load_dataset("owner/films:train")
    assert (chosen.name, chosen.texts, chosen.labels) == ("owner/films:train", ("a", "b"), (1, 0))
    guessed = load_dataset("films-v1.1")
    assert (guessed.name, guessed.texts) == ("films-v1.1:validation", ("b",))
    assert asked == [("owner/films", "train"), ("films-v1.1", None)]
    assert chosen.fingerprint != guessed.fingerprint


def test_a_name_that_the_hub_does_not_know(monkeypatch):
    def fake(name, split=None):
        raise FileNotFoundError("Dataset 'films' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    with pytest.raises(InputError, match=r"films is neither a file nor a data set .*on the Hub"):
        load_dataset("films")


def test_columns_must_have_one_length():
    with pytest.raises(ValueError, match="2 values for 1 texts"):
        Dataset("x", ("a",), None, None, None, ("1", "2"), None, "")


def test_a_rationale_may_be_the_passage_itself(tmp_path):
    path = tmp_path / "tweets.csv"
    path.write_text('text,label,chosen\n" so dull, so dull",0,so dull\nfine,1,\n')
    data = load_dataset(path, rationale_column="chosen")
    assert data.rationales == (((1, 8),), ())
    lines = tmp_path / "tweets.jsonl"
    lines.write_text('{"text": "so dull, so loud", "rationale": ["loud", "so"]}\n')
    assert load_dataset(lines).rationales == (((12, 16), (0, 2)),)


def test_a_passage_that_is_not_in_the_text_is_named(tmp_path):
    path = tmp_path / "tweets.csv"
    path.write_text("text,rationale\nso dull,bright\n")
    with pytest.raises(InputError, match=r"no spans .* or passages of the text in column .* row 1"):
        load_dataset(path)
