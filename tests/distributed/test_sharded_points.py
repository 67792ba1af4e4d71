"""Resume points of sharded states, in real processes: saved by 2 x 2 of them, read by 1, 4 x 1, 1 x 2 and 1 x 3, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import CheckpointError
from pipeline.training.checkpoints import Checkpoints
from tests.distributed.sharded import whole
from tests.project import REPOSITORY


def test_a_point_is_of_no_number_of_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.distributed.sharded", str(tmp_path / "run")],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
