"""One W&B run across stages: the names of MLflow's, resumed by its id, members in a group, and never the end of a training."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import Interrupted, ParamsError
from pipeline.params.loader import load_params
from pipeline.params.reading import read_mapping
from pipeline.params.sections.tracking import TrackingParams, WandbParams
from pipeline.tracking.opening import open_tracker
from pipeline.tracking.run_file import read_ids
from pipeline.tracking.wandb_runs import WandbTracker
from tests.closure import ROOT
from tests.messages import faults, says
from tests.project import Project
from tests.tracking.recording_wandb import RecordingWandb

RUN_FILE = "data/run.json"


@pytest.fixture
def wandb(project: Path, monkeypatch: pytest.MonkeyPatch) -> RecordingWandb:
    (project / "sessions").mkdir()
    made = RecordingWandb(project / "sessions")
    monkeypatch.setitem(sys.modules, "wandb", made)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(WandbTracker, "unreachable", False)
    monkeypatch.setattr(WandbTracker, "open_runs", set())
    return made


@pytest.fixture
def params(wandb: RecordingWandb) -> TrackingParams:
    return TrackingParams(enabled=False, wandb=WandbParams(enabled=True, project="sparse", entity="lab"))


def opened(params: TrackingParams, stage: str = "train", **options):
    return open_tracker(params, stage=stage, run_file=RUN_FILE, **options)


def test_one_run_across_stages(project, wandb, params) -> None:
    with opened(params, name="main") as tracker:
        tracker.log_params({"seed": 0, "trainer": {"lr": 2e-4}, "tracking": {"enabled": False}})
        tracker.log_metrics({"l0": 24.0, "loss/l_rec": 0.5}, 0)
        tracker.log_metrics({"l0": 25.0}, 50)
        tracker.log_metrics({"seconds": 3.0})
        tracker.set_tags({"kind": "sae"})
        tracker.log_dataset("activations", "f" * 40, source={"store": "s"}, shape=(1000, 8), dtype="bfloat16")
    with opened(params, "evaluate") as tracker:
        tracker.log_metrics({"fvu": 0.125, "fvu.blocks.2.hook_resid_post": 0.5})
        tracker.describe("a table")
    train, evaluate = wandb.runs
    assert train.id == evaluate.id == tracker.run_id
    assert read_ids(RUN_FILE) == {"wandb": train.id}
    assert json.loads(Path(RUN_FILE).read_text()) == {"run_id": None, "wandb": {"run_id": train.id}}
    assert train.rows == [
        {"train/l0": 24.0, "loss/l_rec": 0.5, "train/step": 0},
        {"train/l0": 25.0, "train/step": 50},
    ]
    assert train.axes == {"train/*": "train/step"}
    assert train.summary == {"train/seconds": 3.0}
    assert evaluate.summary == {"evaluation/fvu": 0.125, "evaluation/fvu.blocks.2.hook_resid_post": 0.5}
    assert evaluate.notes == "a table"
    config = {key: value for key, value in train.config.items() if key != "versions"}
    data = {"digest": "f" * 40, "source": {"store": "s"}, "shape": [1000, 8], "dtype": "bfloat16", "context": "training"}
    assert config == {"seed": 0, "trainer": {"lr": 2e-4}, "tags.kind": "sae", "data.activations": data}
    assert "python" in "".join(train.config["versions"])
    assert [run.exit_code for run in wandb.runs] == [0, 0]
    for run, name in ((train, "main"), (evaluate, None)):
        wanted = {"project": "sparse", "entity": "lab", "mode": "online", "resume": "allow", "name": name, "group": None}
        assert {key: run.options[key] for key in wanted} == wanted
        assert run.options["dir"] == str(project.resolve())
        assert 0 < run.options["settings"]["finish_timeout"] < 300


def test_files_are_copies_under_the_names_of_their_folders(project, wandb, params) -> None:
    (project / "plots" / "inner").mkdir(parents=True)
    (project / "plots" / "a.png").write_text("a")
    (project / "plots" / "inner" / "b.html").write_text("b")
    (project / "train.json").write_text("{}")
    with opened(params) as tracker:
        tracker.log_artifact("plots", "plots/training")
        tracker.log_artifact(project / "train.json", "metrics")
        tracker.log_artifact("train.json")
    (run,) = wandb.runs
    assert sorted(run.saved) == [
        "metrics/train.json",
        "plots/training/a.png",
        "plots/training/inner/b.html",
        "train.json",
    ]
    (project / "train.json").write_text("of the next run")
    assert (Path(run.dir) / "metrics" / "train.json").read_text() == "{}"
    assert not any(path.is_symlink() for path in Path(run.dir).rglob("*"))


def test_both_loggers_have_the_same_names(tracked, client, wandb) -> None:
    both = TrackingParams(wandb=WandbParams(enabled=True))
    for stage in ("train", "evaluate"):
        with opened(both, stage) as tracker:
            tracker.log_metrics({"l0": 24.0, "core/FVU": 0.25, "m@small(x)": 1.0}, 3 if stage == "train" else None)
    ids = read_ids(RUN_FILE)
    logged = client.get_run(ids["mlflow"]).data.metrics
    train, evaluate = wandb.of(ids["wandb"])
    assert {**train.rows[0], **evaluate.summary} == {**logged, "train/step": 3}


def test_what_is_not_finite_is_dropped_and_counted(wandb, params) -> None:
    with opened(params) as tracker:
        tracker.log_metrics({"a": float("nan"), "b": 1.0, "c": float("inf")}, 1)
        tracker.log_metrics({"a": float("nan")}, 2)
    (run,) = wandb.runs
    assert run.rows == [{"train/b": 1.0, "train/step": 1}]
    assert run.config["tags.train.dropped_nonfinite"] == 3


def test_a_killed_training_goes_on_in_its_run_with_every_step_once(project, wandb, params) -> None:
    killed = opened(params)
    for step in range(1, 13):  # W&B has them all: its own process outlives a kill
        killed.log_metrics({"l0": float(step)}, step)
    (project / "h.jsonl").write_text("".join(json.dumps({"l0": float(step), "step": step}) + "\n" for step in range(1, 13)))
    with opened(params, ids=read_ids(RUN_FILE), past="h.jsonl", resume_step=10) as tracker:
        for step in range(11, 16):
            tracker.log_metrics({"l0": float(step)}, step)
    assert tracker.run_id == killed.run_id
    rows = [row for run in wandb.of(killed.run_id) for row in run.rows]
    assert [row["train/step"] for row in rows] == list(range(1, 16))


def test_a_training_that_was_not_logged_before_brings_its_past(project, wandb, params) -> None:
    (project / "h.jsonl").write_text("".join(json.dumps({"l0": float(step), "step": step}) + "\n" for step in range(1, 13)))
    with opened(params, ids={}, past="h.jsonl", resume_step=10) as tracker:
        for step in range(11, 16):
            tracker.log_metrics({"l0": float(step)}, step)
    (run,) = wandb.runs
    assert [(row["train/step"], row["train/l0"]) for row in run.rows] == [(step, float(step)) for step in range(1, 16)]


def test_another_dvc_experiment_has_one_run_of_its_own(wandb, params, monkeypatch) -> None:
    with opened(params, name="main"):
        pass
    monkeypatch.setenv("DVC_EXP_NAME", "brave-lynx")
    for stage in ("fold", "evaluate"):
        with opened(params, stage):
            pass
    first, fold, evaluate = wandb.runs
    assert fold.id == evaluate.id != first.id
    assert fold.options["name"] == evaluate.options["name"] == "brave-lynx"
    monkeypatch.setenv("DVC_EXP_NAME", "calm-newt")
    with opened(params, "evaluate"):
        pass
    assert wandb.runs[-1].id not in (first.id, fold.id)


def test_members_of_a_sweep_are_a_group(wandb, params) -> None:
    for member in ("", "k8", "k16"):
        with opened(params, member=member, name="main") as tracker:
            tracker.log_metrics({"l0": 8.0}, 0)
    with opened(params, "evaluate", member="k8"):
        pass
    whole, first, second, again = wandb.runs
    assert len({whole.id, first.id, second.id}) == 3
    assert again.id == first.id
    assert [run.options["name"] for run in wandb.runs[:3]] == ["main", "main/k8", "main/k16"]
    assert whole.options["group"] is None
    assert {run.options["group"] for run in (first, second, again)} == {f"sweep-{whole.id}"}
    written = json.loads(Path(RUN_FILE).read_text())
    assert written["wandb"] == {"run_id": whole.id, "members": {"k8": first.id, "k16": second.id}}


@pytest.mark.parametrize(("why", "part"), [("down", "no route"), ("key", "WANDB_API_KEY")])
def test_without_a_server_the_run_is_kept_offline(wandb, params, capsys, why, part) -> None:
    if why == "down":
        wandb.down = ConnectionError("no route\nto host")
    else:
        wandb.key = False
    with opened(params) as tracker:
        tracker.log_metrics({"l0": 1.0}, 1)
    (run,) = wandb.runs
    assert run.options["mode"] == "offline"
    assert run.rows == [{"train/l0": 1.0, "train/step": 1}]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: tracking: ")
    says(line, part, "wandb sync")


def test_a_server_that_is_down_is_asked_once_for_all_members_of_a_sweep(wandb, params, capsys) -> None:
    wandb.down = ConnectionError("down")
    trackers = [opened(params, member=member) for member in ("", "k8", "k16")]
    for tracker in trackers:
        tracker.close()
    assert [run.options["mode"] for run in wandb.runs] == ["offline"] * 3
    assert capsys.readouterr().err.count("warning") == 1


def test_a_server_that_goes_down_between_members_leaves_the_others_as_they_are(wandb, params, capsys) -> None:
    first = opened(params, member="k8")
    wandb.down = ConnectionError("down")
    second = opened(params, member="k16")
    for tracker in (first, second):
        tracker.log_metrics({"l0": 1.0}, 0)
        tracker.close()
    (run,) = wandb.runs
    assert (run.rows, run.exit_code) == ([{"train/l0": 1.0, "train/step": 0}], 0)
    assert "W&B could not open" in capsys.readouterr().err


def test_calls_that_fail_are_said_once_and_the_stage_goes_on(wandb, params, capsys) -> None:
    with opened(params) as tracker:
        wandb.runs[0].fails = RuntimeError("its process is gone")
        for step in range(3):
            tracker.log_metrics({"l0": 1.0}, step)
        tracker.log_artifact("no-such-file")
        tracker.log_metrics({"seconds": 1.0})
    assert wandb.runs[0].summary == {"train/seconds": 1.0}
    (line,) = capsys.readouterr().err.splitlines()
    says(line, "W&B", "log", "its process is gone")


def test_a_run_that_cannot_begin_at_all_is_said_and_later_stages_still_have_its_id(wandb, params, capsys, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RecordingWandb, "init", lambda self, **options: 1 / 0)
        with opened(params) as tracker:
            tracker.log_metrics({"l0": 1.0}, 1)
            tracker.log_artifact("x")
            tracker.describe("x")
    assert tracker.run_id is None
    assert "warning: tracking: W&B" in capsys.readouterr().err
    with opened(params, "evaluate") as tracker:
        assert {"wandb": tracker.run_id} == read_ids(RUN_FILE)


@pytest.mark.parametrize(("error", "code"), [(None, 0), (Interrupted("stopped"), 130), (ValueError("a bug"), 1)])
def test_a_run_ends_as_its_stage_does(wandb, params, error, code) -> None:
    try:
        with opened(params) as tracker:
            if error is not None:
                raise error
    except (Interrupted, ValueError):
        pass
    tracker.close()
    assert [run.exit_code for run in wandb.runs] == [code]


def test_disabled_writes_nothing(wandb, project) -> None:
    for off in (WandbParams(), WandbParams(enabled=True, mode="disabled")):
        with opened(TrackingParams(enabled=False, wandb=off)) as tracker:
            tracker.log_metrics({"l0": 1.0}, 1)
        assert tracker.run_id is None
        assert json.loads(Path(RUN_FILE).read_text()) == {"run_id": None}
    assert wandb.runs == []


def stating(tmp_path: Path, **wandb: object) -> Path:
    values = read_mapping(ROOT / "params.yaml")
    values["tracking"]["wandb"] |= wandb
    file = tmp_path / "params.json"
    file.write_text(json.dumps(values))
    return file


def test_without_the_package_it_is_refused_when_parameters_are_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    file = stating(tmp_path, enabled=True)
    with pytest.raises(ParamsError) as refused:
        load_params(file)
    (fault,) = faults(refused.value, file).items()
    assert (refused.value.exit_code, fault[0]) == (2, "tracking.wandb.enabled")
    says(fault[1], "pip install 'wandb>=0.31'")
    for off in ({"enabled": False}, {"enabled": True, "mode": "disabled"}):
        load_params(stating(tmp_path, **off))


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("mode", "on", "online"),
        ("mode", None, "null"),
        ("project", "a/b", "a/b"),
        ("project", "", "1 to 128"),
        ("entity", "a team", "a team"),
        ("enabled", "yes", "true"),
        ("team", "lab", "entity"),
    ],
)
def test_faults_of_its_parameters(tmp_path, key, value, part) -> None:
    file = stating(tmp_path, **{key: value})
    with pytest.raises(ParamsError) as refused:
        load_params(file)
    found = faults(refused.value, file)
    assert list(found) == [f"tracking.wandb.{key}"]
    says(found[f"tracking.wandb.{key}"], part)


def test_train_and_fold_are_one_run_with_the_history(finished_project: Project, tmp_path: Path, monkeypatch) -> None:
    for name in ("DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    project = finished_project.copy(tmp_path / "project")
    for made in ("data/checkpoints", "data/trained", "data/inference"):
        shutil.rmtree(project.path / made)
    project.set(tracking__wandb__enabled=True, trainer__log_frequency=1)
    (tmp_path / "sessions").mkdir()
    wandb = RecordingWandb(tmp_path / "sessions")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_SILENT", "true")
    for stage in ("train", "fold_norm"):
        outcome = project.run(stage)
        assert (outcome.exit_code, outcome.exception) == (0, None), outcome.stderr
    train, fold = wandb.runs
    assert train.id == fold.id
    assert read_ids(project.path / RUN_FILE) == {"wandb": train.id}
    history = [json.loads(line) for line in (project.path / "metrics" / "train_history.jsonl").read_text().splitlines()]
    logged = [(row["train/step"], row["train/l0"]) for row in train.rows]
    assert logged == [(row["step"], row["l0"]) for row in history]
    assert train.config["trainer"]["log_frequency"] == 1
    assert "tracking" not in train.config
    assert train.config["tags.kind"] == "sae"
    assert {"metrics/train.json", "plots/training/index.html"} <= set(train.saved)
    assert any(key.startswith("fold/") for key in fold.summary)
    assert [run.exit_code for run in wandb.runs] == [0, 0]


def test_offline_with_the_package_itself(project, monkeypatch, capfd) -> None:
    """The stages of a run and another experiment's, by wandb itself: what it writes is read with its own reader."""
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    (project / "train.json").write_text('{"l0": 24.0}')
    params = TrackingParams(enabled=False, wandb=WandbParams(enabled=True, mode="offline"))
    with opened(params, name="main") as tracker:
        tracker.log_params({"seed": 0, "trainer": {"betas": [0.9, 0.99], "initial_k": None}})
        for step in (0, 50):
            tracker.log_metrics({"l0": 24.0 + step}, step)
        tracker.log_artifact("train.json", "metrics")
        tracker.describe("a note")
    with opened(params, "evaluate") as tracker:
        tracker.log_metrics({"fvu": 0.125})
    assert capfd.readouterr() == ("", "")
    train, evaluate = sorted((project / "wandb").glob("offline-run-*"))
    assert train.name.endswith(tracker.run_id)
    assert evaluate.name.endswith(tracker.run_id)
    assert (train / "files" / "metrics" / "train.json").read_text() == '{"l0": 24.0}'
    rows, config, notes = read_offline(train, tracker.run_id)
    assert [(row["train/l0"], row["train/step"]) for row in rows] == [(24.0, 0), (74.0, 50)]
    assert (config["seed"], config["trainer"]) == (0, {"betas": [0.9, 0.99], "initial_k": None})
    assert notes == "a note"
    assert b"evaluation/fvu" in (evaluate / f"run-{tracker.run_id}.wandb").read_bytes()


