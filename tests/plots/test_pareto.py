"""The comparison of experiments: what is read of them, which no other beats, how they are shown."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plots.charts import Group, Point, ScatterChart, axes
from pipeline.plots.page import page
from pipeline.plots.pareto import Experiment, distinct, front, pareto_charts, read_experiment, table
from pipeline.plots.png import png
from tests.project import REPOSITORY

ROW = {"Experiment": "wide", "rev": "1a2b3c4", "l0_mean": 24.0, "fvu": 0.1, "delta_ce": 0.2, "dead_fraction": 0.01}
PARAMS = {"model.model_name": "demo", "dictionary.kind": "sae", "dictionary.act_fn": "topk", "dictionary.top_k": 24}


def made(name: str, l0: float, fvu: float, delta_ce: float = 0.1, site: str = "demo, blocks.2") -> Experiment:
    return Experiment(name, site, "sae topk 24", l0, fvu, delta_ce, 0.0)


@pytest.mark.parametrize(
    ("fields", "site"),
    [
        ({"dictionary.hook_point_in": "a", "dictionary.hook_point_out": "None"}, "demo, a"),
        ({"dictionary.hook_point_in": "a", "dictionary.hook_point_out": "b"}, "demo, b"),
        ({"dictionary.hook_point_in": "None", "dictionary.hook_points_in": "['a', 'b']"}, "demo, a, b"),
        ({"dictionary.hook_points_in": ["a", "b"], "dictionary.hook_points_out": ["c", "d", "e"]}, "demo, c to e (3)"),
        ({}, "demo, ?"),
    ],
)
def test_a_row_of_dvc(fields: dict[str, object], site: str) -> None:
    found = read_experiment({**ROW, **PARAMS, **fields})
    assert found == Experiment("wide", site, "sae topk 24", 24.0, 0.1, 0.2, 0.01)


def test_rows_without_an_evaluation_and_repeated_ones() -> None:
    assert read_experiment({**ROW, **PARAMS, "fvu": "None"}) is None
    assert read_experiment({"rev": "workspace"}) is None
    wide, workspace, main = made("wide", 24, 0.1), made("workspace", 24, 0.1), made("main", 12, 0.2)
    assert distinct([workspace, main, wide]) == [wide, main]
    assert distinct([wide, workspace]) == [wide]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12))
def test_the_front_is_what_no_other_beats(values: list[tuple[int, int]]) -> None:
    experiments = [made(str(i), l0, fvu) for i, (l0, fvu) in enumerate(values)]
    found = front(experiments, lambda e: e.fvu)
    better = [
        e
        for e in experiments
        if not any(o.l0 <= e.l0 and o.fvu <= e.fvu and (o.l0 < e.l0 or o.fvu < e.fvu) for o in experiments)
    ]
    assert {(e.l0, e.fvu) for e in found} == {(e.l0, e.fvu) for e in better}
    assert len({(e.l0, e.fvu) for e in found}) == len(found)
    assert [e.l0 for e in found] == sorted(e.l0 for e in found)


def test_table_and_charts_keep_sites_apart() -> None:
    experiments = [made("b", 32, 0.2), made("a", 16, 0.1, 0.3), made("c", 8, 0.9, site="other")]
    lines = table(experiments)
    assert [line.split()[0] for line in lines if line] == ["demo,", "experiment", "a", "b", "other", "experiment", "c"]
    assert "0.1000*" in lines[2]
    assert "0.2000 " in lines[3]
    assert "0.1000*" in lines[3]  # of delta CE
    fvu, delta = pareto_charts(experiments)
    assert [group.label for group in fvu.groups] == ["demo, blocks.2", "other"]
    assert fvu.groups[0].front == (Point(16, 0.1, "a"),)
    assert delta.groups[0].front == (Point(16, 0.3, "a"), Point(32, 0.1, "b"))


def test_scatter_charts_are_drawn() -> None:
    group = Group("one <b>", (Point(16, 0.1, "a & b"), Point(3, 0.4, "late")), (Point(3, 0.4, "late"), Point(16, 0.1, "a & b")))
    chart = ScatterChart("scatter", "Title", "x", "y", (group, Group("two", (Point(1, 2, "c"),))))
    x, y = axes(chart)
    assert (x.low, y.low) == (0, 0)
    assert x.high >= 16
    assert y.high >= 2
    text = page("All", "three", [chart])
    assert text.count("<circle") == 3
    assert "a &amp; b: 16, 0.1" in text
    assert "one &lt;b&gt;" in text
    assert png([chart])[:4] == b"\x89PNG"


def test_a_project_without_experiments_says_so(tmp_path) -> None:
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "one"]
    subprocess.run(git, cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "stages.report"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert outcome.returncode == 2
    assert "error: no experiment has been evaluated; run `dvc repro`" in outcome.stderr
