"""A step's work on the device, captured once as a CUDA graph and replayed: a hundred kernels for the price of one launch.

A kind of step (gate, shapes) runs step by step WARM times; then it is captured and from there on replayed, until another kind
comes. What changes from step to step is read from tensors that keep their place: the batch, which is copied into buffers, and
the step's scalars. What cannot be captured goes on step by step, with the same arithmetic, and that is said once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pipeline.foreign import told
from pipeline.training.source import TrainingBatch

WARM = 3

T = TypeVar("T")
K = TypeVar("K")
Capture = Callable[[Callable[[], T]], tuple[T, Callable[[], object]]]


def cuda_capture(work: Callable[[], T]) -> tuple[T, Callable[[], object]]:
    """What `work` returns, and what repeats it on the same memory; nothing is computed before the first repetition.

    Raises:
        RuntimeError: it waits for the device, or does something else that a graph cannot.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # readers may page-lock memory meanwhile
        done = work()
    return done, graph.replay


class StepGraph(Generic[K, T]):
    """The graph of the present kind of step.

    Args:
        work: from a batch and the kind of the step to what the rest of the step needs of it.
        capture: of a function without arguments; as :func:`cuda_capture`.
    """

    def __init__(self, work: Callable[[TrainingBatch, K], T], capture: Capture[T] = cuda_capture) -> None:
        self._work, self._capture = work, capture
        self._here: Any = None
        self._seen = 0
        self._captured: tuple[TrainingBatch, T, Callable[[], object]] | None = None
        self._refused: Any = None

    def run(self, batch: TrainingBatch, kind: K) -> T | None:
        """Do the step's work by its graph.

        Args:
            batch: of the step.
            kind: what a graph is made for beside the batch's shapes; compared for equality.

        Returns: what `work` returned when it was captured, its tensors filled anew; None: nothing is done, run it yourself.
        """
        here = (kind, *_shapes(batch))
        if here != self._here:
            self._here, self._seen, self._captured = here, 0, None
        self._seen += 1
        if here == self._refused or self._seen <= WARM:
            return None
        if self._captured is None:
            held = _copy(batch)
            try:
                done, replay = self._capture(lambda: self._work(held, kind))
            except RuntimeError as error:
                self._refused = here
                logging.getLogger(__name__).warning("training: no CUDA graph of the step (%s); it runs without", told(error))
                return None
            self._captured = held, done, replay
        held, done, replay = self._captured
        _fill_(held, batch)
        replay()
        return done


def _shapes(batch: TrainingBatch) -> tuple[Any, ...]:
    tensors = (batch.inputs, batch.labels, batch.mask)
    return batch.labels is batch.inputs, *(None if t is None else (t.shape, t.dtype) for t in tensors)


def _copy(batch: TrainingBatch) -> TrainingBatch:
    inputs = batch.inputs.clone()
    labels = inputs if batch.labels is batch.inputs else batch.labels.clone()
    return TrainingBatch(batch.index, inputs, labels, None if batch.mask is None else batch.mask.clone())


def _fill_(held: TrainingBatch, batch: TrainingBatch) -> None:
    pairs: list[tuple[Tensor | None, Tensor | None]] = [(held.inputs, batch.inputs), (held.mask, batch.mask)]
    if held.labels is not held.inputs:
        pairs.append((held.labels, batch.labels))
    for to, source in pairs:
        if to is not None and source is not None:
            to.copy_(source)
