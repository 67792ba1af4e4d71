"""What `stages.inspect` says at its start."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pipeline.params.loader import load_params
from pipeline.planning.inspecting import begin_inspection, inspection_line
from pipeline.planning.rates import Rates, Recorded
from pipeline.planning.run import Run
from tests.messages import says
from tests.project import make_project

RATES = dataclasses.asdict(Rates(*[0.0] * len(dataclasses.fields(Rates))))


def test_what_is_loaded_and_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project.path)
    params, features = load_params(), Path("data/features")
    run = Run.of(params)
    line = inspection_line(run, features, None)
    says(line, "loads the language model", "million parameters", f"dictionary '{params.dictionary.name}'", "stages.plan")
    assert "data/features" not in line
    features.mkdir(parents=True)
    says(inspection_line(run, features, None), "and what data/features says of its features")
    # of what a text needs, not of what the other stages do
    told = Rates(**RATES | {"start": 3.0, "tokenizers": 4.0, "models": 5.0, "tokenizer": 6.0, "load": 7.0, "analyze": 9.0})
    says(inspection_line(run, features, Recorded(told, True)), "about 25 s to the first answer")
    begin_inspection(params, features)
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"inspect: loads .*\n", said.err)


def test_nothing_is_said_where_the_model_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path / "project").set(model__model_name="./gone")
    monkeypatch.chdir(project.path)
    begin_inspection(load_params(), Path("data/features"))
    assert capsys.readouterr().err == ""
