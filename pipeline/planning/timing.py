"""How long work takes on a machine that does nothing else, and how that grows with its amount.

Other programs make the clock's seconds of a short measurement mean little. What is counted is the processor: the time of the
thread that works, or that of all threads over the number of processors, whichever is more; where work waits for others' threads
the second is. Waiting for a disk or a network is not in it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

SECONDS = 1.5  # of each kind of work
REPEATS = 3
WARM = 8.0  # times that: work of which a unit takes so long is not done twice


def n_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident() -> int:
    """Bytes of memory that this process has now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Within the block nothing comes to standard error: progress of what is only measured is of no interest."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


class Stopwatch:
    """Seconds since it was made; to be asked by the thread that made it."""

    def __init__(self) -> None:
        self._wall, self._processor, self._thread = time.perf_counter(), time.process_time(), time.thread_time()

    def wall(self) -> float:
        """The clock's seconds."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self._wall

    def seconds(self) -> float:
        """What the work would have taken with the processors to itself; on a CUDA device the clock's seconds."""
        wall = self.wall()
        if torch.cuda.is_available():
            return wall
        shared = (time.process_time() - self._processor) / n_processors()
        return min(wall, max(time.thread_time() - self._thread, shared))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what the work gives)."""
    watch = Stopwatch()
    found = work()
    return watch.seconds(), found


def slope(work: Callable[[int], Any], most: int, seconds: float = SECONDS) -> tuple[float, float]:
    """(seconds for each unit, seconds beside) of work on n units.

    Args:
        work: is called with n, the first time in vain.
        most: of n; it is done REPEATS times where that is short of `seconds`, since once it also waits for memory.
        seconds: for which it should work, about.
    """
    once, _ = timed(lambda: work(1))
    if once < WARM * seconds:
        once = min(once, timed(lambda: work(1))[0])  # without what is made at the first call alone
    n = max(1, min(most, int(seconds / max(once, 1e-6))))
    if n < 2:
        return once, 0.0
    several = min(timed(lambda: work(n))[0] for _ in range(REPEATS if n == most else 1))
    if several <= once:  # other programs took the processor meanwhile
        return several / n, 0.0
    each = (several - once) / (n - 1)
    return (each, once - each) if each < once else (several / n, 0.0)
