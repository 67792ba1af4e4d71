"""The benchmark of a sweep: two members of the small project, and what its table says."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks import sweep
from benchmarks.sweep import AGAIN, READING, TRAIN, Cost, Found, check, measure, table
from pipeline.params.loader import load_params
from tests.messages import says
from tests.project import Project


def test_both_ways_give_the_same_weights(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages in this process: it takes seconds to start one."""

    def stage(name: str, folder: Path, params: Path, store: Path) -> Cost:
        monkeypatch.setenv("SCOPELINE_STORE", str(store))
        before = os.times()
        with contextlib.chdir(folder):
            done = CliRunner().invoke(importlib.import_module(f"stages.{name}").main, ["--params", str(params)])
        if done.exit_code:
            raise click.ClickException(done.output)
        return Cost(os.times().elapsed - before.elapsed, os.times().user - before.user)

    monkeypatch.setattr(sweep, "stage", stage)
    project.set(sweep={"k2": {"dictionary.top_k": 2}, "late": {"dictionary.hook_point_in": "blocks.1.hook_resid_post"}})
    found = measure(load_params(project.path / "params.yaml"), project.path, tmp_path / "work")
    assert found.same == {"k2": True, "late": True}
    assert set(found.alone["late"]) >= {TRAIN, AGAIN, READING}
    check(found)
    trained = tmp_path / "work" / "alone" / "data" / "trained" / "main-late" / "weights.safetensors"
    trained.write_bytes(trained.read_bytes()[:-4] + b"1234")
    assert sweep.digest(trained.parent) != sweep.digest(tmp_path / "work" / "together" / "data" / "trained" / "main" / "late")


def test_the_table_says_what_is_gained_and_what_differs() -> None:
    together = {TRAIN: Cost(30.0, 50.0), AGAIN: Cost(3.0, 4.0), READING: Cost(1.0, 2.0)}
    costs = {TRAIN: Cost(20.0, 40.0), AGAIN: Cost(3.0, 4.0), READING: Cost(1.0, 1.0)}
    found = Found(together, {"a": costs, "b": costs}, {"a": True, "b": True})
    lines = table(found)
    assert "| train | 40.0 | 30.0 | 0.75 | 80.0 | 50.0 | 0.62 |" in lines
    assert "| reading | 2.0 | 1.0 | 0.50 | 2.0 | 2.0 | 1.00 |" in lines
    assert "Training, of the clock: 0.75, goal 0.75: met." in lines
    assert "Equal weights, bit for bit: 2 of 2." in lines
    check(found)
    found.same["b"] = False
    assert "Equal weights, bit for bit: 1 of 2; not b." in table(found)
    with pytest.raises(click.ClickException) as refused:
        check(found)
    says(refused.value.message, "trained alone", "b")
