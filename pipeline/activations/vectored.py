"""Reading rows of a file straight to shuffled places in memory: one system call for 1,024 rows (preadv), one copy in all.

Half the work of reading a chunk and then gathering its rows: 50 against 95 ms for 600 MB of 1,536-byte rows on a warm page
cache, one core.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

MOST_ROWS = 1024  # IOV_MAX


@cache
def _preadv() -> Callable[..., int] | None:
    """The C library's preadv, or None where there is none (os.preadv takes 5x as long to look at a list of buffers)."""
    try:
        function = ctypes.CDLL(None, use_errno=True).preadv
    except (AttributeError, OSError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
    function.restype = ctypes.c_ssize_t
    return function


def read_rows_to(path: Path, offset: int, row_bytes: int, address: int, places: np.ndarray) -> bool:
    """Read rows that lie end to end in a file to places in memory.

    Args:
        path: the file.
        offset: byte of the first row.
        row_bytes: bytes of a row.
        address: of the writable, contiguous memory of rows that they are put in.
        places: int64 [n], for each row of the file the row of the memory.

    Returns:
        whether all was read; if not (no such system call, a file that is too short, an interrupted call), the memory's rows
        `places` are undefined.

    Raises:
        FileNotFoundError: no such file.
    """
    function = _preadv()
    if function is None:
        return False
    vectors = np.empty((len(places), 2), dtype=np.uint64)
    vectors[:, 0] = address + places.astype(np.uint64) * np.uint64(row_bytes)
    vectors[:, 1] = row_bytes
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for first in range(0, len(places), MOST_ROWS):
            n = min(MOST_ROWS, len(places) - first)
            read = function(descriptor, vectors[first:].ctypes.data, n, offset + first * row_bytes)
            if read != n * row_bytes:
                return False
    finally:
        os.close(descriptor)
    return True
