"""The benchmark of evaluation and analysis on the small project."""

from __future__ import annotations

import json

import click
import pytest

from benchmarks.evaluation import BEFORE, OURS, ROOT, TOGETHER, check_equal, measure, table
from tests.messages import says
from tests.project import Project


def test_stages_of_their_own_process_give_the_figures_of_the_finished_run(finished_project: Project) -> None:
    found = measure({OURS: ROOT}, finished_project.path, {OURS: finished_project.path / "params.yaml"}, rounds=1)
    (together,) = found[OURS].pop(TOGETHER)
    assert together == sum(value for (value,) in found[OURS].values())
    assert min(value for (value,) in found[OURS].values()) > 0.1


def test_other_figures_are_refused(project: Project, finished_project: Project) -> None:
    check_equal(project.path, finished_project.path)
    place = project.path / "metrics" / "evaluation.json"
    figures = json.loads(place.read_text())
    place.write_text(json.dumps({**figures, "fvu": figures["fvu"] * 1.001}))
    with pytest.raises(click.ClickException) as refused:
        check_equal(project.path, finished_project.path)
    says(refused.value.message, "evaluation.json", "fvu")


def test_the_table_says_whether_a_goal_is_met() -> None:
    found = {
        BEFORE: {"evaluate": [10.0, 20.0], TOGETHER: [100.0, 300.0]},
        OURS: {"evaluate": [5.0, 5.0], TOGETHER: [70.0, 180.0]},
    }
    stage, both = table(found)[2:]
    assert stage == "| evaluate | 15.0 (10.0 to 20.0) | 5.0 (5.0 to 5.0) | 0.38 |  |"
    assert both == "| both stages | 200.0 (100.0 to 300.0) | 125.0 (70.0 to 180.0) | 0.65 | 0.6: missed |"
