"""What a stage says at its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from pipeline import ending
from pipeline.command import Output, stage_command
from pipeline.ending import Taken, ending_line
from pipeline.errors import DataError
from pipeline.words import bytes_in_words, duration
from tests.project import REPOSITORY, Project

WHILE = r"(\d+ h |\d+ min )?[\d.]+ (s|min)"
TOOK = rf"; took {WHILE}, CPU time {WHILE}, peak memory [\d.]+ [MG]B"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99.4, "99 s"), (99.6, "1 min 40 s"), (740, "12 min 20 s"), (12000, "3 h 20 min")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_line() -> None:
    taken = Taken(92.3, 170.2, 1_234_000_000)
    assert ending_line({"data/norms.json": 900, "metrics/plots": 311_000}, taken, "90 s", 1.1e9) == (
        "wrote data/norms.json, metrics/plots (312 kB); took 92 s (said 90 s), CPU time 2 min 50 s, "
        "peak memory 1.2 GB (said 1.1 GB)"
    )
    several = taken._replace(device=5_000_000_000, processes=2)
    assert ending_line({}, several, None, None) == (
        "wrote nothing new; took 92 s, CPU time 2 min 50 s, peak memory 1.2 GB, device memory 5 GB, of 2 processes together"
    )


def _run(work: object) -> str:
    @stage_command
    @click.option("--out", type=Output(directory=True), default="data/out")
    @click.option("--metrics", type=Output(), default="metrics.json")
    def main(params: str, out: str, metrics: str) -> None:
        work()  # type: ignore[operator]

    return CliRunner().invoke(main, []).stderr


def test_what_was_written_is_told_from_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("data/out/other", "data/out/main/deep", "beside"):
        (tmp_path / place).mkdir(parents=True)
    for place in ("data/out/other/weights", "data/out/main/kept", "beside/old"):
        (tmp_path / place).write_text("there")

    def work() -> None:
        ending.writes(tmp_path / "beside")
        for place in ("data/out/main/config", "data/out/main/deep/weights", "beside/new"):
            (tmp_path / place).write_text("1234")

    assert re.fullmatch(rf"\w+: wrote data/out/main, beside/new \(12 bytes\){TOOK}\n", _run(work))
    assert re.fullmatch(rf"\w+: wrote nothing new{TOOK}\n", _run(lambda: None))

    def again() -> None:
        os.replace(tmp_path / "data/out/main/config", tmp_path / "config")
        (tmp_path / "data/out/main/config").write_text("1234")  # as it was, and written anew

    assert "wrote data/out/main/config (4 bytes);" in _run(again)


def test_a_stage_that_fails_and_a_command_without_outputs_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        raise DataError("a fault")

    assert _run(work) == "error: a fault\n"

    @stage_command
    def main(params: str) -> None:
        pass

    assert CliRunner().invoke(main, []).stderr == ""


def test_one_of_several_processes_leaves_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has started them says it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "left").mkdir()

    def work() -> None:
        ending.expect("5 s", 7e9)
        ending.writes(tmp_path / "store")
        (tmp_path / "store").write_text("123")
        (tmp_path / "metrics.json").write_text("1234")

    monkeypatch.setenv("SCOPELINE_FAULTS", str(tmp_path / "left"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert _run(work) == ""
    for name in ("SCOPELINE_FAULTS", "RANK"):
        monkeypatch.delenv(name)

    def started() -> None:
        ending.collect(tmp_path / "left")
        (tmp_path / "metrics.json").write_text("12345")

    said = _run(started)
    for part in (
        "wrote metrics.json, store (8 bytes)",
        "(said 5 s)",
        "(said 7 GB for each process)",
        "of 2 processes together",
    ):
        assert part in said
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _run(work) == ""
    monkeypatch.setenv("RANK", "0")
    assert _run(work).endswith(", of the first of 2 processes\n")


def test_memory_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending._device_peak() == 0
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 10 + device)
    assert ending._device_peak() == 21


def test_a_process_of_its_own_counts_from_its_start(tmp_path: Path) -> None:
    """By a stage that sleeps before its function begins, as imports take time before it."""
    (tmp_path / "slow.py").write_text(
        '"""slow: waits."""\n'
        "import time\nimport click\nfrom pathlib import Path\nfrom pipeline.command import Output, stage_command\n"
        "time.sleep(1.5)\nkept = bytearray(300_000_000)\ndel kept\n\n\n"
        '@stage_command\n@click.option("--out", type=Output(), default="out")\n'
        'def main(params, out):\n    Path(out).write_text("1")\n\n\nmain()\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "slow"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    found = re.fullmatch(
        r"slow: wrote out \(1 byte\); took ([\d.]+) s, CPU time [\d.]+ s, peak memory ([\d.]+) MB\n", done.stderr
    )
    assert found is not None, done.stderr
    assert float(found[1]) >= 1.5
    assert 300 <= float(found[2]) < 1000


@pytest.mark.parametrize(
    ("stage", "wrote"),
    [
        ("inputs", "inputs: wrote data/inputs ("),
        ("tokenize_corpus", "tokenize: wrote data/tokens.zarr, metrics/tokenize.json ("),
        (
            "compute_norm",
            "norm: wrote data/norms.json, data/norm_statistics.safetensors, metrics/norm.json, metrics/plots/norm (",
        ),
        ("initialize", "initialize: wrote data/initial/main ("),
        ("fold_norm", "fold: wrote data/inference/main, metrics/fold.json ("),
    ],
)
def test_a_stage_ends_with_what_it_wrote_and_took(stage: str, wrote: str, project: Project) -> None:
    lines = project.run(stage).stderr.splitlines()
    assert len([line for line in lines if "; took " in line]) == 1
    assert re.match(re.escape(wrote) + r".+\)" + TOOK + ("$" if stage == "inputs" else r" \(said [\d.]+ [MG]B\)$"), lines[-1])


def test_a_stage_compares_with_the_time_that_it_has_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.beginning.clock_seconds", lambda *_: 90.0)
    monkeypatch.setattr("pipeline.planning.beginning.recorded", lambda run: _Kept())
    lines = project.run("compute_norm").stderr.splitlines()
    assert "about 90 s (with nothing else at work)" in lines[0]
    assert re.search(r"; took [\d.]+ s \(said 90 s\), CPU time", lines[-1])


class _Kept:
    rates, exact = None, True


def test_what_is_no_work_of_the_stage_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        with ending.aside("measuring how long the run takes"):
            much = torch.ones(100_000_000)  # 400 MB, more than freed blocks are kept of (allocation.py)
            del much
            peaks.append(ending._peak())
            time.sleep(1.2)
        peaks.append(ending._peak())
        (tmp_path / "metrics.json").write_text("{}")

    peaks: list[int] = []
    line = _run(work)
    told = re.fullmatch(
        r"\w+: wrote metrics.json \(2 bytes\); took ([\d.]+) s, CPU time [\d.]+ s, peak memory ([\d.]+ [MG]B); "
        r"beside that ([\d.]+) s of measuring how long the run takes\n",
        line,
    )
    assert told, line
    assert float(told[1]) < 1.0 <= float(told[3])
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert peaks[1] < peaks[0] - 300e6
        assert told[2] == bytes_in_words(peaks[1])
