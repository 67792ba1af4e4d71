"""What every stage's command line shares: `--params`, one-line errors, exit codes."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.allocation import keep_freed_memory
from pipeline.ending import told as told_at_the_end
from pipeline.errors import FAULTS, DataError, Interrupted, PipelineError
from pipeline.files import ensure_writable
from pipeline.foreign import full_disk, full_memory, shortened, told
from pipeline.progress import watched

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class Output(click.Path):
    """The type of an option that names a file, or with `directory` a directory, which the stage writes."""

    def __init__(self, *, directory: bool = False, path_type: type | None = None) -> None:
        super().__init__(path_type=path_type)
        self.directory = directory

    def check(self, value: str | Path) -> None:
        """Refuse a place that cannot be written, before the stage does its work.

        Raises:
            DataError: says why not.
        """
        check_output(Path(value), directory=self.directory)


def threads_sleep_while_waiting() -> None:
    """Have OpenMP's threads sleep where they wait for one another, unless the user says otherwise; before torch is imported.

    By default they spin, beside other processes for as long as a thread of theirs has no processor: the processor's
    time of what is measured is then mostly waiting.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def check_output(path: Path, *, directory: bool) -> None:
    """Refuse a place that cannot be written, or that DVC does not keep: it keeps no output that lies outside of the repository,
    and says so when the stage has done its work.

    Args:
        path: file, or with `directory` directory, that is to be written.

    Raises:
        DataError: says why not.
    """
    if os.path.isdir(path) and not directory:
        raise DataError(f"{path}: should be a file and is a directory; move it away")
    for place in (path.parent, *([path] if os.path.isdir(path) else [])):
        ensure_writable(place, path.name)
    here = Path.cwd().resolve()
    if "DVC_ROOT" in os.environ and not path.is_absolute() and not path.parent.resolve().is_relative_to(here):
        raise DataError(
            f"{path}: lies in {path.parent.resolve()}, outside of {here} (a symbolic link leads there), where DVC keeps no "
            "outputs; make it a directory of the project. Large files can lie elsewhere: activations where SCOPELINE_STORE "
            "says, DVC's copies where `dvc cache dir` says"
        )


def _fail(lines: Sequence[str], code: int) -> None:
    """Say what is wrong, and end; one of several processes leaves it to the one that has started them."""
    if (place := os.environ.get(FAULTS)) is not None and "RANK" in os.environ:
        Path(place, os.environ["RANK"]).write_text("\n".join(lines))
    else:
        for line in lines:
            click.echo(f"error: {line}", err=True)
    sys.exit(code)


def _say_removed(label: str, outputs: Sequence[str | Path]) -> None:
    """Under DVC, which removes a stage's outputs before it runs: say which of the last run are gone, and how they come back."""
    lock = Path("dvc.lock")
    if "DVC_STAGE" not in os.environ or "RANK" in os.environ or Path(os.environ.get("DVC_ROOT", "")) != Path.cwd():
        return  # run by hand, one of several processes, or in a directory of DVC's that goes with the run
    known = set(lock.read_text(encoding="utf-8").split()) if lock.is_file() else set()
    gone = [str(path) for path in outputs if str(path) in known and not os.path.lexists(path)]
    if gone:
        click.echo(
            f"{label}: DVC has removed {', '.join(gone)} of the last run before this one began; `git checkout metrics` and "
            "`dvc checkout` bring back what is committed, `dvc exp apply NAME` what an experiment had",
            err=True,
        )


def _of_the_machine(error: Exception) -> str | None:
    """What to do about a full disk, memory that is not there, or a file that the machine does not let us use; None: a bug."""
    if (place := full_disk(error)) is not None:
        return f"{place}no space left on the device; free some"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{shortened(error.filename)}: no file can have a name of this length; give a shorter one"
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        return f"{error.filename}: {error.strerror}; make it readable and writable"
    if full_memory(error):
        return (
            f"out of memory ({told(error)}); lower what the stage holds at once (batch sizes, activations.buffer_size, "
            "dictionary.expansion_factor), or end other programs"
        )
    return None


def _stage(function: Callable[..., Any]) -> str:
    """The name of a stage, with which its script's docstring begins (`train: ...`); of another function its module's name."""
    own = getattr(inspect.unwrap(function), "__globals__", {})
    named = re.match(r"(\w+): ", own.get("__doc__") or "")
    if named is not None:
        return named[1]
    return str(getattr(own.get("__spec__"), "name", function.__module__)).rpartition(".")[2]


def stage_command(function: Callable[..., Any]) -> click.Command:
    """Make a click command of a stage's main function, which takes `params` (a path) and its own options.

    A :class:`PipelineError` becomes one `error:` line for each fault and the error's exit code (2, or 130 after an
    interrupt); a full disk, exhausted memory, or a file that the machine does not let us read or write, becomes exit code 2;
    any other exception is a bug and keeps its traceback. Options of the type :class:`Output` are checked first; where DVC had
    removed them for a run that failed, that is said. At the end a line says what was written, and what it took (ending.py).
    """
    outputs = {
        option.name: option.type for option in getattr(function, "__click_params__", ()) if isinstance(option.type, Output)
    }

    label = _stage(function)
    own = getattr(inspect.unwrap(function), "__globals__", {}).get("__name__") == "__main__"

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        keep_freed_memory()

        def failed(lines: Sequence[str], code: int) -> None:
            _say_removed(label, [kwargs[name] for name in outputs])
            _fail(lines, code)

        try:
            for name, output in outputs.items():
                output.check(kwargs[name])
            with told_at_the_end(label, [kwargs[name] for name in reversed(outputs)], own=own), watched(label):
                function(*args, **kwargs)
        except Interrupted as error:
            _fail(error.faults, error.exit_code)
        except PipelineError as error:
            failed(error.faults, error.exit_code)
        except KeyboardInterrupt:
            _fail(["interrupted; run the same command again to go on"], 130)
        except Exception as error:
            fault = _of_the_machine(error)
            if fault is None:
                raise
            failed([f"{fault}, then run the same command again"], 2)

    option = click.option(
        "--params",
        default="params.yaml",
        show_default=True,
        type=click.Path(dir_okay=False),
        help="Parameters: YAML, TOML or JSON.",
    )
    return click.command(context_settings={"show_default": True})(option(run))
