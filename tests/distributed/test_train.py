"""The train stage in several processes: the weights of one process, killed or stopped or not, and one line for a fault."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.project import REPOSITORY, Project, make_project

WEIGHTS = "data/trained/main/weights.safetensors"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Up to the initial dictionary: BatchTopK, whose gate looks at the whole batch, in float64, with AuxK."""
    project = make_project(tmp_path_factory.mktemp("several") / "project")
    project.set(dictionary__act_fn="batchtopk", dictionary__dtype="float64", trainer__auxk_coefficient=0.03)
    project.set(trainer__checkpoint_minutes=1e-9)
    return project.run_all("initialize")


@pytest.fixture(scope="module")
def wanted(begun: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of one process."""
    project = begun.copy(tmp_path_factory.mktemp("one") / "project")
    assert project.run("train").exit_code == 0
    return load_file(project.path / WEIGHTS)


def started(project: Project, size: int, model: int = 1, **environment: str) -> subprocess.Popen[str]:
    project.set(distributed__data_parallel_size=size, distributed__model_parallel_size=model)
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=project.path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, said = process.communicate(timeout=300)
    return process.returncode, said.replace("\r", "\n").splitlines()


def check(project: Project, wanted: dict[str, Tensor]) -> None:
    found = load_file(project.path / WEIGHTS)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_for_a_checkpoint(project: Project, after: int = 0) -> int:
    """Steps of the newest resume point above `after`."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        steps = [int(path.name[5:]) for path in project.path.glob("data/checkpoints/*/step-*")]
        if steps and max(steps) > after:
            return max(steps)
        time.sleep(0.02)
    raise AssertionError("no checkpoint")


def test_the_weights_are_those_of_one_process(begun: Project, wanted: dict[str, Tensor], tmp_path: Path) -> None:
    project = begun.copy(tmp_path / "project")
    code, lines = finish(started(project, 3))
    assert code == 0, lines
    check(project, wanted)
    assert sum("steps of 128 tokens" in line for line in lines) == 1  # the first process speaks alone
    assert not [line for line in lines if "Warning" in line or "run_id" in line]


def test_killed_processes_are_started_again_and_end_with_the_same_weights(
    begun: Project, wanted: dict[str, Tensor], tmp_path: Path
) -> None:
    """One is killed, the whole is stopped, and another number of processes goes on."""
    project = begun.copy(tmp_path / "project")
    process = started(project, 2)
    step = wait_for_a_checkpoint(project)
    victim = max(workers(process), key=lambda each: each.pid)
    victim.send_signal(signal.SIGKILL)
    wait_for_a_checkpoint(project, step + 3)  # of those that were started again: the other one ended within a step
    process.send_signal(signal.SIGINT)
    code, lines = finish(process)
    if code == 0:  # it had ended before the signal came
        check(project, wanted)
        return
    assert code == 130, lines
    assert [line for line in lines if "was ended by signal 9; all are started again" in line]
    assert [line for line in lines if line.startswith("error: stages.train: stopped by SIGINT")]
    code, lines = finish(started(project, 3))
    assert code == 0, lines
    assert [line for line in lines if "going on after step" in line]
    check(project, wanted)


def test_features_dealt_to_processes(begun: Project, wanted: dict[str, Tensor], tmp_path: Path) -> None:
    """2 x 2 processes are stopped, two with half of the features each go on; weights and figures are those of one process."""
    project = begun.copy(tmp_path / "project")
    process = started(project, 2, 2)
    wait_for_a_checkpoint(project)
    process.send_signal(signal.SIGINT)
    code, lines = finish(process)
    assert code in (0, 130), lines  # 0: it had ended before the signal came
    code, lines = finish(started(project, 1, 2))
    assert code == 0, lines
    check(project, wanted)
    assert json.loads((project.path / "metrics" / "train.json").read_text())["final_l0"] == 4.0


def test_a_loss_through_the_language_model(tmp_path: Path) -> None:
    """On 2 x 2 the weights of one process; each of the contexts runs through the model by itself, in float32."""
    project = make_project(tmp_path / "project")
    project.set(dictionary__dtype="float64", activations__source="live", activations__model_batch_size=1)
    project.set(trainer__model_loss="kl", trainer__model_loss_steps=4, trainer__model_loss_batches=1)
    project.run_all("initialize")
    alone = project.copy(tmp_path / "alone")
    code, lines = finish(started(alone, 1))
    assert code == 0, lines
    code, lines = finish(started(project, 2, 2))
    assert code == 0, lines
    assert sum("trainer.model_loss kl: the last 4 of" in line for line in lines) == 1
    check(project, load_file(alone.path / WEIGHTS))
    losses = [
        [row["model_loss"] for row in map(json.loads, text.splitlines()) if "model_loss" in row]
        for text in ((each.path / "metrics" / "train_history.jsonl").read_text() for each in (alone, project))
    ]
    assert losses[0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_process_that_hangs_is_named_and_all_are_started_again(
    begun: Project, wanted: dict[str, Tensor], tmp_path: Path
) -> None:
    """A stopped process still holds its connections: only the time tells."""
    project = begun.copy(tmp_path / "project").set(distributed__timeout_minutes=0.25)
    process = started(project, 2)
    wait_for_a_checkpoint(project, 3)
    ranks = {each.environ()["RANK"]: each for each in workers(process) if "RANK" in each.environ()}
    ranks["1"].send_signal(signal.SIGSTOP)
    code, lines = finish(process)
    assert code == 0, lines
    told = (
        "stages.train: process 1 did not answer within distributed.timeout_minutes (0.25), says process 0 of 2; all are started"
    )
    assert [line for line in lines if line.startswith(told)], lines
    assert [line for line in lines if "going on after step" in line]
    check(project, wanted)


def test_too_many_kills_are_told(begun: Project, tmp_path: Path) -> None:
    project = begun.copy(tmp_path / "project")
    project.set(distributed__max_restarts=0)
    process = started(project, 2)
    wait_for_a_checkpoint(project)
    workers(process)[0].send_signal(signal.SIGKILL)
    code, lines = finish(process)
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert code == 2
    assert "process 0 of 2 was ended by signal 9" in line
    assert "distributed.max_restarts is 0" in line


def test_an_error_is_told_once(begun: Project, tmp_path: Path) -> None:
    project = begun.copy(tmp_path / "project")
    shutil.rmtree(project.path / "data" / "initial")
    code, lines = finish(started(project, 2))
    assert code == 2
    assert len([line for line in lines if "data/initial/main" in line]) == 1, lines
    assert not [line for line in lines if "Traceback" in line]


def test_a_launcher_with_another_number_is_refused(begun: Project, tmp_path: Path) -> None:
    project = begun.copy(tmp_path / "project")
    code, lines = finish(started(project, 2, RANK="0", WORLD_SIZE="3", MASTER_ADDR="localhost", MASTER_PORT="1"))
    assert code == 2
    assert lines[-1] == ("error: distributed.data_parallel_size: 2, and 3 processes were started; give both the same number")


def test_what_several_processes_cannot_do_is_refused(begun: Project, tmp_path: Path) -> None:
    project = begun.copy(tmp_path / "project")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"distributed__data_parallel_size": 129}, "distributed.data_parallel_size: 129 processes"),
        (
            {"distributed__data_parallel_size": 33, "activations__source": "live", "trainer__model_loss": "kl"},
            "trainer.model_loss_batches: 4, and the 33 processes of distributed.data_parallel_size",
        ),
    ]
    for change, line in changes:
        project.copy(tmp_path / line[:30]).set(**change)
        changed = project.copy(tmp_path / f"{len(line)}")
        outcome = changed.set(**change).run("train")
        assert outcome.exit_code == 2
        assert line in outcome.stderr
