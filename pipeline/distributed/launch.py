"""Run a stage in several processes on this machine, by torch.distributed's elastic launcher.

The stage runs the command that it was run by once for each process. A process that is killed takes the others with it, and all
are started again, and go on from what is kept; so they are when one hangs, which the others find out. One that ends with an
error is not started again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from pipeline.distributed.group import started_as_one
from pipeline.distributed.roll_call import AGAIN, Unanswered
from pipeline.ending import collect
from pipeline.errors import FAULTS, DataError, Interrupted, PipelineError
from pipeline.params.sections.distributed import DistributedParams

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


class ProcessFailed(PipelineError):
    """A process has failed; its faults, and its exit code."""

    def __init__(self, faults: list[str], exit_code: int) -> None:
        super().__init__(faults)
        self.exit_code = exit_code


def to_be_launched(params: DistributedParams) -> bool:
    """Whether this process is to start the ones that do the work."""
    return params.n_processes > 1 and not started_as_one()


def launch(params: DistributedParams, module: str) -> None:
    """Run `python -m module`, with this command's arguments, in so many processes, to the end.

    Raises:
        Interrupted: a signal asked to stop; the processes have kept their state.
        ProcessFailed: one has ended with an error, which is told as it would be of one process.
        DataError: processes were killed, or hung, more often than max_restarts.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for killed in range(params.max_restarts + 1):
        try:
            with _threads(params.n_processes), _quiet(), _faults() as faults:
                _run(params.n_processes, [sys.executable, "-m", module, *sys.argv[1:]])
                collect(Path(os.environ[FAULTS]))
            return
        except SignalException as error:
            raise Interrupted(f"{module}: stopped by {error.sigval.name}; run the same command again") from None
        except ChildFailedError as error:
            rank, code = _first(error)
            if code == Unanswered.exit_code and rank in faults:
                said = f"{module}: {faults[rank][0].removesuffix(AGAIN)}"
            elif code >= 0:
                raise ProcessFailed(faults.get(rank, []), code) from None
            else:
                said = f"{module}: process {rank} of {params.n_processes} was ended by signal {-code}"
            if killed == params.max_restarts:
                times = f"{killed + 1} times in all" if killed else "once"
                raise DataError(
                    f"{said}; this happened {times}, and distributed.max_restarts is {params.max_restarts}; "
                    "run the same command again to go on"
                ) from None
            click.echo(f"{said}; all are started again, from what is kept", err=True)


def _run(size: int, command: list[str]) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        max_restarts=0,  # an error would be tried again too
        shutdown_timeout=60,
    )
    elastic_launch(config, command[0])(*command[1:])


@contextlib.contextmanager
def _faults() -> Iterator[dict[int, list[str]]]:
    """{rank: the faults that it has left}, filled at the end of the block."""
    found: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        os.environ[FAULTS] = directory
        try:
            yield found
        finally:
            del os.environ[FAULTS]
            found |= {
                int(file.name): file.read_text().splitlines() for file in Path(directory).iterdir() if file.name.isdigit()
            }


def _first(error: ChildFailedError) -> tuple[int, int]:
    """Rank and exit code of the process that failed first; a negative code is the signal that ended it.

    When one is killed, the others soon end by an error of theirs, since it does not answer. One that hangs does not answer
    either; it is killed by the launcher when the others have said so.
    """
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    if unanswered := [(rank, code) for rank, code in codes.items() if code == Unanswered.exit_code]:
        return unanswered[0]
    killed = [(rank, code) for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]
    if killed:
        return killed[0]
    rank, failure = error.get_first_failure()
    return rank, failure.exitcode


@contextlib.contextmanager
def _threads(size: int) -> Iterator[None]:
    """Deal torch's threads to the processes, unless the user has."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // size))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The launcher's own log repeats what the processes say."""
    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
