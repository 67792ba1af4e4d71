"""Work dealt to the processes of a stage: each takes some numbers, and all know in order what has come of every one.

In one process it is a plain loop. Sums that are made of what is handed out here are added in the order of one process, and so
have its bits, however many processes there are.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from pipeline.errors import PipelineError
from pipeline.processes import ONE_PROCESS, Reductions

R = TypeVar("R")


def in_turns(n: int, work: Callable[[int], R], processes: Reductions = ONE_PROCESS, first: int = 0) -> Iterator[list[R]]:
    """Do `work` for the numbers first to n - 1, in each turn one number in each process; what has come of a turn, in order.

    All processes call this with the same n and first, and are given the same. Held is one turn.

    Args:
        n: the number after the last.
        work: number -> what all processes are told of it: plain values and tensors on the CPU, no views of large ones.
        processes: that share the work.
        first: the first number.

    Raises:
        PipelineError: what `work` has raised first in the order of the numbers; the same in all processes.
    """
    for start in range(first, n, processes.size):
        number = start + processes.rank
        own: R | PipelineError | None = None
        if number < n:
            try:
                own = work(number)
            except PipelineError as error:
                if processes.size == 1:
                    raise
                own = error
        found: list[R] = []
        for each in _exchanged(own, processes)[: n - start]:
            if isinstance(each, PipelineError):
                raise each
            found.append(each)
        yield found


def by_the_first(work: Callable[[], R], processes: Reductions = ONE_PROCESS) -> R:
    """What the first process alone does, told to all.

    Raises:
        PipelineError: what `work` has raised, in all processes.
    """
    ((found,),) = in_turns(1, lambda _: work(), processes)
    return found


def _exchanged(value: object, processes: Reductions) -> list:  # type: ignore[type-arg]
    """The values of all processes, in their order; what is read here was written by this program in another process of it."""
    if processes.size == 1:
        return [value]
    content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    return [pickle.loads(part.numpy().data) for part in processes.gathered(content)]
