"""The run file, the steps of an earlier run, and what is written where nothing is tracked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.params.sections.tracking import TrackingParams
from pipeline.tracking.opening import history_rows, open_tracker
from pipeline.tracking.run_file import read_run_id

OFF = TrackingParams(enabled=False)


def test_lines_that_are_no_steps_are_passed_over(tmp_path):
    (tmp_path / "h.jsonl").write_text('nonsense\n[1]\n{"l0": 2}\n{"step": "1"}\n\n{"step": 2}\n{"step": 3}\n{"step": 4}')
    assert list(history_rows(tmp_path / "h.jsonl")) == [{"step": 2}, {"step": 3}]
    assert list(history_rows(tmp_path / "h.jsonl", 2)) == [{"step": 2}]
    assert list(history_rows(None, 2)) == list(history_rows(tmp_path / "none.jsonl", 2)) == []


def test_off_still_writes_the_run_file(project):
    with open_tracker(OFF, stage="train", run_file=project / "data/run.json") as tracker:
        tracker.log_metrics({"l0": 1.0}, 1)
        tracker.log_params({"a": 1})
        tracker.log_artifact("nothing")
        tracker.log_dataset("store", "abc")
        tracker.set_tags({"a": "b"})
    assert tracker.run_id is None
    assert json.loads((project / "data/run.json").read_text()) == {"run_id": None}
    assert not (project / "mlflow.db").exists()


def test_only_train_writes_the_run_file(project):
    open_tracker(OFF, stage="evaluate", run_file=project / "run.json").close()
    assert not (project / "run.json").exists()


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"run_id": null}', '{"run_id": 3}', '{"run_id": ""}'])
def test_a_run_file_without_an_id(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert read_run_id(tmp_path / "run.json") is None


def test_run_id_is_read(tmp_path):
    (tmp_path / "run.json").write_text('{"run_id": "abc"}')
    assert read_run_id(tmp_path / "run.json") == "abc"


def test_mlflow_is_not_imported_unless_enabled(tmp_path):
    code = """
import sys
from pipeline.params.sections.tracking import TrackingParams
from pipeline.tracking.opening import open_tracker
with open_tracker(TrackingParams(enabled=False), stage="train", run_file=sys.argv[1]) as tracker:
    tracker.log_metrics({"a": 1.0}, 1)
heavy = {"mlflow", "sqlalchemy", "pandas", "torch", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.json")], check=True, timeout=300)


def test_a_member_of_a_sweep_has_an_id_of_its_own(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"run_id": "all", "members": {"k16": "one", "k64": None}}))
    assert [read_run_id(file, member) for member in ("", "k16", "k64", "k9")] == ["all", "one", None, None]
    file.write_text(json.dumps({"run_id": "all"}))
    assert [read_run_id(file, member) for member in ("", "k16")] == ["all", None]
