"""kill -9 at any moment of generation, then the same again: the same bytes, no leftovers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_killed_generation_goes_on_to_the_bytes_of_an_unbroken_one(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tests.activations.killed", str(tmp_path), "0"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    trials = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(trials) == 10
    assert sum(trial["kills"] for trial in trials) >= 20
    assert all(trial["equal"] for trial in trials)
    assert not any(trial["leftovers"] for trial in trials)
