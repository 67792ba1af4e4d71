"""The stages' use of it: one run from train to evaluate, whole after kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.project import REPOSITORY, Project


@pytest.fixture
def small(finished_project: Project, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project up to initialize, with tracking."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    project = finished_project.copy(tmp_path / "small")
    for made in ("data/checkpoints", "data/trained", "data/inference"):
        shutil.rmtree(project.path / made)
    shutil.copyfile(empty_database, project.path / "mlflow.db")
    return project.set(
        tracking__enabled=True,
        trainer__total_training_tokens=128 * 400,
        trainer__log_frequency=1,
        trainer__checkpoint_minutes=0.001,
    )


def _run(project: Project):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{project.path / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("scopeline")
        (run,) = client.search_runs([experiment.experiment_id])
    return client, run


KILLED = """
import os, signal
from pipeline.training.history import History
from stages.train import main

add = History.add
def killed(self, row):
    add(self, row)
    if row["step"] == 120:
        os.kill(os.getpid(), signal.SIGKILL)
History.add = killed
main()
"""


def test_killed_train_then_fold_and_evaluate_are_one_whole_run(small: Project) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", KILLED], cwd=small.path, env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (history,) = small.path.glob("data/checkpoints/*/history.jsonl")
    assert history.read_bytes().count(b"\n") == 121
    _, killed = _run(small)
    assert killed.info.status == "RUNNING"
    assert not (small.path / "data" / "trained" / "main").exists()

    for stage in ("train", "fold_norm", "evaluate"):
        outcome = small.run(stage)
        assert (outcome.exit_code, outcome.exception) == (0, None), outcome.stderr
    client, run = _run(small)
    assert run.info.run_id == killed.info.run_id
    assert run.info.status == "RUNNING"  # until analyze has ended
    assert len(run.outputs.model_outputs) == 1
    assert json.loads((small.path / "data" / "run.json").read_text()) == {"run_id": run.info.run_id}
    history = [json.loads(line) for line in (small.path / "metrics" / "train_history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == list(range(400))
    for name in ("l0", "explained_variance", "loss"):
        logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, f"train/{name}")}
        assert logged == {row["step"]: row[name] for row in history}
        assert len(client.get_metric_history(run.info.run_id, f"train/{name}")) == 400
    assert {key.split("/")[0] for key in run.data.metrics} >= {"train", "fold", "evaluation"}
    assert run.data.params["trainer.log_frequency"] == "1"
    assert not [key for key in run.data.params if key.startswith("tracking.")]
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["activations"]
    kept = small.path / "mlartifacts" / run.info.run_id / "artifacts"
    for name in (
        "plots/training/index.html",
        "comparison/index.html",
        "plots/training/loss.png",
        "plots/evaluation/feature_density.png",
    ):
        assert (kept / name).is_file(), name
