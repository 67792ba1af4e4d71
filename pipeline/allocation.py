"""How freed memory is kept for the next tensor, instead of being given back to the system and asked for again."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

KEPT_BLOCK, KEPT_IN_ALL = 2**28, 2**29  # bytes: larger blocks, and more than so many free ones, are given back
GROWN = 2**30  # bytes that memory may grow by before the pages of freed blocks are looked for
_STATM = Path("/proc/self/statm")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of this process: a batch's tensors then lie where the last batch's lay.

    By itself glibc maps every block above 32 MiB anew, and the system fills it with zeros, which took a fifth of the CPU
    seconds of a run. It also gives most threads heaps of 64 MiB, which it gives back when they are empty; here all threads
    have one heap (4 % of the time of a sweep, whose members take their steps in two threads). It costs at most KEPT_IN_ALL of
    memory. Nothing is done where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; Windows knows no library of no name
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, KEPT_BLOCK)
    mallopt(_TRIM_THRESHOLD, KEPT_IN_ALL)


def resident() -> int:
    """Bytes of main memory that this process has now; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class FreedMemory:
    """Gives freed blocks back to the system where they have become many; to be asked after each batch of a long loop.

    What a batch leaves behind, be it some numbers, may lie in the middle of where a large tensor has been. The next tensor of
    that size then needs a new place, and so with every batch: logits of 200 MB made 5.9 GB of 2.5 in ten batches.
    """

    def __init__(self) -> None:
        self._before = resident()

    def look(self) -> None:
        """Give back the pages that hold nothing, where memory has grown by GROWN or more since the last time."""
        if resident() < self._before + GROWN:
            return
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._before = resident()
