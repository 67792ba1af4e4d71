"""generate, evaluate and analyze in several real processes: what they leave is what one leaves, byte for byte."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DataError, Interrupted
from pipeline.tracking import outcome
from pipeline.tracking.tracker import FAILED, STOPPED
from tests.activations.cases import contents
from tests.analysis.test_processes import alike
from tests.project import REPOSITORY, Project, make_project

BLOCK = 32768  # tokens


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


def test_a_killed_generation_is_started_again_and_ends_with_the_bytes_of_one_process(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    words = np.random.default_rng(1).choice(["the", "cat", "sat", "on", "mat", "and", "dog", "ran", "far", "home"], (700, 60))
    (project.path / "text.jsonl").write_text("".join(f'{{"text": "{" ".join(line)}"}}\n' for line in words))
    project.set(activations__total_tokens=BLOCK + 8000, activations__model_batch_size=32)
    project.run_all("generate_activations")
    wanted, manifest = contents(project.store), (project.path / "data" / "activations.json").read_bytes()
    shutil.rmtree(project.path / "data" / "store")
    project.set(distributed__data_parallel_size=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.generate_activations"],
        cwd=project.path, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not list(project.path.glob("data/store/*/*/c.*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    max(psutil.Process(process.pid).children(recursive=True), key=lambda each: each.pid).send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    lines = said.replace("\r", "\n").splitlines()
    assert process.returncode == 0, said
    assert [line for line in lines if "was ended by signal 9; all are started again" in line]
    assert contents(project.store) == wanted
    assert (project.path / "data" / "activations.json").read_bytes() == manifest
    assert [line for line in lines if line.startswith("generate 100%")]
    assert not [line for line in lines[:-1] if line.startswith("generate: wrote")]
    wrote = f"generate: wrote data/activations.json, metrics/generate.json, data/store/{project.store.name} ("
    assert lines[-1].startswith(wrote), lines[-1]
    assert lines[-1].endswith(", of 2 processes together")
    assert re.search(r", peak memory 1\.\d GB \(said 5\d\d MB for each process\), of 2", lines[-1]), lines[-1]
    assert not [line for line in lines if "Traceback" in line or "Warning" in line]


def main(ports: list[str]) -> None:
    """One process: both stages one after the other."""
    import stages.analyze
    import stages.evaluate

    for stage, port in zip((stages.evaluate.main, stages.analyze.main), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        stage.main([], standalone_mode=False)


def left(project: Project) -> dict[str, bytes]:
    places = ("metrics/plots/evaluation", "data/features", "data/dashboard")
    found = {f"{place}/{name}": content for place in places for name, content in contents(project.path / place).items()}
    return {**found, "metrics/evaluation.json": (project.path / "metrics" / "evaluation.json").read_bytes()}


def test_evaluation_and_analysis_leave_what_one_process_leaves(project: Project) -> None:
    """Started as torchrun starts them."""
    wanted = left(project)
    said = evaluated_and_analysed(project.set(distributed__data_parallel_size=2))
    assert left(project) == wanted
    assert "evaluate 100%" in said[0]
    assert "write features 100%" in said[0]
    assert said[1] == ""


def test_features_dealt_to_processes(project: Project) -> None:
    """Half of the features each: what one process leaves, up to rounding."""
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    features = pq.read_table(project.path / "data" / "features" / "features.parquet").to_pylist()
    said = evaluated_and_analysed(project.set(distributed__model_parallel_size=2))
    found = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert list(found) == list(metrics)
    alike(found, metrics)
    alike(pq.read_table(project.path / "data" / "features" / "features.parquet").to_pylist(), features)
    assert said[1] == ""


def evaluated_and_analysed(project: Project) -> list[str]:
    """Both stages anew in two processes; what each said."""
    for place in ("metrics/plots/evaluation", "data/features", "data/dashboard"):
        shutil.rmtree(project.path / place)
    (project.path / "metrics" / "evaluation.json").unlink()
    ports = free_ports(2)
    shared = environment(WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=ports[0])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.test_stages", *ports],
            cwd=project.path, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def free_ports(n: int) -> list[str]:
    sockets = [socket.socket() for _ in range(n)]
    for free in sockets:
        free.bind(("localhost", 0))
    ports = [str(free.getsockname()[1]) for free in sockets]
    for free in sockets:
        free.close()
    return ports


@pytest.mark.parametrize("stage", ["generate_activations", "evaluate", "analyze"])
def test_a_launcher_with_another_number_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    found = project.set(distributed__data_parallel_size=2).run(stage)
    assert found.exit_code == 2
    assert found.stderr == "error: distributed.data_parallel_size: 2, and 3 processes were started; give both the same number\n"


@pytest.mark.parametrize(
    ("variables", "tells"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "1"}, False), ({"RANK": "0", "SCOPELINE_FAULTS": "there"}, False)],
)
def test_one_process_tells_the_run_how_its_stage_has_ended(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], tells: bool
) -> None:
    told: list[str] = []
    monkeypatch.setattr(outcome, "_tell", lambda stage, tracking, run, status: told.append(status))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    class OfAnother(DataError):
        exit_code = 130

    for error in (DataError("no"), Interrupted("stopped"), OfAnother("a process was interrupted")):

        @outcome.outcome_told("evaluate", lambda params: None)  # type: ignore[arg-type, return-value]
        def stage(error: BaseException = error, **options: Any) -> None:
            raise error

        with pytest.raises(DataError if isinstance(error, DataError) else Interrupted):
            stage(params="params.yaml", run="run.json")
    assert told == ([FAILED, STOPPED, STOPPED] if tells else [])


if __name__ == "__main__":
    main(sys.argv[1:])
