"""Texts, names and explanations that are programs: in every page, in Chromium, they are shown and not run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.analysis import feature_tables
from pipeline.analysis.feature_columns import CONTEXTS, FEATURES, INACTIVE, TOP
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dashboard.folder import SINGLE_PAGE, write_dashboard
from pipeline.plots.charts import BarChart, Group, Line, LineChart, Point, ScatterChart
from pipeline.plots.experiment import read_experiment
from pipeline.plots.page import Row, Table, card
from pipeline.plots.pareto import pareto_charts
from pipeline.plots.training_report import PAGE, write_report
from tests.dashboard import synthetic
from tests.dashboard.browser import NEEDS_CHROMIUM, show

HOSTILE = (
    "<script>window.ran=1</script>",
    "</script><script>window.ran=1</script>",
    '<img src=x onerror="window.ran=1">',
    "&lt;img src=x onerror=window.ran=1&gt;",
    '" autofocus tabindex=0 onfocus="window.ran=1" onmouseover="window.ran=1',
    "' onload='window.ran=1",
    "<svg/onload=window.ran=1>",
    "--><!--<script>window.ran=1</script>",
    "]]></style><style>*{background:url(x)}</style>",
    '<iframe srcdoc="<script>parent.ran=1</script>"></iframe>',
    '<a href="javascript:window.ran=1" id="view">',
    "\u2028window.ran=1\u2029//",
    "\\u003cimg src=x onerror=window.ran=1\\u003e",
    "${window.ran=1}`;window.ran=1;`",
    '"];window.ran=1;//',
    "%3Cimg src=x onerror=window.ran=1%3E?a=<b>#/",
    "$\\bad{$",
)


class Mixed:
    """Puts a hostile text, each time the next one, before every text of a plain value."""

    def __init__(self) -> None:
        self._next = itertools.cycle(HOSTILE)

    def __call__(self, value: Any, kept: tuple[str, ...] = ()) -> Any:
        if isinstance(value, dict):
            return {key: self(one, kept) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(one, kept) for one in value]
        return next(self._next) + value if isinstance(value, str) and value not in kept else value


def hostile_charts(mixed: Mixed) -> list[Any]:
    a, b, c, d = (mixed(word) for word in "abcd")
    return [
        LineChart(a, b, c, d, tuple(Line(mixed("l"), (0.0, 1.0, 2.0), (1.0, 2.0, 1.5)) for _ in HOSTILE[:6]), note=mixed("n")),
        BarChart(b, c, d, a, (0.0, 1.0, 2.0), (1.0, 3.0), marks=((1.0, mixed("m")),), note=mixed("n")),
        ScatterChart(c, d, a, b, tuple(Group(mixed("g"), (Point(1.0, 2.0, mixed("p")),)) for _ in HOSTILE[:6]), mixed("n")),
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dashboard/: of a feature store all of whose texts are hostile. report/, experiments/: pages of charts."""
    place, mixed = tmp_path_factory.mktemp("hostile"), Mixed()
    hooks = mixed(["hook a", "hook b"])
    store = synthetic.make_store(place / "store", 40, contexts=3, shape=(2, 20), hooks=2, sources=True)
    for name in (FEATURES, CONTEXTS):
        table = pq.read_table(store / name)
        pq.write_table(pa.Table.from_pylist(mixed(table.to_pylist(), (TOP, INACTIVE)), schema=table.schema), store / name)
    overview = synthetic.overview([2, 20], hooks)
    overview = {**mixed(overview), "charts": [card(chart) for chart in hostile_charts(mixed)], "hooks": hooks}
    names = pq.read_table(store / FEATURES, columns=["name"]).column(0).to_pylist()
    explained = {name: {"explanation": mixed("because"), "detection": 0.9, "fuzzing": None} for name in names}
    with pytest.MonkeyPatch.context() as patch:  # a store that is checked has no such names and bands; pages don't rely on it
        patch.setattr(feature_tables, "check_store", lambda store: None)
        opened = FeatureStore(store)
    write_dashboard(place / "dashboard", opened, overview, single=20, explanations=explained)
    tables = [Table(mixed("t"), tuple(mixed(["c", "d"])), (Row(mixed("r"), mixed("about"), (1.0, mixed("cell"))),), mixed("n"))]
    write_report(
        place / "report", mixed("title"), mixed("about"), hostile_charts(mixed), {mixed("f"): mixed("v")}, tables=tables
    )
    rows = [
        {key: mixed(key) for key in ("Experiment", "rev", "model.model_name", "model.revision", "dictionary.kind", "dictionary.act_fn",
         "dictionary.hook_point_out", "dataset.dataset_name_or_path")}
        | {"l0_mean": 24.0 + i, "fvu": 0.1 / (i + 1), "delta_ce": 0.2, "dead_fraction": 0.0, "pca_fvu": 0.4, "pca_delta_ce": 1.0, "pca_rank": 24}
        for i in range(4)
    ]  # fmt: skip
    experiments = [found for row in rows if (found := read_experiment(row)) is not None]
    assert len(experiments) == 4
    write_report(place / "experiments", "Experiments", "4", pareto_charts(experiments))
    return place


