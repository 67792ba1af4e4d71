"""Work on the rows of a matrix by numpy, on all threads of torch that are the caller's (CPU)."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

FEWEST = 256  # rows of a part: a smaller one costs more to hand over than it saves
MOST_VALUES = 2**24  # of a part's rows: what it computes of them lies beside them

R = TypeVar("R")


class _Callers(threading.local):
    """How many threads, this one among them, work at the same time and so share torch's."""

    number = 1


_callers = _Callers()


def share_threads(callers: int) -> None:
    """From here on this thread takes its share of torch's threads: so many work as it does. No result depends on it."""
    _callers.number = callers


def threads_of_caller() -> int:
    """How many threads work on the rows that this one hands over, itself among them."""
    return max(1, torch.get_num_threads() // _callers.number)


def in_parts(part: Callable[[int, int], R], shape: tuple[int, int]) -> list[R]:
    """`part(first, last)` of consecutive rows, in order; numpy lets go of the interpreter's lock meanwhile.

    Threads are kept between calls: to start them took longer than what they saved. The caller works too, and takes whatever
    none has begun when it is done with its own.

    Args:
        part: of rows `first` up to `last`; called from any thread.
        shape: rows and values in each.

    Raises:
        Exception: what a part raises, of several the first one's.
    """
    n_rows, n = shape
    threads = threads_of_caller()
    most = max(1, MOST_VALUES // max(1, n))
    rows = min(most, max(FEWEST, -(-n_rows // threads)))
    bounds = [(first, min(first + rows, n_rows)) for first in range(0, n_rows, rows)]
    if threads == 1 or len(bounds) < 2:
        return [part(*some) for some in bounds]
    pool = _pool(os.getpid(), threads - 1)
    others = [pool.submit(part, *some) for some in bounds[1:]]
    try:
        found = [part(*bounds[0])]
        found += [part(*some) if other.cancel() else other.result() for some, other in zip(bounds[1:], others, strict=True)]
    finally:
        wait(others)  # none works on rows that are the caller's no more
    return found


@functools.cache
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """Of this process: a forked one has none of its parent's threads."""
    return ThreadPoolExecutor(threads, "rows")
