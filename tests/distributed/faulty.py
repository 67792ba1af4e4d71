"""Three processes, one of which is at fault: `python -m tests.distributed.faulty WHAT DIRECTORY`, for test_faults.py.

Each leaves the fault that it ends with in a file of the directory, under its rank.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pipeline.distributed.group as module
from pipeline.errors import PipelineError
from pipeline.params.sections.distributed import DistributedParams
from tests.distributed.forked import group

SIZE = 3
MINUTES = 0.05  # 3 seconds


def values(lr: float) -> dict[str, Any]:
    return {"trainer": {"lr": lr, "optimizer": "adam"}, "seed": 0}


def work(what: str, rank: int) -> None:
    """What the process `rank` does."""
    patient = DistributedParams(data_parallel_size=SIZE, timeout_minutes=2.0)
    hurried = DistributedParams(data_parallel_size=SIZE, timeout_minutes=MINUTES)
    if what == "params":
        with module.joined(patient, "train", values(0.002 if rank == 2 else 0.001)):
            raise AssertionError("joined")
    if what == "code":
        if rank == 1:
            module.described = lambda stage, params: {**params, "code": 64 * "a", "torch": torch.__version__}
        with module.joined(patient, "train", values(0.001)):
            raise AssertionError("joined")
    if what == "silent":
        if rank == 1:
            next(iter(dist.rendezvous("env://")))  # it comes, as code does that knows of no comparison
            time.sleep(10)
            return
        with module.joined(hurried, "train", values(0.001)):
            raise AssertionError("joined")
    with module.joined(hurried) as processes:
        assert processes.sum([rank]) == [3]
        if what == f"hangs {rank}":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "late" and rank == 1:
            time.sleep(6)
        processes.sum([rank])


def main(what: str, directory: Path) -> None:
    def process(rank: int) -> None:
        try:
            work(what, rank)
        except PipelineError as error:
            (directory / str(rank)).write_text(f"{type(error).__name__}: {error}")

    group(SIZE, process)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
