"""The report of a comparison: one self-contained HTML page, for reading, hovering and printing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from xattn import charts, files
from xattn.errors import XattnError
from xattn.evaluation import Comparison
from xattn.evaluation.agreement import agreement_by_text
from xattn.evaluation.comparison import declared
from xattn.evaluation.design import YARDSTICKS
from xattn.finding import Finding
from xattn.registry import methods as registry
from xattn.report import curves, diagrams, examples, measures
from xattn.report.answer import answer, texts
from xattn.report.assets import asset, environment
from xattn.report.cautions import cautions
from xattn.report.measures import metric_label
from xattn.report.notes import notes
from xattn.report.ranking import Place, ranking
from xattn.report.series import Style, by_text, contenders, operators, styles

COLUMNS = ("comprehensiveness", "sufficiency", "aopc_morf", "aopc_lerf")
"""The metrics beside the leading one, in the order of the table, where they were measured."""
NOTES = {"random": "chance", "oracle": "greedy search"}


@dataclass(frozen=True)
class Mark:
    """Where a dot and its whisker stand on the axis, in per cent of its width."""

    mean: float
    low: float
    width: float


@dataclass(frozen=True)
class Axis:
    """The axis that all dots of a ranking share."""

    ticks: list[tuple[float, str]]
    zero: float | None
    chance: float | None
    """Where random scores stand."""
    marks: dict[str, Mark | None]


@dataclass(frozen=True)
class View:
    """What the report shows of one way of removing tokens."""

    name: str
    places: list[Place]
    axis: Axis
    panels: list[curves.Panel]
    boards: list[measures.Board]
    ranks: diagrams.Ranking | None
    pareto: diagrams.Pareto | None
    extremes: list[tuple[str, list[tuple[str, str]]]]


def render_report(comparison: Comparison, findings: Sequence[Finding] = ()) -> str:
    """Return the report as one HTML page that needs nothing else, not even a network.

    Parameters
    ----------
    comparison : Comparison
        What `xattn.evaluation.compare` returned.
    findings : sequence of Finding, optional
        What analyses of the same model found, a section each.

    Returns
    -------
    str
        Texts, tokens and names are escaped: a text that holds markup is shown, not run.
    """
    places = {operator: ranking(comparison, operator) for operator in operators(comparison)}
    first = next(iter(places.values()))
    colours = styles(place.method for place in first)  # neighbours in the table differ most
    views = [_view(comparison, *item, colours) for item in places.items()]
    leading = views[0]
    order = [place.method for place in leading.places if not place.yardstick]
    attributions = by_text(comparison)
    agreement = agreement_by_text(attributions)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title="Which explanations can be trusted?",
            answer=answer(comparison, leading.places, leading.name),
            facts=list(facts(comparison)),
            cautions=cautions(comparison, leading.name, leading.places, attributions, agreement),
            notes=notes(comparison, leading.name, leading.places),
            stability=list(measures.stability(comparison)),
            wide=diagrams.WIDTH,
            pareto_height=diagrams.PARETO_HEIGHT,
            rank_top=diagrams.TOP,
            operators=views,
            columns=[
                (name, metric_label(name), measures.ARROWS[declared(name).higher_is_better])
                for name in COLUMNS
                if name in leading.places[0].metrics
            ],
            yardsticks=NOTES,
            styles=colours,
            width=curves.WIDTH,
            height=curves.HEIGHT,
            left=curves.LEFT,
            right=curves.RIGHT,
            bottom=curves.BOTTOM,
            cost=cost(comparison, leading.places),
            rule=examples.RULE,
            findings=findings,
            examples=examples.shown(comparison, attributions, agreement, order),
            metrics=list(metric_terms(comparison.scores["metric"].unique())),
            methods=[method_term(label) for label in contenders(comparison)],
            command=find(comparison.provenance, "command"),
            provenance=list(flat(comparison.provenance)),
            css=asset("report.css") + Markup(charts.CSS),
            script=asset("report.js"),
        )
    )


def write_report(comparison: Comparison, path: Path, findings: Sequence[Finding] = ()) -> None:
    """Write `render_report`'s page to `path`, whole or not at all.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    files.write_text(path, render_report(comparison, findings))


def _view(
    comparison: Comparison, operator: str, places: list[Place], colours: dict[str, Style]
) -> View:
    drawn = [place.method for place in places]
    return View(
        operator,
        places,
        axis(places),
        curves.panels(comparison.curves, operator, drawn, colours),
        measures.boards(comparison, operator),
        diagrams.rank_diagram(comparison, operator),
        diagrams.pareto(comparison, places),
        list(measures.extremes(comparison, operator)),
    )


