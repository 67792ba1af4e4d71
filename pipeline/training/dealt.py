"""Rows of a batch dealt to processes: in order, as equal parts as can be."""

from __future__ import annotations

import torch

from pipeline.training.source import TrainingBatch


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
