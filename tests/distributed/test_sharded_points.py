"""Resume points of sharded states, in real processes: saved by 2 x 2 of them, read by 1, 4 x 1, 1 x 2 and 1 x 3, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.point_files import file_of, read_record, write_record, write_tensors
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


def test_a_part_that_is_in_no_file_is_missed(tmp_path: Path) -> None:
    """The record is whole, and so is each of its files; but a shard was never written."""
    made = Checkpoints(tmp_path, {"seed": 0})
    made.save(3, whole(3), {})
    made.wait()
    place = tmp_path / "step-000000003"
    tensors = {name: tensor for name, tensor in whole(3).items() if name != "dictionary/W_E"}
    offsets = {name: [0] * tensor.ndim for name, tensor in tensors.items()}
    record = read_record(place)
    about = {key: record[key] for key in ("step", "history_bytes", "history_sha256", "extra")}
    for shards in ([whole(3)["dictionary/W_E"][6:]], [whole(3)["dictionary/W_E"][:6], whole(3)["dictionary/W_E"][6:]]):
        files = {file_of(0): write_tensors(place / file_of(0), tensors, offsets)}
        start = 12
        for rank, shard in enumerate(reversed(shards), 1):
            start -= len(shard)
            files[file_of(rank)] = write_tensors(
                place / file_of(rank), {"dictionary/W_E": shard}, {"dictionary/W_E": [start, 0]}
            )
        write_record(place, about, files)
        if len(shards) == 1:
            with pytest.raises(CheckpointError, match=r"'dictionary/W_E' is not whole"):
                made.latest()
        else:
            point, faults = made.latest()
            assert point is not None
            assert faults == []
            assert all(torch.equal(point.tensors[name], tensor) for name, tensor in whole(3).items())


def test_another_file_beside_them_is_refused(tmp_path: Path) -> None:
    """It would be read with the others."""
    made = Checkpoints(tmp_path, {"seed": 0})
    made.save(3, whole(3), {})
    made.wait()
    place = tmp_path / "step-000000003"
    save_file({"dictionary/b_D": torch.zeros(5)}, place / file_of(1))
    with pytest.raises(CheckpointError, match=r"state-00001.safetensors: is not of this checkpoint"):
        made.latest()
