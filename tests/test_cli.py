"""The command line, tried as a stranger would: what it prints, writes and refuses."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from xattn import commands, terminal
from xattn import demo as shipped
from xattn.__main__ import main
from xattn.errors import InputError
from xattn.model import Model

try:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
except ModuleNotFoundError:  # before image processors had several backends
    from transformers import ViTImageProcessor as ViTImageProcessorPil

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command line in an empty folder; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal.console, "_width", 200)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xattn", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_explain_without_arguments(run: Run) -> None:
    code, out, err = run("explain")
    assert (code, err) == (0, "")
    assert "explained: logit of" in out
    for method in ("attention", "rollout", "flow", "integrated_gradients", "attention_gradient"):
        assert method in out
    assert "completeness gap" in out


def test_explain_writes_what_is_asked_for(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(
        "explain", "A dull, lifeless film.", "-m", "rollout:residual=0.3,random", "--unit", "word",
        "--html", "a/page.html", "--png", "a/strip.png", "--json", "a/scores.json",
    )  # fmt: skip
    assert code == 0
    assert "wrote a/page.html" in out
    scores = json.loads((tmp_path / "a/scores.json").read_text())
    assert [item["method"] for item in scores] == ["rollout", "random"]
    assert scores[0]["parameters"] == {"residual": 0.3}
    assert scores[0]["unit"] == "word"
    assert "lifeless" in scores[0]["tokens"]
    assert (tmp_path / "a/strip.png").read_bytes()[:4] == b"\x89PNG"
    assert "lifeless" in (tmp_path / "a/page.html").read_text()


def test_explain_a_pair_and_another_class(run: Run) -> None:
    code, out, _ = run("explain", "A dull film.", "--pair", "Was it good?", "-m", "rollout",
                       "--label", "positive")  # fmt: skip
    assert code == 0
    assert "logit of positive" in out


def test_explain_in_spans_of_characters(run: Run) -> None:
    code, out, _ = run("explain", "A dull, lifeless film.", "-m", "rollout", "--unit", "8-21")
    assert code == 0
    assert "lifeless film +" in out


STORY = "Mia had a red ball, and Tom had a blue kite. Tom was tired. Who was tired?"


def test_what_the_demo_decoder_writes_is_explained(run: Run) -> None:
    code, out, err = run("explain", "--task", "generate", "-m", "attention", "--new-tokens", "3")
    assert (code, err) == (0, "")
    assert out.count("explained: logit of") == 3
    assert "Once upon a time" in out
    code, out, _ = run("explain", STORY, "--task", "generate", "--chat", "-m", "rollout",
                       "--at", "next")  # fmt: skip
    assert code == 0
    assert "explained: logit of" in out
    code, out, _ = run("edit", STORY, "--task", "generate", "--chat", "--suppress", "Tom",
                       "-m", "attention", "--new-tokens", "4")  # fmt: skip
    assert code == 0
    assert "before: " in out
    assert "after:  " in out
    assert out.count("the whole continuation") == 2


def test_edit_shows_before_and_after(run: Run) -> None:
    code, out, _ = run("edit", "--suppress", "constant delight", "--layers", "0-3", "-m", "rollout")
    assert code == 0
    before, after = out.split("after: ")
    assert "before: positive (" in before
    assert after.startswith(" negative (")
    assert out.count("explained: logit of positive") == 2
    assert "the prediction changed" in after
    code, out, _ = run("edit", "--uniform", "--heads", "0", "--layers", "0", "-m", "attention")
    assert code == 0
    assert "the prediction stayed" in out


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "no edit is named"),
    (("--suppress", "nowhere"), "is not in the text"),
    (("--suppress", "thin", "--layers", "4-6"), "out of range: got 4, expected 0 to 3"),
    (("--suppress", "thin", "--heads", "9"), "out of range: got 9"),
    (("--suppress", "thin", "--layers", "6-4"), "numbers as 4-6"),
    (("--boost", "thin", "--factor", "0.5"), "1 or more"),
    (("--uniform", "--stack", "cross"), "unknown stack"),
    (("--uniform", "--unit", "chapter"), "--unit"),
])  # fmt: skip
def test_edits_that_cannot_be_made(run: Run, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run("edit", *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("xattn: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_compare_writes_a_report(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("compare", "--limit", "6", "--operators", "mask", "--out", "here")
    assert code == 0
    assert "tokens removed by mask" in out
    for name in ("report.html", "scores.parquet", "curves.parquet", "summary.json"):
        assert (tmp_path / "here" / name).stat().st_size > 0
    summary = json.loads((tmp_path / "here/summary.json").read_text())
    assert "compare --limit 6" in json.dumps(summary)


def test_a_run_is_extended_and_redrawn(run: Run, tmp_path: Path) -> None:
    arguments = ["--limit", "3", "--operators", "delete", "--metrics", "gini,flip", "--out", "r"]
    assert run("compare", "-m", "rollout", *arguments)[0] == 0
    code, out, _ = run("compare", "--add-method", "saliency", "--add-metric", "entropy", "r")
    assert code == 0
    assert "saliency" in out
    scores = pd.read_parquet(tmp_path / "r/scores.parquet")
    assert set(scores["metric"]) == {"abpc", "gini", "flip", "entropy"}
    assert set(scores["method"]) == {"rollout", "saliency", "random", "oracle"}
    page = (tmp_path / "r/report.html").read_text()
    (tmp_path / "r/report.html").unlink()
    code, out, _ = run("report", "r")
    assert code == 0
    assert (tmp_path / "r/report.html").read_text() == page
    code, out, _ = run("compare", "--study", "r/study.yaml", "--out", "again")
    assert code == 0
    again = pd.read_parquet(tmp_path / "again/scores.parquet")
    assert again["metric"].tolist() == scores["metric"].tolist()
    assert again["value"].to_numpy() == pytest.approx(scores["value"], abs=1e-5, nan_ok=True)


def test_a_text_that_fails_is_told_by_the_exit_code(run: Run, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,text\na,A dull film.\nb," + "very " * 200 + "good\n")
    code, out, err = run("compare", "-m", "rollout", "--data", "d.csv", "--out", "o")
    assert code == 3
    assert "rollout" in out
    assert "1 of the texts failed, for example b: text 0 is 75 tokens too long" in err
    assert "failed and is missing" in (tmp_path / "o/report.html").read_text()


def test_metrics_are_listed_with_options_and_sources(run: Run) -> None:
    code, out, _ = run("metrics")
    assert code == 0
    for words in ("normalised_aopc", "fractions=eraser", "lower is better", "Yeh et al. 2019"):
        assert words in out


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_compare_reads_every_format(run: Run, tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"sentence": ["A dull film.", "A joy."], "label": [0, 1]})
    write = {
        "csv": lambda p: frame.to_csv(p, index=False),
        "tsv": lambda p: frame.to_csv(p, index=False, sep="\t"),
        "jsonl": lambda p: frame.to_json(p, orient="records", lines=True),
        "parquet": lambda p: frame.to_parquet(p),
    }
    write[suffix](tmp_path / f"data.{suffix}")
    code, out, err = run("compare", "-m", "rollout", "--data", f"data.{suffix}", "--out", "o")
    assert code == 0, err
    assert "rollout" in out


def test_maps(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("maps")
    assert code == 0
    assert "4 layers, 4 heads" in out
    assert (tmp_path / "xattn-maps.png").read_bytes()[:4] == b"\x89PNG"
    assert "</html>" in (tmp_path / "xattn-maps.html").read_text()
    assert run("maps", "A film.", "--layer", "1", "--head", "0", "--png", "one.png")[0] == 0
    assert run("maps", "A film.", "--average", "--png", "mean.png")[0] == 0


def test_methods_are_listed_with_options_and_sources(run: Run) -> None:
    code, out, _ = run("methods")
    assert code == 0
    for word in ("rollout", "residual=0.5", "Abnar", "Sundararajan", "sum to a score difference"):
        assert word in out


@pytest.mark.parametrize(
    "command", [[], ["explain"], ["compare"], ["maps"], ["methods"], ["metrics"], ["report"]]
)
def test_help(run: Run, command: list[str]) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage" in out


BAD = {
    "empty text": (["explain", " "], "text 0 is empty: got ' '; pass at least one word"),
    "only specials": (["explain", "[SEP]"], "text 0 holds nothing but special tokens"),
    "too long": (["explain", "good " * 200], "74 tokens too long for the model: got 202 tokens"),
    "unknown method": (["explain", "-m", "rolout"], "did you mean 'rollout'?"),
    "no method": (["explain", "-m", ""], "no method is named: expected one or more"),
    "no operator": (["compare", "--operators", ""], "unknown operator: got ''"),
    "type of an option": (
        ["explain", "-m", "attention:layer=abc"],
        "layer of attention: got 'abc'",
    ),
    "suffix": (
        ["explain", "--png", "x.pdf"],
        "--png: got x.pdf, expected a name that ends in .png",
    ),
    "superscript": (["explain", "--label", "\u00b2"], "unknown class"),
    "surrogate": (["explain", "caf\udce9"], "not valid Unicode"),
    "unknown option": (["explain", "-m", "rollout:layer=1"], "unknown option of rollout"),
    "unknown class": (["explain", "--label", "good"], "unknown class: got 'good'"),
    "unknown unit": (["explain", "--unit", "letter"], "--unit: got 'letter', expected one of"),
    "unknown quantity": (["explain", "--quantity", "x"], "--quantity: got 'x'"),
    "unknown device": (["explain", "--device", "tpu"], "device: got 'tpu'"),
    "unknown model": (["explain", "--model", "./none"], "no such model folder: got ./none"),
    "unwritable": (["explain", "--html", "file/x.html"], "cannot be written"),
    "unwritable report": (["compare", "--out", "file/x"], "cannot be written"),
    "unknown file": (["compare", "--data", "none.csv"], "none.csv"),
    "unknown column": (["compare", "--data", "good.csv", "--text-column", "txt"], "'txt'"),
    "missing cells": (["compare", "--data", "holes.csv"], "row"),
    "empty file": (["compare", "--data", "empty.csv"], "empty.csv"),
    "damaged parquet": (["compare", "--data", "broken.parquet"], "broken.parquet"),
    "unknown operator": (["compare", "--operators", "remove"], "unknown operator"),
    "no texts": (["compare", "--limit", "0"], "limit"),
    "unknown metric": (["compare", "--metrics", "area"], "unknown metric: got 'area'"),
    "unit of compare": (["compare", "--unit", "page"], "--unit: got 'page', expected one of"),
    "nothing to add to": (["compare", "--add-method", "flow"], "no run to add to"),
    "a folder too much": (["compare", "folder"], "a folder: got folder"),
    "unknown study": (["compare", "--study", "none.yaml"], "none.yaml cannot be read"),
    "no run": (["report", "none"], "does not hold a comparison"),
    "layer": (["maps", "--layer", "7"], "--layer: got 7, expected 0 to 3"),
    "both": (["maps", "--head", "1", "--average"], "--average and --head"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "good.csv").write_text("text,label\nA film.,positive\n")
    (tmp_path / "holes.csv").write_text("text,label\nA film.,positive\n,negative\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.parquet").write_text("PAR1 nothing")
    before = sorted(p.name for p in tmp_path.iterdir())
    arguments, message = BAD[case]
    code, out, err = run(*arguments)
    assert code == 2
    assert err.startswith("xattn: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in out + err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_usage_errors(run: Run) -> None:
    assert run("explain", "--nonsense")[0] == 2
    assert run("nonsense")[0] == 2


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["xattn", "explain", " ", "--debug"])
    with pytest.raises(InputError):
        commands.app()


def test_damaged_model(run: Run, tmp_path: Path) -> None:
    shutil.copytree(shipped.MODEL, tmp_path / "model")
    (tmp_path / "model/model.safetensors").write_bytes(b"\x00" * 64)
    code, _, err = run("explain", "--model", "./model")
    assert code == 2
    assert "damaged" in err
    assert err.count("\n") == 1


def test_a_model_without_attention_serves_what_needs_none(
    run: Run, tiny_of: Callable[..., Model], tmp_path: Path
) -> None:
    model = tiny_of("fnet")
    model.network.save_pretrained(tmp_path / "fnet")
    model.tokenizer.save_pretrained(tmp_path / "fnet")
    code, _, err = run("explain", "--model", "./fnet", "-m", "rollout")
    assert code == 2
    assert "the attention of FNetForSequenceClassification cannot be reached" in err
    assert run("explain", "--model", "./fnet", "-m", "integrated_gradients:tolerance=9")[0] == 0


def test_not_finite_logits(run: Run, tiny_of: Callable[..., Model], tmp_path: Path) -> None:
    model = tiny_of("bert")
    model.network.classifier.bias.data[0] = float("nan")
    model.network.save_pretrained(tmp_path / "nan")
    model.tokenizer.save_pretrained(tmp_path / "nan")
    code, _, err = run("compare", "--model", "./nan", "--limit", "2", "--out", "o")
    assert code == 2
    assert "logits are not finite" in err
    assert not (tmp_path / "o").exists()


def test_ctrl_c_while_libraries_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "app", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main()
    assert capsys.readouterr().err.startswith("xattn: interrupted")


def test_importing_xattn_imports_nothing_heavy() -> None:
    code = "import sys, xattn; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_report_that_cannot_be_written_loses_no_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out/report.html").mkdir(parents=True)
    code, _, err = run("compare", "--limit", "2", "-m", "random", "--out", "out")
    assert code == 2
    assert "something else than a file" in err
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {"report.html", "run.json", "shards", "study.yaml"}  # no half a result
    (tmp_path / "out/report.html").rmdir()
    assert run("compare", "--limit", "2", "-m", "random", "--out", "out", "--resume")[0] == 0


def test_numbered_labels_are_the_classes_of_that_number(run: Run, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\nA wonderful film.,1\nA dull bore.,0\n")
    assert run("compare", "--data", "d.csv", "-m", "random", "--out", "a")[0] == 0
    assert "100.0%" in (tmp_path / "a/report.html").read_text()
    (tmp_path / "e.csv").write_text("text,label\nA wonderful film.,joy\nA dull bore.,gloom\n")
    assert run("compare", "--data", "e.csv", "-m", "random", "--out", "b")[0] == 0
    assert pd.read_parquet(tmp_path / "b/examples.parquet")["label"].isna().all()


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    terminal, end = pty.openpty()  # the progress bar is drawn for terminals only
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from xattn.__main__ import main; main()",
            "compare",
            "--out",
            "report",
        ],
        cwd=tmp_path,
        stderr=end,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(end)
    seen = ""
    while "comparing" not in seen:
        seen += os.read(terminal, 4096).decode()
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the terminal closes with the process
        while text := os.read(terminal, 4096).decode():
            seen += text
    os.close(terminal)
    assert process.wait() == 130
    assert "texts, time left" in seen
    assert "xattn: interrupted; nothing half-written is left" in seen
    assert "Traceback" not in seen
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_explained_by_its_file(run: Run, tmp_path: Path) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 2}
    config = ViTConfig(**size, intermediate_size=16, image_size=16, patch_size=8)
    ViTForImageClassification(config).save_pretrained("model")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained("model")
    Image.new("RGB", (20, 20), "red").save("red.png")
    code, out, _ = run(
        "explain", "red.png", "--model", "model", "--png", "heat.png", "--html", "heat.html"
    )
    assert code == 0
    assert "[added 0]" in out
    assert (tmp_path / "heat.png").stat().st_size
    assert "data:image/png" in (tmp_path / "heat.html").read_text()
    code, out, _ = run("maps", "red.png", "--task", "image", "--model", "model", "--html", "m.html")
    assert code == 0
    assert '"1,1"' in (tmp_path / "m.html").read_text()
    code, _, err = run("explain", "blue.png", "--model", "model")
    assert code == 2
    assert err == "xattn: there is no such picture: got blue.png, expected the name of a file\n"