def assert_nothing_ran(driver: Any) -> None:
    """No program ran, none would when its element is touched, nothing was asked for, and the console is empty."""
    assert driver.execute_script("return window.ran ?? null") is None
    inserted = """return [...document.querySelectorAll('*')].filter((e) =>
        [...e.attributes].some((a) => a.name.startsWith('on') || /^\\s*javascript:/i.test(a.value)) ||
        ['IMG', 'IFRAME', 'OBJECT', 'EMBED', 'FORM'].includes(e.tagName) && !e.matches('form.find, form.filters, dialog form') ||
        ['SCRIPT', 'STYLE', 'LINK'].includes(e.tagName) && e.closest('#view, main')).map((e) => e.outerHTML)"""
    assert driver.execute_script(inserted) == []
    assert [entry["message"] for entry in driver.get_log("browser")] == []


@NEEDS_CHROMIUM
@pytest.mark.parametrize("file", ["index.html", SINGLE_PAGE])
def test_nothing_in_a_dashboard_runs(driver: Any, place: Path, file: str) -> None:
    show(driver, place / "dashboard" / file, "#/")
    shown = driver.find_element("id", "view").text
    assert "window.ran=1" in shown
    assert "Held out, " in shown
    assert_nothing_ran(driver)
    show(driver, place / "dashboard" / file, "#/features?show=all")
    assert_nothing_ran(driver)
    links = driver.execute_script("return [...document.querySelectorAll('a.row')].map((a) => a.getAttribute('href'))")
    assert len(links) >= len(HOSTILE)
    show(driver, place / "dashboard" / file, links[0])
    for link in links[: len(HOSTILE)]:
        driver.execute_script("return visit(arguments[0])", link)
        assert driver.find_element("css selector", "h1").text.startswith("Feature "), link
        assert driver.execute_script("return document.querySelectorAll('.context .tok').length") > 50
    assert_nothing_ran(driver)
    for text in HOSTILE:
        driver.execute_script("return visit(`#/features?q=${encodeURIComponent(arguments[0])}`)", text)
        assert driver.execute_script("return document.getElementById('search').value") == text
        driver.execute_script("return visit(`#/feature/${encodeURIComponent(arguments[0])}`)", text)
        assert driver.find_element("css selector", "h1").text.startswith("No feature ")
        driver.execute_script("return visit(`#/${encodeURIComponent(arguments[0])}`)", text)
        assert driver.find_element("css selector", "h1").text == "This page cannot be shown"
    assert_nothing_ran(driver)


@NEEDS_CHROMIUM
@pytest.mark.parametrize("name", ["report", "experiments"])
def test_nothing_in_a_report_runs(driver: Any, place: Path, name: str) -> None:
    driver.get((place / name / PAGE).as_uri())
    assert "window.ran=1" in driver.find_element("css selector", "body").text
    assert (
        driver.execute_script("return document.querySelectorAll('svg').length")
        == len((place / name / PAGE).read_text().split("<svg viewBox")) - 1
    )
    assert_nothing_ran(driver)


def test_no_text_can_end_a_script(place: Path) -> None:
    """Without a browser: what a page's data are wrapped in closes where it should."""
    for file in ("index.html", SINGLE_PAGE):
        text = (place / "dashboard" / file).read_text(encoding="utf-8")
        about = text.split('<script type="application/json" id="overview">')[1].split("</script>")[0]
        assert json.loads(about)["about"].endswith("SAE made up <b>")
