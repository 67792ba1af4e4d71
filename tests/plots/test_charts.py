"""Axes, thinning, numbers: what both drawings share."""

from __future__ import annotations

import io
import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.plots.charts import (
    CHARACTER,
    MAX_NAMES,
    BarChart,
    Group,
    Line,
    LineChart,
    Point,
    ScatterChart,
    axes,
    linear_axis,
    log_axis,
    mark_sides,
    number,
    segments,
    thinned,
)
from pipeline.plots.png import LINE, png
from pipeline.plots.point_labels import ROW, point_labels
from pipeline.plots.svg import svg

VALUES = st.floats(-1e9, 1e9, allow_nan=False)


@given(VALUES, VALUES)
@example(0.0, 5e-324)
@example(-5e-324, 5e-324)
@example(0.0, 1e-300)
@example(1.0, 1.0 + 2e-16)
@example(1e9, 1e9 + 1e-6)
@example(3e-308, 3e-308)
@example(0.0, 0.0)
def test_a_linear_axis_covers_its_values_with_a_few_round_ticks(a, b):
    low, high = min(a, b), max(a, b)
    axis = linear_axis(low, high)
    invisible = 1e-8 * (high - low)
    assert axis.low <= low + invisible
    assert axis.high >= high - invisible
    assert axis.low < axis.high
    assert 2 <= len(set(axis.ticks)) == len(axis.ticks) <= 9


@given(st.floats(1e-9, 1e9), st.floats(1, 1e9))
def test_a_log_axis_has_ticks_inside(low, ratio):
    axis = log_axis(low, low * ratio)
    assert axis.low <= low
    assert axis.high >= low * ratio
    assert 1 <= len(axis.ticks) <= 25
    assert all(axis.low * (1 - 1e-9) <= tick <= axis.high * (1 + 1e-9) for tick in axis.ticks)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 100, (0, 20, 40, 60, 80, 100)), (0.0, 1.0, (0, 0.2, 0.4, 0.6, 0.8, 1.0)), (-3, 1, (-3, -2, -1, 0, 1)), (0, 0.003, (0, 0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.003))],
)  # fmt: skip
def test_ticks(low, high, wanted):
    assert linear_axis(low, high).ticks == pytest.approx(wanted)
    assert [number(tick) for tick in linear_axis(low, high).ticks] == [number(tick) for tick in wanted]


def test_log_ticks():
    assert log_axis(0.8, 60).ticks == pytest.approx((1, 2, 5, 10, 20, 50))
    assert log_axis(7.7, 46).ticks == pytest.approx((10, 15, 20, 30, 40))
    assert log_axis(3.1, 4.05).ticks == pytest.approx((3.2, 3.4, 3.6, 3.8, 4.0))
    assert log_axis(1, 1e6).ticks == pytest.approx(tuple(10.0**i for i in range(7)))
    assert log_axis(0.5, 5).share(math.sqrt(2.5)) == pytest.approx(0.5)


@given(st.floats(1e-9, 1e9), st.floats(1.001, 100))
def test_a_short_log_axis_has_at_least_three_ticks(low, ratio):
    assert 3 <= len(log_axis(low, low * ratio).ticks) <= 9


def drawn(chart):
    """The labels of a chart's axes as SVG and as PNG."""
    from matplotlib.axes import Axes

    said = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("set_xlabel", "set_ylabel"):
            patch.setattr(Axes, name, lambda _, text: said.append(text))
        png([chart])
    return re.findall(r'<text class="label"[^>]*>([^<]*)<', svg(chart)), said


def test_log_axes_say_so_in_both_drawings():
    line = Line("a", (0, 1), (8.5, 42.0))
    bars = BarChart("b", "B", "size", "number", (1.0, 2.0, 4.0), (1.0, 2.0), x_log=True)
    for chart, wanted in (
        (LineChart("a", "A", "step", "loss", (line,), y_log=True), ["step", "loss, log scale"]),
        (LineChart("a", "A", "step", "loss", (line,)), ["step", "loss"]),
        (bars, ["size, log scale", "number"]),
    ):
        assert drawn(chart) == (wanted, wanted)


