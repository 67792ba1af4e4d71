"""How long work takes on a machine that does nothing else, and how that grows with its amount.

Other programs make the clock's seconds of a short measurement mean little. What is counted is the processor: the time of the
thread that works, or that of all threads over the number of processors, whichever is more; where work waits for others' threads
the second is. Waiting for a disk or a network is not in it. What can be done again is, in short repetitions, and the fastest
counts: beside other programs the processor itself is slower, by what they take of its caches and its clock.
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
BUSY = 0.1  # of the processors, that others take, from which on the clock tells little, and it is said
WARM = 8.0  # times that: work of which a unit takes so long is not done twice


def n_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


class OtherWork:
    """What other processes take of the processors that this one may use, since it was made."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def share(self) -> float | None:
        """From 0 to 1; None: the system does not say."""
        wall, busy = time.perf_counter() - self._began, _busy_seconds()
        if busy is None or self._busy is None or wall <= 0:
            return None
        others = (busy - self._busy) - (_own_seconds() - self._own)
        return min(max(others / (wall * n_processors()), 0.0), 1.0)


def _busy_seconds() -> float | None:
    """Seconds that the processors that this process may use have worked for anybody; None where the system does not say."""
    own = {f"cpu{n}" for n in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return None
    # user, nice, system, then idle and waiting, then interrupts (two) and what the host took
    ticks = [[int(n) for n in words[1:9]] for words in lines if words and words[0] in own]
    if not any(map(sum, ticks)):
        return None
    return sum(sum(part[:3]) + sum(part[5:]) for part in ticks) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Those of this process, all its threads, and of children that have ended."""
    return sum(os.times()[:4])


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what the work gives)."""
    watch = Stopwatch()
    found = work()
    return watch.seconds(), found


def fastest(work: Callable[[], Any], seconds: float = SECONDS) -> tuple[float, Any]:
    """(seconds, what the work gives) of the fastest of REPEATS times, fewer of work that takes long.

    Args:
        work: may be done again.
        seconds: after which it is not.
    """
    took, found = timed(work)
    total, times = took, 1
    while times < REPEATS and total < seconds:
        again, _ = timed(work)
        took, total, times = min(took, again), total + again, times + 1
    return took, found


def slope(work: Callable[[int], Any], most: int, seconds: float = SECONDS) -> tuple[float, float]:
    """(seconds for each unit, seconds beside) of work on n units: of the fastest of REPEATS times, which are short.

    Args:
        work: is called with n, the first time in vain.
        most: of n.
        seconds: for which it should work, about, all times together.
    """
    once, _ = timed(lambda: work(1))
    if once < WARM * seconds:
        once = min(once, timed(lambda: work(1))[0])  # without what is made at the first call alone
    units = seconds / max(once, 1e-6)
    n = min(most, max(int(units / REPEATS), min(2, int(units))))
    if n < 2:
        return once, 0.0
    several = min(timed(lambda: work(n))[0] for _ in range(REPEATS))
    if several <= once:  # other programs took the processor meanwhile
        return several / n, 0.0
    each = (several - once) / (n - 1)
    return (each, once - each) if each < once else (several / n, 0.0)
