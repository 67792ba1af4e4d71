"""Run a stage in a process of its own that need not import anything: it is forked from one that has.

A stage takes four seconds to import what it needs and a fraction of one for a tiny project. The parent imports, starts no
thread and computes nothing; each child is a whole process with its own directory, limits and end.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.project import STAGES

LIBRARIES = (
    "transformers.models.gpt_neox",
    "transformers.models.auto",
    "pyarrow.parquet",
    "zarr",
    "safetensors.torch",
    "jinja2",
)


def import_all() -> None:
    """What the stages import, once; without the computations that start threads."""
    for name in (*LIBRARIES, *(f"stages.{stage}" for stage in STAGES), "pipeline.api", "pipeline.lm.loading"):
        importlib.import_module(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM, PreTrainedTokenizerFast  # noqa: F401


def run_forked(job: Callable[[], object], directory: Path, timeout: float = 600) -> tuple[int, str]:
    """Run `job` in a child process in `directory`; its exit code (minus the signal that killed it) and its stderr.

    The child ends as the interpreter would: with the parent's own atexit functions too, so that temporary directories of the
    parent must not be of the kind that removes itself.
    """
    with tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if child == 0:
            _be_child(job, directory, stderr.fileno())
        code = _wait(child, timeout)
        stderr.seek(0)
        return code, stderr.read().decode(errors="replace")


def run_stage(
    project: Path,
    stage: str,
    *arguments: str,
    before: Callable[[], object] = lambda: None,
    timeout: float = 600,
) -> tuple[int, str]:
    """Exit code and stderr of a stage; `before` is called in its process first, to set limits or traps."""

    def job() -> None:
        os.environ["DVC_ROOT"] = str(project)
        before()
        importlib.import_module(f"stages.{stage}").main(list(arguments), prog_name=f"stages.{stage}")

    return run_forked(job, project, timeout)


def _be_child(job: Callable[[], object], directory: Path, stderr: int) -> None:
    """Run and end the process, as the interpreter would."""
    code = 1
    try:
        os.setsid()
        os.dup2(stderr, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
        sys.stdout = os.fdopen(1, "w", closefd=False)
        os.chdir(directory)
        job()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, timeout: float) -> int:
    """The child's exit code; killed and TimeoutError when it takes longer."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"process {child} took more than {timeout:.0f} s")
