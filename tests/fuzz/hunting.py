"""Give a reader changed documents for a while; whatever it ends with but a result or one-line faults is a find."""

from __future__ import annotations

import contextlib
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from pipeline.errors import PipelineError

INPUT_SECONDS = 30  # of one input, on a busy machine
INPUT_BYTES = 2 * 2**30  # that one input may ask of memory
LONGEST = 5000  # characters of a fault


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        name: of it.
        case: draws a changed document.
        write: puts a case into an empty folder.
        read: reads that folder as the pipeline does.
        whole: the cases that are not changed; each must be read.
    """

    name: str
    case: Callable[[Random], Any]
    write: Callable[[Path, Any], None]
    read: Callable[[Path], object]
    whole: tuple[Any, ...]


@dataclass
class Hunt:
    """What came of it.

    Attributes:
        inputs: how many were read. refused: how many of them with faults.
        finds: {kind of find and place: (number of the input, case and traceback)}; each kind once.
        slowest: seconds of the slowest input.
    """

    inputs: int = 0
    refused: int = 0
    finds: dict[str, tuple[int, str]] = field(default_factory=dict)
    slowest: float = 0.0


class TooSlow(BaseException):
    """An input takes longer than INPUT_SECONDS."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within the block memory grows by INPUT_BYTES at most, and after INPUT_SECONDS it ends."""

    def stop(*_: object) -> None:
        raise TooSlow

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + INPUT_BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, INPUT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def find_in(target: Target, case: Any, hunt: Hunt) -> tuple[str, str] | None:
    """(kind and place, traceback) of what should not be; None: read, or refused as it should be."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        target.write(folder, case)
        begin = time.monotonic()
        try:
            with bounded():
                target.read(folder)
        except PipelineError as error:
            hunt.refused += 1
            wrong = [fault for fault in error.faults if not _is_one_line(fault)]
            if wrong or not error.faults or len(str(error).splitlines()) != len(error.faults):
                return f"message of {type(error).__name__}", f"{wrong or error.faults!r}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            last = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pipeline/" in frame.filename][-1:]
            where = f"{Path(last[0].filename).name}:{last[0].lineno}" if last else "outside"
            return f"{type(error).__name__} at {where}", "".join(traceback.format_exception(error))
        finally:
            hunt.inputs += 1
            hunt.slowest = max(hunt.slowest, time.monotonic() - begin)
    return None


def _is_one_line(fault: str) -> bool:
    return 0 < len(fault) <= LONGEST and fault.isprintable()


def hunt(target: Target, seconds: float, first: int = 0) -> Hunt:
    """Inputs, each of its own number, until the time is over."""
    found, end, number = Hunt(), time.monotonic() + seconds, first
    while time.monotonic() < end:
        case = target.case(Random(f"{target.name} {number}"))
        find = find_in(target, case, found)
        if find is not None:
            found.finds.setdefault(find[0], (number, f"{case!r:.3000}\n{find[1]}"))
        number += 1
    return found
