"""Tracking never ends a run: servers that are down, broken databases, calls that fail and work again later."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.params.sections.tracking import TrackingParams
from pipeline.tracking import mlflow_runs
from pipeline.tracking.mlflow_runs import FLUSH_AT, MlflowTracker
from pipeline.tracking.opening import open_tracker
from tests.messages import says

ROOT = Path(__file__).parents[2]


class Answers:
    """A client that keeps what it is given, or fails as told."""

    def __init__(self) -> None:
        self.metrics, self.params, self.tags, self.calls, self.fail = [], {}, {}, [], None
        self.status = None

    def _check(self) -> None:
        if self.fail is not None:
            raise self.fail

    def log_batch(self, run_id, metrics, params, tags):
        self._check()
        self.calls.append((len(metrics), len(params), len(tags)))
        self.metrics += [(m.key, m.value, m.step) for m in metrics]
        self.params |= {p.key: p.value for p in params}
        self.tags |= {t.key: t.value for t in tags}

    def log_artifact(self, run_id, path, folder):
        self._check()
        self.calls.append(path)

    def set_terminated(self, run_id, status):
        self._check()
        self.status = status


class Refused(Exception):
    error_code = "INVALID_PARAMETER_VALUE"


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(mlflow_runs.time, "monotonic", lambda: now.seconds)
    return now


@pytest.fixture
def tracker() -> MlflowTracker:
    made = MlflowTracker("train")
    made._client, made.run_id = Answers(), "run"
    return made


def _log(tracker, steps, per_step=12):
    for step in steps:
        tracker.log_metrics({f"m{i}": float(i) for i in range(per_step)}, step)


def test_calls_are_few_and_within_the_limit(tracker, clock):
    _log(tracker, range(500))
    tracker.log_params({f"p{i}": i for i in range(230)})
    tracker.close()
    answers = tracker._client
    assert len(answers.metrics) == len(set(answers.metrics)) == 6000
    assert answers.metrics[0] == ("train/m0", 0.0, 0)
    metric_calls = [call[0] for call in answers.calls if call[0]]
    assert max(metric_calls) <= 1000
    assert len(metric_calls) == 7
    assert max(call[1] for call in answers.calls) <= 100
    assert len(answers.params) == 230
    assert answers.status is None  # train is not the last stage


def test_nothing_is_sent_before_a_flush(tracker, clock):
    _log(tracker, range(5))
    assert tracker._client.calls == []
    tracker.flush()
    assert len(tracker._client.metrics) == 60


def test_non_finite_values_are_dropped_and_counted(tracker, clock):
    tracker.log_metrics({"a": float("nan"), "b": float("inf"), "c": 1.0}, 1)
    tracker.close()
    assert tracker._client.metrics == [("train/c", 1.0, 1)]
    assert tracker._client.tags == {"train.dropped_nonfinite": "2"}


def test_an_outage_is_said_once_and_loses_nothing(tracker, clock, capsys):
    answers = tracker._client
    answers.fail = ConnectionError("no route\nto host")
    _log(tracker, range(200))
    tracker.log_artifact("plot.png", "plots")
    assert answers.calls == []
    clock.seconds += 61
    _log(tracker, [200])  # tried again, and still down
    clock.seconds += 61
    answers.fail = None
    _log(tracker, [201])
    assert len(answers.metrics) == len(set(answers.metrics)) == 202 * 12
    tracker.close()
    assert "plot.png" in answers.calls
    assert answers.status is None  # train is not the last stage
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: tracking: ")
    says(line, "MLflow", "(ConnectionError: no route to host)")


def test_an_outage_is_not_waited_for_at_every_flush(tracker, clock):
    tried = []
    tracker._client.log_batch = lambda *a, **k: tried.append(1) or (_ for _ in ()).throw(ConnectionError("down"))
    for _ in range(20):
        _log(tracker, range(100))
        tracker.flush()
    assert len(tried) == 1


def test_an_outage_to_the_end_is_counted_and_the_buffer_is_bounded(tracker, clock, capsys, monkeypatch):
    monkeypatch.setattr(mlflow_runs, "MAX_BUFFERED", 2 * FLUSH_AT)
    tracker._client.fail = ConnectionError("down")
    _log(tracker, range(200))
    assert len(tracker._metrics) == 2 * FLUSH_AT
    assert tracker._metrics[-1][3] == 199
    tracker.close()
    says(capsys.readouterr().err, "MLflow run run", "2,400 metrics")


def test_what_is_refused_for_good_is_not_tried_again(tracker, clock, capsys):
    answers = tracker._client
    answers.fail = Refused("the run must be active")
    _log(tracker, range(10))
    tracker.flush()
    answers.fail = None
    _log(tracker, range(10, 12))
    tracker.close()
    assert {step for _, _, step in answers.metrics} == {10, 11}
    assert "lacks 120 metrics" in capsys.readouterr().err


def _open(project, capsys, uri=None):
    params = TrackingParams(tracking_uri=uri)
    with open_tracker(params, stage="train", run_file=project / "run.json") as tracker:
        tracker.log_params({"seed": 0})
        tracker.log_metrics({"l0": 24.0}, 1)
        tracker.log_artifact("x")
        tracker.log_dataset("store", "abc")
        tracker.flush()
    assert tracker.run_id is None
    assert json.loads((project / "run.json").read_text()) == {"run_id": None}
    said = [line for line in capsys.readouterr().err.splitlines() if "INFO mlflow" not in line]
    assert len(said) == 1
    assert said[0].startswith("warning: tracking: MLflow could not open")


def test_a_server_that_is_down(project, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as silent:  # it holds the port, so that nobody else answers there, and does not listen
        silent.bind(("127.0.0.1", 0))
        _open(project, capsys, f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("how", ["no database", "directory", "other tables"])
def test_a_broken_database(project, capsys, how):
    place = project / "mlflow.db"
    if how == "no database":
        place.write_bytes(b"this is not a database, " * 500)
    elif how == "directory":
        place.mkdir()
    else:
        with sqlite3.connect(place) as made:
            made.execute("create table alembic_version (version_num varchar(32))")
            made.execute("insert into alembic_version values ('of another time')")
    _open(project, capsys)


def test_a_database_that_breaks_under_a_run(tracked, capsys):
    params = TrackingParams()
    with open_tracker(params, stage="train", run_file="run.json") as tracker:
        tracker.log_metrics({"l0": 1.0}, 1)
        tracker.flush()
        with sqlite3.connect(tracked / "mlflow.db") as made:
            made.execute("drop table metrics")
        tracker.log_metrics({"l0": 2.0}, 2)
        tracker.flush()
    said = capsys.readouterr().err
    assert said.count("MLflow could not log") == 1
    assert "lacks 1 metrics" in said


def test_three_processes_at_once_on_no_database(project):
    """Without the lock, all but one of them fail while they create the tables. They are forks: MLflow takes seconds to import."""
    code = """
import os, sys, warnings
from pipeline.params.sections.tracking import TrackingParams
from pipeline.tracking.mlflow_runs import _client
from pipeline.tracking.opening import open_tracker
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _client("sqlite:///mlflow.db")
    import mlflow.store.tracking.sqlalchemy_store
for number in range(3):
    if os.fork() == 0:
        break
else:
    sys.exit(any([os.wait()[1] for _ in range(3)]))
os.environ["DVC_EXP_NAME"] = f"exp-{number}"
with open_tracker(TrackingParams(), stage="train", run_file=f"run{number}.json") as tracker:
    for step in range(100):
        tracker.log_metrics({"l0": float(step)}, step)
        if step % 25 == 0:
            tracker.flush()
assert tracker.run_id, "no run"
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, timeout=600)
    assert (ended.stderr, ended.returncode) == ("", 0)
    with sqlite3.connect(project / "mlflow.db") as database:
        assert sorted(database.execute("select name from runs")) == [("exp-0",), ("exp-1",), ("exp-2",)]
        assert database.execute("select count(*) from metrics").fetchone() == (300,)
        assert database.execute("select count(*) from experiments where name = 'scopeline'").fetchone() == (1,)
