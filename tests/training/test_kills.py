"""A run that is killed, at any moment, and run again ends with the same bits as one that was not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.project import REPOSITORY

STEPS = 30


def start(directory: Path, how: str, at: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.killed", str(directory), how, str(at)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(directory: Path, how: str, at: int = 0) -> tuple[int, str, str]:
    process = start(directory, how, at)
    out, err = process.communicate(timeout=300)
    return process.returncode, out.strip(), err


def test_killed_and_interrupted_runs_end_like_an_unbroken_one(tmp_path: Path) -> None:
    code, wanted, err = run(tmp_path / "unbroken", "end")
    assert code == 0, err
    broken = tmp_path / "broken"
    for how, at, expected in (("step", 0, -9), ("save", 4, -9), ("interrupt", 9, 130), ("replace", 5, -9)):
        code, _, err = run(broken, how, at)
        assert code == expected, err
        if how == "interrupt":
            assert "stopped by SIGINT after step 10 of 30" in err
            assert "run the same command again" in err
    process = start(broken, "wait")
    assert process.stdout is not None
    stop = random.Random(os.getpid()).randrange(1, 8)
    for _ in range(stop):
        process.stdout.readline()
    process.kill()
    process.communicate()
    code, found, err = run(broken, "end")
    assert code == 0, err
    assert found == wanted
    assert sorted(p.name for p in broken.iterdir()) == sorted(p.name for p in (tmp_path / "unbroken").iterdir())
