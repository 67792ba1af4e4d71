"""Rows of a batch dealt to processes: in order, as equal parts as can be."""

from __future__ import annotations

import torch

from pipeline.training.source import TrainingBatch, Whole


def own_rows(n_rows: int, rank: int, size: int) -> slice:
    """Which of so many rows are those of process `rank` of `size`."""
    return slice(n_rows * rank // size, n_rows * (rank + 1) // size)


def dealt(batch: TrainingBatch, rank: int, size: int) -> TrainingBatch:
    """The part of a batch that process `rank` of `size` trains on.

    Of fewer rows than processes some have none of their own: they hold the first one, masked. Contexts for the loss through the
    language model are dealt where they are read (:class:`pipeline.training.model_loss.ContextSource`).
    """
    if batch.contexts is not None:
        return batch
    rows = own_rows(len(batch.inputs), rank, size)
    nothing = rows.stop == rows.start
    own = slice(0, 1) if nothing else rows
    inputs = batch.inputs[own]
    labels = inputs if batch.labels is batch.inputs else batch.labels[own]
    mask = None if batch.mask is None else batch.mask[own]
    if nothing:
        mask = torch.zeros(inputs.shape[:1] if mask is None else mask.shape, dtype=torch.bool, device=inputs.device)
    n_kept = None if batch.mask is None else batch.mask.sum()
    return TrainingBatch(batch.index, inputs, labels, mask, whole=Whole(len(batch.inputs), n_kept))
