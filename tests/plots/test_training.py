"""The charts of a training run, and its files."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.plots.training import sweep_charts, training_charts
from pipeline.plots.training_report import describe, write_sweep_report, write_training_report


def _rows(n=30, **more):
    return [
        {
            "step": 50 * i, "tokens": (50 * i + 1) * 2048.0, "loss": 40.0 / (i + 1), "l_rec_weighted": 39.0 / (i + 1), "l0": 24.0,
            "explained_variance": 1 - 0.5 / (i + 1), "lr": 1e-3, "top_k": 24, "dead_features": 0.0, **{k: f(i) for k, f in more.items()},
        }
        for i in range(n)
    ]  # fmt: skip


def test_loss_l0_and_explained_variance_come_first_and_what_never_changes_is_left_out():
    charts = training_charts(_rows(grad_norm=lambda i: float(i)))
    assert [chart.name for chart in charts] == ["loss", "l0", "explained_variance", "grad_norm"]
    loss, l0, variance = charts[:3]
    assert loss.y_log
    assert [line.label for line in loss.lines] == ["total"]
    assert loss.lines[0].x[:3] == (0.0, 50.0, 100.0)
    assert loss.lines[0].y[0] == 40.0
    assert loss.x_label == "step (of 2,048 tokens)"
    assert l0.y_range == pytest.approx((0.0, 27.6))
    assert variance.y_range == (0.5, 1.0)


def test_members_of_a_sweep_are_lines_in_as_many_charts_as_there_are_colours_for(tmp_path):
    histories = {f"k{i}": _rows(explained_variance=lambda j, i=i: i / 10) for i in range(8)}
    charts = sweep_charts(histories)
    assert [chart.name for chart in charts] == ["loss", "loss.1", "l0", "l0.1", "explained_variance", "explained_variance.1"]
    assert [line.label for line in charts[4].lines + charts[5].lines] == list(histories)
    assert [line.y[0] for line in charts[5].lines] == [0.6, 0.7]
    assert charts[0].x_label == "step (of 2,048 tokens)"
    write_sweep_report(tmp_path, histories, "eight")
    assert {path.name for path in tmp_path.iterdir()} == {
        "loss.png", "l0.png", "explained_variance.png", "index.html", "history.json",
    }  # fmt: skip
    rows = json.loads((tmp_path / "history.json").read_text())
    assert [row["member"] for row in rows[::30]] == list(histories)


def test_several_terms_are_lines():
    (loss, *_) = training_charts(_rows(auxk_weighted=lambda i: 0.5 * i))
    assert [line.label for line in loss.lines] == ["total", "auxk", "l_rec"]


def test_a_bad_start_does_not_flatten_the_curve():
    charts = training_charts(_rows(explained_variance=lambda i: 0.9 - 100.0 * (i == 0)))
    assert charts[2].y_range == (0.0, 1.0)
    assert charts[2].note


@pytest.mark.parametrize("rows", [[], _rows(1), [{"step": 0}, {"step": 1}], [{"step": 0, "loss": -1.0, "l0": 0.0}]])
def test_short_histories_are_drawn(tmp_path, rows):
    write_training_report(tmp_path, rows, "what")
    assert {path.name for path in tmp_path.iterdir()} == {
        "loss.png", "l0.png", "explained_variance.png", "index.html", "history.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "history.json").read_text()) == rows


def test_equal_histories_give_equal_bytes(tmp_path, monkeypatch):
    import matplotlib

    write_training_report(tmp_path / "a", _rows(), "what", {"tokens": 5.0})
    monkeypatch.setitem(matplotlib.rcParams, "figure.dpi", 40)  # somebody's own settings
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)
    write_training_report(tmp_path / "b", _rows(), "what", {"tokens": 5.0})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert matplotlib.rcParams["font.size"] == 20


def test_pngs_are_pngs_that_show_something(tmp_path):
    import numpy as np
    from matplotlib.image import imread

    write_training_report(tmp_path, _rows(), "what")
    for name in ("loss.png", "l0.png", "explained_variance.png"):
        pixels = imread(tmp_path / name)[..., :3]
        assert pixels.shape == (559, 936, 3)
        blue = np.abs(pixels - np.array([0x25, 0x63, 0xA8]) / 255).max(-1) < 0.02
        assert blue.sum() > 500, name


def test_describe():
    config = {
        "kind": "transcoder", "name": "main", "act_fn": "batchtopk", "top_k": 32, "d_sae": 2048, "hook_point_in": "blocks.1.ln2.hook_normalized",
        "hook_point_out": "blocks.1.hook_mlp_out", "provenance": {"model": {"name": "demo"}},
    }  # fmt: skip
    assert describe(config) == (
        "transcoder main, batchtopk 32, 2,048 features, blocks.1.ln2.hook_normalized to blocks.1.hook_mlp_out of demo"
    )
    assert (
        describe({"kind": "sae", "act_fn": "relu", "top_k": 50, "hook_point_in": "a", "hook_point_out": "a"}, "gpt2")
        == "SAE, relu, a of gpt2"
    )
    assert describe({}) == "dictionary"
    several = {
        "kind": "clt",
        "act_fn": "topk",
        "top_k": 16,
        "d_sae": 1024,
        "hook_points_in": ["a", "b", "c"],
        "hook_points_out": ["d", "e", "f"],
    }
    assert describe(several, "demo", layers=3) == "CLT, topk 16, 3 x 1,024 features, a ... c (3) to d ... f (3) of demo"
    two = {"kind": "crosscoder", "act_fn": "relu", "d_sae": 64, "hook_points_in": ["a", "b"], "hook_points_out": ["a", "b"]}
    assert describe(two, "demo") == "crosscoder, relu, 64 features, a and b of demo"


def test_a_history_with_gaps(tmp_path):
    rows = _rows()
    del rows[5]["l0"]
    rows[7]["extra"] = 3.0
    charts = training_charts(rows)
    assert math.isnan(charts[1].lines[0].y[5])
    write_training_report(tmp_path, rows, "what")


def test_layers_have_lines_of_their_own():
    parts = {f"{name}.{i}": i + 0.1 for name in ("l0", "explained_variance") for i in range(7)}
    rows = [{"step": step, "loss": 1.0, "l0": 3.0, "explained_variance": 0.5, **parts} for step in (0, 10)]
    charts = {chart.name: chart for chart in training_charts(rows)}
    assert [line.label for line in charts["l0"].lines] == ["all", "0", "1", "2", "3", "4"]
    assert charts["explained_variance"].lines[3].y == (2.1, 2.1)
    alone = training_charts([{"step": 0, "loss": 1.0, "l0": 3.0, "explained_variance": 0.5}])
    assert [len(chart.lines) for chart in alone] == [1, 1, 1]
