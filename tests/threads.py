"""Processes of a stage as threads of this one: what each tells is a copy, and one that fails ends the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor


class Rank:
    """One of several threads, to be asked what code asks of its processes when it deals work."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, held: list[Any]) -> None:
        self.rank, self.size, self._barrier, self._held = rank, size, barrier, held

    def gathered(self, values: Tensor, *, alike: bool = False) -> list[Tensor]:
        self._held[self.rank] = values.clone()
        self._barrier.wait()
        found = list(self._held)
        self._barrier.wait()
        return found


def in_threads(size: int, work: Callable[[Any], Any]) -> list[Any]:
    """What `work` makes in each of so many; the first error that is not another's end is raised."""
    barrier, held = threading.Barrier(size, timeout=120), [None] * size

    def one(rank: int) -> Any:
        try:
            return work(Rank(rank, size, barrier, held))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