WITHOUT_A_SERVER = """
from pipeline.params.sections.tracking import TrackingParams, WandbParams
from pipeline.tracking.opening import open_tracker
params = TrackingParams(enabled=False, wandb=WandbParams(enabled=True))
with open_tracker(params, stage="train", run_file="run.json") as tracker:
    tracker.log_metrics({"l0": 24.0}, 0)
print(tracker.run_id)
"""


@pytest.mark.parametrize(("key", "part"), [("a" * 40, "connection refused"), (None, "WANDB_API_KEY")])
def test_without_a_server_with_the_package_itself(project, key, part) -> None:
    pytest.importorskip("wandb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with socket.socket() as silent:  # it holds the port, so that nobody else answers there, and does not listen
        silent.bind(("127.0.0.1", 0))
        environment |= {"PYTHONPATH": str(ROOT), "HOME": str(project), "WANDB_ERROR_REPORTING": "false"}
        environment |= {"WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        environment |= {"WANDB_API_KEY": key} if key else {}
        command = [sys.executable, "-c", WITHOUT_A_SERVER]
        ended = subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("warning: tracking: W&B could not be reached")
    says(line, part, "wandb sync")
    run_id = ended.stdout.strip()
    (place,) = (project / "wandb").glob(f"offline-run-*-{run_id}")
    rows, _, _ = read_offline(place, run_id)
    assert [(row["train/l0"], row["train/step"]) for row in rows] == [(24.0, 0)]


def read_offline(place: Path, run_id: str) -> tuple[list[dict[str, float]], dict[str, object], str]:
    """Rows, config and notes of a session that was kept offline: records of W&B's protocol in a LevelDB log."""
    from wandb.proto import wandb_internal_pb2

    content = (place / f"run-{run_id}.wandb").read_bytes()
    rows, config, notes, data = [], {}, "", b""
    at = 7  # behind the file's own header
    while at < len(content):
        if 2**15 - at % 2**15 < 7:  # no room for a header at the end of a block
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # whole, or the last part
            continue
        record, data = wandb_internal_pb2.Record.FromString(data), b""
        for item in (*record.run.config.update, *record.config.update):
            config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        notes = record.run.notes or notes
        if record.history.item:
            rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
    return rows, config, notes
