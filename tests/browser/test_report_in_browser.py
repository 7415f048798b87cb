"""What only a browser can tell: the scripts run, and pointing at things shows the numbers."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from xattn.evaluation import Comparison
from xattn.report import write_report
from xattn.report.maps import render_maps_html
from xattn.types import AttentionMaps, Attribution

TEXT = "A <script>document.title='hacked'</script> dull film"
METHODS = ("rollout", "integrated_gradients", "random")


def attribution(method: str, seed: int) -> Attribution:
    spans = [match.span() for match in re.finditer(r"\S+", TEXT)]
    count = len(spans) + 2
    return Attribution(
        text=TEXT,
        pair=None,
        tokens=("[CLS]", *(TEXT[a:b] for a, b in spans), "[SEP]"),
        offsets=np.array([(0, 0), *spans, (0, 0)]),
        segments=np.array([-1, *[0] * len(spans), -1]),
        word_ids=np.array([-1, *range(len(spans)), -1]),
        scores=np.random.default_rng(seed).normal(size=count).astype(np.float32),
        method=method,
        parameters={},
        target="logit of negative",
        prediction="negative",
        probability=0.9,
    )


@pytest.fixture
def comparison() -> Comparison:
    """Two texts, two methods, two operators."""
    rows = [
        (example, method, operator, metric, 0.1 * number + 0.01 * example)
        for example in range(2)
        for operator in ("delete", "mask")
        for number, method in enumerate((*METHODS, "oracle"))
        for metric in ("comprehensiveness", "sufficiency", "aopc_morf", "aopc_lerf", "abpc")
    ]
    curves = [
        (example, method, operator, order, fraction, 0.5)
        for example, method, operator, metric, _ in rows
        if metric == "abpc"
        for order in ("morf", "lerf")
        for fraction in (0.0, 0.5, 1.0)
    ]
    cost = [
        (example, method, 0.1, 1.0, 1.0, 1e6, np.nan) for example in range(2) for method in METHODS
    ]
    return Comparison(
        scores=pd.DataFrame(rows, columns=["example", "method", "operator", "metric", "value"]),
        curves=pd.DataFrame(
            curves, columns=["example", "method", "operator", "order", "fraction", "score"]
        ),
        cost=pd.DataFrame(
            cost,
            columns=[
                *("example", "method", "seconds", "forward_passes", "backward_passes"),
                *("memory", "gap"),
            ],
        ),
        attributions=[attribution(m, 7 * e + i) for e in range(2) for i, m in enumerate(METHODS)],
        examples=pd.DataFrame(
            {
                "example": [0, 1], "id": ["a", "b"], "text": TEXT, "pair": None,
                "label": "negative", "target": "probability of negative",
                "prediction": "negative", "probability": 0.9, "kind": None,
            }
        ),
        failures=pd.DataFrame(columns=["id", "text", "method", "error"]),
        provenance={"model": "m", "seed": 0, "data": {"name": "d"}, "date": "2026-01-02"},
    )  # fmt: skip


@pytest.fixture
def report(page, comparison, tmp_path):
    write_report(comparison, tmp_path / "report.html")
    page.open(tmp_path / "report.html")
    return page


def expected(comparison: Comparison, token: int) -> list[str]:
    items = comparison.attributions[: len(METHODS) - 1]  # random has no strip
    return [f"{item.scores[token]:+.3f}".replace("-", "−") for item in items]


def test_the_report_runs_without_complaints_and_without_its_texts_scripts(report):
    assert report.complaints == []
    assert report.run("document.title") == "Which explanations can be trusted?"


def test_pointing_at_a_token_shows_its_score_under_every_method(report, comparison):
    assert report.run("document.getElementById('tip').hidden")
    report.mouse("mouseMoved", *report.middle(".example .t[data-i='2']"))
    tip = report.run("document.getElementById('tip').innerText")
    assert not report.run("document.getElementById('tip').hidden")
    for score in expected(comparison, 2):
        assert score in tip
    assert report.run("document.querySelectorAll('.t.same').length") == 2
    assert report.complaints == []


def test_the_arrow_keys_walk_along_the_tokens(report, comparison):
    report.run("document.querySelector('.example .t').focus()")
    report.key("ArrowRight")
    report.key("ArrowDown")
    assert report.run("document.activeElement.dataset.i") == "1"
    tip = report.run("document.getElementById('tip').innerText")
    for score in expected(comparison, 1):
        assert score in tip
    report.key("Escape")
    assert report.run("document.getElementById('tip').hidden")


def test_the_switch_shows_the_other_operator(report):
    visible = "[...document.querySelectorAll('.ranking')].map((t) => t.offsetHeight > 0)"
    assert report.run(visible) == [True, False]
    x, y = report.middle("label[for='op-1']")
    for kind in ("mousePressed", "mouseReleased"):
        report.mouse(kind, x, y)
    assert report.run(visible) == [False, True]


def test_nothing_is_wider_than_a_phone(report):
    report.call(
        "Emulation.setDeviceMetricsOverride",
        width=375, height=800, deviceScaleFactor=2, mobile=True,
    )  # fmt: skip
    assert report.run("document.documentElement.scrollWidth") <= 375


def test_maps_can_be_read_and_enlarged(page, tmp_path):
    values = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 2, 3)).astype(np.float32)
    readout = np.array([1, 0, 0], dtype=np.float32)
    maps = AttentionMaps(("[CLS]", "</script>", "film"), values, ("0", "1"), readout)
    (tmp_path / "maps.html").write_text(render_maps_html(maps), encoding="utf-8")
    page.open(tmp_path / "maps.html")
    x, y = page.middle("#grid canvas")  # the middle one of three tokens, in both directions
    page.mouse("mouseMoved", x, y)
    tip = "document.getElementById('tip').textContent"
    assert page.run(tip) == f"</script> → </script>  {values[0, 0, 1, 1]:.4f}"
    for kind in ("mousePressed", "mouseReleased"):
        page.mouse(kind, x, y)
    assert page.run("document.getElementById('large').open")
    assert page.run("document.getElementById('name').textContent") == "layer 0, head 0"
    page.mouse("mouseMoved", 5, 5)
    page.key("ArrowDown")
    page.key("ArrowRight")
    shown, value = page.run(tip).rsplit("  ", 1)
    query, key = shown.split(" → ")
    row, column = maps.tokens.index(query), maps.tokens.index(key)
    assert value == f"{values[0, 0, row, column]:.4f}"
    assert page.complaints == []
