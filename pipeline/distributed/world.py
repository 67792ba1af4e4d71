"""All processes that one stage runs in, for what is not part of a step: agreeing on files, and on what is in them."""

from __future__ import annotations

import contextlib
import datetime
from typing import TypeVar

import torch.distributed as dist

from pipeline.distributed.roll_call import RollCall

T = TypeVar("T")


class World:
    """This process alone.

    Attributes:
        size: number of processes.
        rank: which one this is, from 0.
        group: of torch.distributed, of all of them, on CPUs; None: there is one.
    """

    size, rank = 1, 0
    group: dist.ProcessGroup | None = None

    def gathered(self, value: T) -> list[T]:
        """The plain values of all processes, in their order."""
        return [value]

    def first(self, value: T) -> T:
        """The plain value of process 0."""
        return value

    def answered(self, began: float) -> contextlib.AbstractContextManager[None]:
        """Around the end of an exchange that began then (of time.monotonic); see :meth:`RollCall.answered`."""
        return contextlib.nullcontext()


class Several(World):
    """All processes of torch.distributed's default group; each of them makes one, in the same order.

    Args:
        roll_call: of them.
    """

    def __init__(self, roll_call: RollCall) -> None:
        self.size, self.rank, self._roll_call = dist.get_world_size(), dist.get_rank(), roll_call
        with roll_call.answered():
            self.group = dist.new_group(backend="gloo", timeout=datetime.timedelta(minutes=roll_call.minutes))

    def gathered(self, value: T) -> list[T]:
        found: list[T] = [value] * self.size
        with self._roll_call.answered():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def first(self, value: T) -> T:
        found = [value]
        with self._roll_call.answered():
            dist.broadcast_object_list(found, src=0, group=self.group)
        return found[0]

    def answered(self, began: float) -> contextlib.AbstractContextManager[None]:
        return self._roll_call.answered(began)
