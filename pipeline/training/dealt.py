"""Rows of a batch dealt to processes: in order, as equal parts as can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from pipeline.processes import Reductions
from pipeline.training.source import Source, TrainingBatch


def dealt(batch: TrainingBatch, rank: int, size: int) -> TrainingBatch:
    """The part of a batch that process `rank` of `size` trains on.

    Of fewer rows than processes some have none of their own: they hold the first one, masked.
    """
    n_rows = len(batch.inputs)
    start, stop = n_rows * rank // size, n_rows * (rank + 1) // size
    own = slice(start, stop) if stop > start else slice(0, 1)
    inputs = batch.inputs[own]
    labels = inputs if batch.labels is batch.inputs else batch.labels[own]
    mask = None if batch.mask is None else batch.mask[own]
    if stop == start:
        mask = torch.zeros(inputs.shape[:1] if mask is None else mask.shape, dtype=torch.bool, device=inputs.device)
    return TrainingBatch(batch.index, inputs, labels, mask)


@dataclasses.dataclass(frozen=True)
class DealtSource:
    """A process's part of each batch of a source, which every process reads.

    Args:
        whole: of the whole batches.
        reductions: over the processes.
    """

    whole: Source
    reductions: Reductions

    @property
    def batch_size(self) -> int:
        """Rows in a whole batch."""
        return self.whole.batch_size

    @property
    def batch_tokens(self) -> int:
        """Tokens in a whole batch."""
        return self.whole.batch_tokens

    def batches(self, start: int) -> Iterator[TrainingBatch]:
        """This process's parts, from batch `start` on."""
        return (dealt(batch, self.reductions.rank, self.reductions.size) for batch in self.whole.batches(start))

    def position(self, index: int) -> str:
        """Where batch `index` is, in words."""
        return self.whole.position(index)
