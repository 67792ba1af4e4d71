"""The page opens offline: nothing in it comes from elsewhere, and it is well-formed."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from pipeline.plots.charts import BarChart, Line, LineChart
from pipeline.plots.page import Row, Table, page
from pipeline.plots.svg import MAX_HINTS, svg
from pipeline.plots.training_report import write_report

LINES = LineChart(
    "loss",
    "Loss <b> & more",
    "step (of 10 tokens)",
    'loss "x"',
    tuple(Line(f"term {i}", tuple(range(50)), tuple(1.0 + i + math.sin(j) for j in range(50))) for i in range(2)),
)
BARS = BarChart(
    "density", "Density", "log10", "features", (-3.0, -2.0, -1.0, 0.0), (1, 5, 0), marks=((-1.0, "dense <"), (-0.1, "late"))
)


def test_nothing_is_fetched():
    text = page("Title", "About", [LINES, BARS], {"FVU": 0.1})
    assert not re.search(r"https?:|//|@import|url\((?!#)|<script|<link|<img|<iframe|src=", text)


def test_both_colour_schemes():
    text = page("Title", "About", [LINES, BARS])
    assert "prefers-color-scheme: dark" in text
    assert "color-scheme: light dark" in text
    body = text.split("</style>")[1]
    assert not re.search(r"#[0-9a-f]{6}", body)  # colours are the page's variables


def test_tags_are_balanced_and_text_is_escaped():
    open_tags, seen = [], []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_data(self, data):
            seen.append(data)

    parser = Balance()
    parser.feed(page("A <title> & so", "about <i>", [LINES, BARS], {"<k>": "<v>"}))
    assert open_tags == []
    for text in ("A <title> & so", "about <i>", "Loss <b> & more", "<k>", "<v>", "dense <"):
        assert text in seen


@pytest.mark.parametrize("chart", [LINES, BARS])
def test_svg_is_xml_within_its_frame(chart):
    root = ElementTree.fromstring(svg(chart))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for key, limit in (("x", width), ("x1", width), ("cx", width), ("y", height), ("y1", height), ("cy", height)):
            if key in element.attrib:
                assert -1 <= float(element.attrib[key]) <= limit + 1, ElementTree.tostring(element)
    labels = {text.text for text in root.iter("text")}
    assert {chart.x_label, chart.y_label} <= labels


def test_hints_say_the_numbers():
    titles = [title.text for title in ElementTree.fromstring(svg(LINES)).iter("title")]
    assert titles[3] == f"step 3: term 0 {1 + math.sin(3):.4g}, term 1 {2 + math.sin(3):.4g}"
    titles = [title.text for title in ElementTree.fromstring(svg(BARS)).iter("title")]
    assert titles == ["-3 to -2: 1 features", "-2 to -1: 5 features", "-1 to 0: 0 features"]


def test_a_long_history_stays_a_small_page():
    n = 100_000
    line = Line("loss", tuple(float(i) for i in range(n)), tuple(1.0 + (i % 7) for i in range(n)))
    text = svg(LineChart("loss", "Loss", "step", "loss", (line,)))
    assert len(text) < 120_000
    assert text.count("<title>") <= MAX_HINTS


def test_file_is_ascii(tmp_path):
    write_report(tmp_path, "Tr\u00e4ining", "caf\u00e9", [BARS])
    assert (tmp_path / "index.html").read_bytes().isascii()


def test_an_empty_page():
    assert "<main>" in page("Title", "", [])
    assert svg(LineChart("a", "A", "x", "y", ()))


def test_a_name_in_a_table_may_lead_to_a_page():
    rows = (Row("k<16", "", (1.0,), "k16/index.html"), Row("plain", "", (2.0,)))
    text = page("All", "", [], tables=[Table("Members", ("L0",), rows)])
    assert re.findall(r'<a [^>]*href="([^"]*)">([^<]*)</a>', text) == [("k16/index.html", "k&lt;16")]


def test_a_table_has_names_definitions_and_cells():
    rows = (Row("fvu", "error < variance", (0.5, "0.4 to 0.6", None)), Row("other", "", (1.0,)))
    text = page("Evaluation", "", [BARS], tables=[Table("First", ("value", "95 %", "mean"), rows, "note & all")])
    assert "<tr><th>fvu<small>error &lt; variance</small></th><td>0.5</td><td>0.4 to 0.6</td><td></td></tr>" in text
    assert "<tr><th>other</th><td>1</td></tr>" in text
    assert "note &amp; all" in text
    assert text.index("<table>") < text.index("<svg")
    after = page("t", "", [BARS], more=[Table("Last", ("",), rows)])
    assert after.index("<svg") < after.index("<table>")


def test_a_list_below_a_heading_has_an_item_for_each_point_and_no_table_without_rows():
    text = page("Title", "About", [], tables=[Table("Columns", points=("L0: a <b>", "FVU: c"))])
    assert "<ul><li>L0: a &lt;b&gt;</li><li>FVU: c</li></ul>" in text
    assert "<table>" not in text.split("</style>")[1]
    shown = page("Title", "About", [], tables=[Table("T", ("", "x"), (Row("a", "", (1.0, 2.0)),), "a note", ("point",))])
    body = shown.split("</style>")[1]
    assert body.index("a note") < body.index("<li>point</li>") < body.index("<table>")
