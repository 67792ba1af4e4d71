"""Runs to be killed: `python -m tests.training.killed` takes lines `DIRECTORY HOW AT`, each in a fork of its own.

So a kill costs no start of torch. HOW: `end` (not at all), `step` (kill -9 at step AT), `save` (kill -9 in the middle of the
AT-th checkpoint), `replace` (kill -9 between the removal of AT old checkpoints), `interrupt` (SIGINT at step AT), `outside`
(killed from outside after AT steps, which take 20 ms). At its end a run prints the digest of the weights and of the history.
Of each a line of JSON is printed: {"code", "out", "err"}.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import pipeline.training.checkpoints as checkpoints_module
import pipeline.training.point_files as files_module
from pipeline.dictionaries.weights import weights_digest
from pipeline.errors import PipelineError
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.loop import train
from pipeline.training.source import TensorSource
from tests.training.cases import NORMS, dictionary, params, rows

STEPS = 30


def attempt(directory: str, how: str, at: int) -> dict[str, Any]:
    """A run in a fork, and what became of it."""
    with tempfile.TemporaryFile("w+") as err:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(reading)
                os.dup2(writing, sys.stdout.fileno())
                os.dup2(err.fileno(), sys.stderr.fileno())
                code = run(directory, how, at)
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as lines:
            if how == "outside":
                for _ in range(at):
                    lines.readline()
                os.kill(child, signal.SIGKILL)
            out = lines.read()
        _, status = os.waitpid(child, 0)
        err.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "out": out.strip(), "err": err.read()}


def run(directory: str, how: str, at: int) -> int:
    """Run; see the module."""
    calls = 0

    def kill_at(original):  # type: ignore[no-untyped-def]
        def called(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return called

    if how == "replace":
        checkpoints_module.shutil.rmtree = kill_at(checkpoints_module.shutil.rmtree)

    def on_metrics(step: int, figures: dict[str, float]) -> None:
        if how == "step" and step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "interrupt" and step == at:
            os.kill(os.getpid(), signal.SIGINT)
        if how == "outside":
            print(step, flush=True)  # noqa: T201
            time.sleep(0.02)

    made = dictionary()
    every_step = params(log_frequency=1, checkpoint_minutes=1e-9, dead_threshold=50, auxk_coefficient=0.1, initial_k=6)
    try:
        with Checkpoints(directory, {"seed": 0}).opened() as checkpoints:
            if how == "save":  # between the tensors and the record, in the thread that writes them
                files_module.write_json = kill_at(files_module.write_json)
            source = TensorSource(rows(100), batch_size=16, seed=0)
            train(
                made, source, params=every_step, norms=NORMS, total_steps=STEPS, checkpoints=checkpoints, on_metrics=on_metrics
            )
    except PipelineError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    history = hashlib.sha256(Path(directory, "history.jsonl").read_bytes()).hexdigest()
    print(weights_digest(made), history)  # noqa: T201
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        directory, how, at = line.split()
        print(json.dumps(attempt(directory, how, int(at))), flush=True)  # noqa: T201
