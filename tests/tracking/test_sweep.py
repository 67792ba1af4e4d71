"""A sweep in MLflow: one run, and nested in it one for each member, which all later stages go on with."""

from __future__ import annotations

import json
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from pipeline.params.sections.tracking import TrackingParams
from pipeline.tracking.opening import open_tracker
from pipeline.tracking.run_file import read_run_id
from tests.project import Project

RUN_FILE, PARENT = "data/run.json", "mlflow.parentRunId"


def opened(params: TrackingParams, stage: str = "train", **options: Any) -> Any:
    return open_tracker(params, stage=stage, run_file=RUN_FILE, **options)


def trained(params: TrackingParams, **ids: str | None) -> dict[str, str]:
    """The ids of a sweep's run ("") and of its members', as the train stage opens them."""
    found = {}
    for member in ("", "k8", "k16"):
        known = ids.get(member or "run")
        with opened(params, member=member, ids={"mlflow": known} if known else {}, name="main") as tracker:
            tracker.log_metrics({"l0": 8.0}, 0)
        found[member] = tracker.run_id
    return found


def test_members_have_runs_below_that_of_the_sweep(tracked, client, params) -> None:
    found = trained(params)
    assert len(set(found.values())) == 3
    parent, *members = found.values()
    written = json.loads((tracked / RUN_FILE).read_text())
    assert written == {"run_id": parent, "members": {"k8": found["k8"], "k16": found["k16"]}}
    assert PARENT not in client.get_run(parent).data.tags
    for member, run_id in zip(("k8", "k16"), members, strict=True):
        run = client.get_run(run_id)
        assert (run.data.tags[PARENT], run.info.run_name) == (parent, f"main/{member}")
        with opened(params, "evaluate", member=member) as tracker:
            assert tracker.run_id == run_id
            tracker.log_metrics({"fvu": 0.25})
        assert client.get_run(run_id).data.metrics == {"train/l0": 8.0, "evaluation/fvu": 0.25}
    with opened(params, "evaluate") as tracker:
        assert tracker.run_id == parent
    assert trained(params, run=parent, k8=found["k8"], k16=found["k16"]) == found
    assert len(client.search_runs([client.get_run(parent).info.experiment_id])) == 3


def test_another_experiment_has_runs_of_its_own_below_one_of_its_own(tracked, client, params, monkeypatch) -> None:
    found = trained(params)
    monkeypatch.setenv("DVC_EXP_NAME", "other")
    with opened(params, "evaluate", member="k8") as tracker:
        run = client.get_run(tracker.run_id)
    with opened(params, "evaluate", member="k16") as tracker:
        beside = client.get_run(tracker.run_id)
    with opened(params, "evaluate") as tracker:
        parent = client.get_run(tracker.run_id)
    assert run.data.tags[PARENT] == beside.data.tags[PARENT] == parent.info.run_id
    assert not {run.info.run_id, beside.info.run_id, parent.info.run_id} & set(found.values())
    assert (run.data.tags["continues"], parent.data.tags["continues"]) == (found["k8"], found[""])
    with opened(params, "analyze", member="k8") as tracker:
        assert tracker.run_id == run.info.run_id


def test_a_run_of_one_dictionary_does_not_go_on_in_that_of_a_member(tracked, client, params) -> None:
    found = trained(params)
    with opened(params, ids={"mlflow": found["k8"]}) as tracker:
        alone = client.get_run(tracker.run_id)
    assert alone.info.run_id not in found.values()
    assert PARENT not in alone.data.tags
    assert json.loads((tracked / RUN_FILE).read_text()) == {"run_id": alone.info.run_id}


@pytest.mark.parametrize("content", ["[]", "{}", '{"run_id": "a"}', '{"members": []}', '{"members": {"k8": 3}}'])
def test_a_run_file_without_the_member(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert read_run_id(tmp_path / "run.json", "k8") is None


def test_a_stopped_sweep_goes_on_with_its_runs(
    finished_project: Project, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training.step import Trainer

    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    project = finished_project.copy(tmp_path / "project")  # its k4 is trained
    shutil.copyfile(empty_database, project.path / "mlflow.db")
    members = {"k4": {}, "k8": {"dictionary.top_k": 8}, "k2": {"dictionary.top_k": 2}}
    project.set(tracking__enabled=True, sweep=members)
    assert project.run("initialize").exit_code == 0
    step, asked = Trainer.step, []

    def stopping(trainer: Trainer, batch: object, observe: bool = False, asks: object = None) -> object:
        if trainer.step_number == 20 and not asked:
            asked.append(True)
            signal.raise_signal(signal.SIGTERM)
        return step(trainer, batch, observe, asks)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        assert project.run("train").exit_code == 130
    before = json.loads((project.path / RUN_FILE).read_text())
    (project.path / RUN_FILE).unlink()
    for stage in ("train", "fold_norm"):
        outcome = project.run(stage)
        assert (outcome.exit_code, outcome.exception) == (0, None), outcome.stderr
    assert json.loads((project.path / RUN_FILE).read_text()) == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{project.path / 'mlflow.db'}")
    history = [json.loads(line) for line in (project.path / "metrics" / "train_history.jsonl").read_text().splitlines()]
    for member, run_id in before["members"].items():
        run = client.get_run(run_id)
        assert run.info.status == "RUNNING"  # until analyze has ended
        assert run.data.tags[PARENT] == before["run_id"]
        assert run.data.tags["name"] == f"main-{member}"
        assert run.data.params["dictionary.top_k"] == member.removeprefix("k")
        logged = [(m.step, m.value) for m in client.get_metric_history(run_id, "train/l0")]
        assert sorted(logged) == [(row["step"], row["l0"]) for row in history if row["member"] == member]
        assert any(key.startswith("fold/") for key in run.data.metrics)
        kept = project.path / "mlartifacts" / run_id / "artifacts" / "plots" / "training"
        assert (kept / "index.html").is_file()
    sweep = client.get_run(before["run_id"])
    assert sweep.data.params["sweep.k8.dictionary.top_k"] == "8"
    assert "dictionary.top_k" not in sweep.data.params  # no member's
    assert sweep.data.params["dictionary.expansion_factor"]
    assert sweep.data.tags["differs"].startswith("sweep of 3: k4, k8, k2")
    assert "k8: dictionary.top_k 8" in sweep.data.tags["mlflow.note.content"]
    assert not any(key.startswith("train/") for key in sweep.data.metrics)
    assert [entry.dataset.name for entry in sweep.inputs.dataset_inputs] == ["activations"]
    assert (project.path / "mlartifacts" / before["run_id"] / "artifacts" / "metrics" / "train.json").is_file()
