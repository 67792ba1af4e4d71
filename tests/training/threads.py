"""Processes as threads that wait for one another: what they reduce, and what each of them gives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pipeline.processes import ONE_PROCESS, Reductions

T = TypeVar("T")


class Meeting:
    """Where threads put something down and see what all have put down."""

    def __init__(self, size: int) -> None:
        self.barrier, self.held = threading.Barrier(size, timeout=60), [None] * size

    def all(self, rank: int, value: Any) -> list[Any]:
        self.held[rank] = value
        self.barrier.wait()
        found = list(self.held)
        self.barrier.wait()
        return found


class Threads(Reductions):
    """One of those that meet.

    Attributes:
        sent: bytes that it has put down, by the name of the method.
    """

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, len(meeting.held)
        self.sent = dict.fromkeys(("sum", "any", "gathered"), 0)

    def sum(self, values: Any) -> list[Any]:
        self.sent["sum"] += sum(torch.as_tensor(value).nbytes for value in values)
        values = [value.detach().clone() if isinstance(value, Tensor) else value for value in values]
        return [sum(each) for each in zip(*self.meeting.all(self.rank, values), strict=True)]

    def any(self, flags: Tensor) -> Tensor:
        self.sent["any"] += flags.numel()
        return torch.stack(self.meeting.all(self.rank, flags.clone())).any(0)

    def gathered(self, values: Tensor, *, alike: bool = False) -> list[Tensor]:
        self.sent["gathered"] += values.nbytes
        found = self.meeting.all(self.rank, values.detach().clone())
        assert not alike or len({each.shape for each in found}) == 1
        return found

    def placed(self, part: Tensor, dim: int) -> Tensor:
        return torch.cat(self.meeting.all(self.rank, part.detach().clone()), dim)


class Place(NamedTuple):
    """A thread of a mesh: with those that have the same features, and with those that have the same rows."""

    rows: Reductions
    features: Reductions


ALONE = Place(ONE_PROCESS, ONE_PROCESS)


def in_mesh(data: int, model: int, work: Callable[[Place], T]) -> list[T]:
    """What `work` gives in each of data x model threads, in the order of their ranks; the first failure."""
    rows = [Meeting(data) for _ in range(model)]
    features = [Meeting(model) for _ in range(data)]

    def of_rank(rank: int) -> T:
        row, column = divmod(rank, model)
        place = Place(
            Threads(rows[column], row) if data > 1 else ONE_PROCESS,
            Threads(features[row], column) if model > 1 else ONE_PROCESS,
        )
        try:
            return work(place)
        except BaseException:
            for meeting in (*rows, *features):
                meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(data * model) as pool:
        running = [pool.submit(of_rank, rank) for rank in range(data * model)]
    errors = [error for each in running if (error := each.exception()) is not None]
    for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
        raise error
    return [each.result() for each in running]
