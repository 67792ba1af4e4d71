"""What a stage says at its end: what it wrote, and what it took beside what its start line said.

`norm: wrote data/norms.json (3.1 kB); took 12 s (said 10 s), CPU time 9.8 s, peak memory 450 MB (said 420 MB)`

Of a stage in several processes the one that has started them says it: CPU time of all, and the sum of their peaks. Where
something else has started them, the first one says its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import FAULTS, tells_the_outcome
from pipeline.progress import say
from pipeline.words import bytes_in_words, duration

_PROC = Path("/proc")
_LEFT = "taken-"  # beside the faults: what a process that was started for this stage has taken
_FORGET_PEAK = "5"  # to Linux: the peak of memory is what there is now
_Files = dict[str, tuple[int, int, int]]


class _Expected:
    """What the start line said, and what is written beside the options' outputs."""

    def __init__(self) -> None:
        self.seconds: str | None = None
        self.n_bytes: float | None = None
        self.beside: list[tuple[Path, _Files]] = []
        self.of_processes: list[dict[str, Any]] = []
        self.aside: list[tuple[str, float, float]] = []


_expected = _Expected()


class Taken(NamedTuple):
    """What a stage took.

    Attributes:
        seconds: of the clock. cpu: seconds of all its threads and of the processes that it has started.
        memory: bytes of main memory at its peak. device: bytes of all devices, 0 where none was used.
        processes: that `memory` and `device` are summed over.
    """

    seconds: float
    cpu: float
    memory: int
    device: int = 0
    processes: int = 1


def expect(seconds: str | None, n_bytes: float | None) -> None:
    """Note what a stage says at its start: its time in words, and bytes of memory; None: nothing."""
    _expected.seconds, _expected.n_bytes = seconds, n_bytes


def writes(place: Path) -> None:
    """Note, before it is written, a file or directory that is no option of the stage."""
    if place not in [known for known, _ in _expected.beside]:
        _expected.beside.append((place, _files(place)))


@contextlib.contextmanager
def aside(what: str) -> Iterator[None]:
    """What is done in the block is no work of the stage itself: the last line has its time apart, and memory only of what comes
    after it, where the system lets its peak be forgotten."""
    began, cpu = time.monotonic(), _cpu()
    try:
        yield
    finally:
        _expected.aside.append((what, time.monotonic() - began, _cpu() - cpu))
        with contextlib.suppress(OSError):
            (_PROC / "self/clear_refs").write_text(_FORGET_PEAK)


@contextlib.contextmanager
def told(stage: str, outputs: Sequence[str | Path], *, own: bool) -> Iterator[None]:
    """Say at the end of the block, unless it fails, what the stage wrote and took; nothing of a command without outputs.

    Args:
        stage: its name.
        outputs: files and directories that it may write.
        own: whether the process is the stage's own: its start counts then, with what was imported before the block.
    """
    global _expected
    _expected = _Expected()
    before = [(Path(place), _files(Path(place))) for place in outputs]
    age, cpu = (_age(), 0.0) if own else (0.0, _cpu())
    began = time.monotonic() - age
    yield
    if not outputs:
        return
    seconds = time.monotonic() - began - sum(clock for _, clock, _ in _expected.aside)
    taken = Taken(seconds, _cpu() - cpu - sum(processor for _, _, processor in _expected.aside), _peak(), _device_peak())
    if FAULTS in os.environ and "RANK" in os.environ:
        _leave(Path(os.environ[FAULTS], f"{_LEFT}{os.environ['RANK']}"), taken)
    elif tells_the_outcome():
        said = [each for each in _expected.of_processes if each["said"] is not None]
        for each in said:
            expect(*each["said"])
        places = written([*before, *_expected.beside])
        places |= {place: n_bytes for each in said for place, n_bytes in each["wrote"].items()}
        alone = f", of the first of {os.environ['WORLD_SIZE']} processes" if "RANK" in os.environ else ""
        apart = "".join(f"; beside that {duration(seconds)} of {what}" for what, seconds, _ in _expected.aside)
        say(f"{stage}: {ending_line(places, _of_all(taken), _expected.seconds, _expected.n_bytes)}{alone}{apart}")