def test_a_bin_of_one_is_seen_beside_thousands_and_an_empty_one_is_not():
    chart = BarChart("b", "B", "size", "tokens", (0.0, 1.0, 2.0, 3.0), (5000.0, 0.0, 1.0), y_log=True, marks=((1.5, "limit"),))
    assert drawn(chart)[0] == ["size", "tokens, log scale"]
    heights = [float(height) for height in re.findall(r'<rect class="bar"[^>]*height="([\d.]+)"', svg(chart))]
    assert heights[1] == 0.0
    assert heights[0] > heights[2] > 0.05 * heights[0]
    linear = BarChart("b", "B", "size", "tokens", chart.edges, chart.counts)
    assert float(re.findall(r'<rect class="bar"[^>]*height="([\d.]+)"', svg(linear))[2]) < 0.2
    tall, one, empty = (filled(chart, column) for column in (0, 2, 1))
    assert tall > one > 0.05 * tall
    assert empty == 0


def filled(chart, column):
    """How many pixels of a picture are of the colour of bars, in the middle of one of three columns."""
    from matplotlib.image import imread

    picture = imread(io.BytesIO(png([chart])))[..., :3]
    width = picture.shape[1]
    x = round(width * (0.115 + 0.855 * (column + 0.3) / 3))
    blue = (picture[:, x, 2] - picture[:, x, 0]) > 0.25
    return int(blue.sum())


def test_bins_of_whole_numbers_are_named_by_what_they_hold():
    chart = BarChart("b", "B", "position", "tokens", (0.0, 1.0, 4.0), (7.0, 1.0), whole=True)
    assert re.findall("<title>(.*?)</title>", svg(chart)) == ["0: 7 tokens", "1 to 3: 1 tokens"]
    halves = BarChart("b", "B", "share", "features", (0.0, 0.5, 1.0), (7.0, 1.0))
    assert re.findall("<title>(.*?)</title>", svg(halves)) == ["0 to 0.5: 7 features", "0.5 to 1: 1 features"]


def test_long_notes_are_broken_into_lines(monkeypatch):
    from matplotlib.figure import Figure

    lines = []
    text = Figure.text
    monkeypatch.setattr(Figure, "text", lambda self, x, y, s, **kw: lines.append(s) or text(self, x, y, s, **kw))
    note = "lower left is better; " * 8
    png([LineChart("a", "Title", "x", "y", (), note=note)], "about")
    assert lines[:2] == ["Title", "about"]
    assert " ".join(lines[2:]) == note.strip()
    assert max(map(len, lines)) <= LINE


def sides(*marks):
    chart = BarChart("b", "B", "x", "y", (0.0, 1.0), (1.0,), marks=marks)
    return mark_sides(chart, axes(chart)[0])


def test_a_label_stands_beside_its_own_line_only():
    assert sides((0.3, "a label"), (0.6, "a label")) == [False, False]
    assert sides((0.95, "a label")) == [True]
    assert sides((0.6, "mean density 0.01"), (0.9, "dense: above 0.1")) == [True, True]
    assert sides((0.5, "mean density 0.01"), (0.6, "short")) == [True, False]
    assert sides((0.1, "mean density 0.01"), (0.2, "short")) == [False, False]  # there is no room on its left


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (24, "24"), (0.0025, "0.0025"), (2.546e-4, "2.546e-4"), (1e-5, "1e-5"), (-0.5, "-0.5"), (1500, "1,500"), (15000, "15k"),
     (2e6, "2M"), (1.5e9, "1.5G"), (-20000, "-20k"), (math.nan, "nan"), (0.98954, "0.9895")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_thinning_takes_means_of_neighbours():
    assert thinned([0, 1, 2, 3, 4], [0, 2, 4, 6, 9], 3) == [(0.5, 1), (2.5, 5), (4, 9)]
    assert thinned([1, 2], [3, 4]) == [(1, 3), (2, 4)]
    assert thinned([], []) == []


