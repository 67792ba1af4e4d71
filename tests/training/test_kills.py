"""A run that is killed, at any moment, and run again ends with the same bits as one that was not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.project import REPOSITORY


def test_killed_and_interrupted_runs_end_like_an_unbroken_one(tmp_path: Path) -> None:
    stop = random.Random(os.getpid()).randrange(1, 8)
    killed = [("step", 0, -9), ("save", 4, -9), ("interrupt", 9, 130), ("replace", 5, -9), ("outside", stop, -9)]
    broken = [*killed, ("end", 0, 0)]
    asked = ["unbroken end 0", *(f"broken {how} {at}" for how, at, _ in broken)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed"],
        input="".join(f"{tmp_path}/{line}\n" for line in asked),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    unbroken, *found = [json.loads(line) for line in done.stdout.splitlines()]
    assert unbroken["code"] == 0, unbroken["err"]
    assert [run["code"] for run in found] == [code for _, _, code in broken], found
    interrupted = found[2]["err"]
    assert "stopped by SIGINT after step 10 of 30" in interrupted
    assert "run the same command again" in interrupted
    assert found[-1]["out"] == unbroken["out"]
    assert len(unbroken["out"].split()) == 2
    assert sorted(p.name for p in (tmp_path / "broken").iterdir()) == sorted(p.name for p in (tmp_path / "unbroken").iterdir())
