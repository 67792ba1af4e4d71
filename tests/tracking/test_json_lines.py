"""JSON lines: the same bytes from a run that was killed as from one that was not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.params.sections.tracking import TrackingParams
from pipeline.tracking import JsonLines, Tracker, history_rows, open_tracker, read_run_id

OFF = TrackingParams(enabled=False)


def _log(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.log_metrics({"l0": 24 + step / 7, "l_rec": 1 / step}, step)


def test_a_line_is_sorted_flat_and_without_times(tmp_path):
    with JsonLines(tmp_path / "h.jsonl") as tracker:
        tracker.log_metrics({"l0": 24, "explained_variance": 0.5}, 10)
        tracker.log_metrics({"fvu": 0.25})
    assert (tmp_path / "h.jsonl").read_text() == '{"explained_variance": 0.5, "l0": 24.0, "step": 10}\n{"fvu": 0.25}\n'


@pytest.mark.parametrize("checkpoint", [0, 1, 4, 9])
@pytest.mark.parametrize("cut", [0, 1, 30])
def test_killed_and_resumed_equals_unbroken(tmp_path, checkpoint, cut):
    """Killed after step 9, the last line cut short; the checkpoint is older."""
    with JsonLines(tmp_path / "whole.jsonl") as tracker:
        _log(tracker, 1, 20)
    killed = JsonLines(tmp_path / "killed.jsonl")
    _log(killed, 1, 9)
    killed._stream.close()
    content = (tmp_path / "killed.jsonl").read_bytes()
    if checkpoint < 9:
        (tmp_path / "killed.jsonl").write_bytes(content[: len(content) - cut])
    with JsonLines(tmp_path / "killed.jsonl", resume_step=checkpoint) as tracker:
        _log(tracker, checkpoint + 1, 20)
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_new_run_starts_an_empty_file(tmp_path):
    (tmp_path / "h.jsonl").write_text('{"step": 3}\n')
    JsonLines(tmp_path / "h.jsonl").close()
    assert (tmp_path / "h.jsonl").read_bytes() == b""


def test_resuming_without_a_file_starts_one(tmp_path):
    with JsonLines(tmp_path / "new" / "h.jsonl", resume_step=5) as tracker:
        tracker.log_metrics({"l0": 1.0}, 6)
    assert list(history_rows(tmp_path / "new" / "h.jsonl", 10)) == [{"l0": 1.0, "step": 6}]


def test_non_finite_values_are_dropped_and_counted(tmp_path):
    with JsonLines(tmp_path / "h.jsonl") as tracker:
        tracker.log_metrics({"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.0}, 1)
    assert tracker.dropped == 3
    assert json.loads((tmp_path / "h.jsonl").read_text()) == {"d": 1.0, "step": 1}


def test_lines_that_are_no_steps_are_passed_over(tmp_path):
    (tmp_path / "h.jsonl").write_text('nonsense\n[1]\n{"l0": 2}\n{"step": "1"}\n\n{"step": 2}\n{"step": 3}\n{"step": 4}')
    assert list(history_rows(tmp_path / "h.jsonl")) == [{"step": 2}, {"step": 3}]
    assert list(history_rows(tmp_path / "h.jsonl", 2)) == [{"step": 2}]
    assert list(history_rows(None, 2)) == list(history_rows(tmp_path / "none.jsonl", 2)) == []


def test_closing_twice_and_logging_after(tmp_path):
    tracker = JsonLines(tmp_path / "h.jsonl")
    tracker.close()
    tracker.close()
    tracker.log_metrics({"a": 1.0}, 1)
    tracker.flush()
    assert (tmp_path / "h.jsonl").read_bytes() == b""


def test_off_still_writes_history_and_the_run_file(project):
    with open_tracker(OFF, stage="train", run_file=project / "data/run.json", history=project / "h.jsonl") as tracker:
        tracker.log_metrics({"l0": 1.0}, 1)
        tracker.log_params({"a": 1})
        tracker.log_artifact("nothing")
        tracker.log_dataset("store", "abc")
        tracker.set_tags({"a": "b"})
    assert tracker.run_id is None
    assert json.loads((project / "data/run.json").read_text()) == {"run_id": None}
    assert (project / "h.jsonl").read_text() == '{"l0": 1.0, "step": 1}\n'
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
from pipeline.tracking import open_tracker
with open_tracker(TrackingParams(enabled=False), stage="train", run_file=sys.argv[1]) as tracker:
    tracker.log_metrics({"a": 1.0}, 1)
heavy = {"mlflow", "sqlalchemy", "pandas", "torch", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.json")], check=True, timeout=300)
