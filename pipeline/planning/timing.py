"""How long work takes, and how that grows with its amount."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

SECONDS = 1.5  # of each kind of work
STOPPED = 10.0  # times its processor time: a process that takes longer was not at work


def since_the_process_began() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return 0.0
    return max(uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"), 0.0)


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
    """Seconds since it was made, without those in which the process was stopped rather than slowed down by others."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Wall-clock time, at most STOPPED times that of the processor."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return min(time.perf_counter() - self._wall, STOPPED * (time.process_time() - self._processor))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what the work gives)."""
    watch = Stopwatch()
    found = work()
    return watch.seconds(), found


def slope(work: Callable[[int], Any], most: int, seconds: float = SECONDS) -> tuple[float, float]:
    """(seconds for each unit, seconds beside) of work on n units.

    Args:
        work: is called with n, at most three times.
        most: of n.
        seconds: for which it should work, about.
    """
    once, _ = timed(lambda: work(1))
    if once < seconds / 4:
        once, _ = timed(lambda: work(1))  # without what is made at the first call alone
    n = max(1, min(most, int(seconds / max(once, 1e-6))))
    if n < 2:
        return once, 0.0
    several, _ = timed(lambda: work(n))
    if several <= once:  # other programs took the processor meanwhile
        return several / n, 0.0
    each = (several - once) / (n - 1)
    return (each, once - each) if each < once else (several / n, 0.0)
