"""Feature density and activation norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plots.histograms import (
    density_chart,
    density_lines,
    norm_chart,
    norm_charts,
    position_chart,
    rebinned,
    share_charts,
)
from pipeline.plots.training_report import write_report

EDGES = [round(-7 + 0.1 * i, 6) for i in range(71)]


def test_density_leaves_out_empty_ends_and_marks_mean_and_dense():
    counts = [0.0] * 70
    counts[40], counts[45], counts[65] = 10, 80, 6
    chart = density_chart(EDGES, counts, 4, l0_mean=1.0)
    assert (chart.edges[0], chart.edges[-1]) == (EDGES[39], EDGES[67])
    assert sum(chart.counts) == 96
    assert chart.note == "never active: 4 of 100 features"
    assert chart.marks == ((-2.0, "mean density 0.01"), (-1.0, "dense: above 0.1"))


def test_density_of_all_dead_features():
    chart = density_chart(EDGES, [0] * 70, 100, l0_mean=0.0)
    assert chart.note == "never active: 100 of 100 features"
    assert len(chart.edges) == 71


def test_densities_of_several_dictionaries_are_shares_over_the_same_bins():
    first, second = [0.0] * 70, [0.0] * 70
    first[40], first[45] = 10, 30
    second[44], second[60] = 1, 2
    chart = density_lines({"a": (EDGES, first, 60), "b": (EDGES, second, 0)})
    assert [line.label for line in chart.lines] == ["a", "b"]
    middles = [-7 + 0.1 * i + 0.05 for i in range(39, 62)]  # an empty bin at both ends
    for line in chart.lines:
        assert line.x == pytest.approx(middles)
    a, b = (dict(zip(range(39, 62), line.y, strict=True)) for line in chart.lines)
    assert {i: y for i, y in a.items() if y} == {40: 0.1, 45: 0.3}
    assert {i: y for i, y in b.items() if y} == {44: 1 / 3, 60: 2 / 3}
    assert chart.note == ""
    many = density_lines({str(i): (EDGES, first, 0) for i in range(9)})
    assert len(many.lines) == 6
    assert many.note.startswith("3 more")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=400), st.integers(1, 100))
def test_rebinning_keeps_every_count_and_both_ends(counts, most):
    edges = [1.001**i for i in range(len(counts) + 1)]
    new_edges, new_counts = rebinned(edges, counts, most)
    assert len(new_counts) <= most
    assert len(new_edges) == len(new_counts) + 1
    assert (new_edges[0], new_edges[-1]) == (edges[0], edges[-1])
    assert sum(new_counts) == sum(counts)
    assert new_edges == sorted(set(new_edges))


def test_rebinned_histogram_is_the_histogram():
    norms = np.random.default_rng(0).lognormal(2.0, 0.3, 20_000)
    edges = np.exp(np.arange(0, 5, 1e-3))
    counts, _ = np.histogram(norms, edges)
    chart = norm_chart("blocks.2.hook_resid_post", edges.tolist(), counts.tolist(), {"mean_norm": float(norms.mean())})
    again, _ = np.histogram(norms, chart.edges)
    assert list(chart.counts) == again.tolist()
    assert chart.x_log
    assert "blocks.2.hook_resid_post" in chart.title
    assert chart.marks[0][0] == norms.mean()


def test_no_norms():
    chart = norm_chart("a", [0.0], [])
    assert chart.counts == (0.0,)


def test_one_bin():
    assert norm_chart("a", [5.0, 5.005], [100]).counts == (100,)


def test_hook_points_share_a_picture_and_have_a_card_each(tmp_path):
    statistics, norms = {}, {}
    for i, hook in enumerate(("blocks.1.ln2.hook_normalized", "alias:blocks.1.hook_mlp_out")):
        statistics[f"{hook}/norm_histogram_edges"] = np.exp(np.linspace(i, i + 1, 101))
        statistics[f"{hook}/norm_histogram_counts"] = np.arange(100)
        norms[hook] = {"mean_norm": math.exp(i + 0.7)}
    charts = norm_charts(statistics, norms)
    write_report(tmp_path, "Evaluation", "what", charts, {"FVU": 0.125, "model": "demo"})
    assert {path.name for path in tmp_path.iterdir()} == {"activation_norm.png", "index.html"}
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 2
    assert "alias:blocks.1.hook_mlp_out" in page


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_norms_of_any_size(tmp_path, scale):
    edges = [scale * 1.001**i for i in range(301)]
    write_report(tmp_path, "t", "a", [norm_chart("h", edges, [1.0] * 300, {"mean_norm": 1.1 * scale, "max_norm": 1.2 * scale})])


EVERY = {"massive_norm": 40.0, "max_norm": 30.0, "mean_norm": 2.0, "median_norm": 3.0}


def test_marks_of_norms_stand_in_one_order_and_limits_only_where_tokens_are():
    edges, counts = [1.0, 10.0, 100.0], [9.0, 1.0]
    chart = norm_chart("h", edges, counts, EVERY)
    assert chart.marks == ((2.0, "mean 2"), (3.0, "median 3"), (30.0, "excluded above 30"), (40.0, "massive above 40"))
    assert chart.y_log
    for limits in ({"max_norm": 101.0}, {"massive_norm": 0.9}, {"max_norm": None}):
        chart = norm_chart("h", edges, counts, {"median_norm": 3.0, **limits})
        assert chart.marks == ((3.0, "median 3"),)
        assert not chart.y_log
    assert norm_chart("h", edges, counts, {"mean_norm": None}).marks == norm_chart("h", edges, counts).marks == ()


def test_positions_are_bars_of_one_position_or_of_several():
    chart = position_chart("blocks.0.hook_mlp_out", {0: 11, 37: 1}, 128)
    assert chart.edges == tuple(range(129))
    assert [(i, count) for i, count in enumerate(chart.counts) if count] == [(0, 11), (37, 1)]
    assert (chart.whole, chart.y_log) == (True, False)
    assert chart.note == "12 massive tokens at 2 of 128 positions"
    chart = position_chart("tuned:blocks.0.hook_mlp_out", {0: 700, 1: 400, 999: 1}, 1000)
    assert chart.edges[:3] == (0.0, 8.0, 16.0)
    assert chart.edges[-1] == 1000.0
    assert (chart.counts[0], chart.counts[-1], sum(chart.counts)) == (1100, 1, 1101)
    assert chart.y_log
    assert ":" not in chart.name
    assert len(chart.x_label) <= 85  # what fits below a chart


def test_share_charts_are_panels_of_one_picture(tmp_path):
    hooks = ("blocks.1.hook_resid_post", "tuned:blocks.1.hook_resid_post")
    charts = share_charts({hooks[0]: [3, 0, 0, 1], hooks[1]: [1, 0, 0, 3]})
    assert charts[0].edges == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert charts[1].counts == (1.0, 0.0, 0.0, 3.0)
    assert [chart.title.endswith(hook) for chart, hook in zip(charts, hooks, strict=True)] == [True, True]
    assert all(len(chart.x_label) <= 85 for chart in charts)  # what fits below a chart
    assert ":" not in charts[1].name
    write_report(tmp_path, "title", "about", charts)
    assert {file.name for file in tmp_path.iterdir()} == {"written_share.png", "index.html"}
    assert share_charts({}) == []
