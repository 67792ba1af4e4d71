"""Who takes a step when: the runs of one loop in turn, or several at once, each in a thread with all of torch's threads."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, NamedTuple, Protocol, Self

import torch

from pipeline.kernels.row_parts import share_threads
from pipeline.training.observation import Observation
from pipeline.training.run import TrainingRun
from pipeline.training.source import TrainingBatch

End = Callable[[], Observation | None]


class UnderWay(NamedTuple):
    """A step that has begun.

    Attributes:
        due: whether something is due after it: figures, a look whether a run has diverged, a state to keep.
        ends: (run, what ends its step and gives what is to be reported of it, or raises why it has failed).
    """

    due: bool
    ends: list[tuple[TrainingRun, End]]


class Turns(Protocol):
    """How the runs of a loop take their steps.

    Attributes:
        ahead: steps that may still be under way when the next one begins.
    """

    ahead: ClassVar[int]

    def begin(self, run: TrainingRun, batch: TrainingBatch) -> End:
        """Begin the next step of a run."""
        ...

    def idle_since(self, asked: float) -> float:
        """Seconds since `asked` (of time.perf_counter) in which no step was taken."""
        ...


class StepsInTurn:
    """Each step is taken when it is asked for."""

    ahead: ClassVar[int] = 0

    def begin(self, run: TrainingRun, batch: TrainingBatch) -> End:
        """What takes the step."""
        return functools.partial(run.step, batch)

    def idle_since(self, asked: float) -> float:
        """All of them."""
        return time.perf_counter() - asked


class StepsAtOnce:
    """Steps of several runs at the same time; those of one run one after another.

    Args:
        at_once: how many.
    """

    ahead: ClassVar[int] = 1

    def __init__(self, at_once: int) -> None:
        threads = torch.get_num_threads()

        def begins() -> None:
            torch.set_num_threads(threads)  # each thread has its own number, on which the bits depend
            share_threads(at_once)

        self._pool = ThreadPoolExecutor(at_once, "training steps", begins)
        self._begun: dict[int, Future[Observation | None]] = {}  # of each run (by id) the last step
        self._ended = 0.0  # when the last step ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, run: TrainingRun, batch: TrainingBatch) -> End:
        """Put the step behind those that have begun; what waits for it.

        Threads take steps in the order in which they were put here: the run's step before has been begun by then, and a thread
        that waits for it waits for another thread's work.
        """
        before = self._begun.get(id(run))
        self._begun[id(run)] = step = self._pool.submit(self._step, run, batch, before)
        return step.result

    def _step(self, run: TrainingRun, batch: TrainingBatch, before: Future[Observation | None] | None) -> Observation | None:
        try:
            if before is not None:
                before.result()  # a run that has failed takes no further step
            return run.step(batch)
        finally:
            self._ended = time.perf_counter()

    def idle_since(self, asked: float) -> float:
        """Those after the end of the last step; none while one is taken."""
        if not all(step.done() for step in self._begun.values()):
            return 0.0
        return time.perf_counter() - max(asked, self._ended)