def axis(places: list[Place]) -> Axis:
    """Return the shared axis of a ranking; places without a number have no mark."""
    known = [place for place in places if not math.isnan(place.area.mean)]
    ends = [v for p in known for v in p.area[:3] if not math.isnan(v)] + [0.0]
    ticks = curves.ticks(min(ends), max(ends))
    start, width = ticks[0], ticks[-1] - ticks[0]

    def along(value: float) -> float:
        return round(100 * (value - start) / width, 2)

    marks: dict[str, Mark | None] = {place.method: None for place in places}
    chance = None
    for place in known:
        mean, low, high = place.area[:3]
        low, high = (mean if math.isnan(v) else v for v in (low, high))
        marks[place.method] = Mark(along(mean), along(low), round(along(high) - along(low), 2))
        chance = along(mean) if place.method == "random" else chance
    return Axis(
        [(along(tick), f"{tick:.3g}".replace("-", "−")) for tick in ticks],
        along(0.0),
        chance,
        marks,
    )


def facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield what a reader wants to know first: model, data, number of texts, date, duration."""
    recorded = comparison.provenance
    count = len(comparison.examples)
    model = find(recorded, "model")
    yield "Model", Path(model).name if Path(model).is_absolute() else model
    yield "Data", f"{find(recorded, 'data', 'name')}, {texts(count)}"
    known = comparison.examples[comparison.examples["label"].notna()]
    if len(known):
        right = 1 - examples.wrongly(known).mean()
        yield "Model’s accuracy", f"{right:.1%}"
    yield "Date", find(recorded, "date").partition("T")[0]
    if seconds := find(recorded, "seconds", "total"):
        yield "Duration", f"{float(seconds):,.0f} s"


def find(recorded: Mapping[str, Any], *keys: str) -> str:
    """Return a recorded value in words; nothing where it was not recorded.

    Examples
    --------
    >>> find({"data": {"name": "reviews"}}, "data", "name")
    'reviews'
    """
    value: Any = recorded
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


def flat(recorded: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested values with dotted names, in order."""
    for key, value in recorded.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)


def cost(comparison: Comparison, places: list[Place]) -> list[dict[str, Any]]:
    """Return a row for each method: time and passes per text, memory, and its completeness gap."""
    groups = comparison.cost.groupby("method")
    means = groups[["seconds", "forward_passes", "backward_passes"]].mean()
    longest = float(means["seconds"].drop(list(YARDSTICKS), errors="ignore").max())
    rows = []
    for place in places:
        if place.method not in means.index:
            continue
        seconds, forward, backward = means.loc[[place.method]].to_numpy(dtype=float)[0]
        gaps = np.abs(groups.get_group(place.method)["gap"].to_numpy(dtype=float))
        gaps = gaps[~np.isnan(gaps)]
        memory = float(groups.get_group(place.method)["memory"].max()) / 2**20
        rows.append(
            {
                "method": place.method,
                "yardstick": place.yardstick,
                "bar": round(min(1.0, seconds / longest) * 100, 1) if longest > 0 else 0,
                "milliseconds": measured(seconds * 1000),
                "forward": measured(forward),
                "backward": measured(backward),
                "memory": "–" if np.isnan(memory) else measured(memory),
                "gap": measured(float(np.median(gaps))) if len(gaps) else "–",
                "worst_gap": measured(float(gaps.max())) if len(gaps) else "–",
            }
        )
    return rows


def measured(value: float) -> str:
    """Return a cost with as many digits as anyone reads.

    Examples
    --------
    >>> measured(1234.5), measured(0.000123), measured(2.0), measured(float("nan"))
    ('1,234', '0.00012', '2', '–')
    """
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def metric_terms(names: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield name, meaning with direction, and citation of each metric."""
    for name in names:
        about = declared(name)
        meaning = about.meaning[:1].upper() + about.meaning[1:]
        direction = {True: "Higher is better", False: "Lower is better", None: "Neither is better"}
        text = f"{meaning}. {direction[about.higher_is_better]}."
        yield {"name": metric_label(name), "text": text, "citation": about.citation}


def method_term(label: str) -> dict[str, str]:
    """Return what is known of a method: the first line of its docstring and its citation."""
    try:
        cls = registry.get(label.partition(":")[0])
    except XattnError:  # results may come from a place where another plug-in was installed
        return {"label": label, "text": "Not installed here.", "citation": ""}
    first = (cls.__doc__ or "").strip().partition("\n\n")[0]
    text = " ".join(first.replace("``", "").split())
    return {"label": label, "text": text, "citation": f"{cls.declaration.citation}."}