def test_gaps_and_what_a_log_axis_cannot_show_cut_a_line():
    line = Line("a", (0, 1, 2, 3, 4), (math.nan, 1.0, 2.0, -1.0, 3.0))
    chart = LineChart("a", "A", "x", "y", (line,), y_log=True)
    assert segments(line, chart) == [[(1, 1.0), (2, 2.0)], [(4, 3.0)]]
    x, y = axes(chart)
    assert (x.low, x.high) == (0, 4)
    assert y.log
    assert y.low > 0


@pytest.mark.parametrize(
    "chart",
    [
        LineChart("a", "A", "x", "y", ()),
        LineChart("a", "A", "x", "y", (Line("a", (), ()),), y_log=True),
        LineChart("a", "A", "x", "y", (Line("a", (0.0,), (math.nan,)),)),
        BarChart("b", "B", "x", "y", (0.0, 1.0), (0.0,)),
        BarChart("b", "B", "x", "y", (0.0, 1.0), (0.0,), y_log=True),
    ],
)
def test_axes_of_nothing(chart):
    for axis in axes(chart):
        assert axis.low < axis.high


@given(st.lists(st.tuples(st.integers(0, 64), st.floats(0, 1), st.text("abc-12", min_size=1, max_size=12)), max_size=MAX_NAMES))
@example([(32, 0.12, "k32"), (32, 0.121, "k32-wide"), (32, 0.119, "k32-early"), (64, 0.1, "k64")])
def test_no_name_of_a_point_covers_another(points):
    chart = ScatterChart("a", "b", "x", "y", (Group("all", tuple(Point(*point) for point in points)),))
    labels = point_labels(chart, *axes(chart))
    assert sorted(label.text for label in labels) == sorted(text for _, _, text in points)
    boxes = []
    for label in labels:
        width = CHARACTER * len(label.text)
        start = label.x - width if label.left else label.x
        assert ROW / 2 <= label.y <= 1 - ROW / 2
        assert all(b <= start or start + width <= a or abs(label.y - y) >= ROW - 1e-9 for a, b, y in boxes)
        boxes.append((start, start + width, label.y))


def test_the_name_of_a_point_stands_beside_it_and_off_the_line():
    """The curve of a sweep, whose second point lies low: its name was half a chart above it."""
    losses = ((16, 0.2142), (32, 0.1372), (64, 0.0808), (128, 0.0488))
    points = tuple(Point(k, loss, f"ksweep/k{k}") for k, loss in losses)
    pca = tuple(Point(k, loss, f"PCA {k}") for k, loss in ((16, 2.4088), (32, 1.5523), (64, 0.7873), (128, 0.3124)))
    for log in (False, True):
        chart = ScatterChart("a", "b", "x", "y", (Group("all", points, points), Group("PCA", pca)), x_log=log, y_log=log)
        x_axis, y_axis = axes(chart)
        line = [(x_axis.share(p.x), y_axis.share(p.y)) for p in points]
        names = {label.text: label for label in point_labels(chart, x_axis, y_axis)}
        for point in (*points, *pca):
            label = names[point.label]
            assert abs(label.x - x_axis.share(point.x)) < 0.02
            assert abs(label.y - y_axis.share(point.y)) <= 2 * ROW + 1e-9
            if log:  # on straight axes the curve lies on the ground, where there is no room
                ends = sorted((label.x, label.x + (-1 if label.left else 1) * CHARACTER * len(label.text)))
                for step in range(101):
                    at = step / 100 * (len(line) - 1)
                    (x0, y0), (x1, y1) = line[min(int(at), 2)], line[min(int(at), 2) + 1]
                    x, y = x0 + (at - min(int(at), 2)) * (x1 - x0), y0 + (at - min(int(at), 2)) * (y1 - y0)
                    assert not (ends[0] < x < ends[1] and abs(y - label.y) < ROW / 2), point.label
