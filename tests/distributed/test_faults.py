"""Processes that do not fit together, or that hang: found out by the others, and named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.distributed.roll_call import RollCall, Unanswered, named
from tests.project import REPOSITORY


def run(what: str, place: Path) -> dict[int, str]:
    """{process: the fault that it ended with} of the processes of tests.distributed.faulty that came to an end."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.distributed.faulty", what, str(place)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return {int(file.name): file.read_text() for file in place.iterdir()}


def test_the_process_with_other_parameters_is_named_by_all(tmp_path: Path) -> None:
    said = run("params", tmp_path)
    line = (
        "ParamsError: process 2 runs with other parameters than process 0: trainer.lr is 0.002, there 0.001; give all the same"
    )
    assert said == dict.fromkeys(range(3), line)


def test_the_process_with_other_code_is_named_by_all(tmp_path: Path) -> None:
    said = run("code", tmp_path)
    assert set(said) == {0, 1, 2}
    assert len(set(said.values())) == 1
    pattern = r"ParamsError: process 1 runs other code than process 0 \(digest [0-9a-f]{12}, there [0-9a-f]{12}\); start the same commit"
    assert re.match(pattern, said[0])


def test_the_process_that_never_says_what_it_runs_is_named(tmp_path: Path) -> None:
    """Code from before the comparison says nothing."""
    said = run("silent", tmp_path)
    assert set(said) == {0, 2}
    for line in said.values():
        assert line.startswith(
            "DataError: process 1 of 3 did not say which run it is of within distributed.timeout_minutes (0.05)"
        )


@pytest.mark.parametrize("rank", [0, 1])
def test_the_process_that_hangs_is_named_by_the_others(tmp_path: Path, rank: int) -> None:
    said = run(f"hangs {rank}", tmp_path)
    assert set(said) == {0, 1, 2} - {rank}
    for line in said.values():
        assert line.startswith(f"Unanswered: process {rank}")
        assert "did not answer within distributed.timeout_minutes (0.05)" in line


def test_the_process_that_comes_too_late_is_named(tmp_path: Path) -> None:
    said = run("late", tmp_path)
    assert set(said) == {0, 1, 2}
    assert all(said[rank].startswith("Unanswered: process 1 did not answer within") for rank in (0, 2))
    assert said[1].startswith("DataError: process 1 of 3: another process has ended")


def test_where_all_come_to_the_roll_call_none_is_named() -> None:
    roll_call = RollCall(dist.HashStore(), 0, 1, minutes=1e-9)
    assert roll_call.missing() == []
    with pytest.raises(Unanswered, match="all processes are there, and one of them did not answer"), roll_call.answered():
        raise RuntimeError("Timed out")
    assert named([1]) == "process 1"
    assert named([1, 2]) == "processes 1, 2"