def collect(directory: Path) -> None:
    """Take what the processes of this stage have left in a directory."""
    _expected.of_processes = [json.loads(file.read_text()) for file in sorted(directory.glob(f"{_LEFT}*"))]


def _leave(file: Path, taken: Taken) -> None:
    """For the process that has started this one; the first one has said what it will take, and what lies where."""
    first = os.environ["RANK"] == "0"
    said = (_expected.seconds, _expected.n_bytes) if first else None
    wrote = written(_expected.beside) if first else {}
    file.write_text(json.dumps({"memory": taken.memory, "device": taken.device, "said": said, "wrote": wrote}))


def _of_all(taken: Taken) -> Taken:
    """With the peaks of the processes that were started."""
    others = _expected.of_processes
    memory, device = (sum(each[key] for each in others) for key in ("memory", "device"))
    return taken._replace(memory=taken.memory + memory, device=taken.device + device, processes=max(1, len(others)))


def ending_line(written: dict[str, int], taken: Taken, seconds: str | None, n_bytes: float | None) -> str:
    """`wrote <what>; took <how long> (said <how long>), CPU time <how long>, peak memory <how much> (said <how much>)`.

    Args:
        written: {place: bytes}.
        taken: by the stage.
        seconds: what it said in words that it would take; None: nothing.
        n_bytes: of memory that it said of one process; None: nothing.
    """
    wrote = f"wrote {', '.join(written)} ({bytes_in_words(sum(written.values()))})" if written else "wrote nothing new"
    took = f"took {duration(taken.seconds)}" + ("" if seconds is None else f" (said {seconds})")
    each = " for each process" if taken.processes > 1 else ""
    said = "" if n_bytes is None else f" (said {bytes_in_words(n_bytes)}{each})"
    memory = f"peak memory {bytes_in_words(taken.memory)}{said}"
    device = f", device memory {bytes_in_words(taken.device)}" if taken.device else ""
    together = f", of {taken.processes} processes together" if taken.processes > 1 else ""
    return f"{wrote}; {took}, CPU time {duration(taken.cpu)}, {memory}{device}{together}"


def written(before: Sequence[tuple[Path, _Files]]) -> dict[str, int]:
    """{place: bytes} of what is new or other than before; of several files in a directory the directory that has them all."""
    found = {}
    for place, files in before:
        new = {name: state for name, state in _files(place).items() if files.get(name) != state}
        if new:
            common = next(iter(new)) if len(new) == 1 else os.path.commonpath([os.path.dirname(name) for name in new])
            found[_shown(common)] = sum(size for _, _, size in new.values())
    return found


def _files(place: Path) -> _Files:
    """{path: (time of its change, inode, bytes)} of a file, or of the files in a directory."""
    names = [str(place)] if not os.path.isdir(place) else []
    names += [os.path.join(folder, name) for folder, _, inside in os.walk(place) for name in inside]
    found = {}
    for name in names:
        with contextlib.suppress(OSError):
            state = os.stat(name)
            found[name] = (state.st_mtime_ns, state.st_ino, state.st_size)
    return found


def _shown(place: str) -> str:
    """Relative to the working directory where it lies in there."""
    here = os.getcwd() + os.sep
    return place.removeprefix(here)


def _age() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    try:
        started = int((_PROC / "self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _cpu() -> float:
    """Seconds of the processors, of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _peak() -> int:
    """Bytes of main memory that this process has had at most."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        (line,) = [line for line in (_PROC / "self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _device_peak() -> int:
    """Bytes that torch has held on CUDA devices at most, summed over them; 0 where none was used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.max_memory_reserved(device) for device in range(torch.cuda.device_count()))
