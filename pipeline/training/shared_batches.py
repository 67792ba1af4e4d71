"""The batches of several runs, step by step: what they read of one store is read once.

Runs on a store differ in what they take of a batch: hook points, and the tokens that are excluded at these. The order of the
rows depends on none of it (pipeline.activations.order), so the batch is read with the hook points of all, and each run takes
of it the very tensors that it would have read alone. Runs that take the same share them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.norms.exclusion import NormLimits
from pipeline.processes import Reductions
from pipeline.training.dealt import dealt
from pipeline.training.source import Source, StoreSource, TrainingBatch, moved_ahead

Joint = tuple[TrainingBatch | None, ...]


def joint_batches(sources: Sequence[Source], starts: Sequence[int]) -> Iterator[Joint]:
    """For each step from the least start on the batch of every source, in their order; None before a source's own start."""
    streams = [(min(starts[place] for place in places), _stream(sources, starts, places)) for places in _together(sources)]
    for step in itertools.count(min(starts)):
        found: list[TrainingBatch | None] = [None] * len(sources)
        for first, stream in streams:
            if step < first:
                continue
            if (batches := next(stream, None)) is None:
                return
            for place, batch in batches.items():
                found[place] = batch
        yield tuple(found)


def joint_dealt(batches: Iterator[Joint], reductions: Reductions) -> Iterator[Joint]:
    """This process's part of the batches; what runs share stays shared."""
    for joint in batches:
        parts = {id(batch): dealt(batch, reductions.rank, reductions.size) for batch in joint if batch is not None}
        yield tuple(None if batch is None else parts[id(batch)] for batch in joint)


def joint_on_device(batches: Iterator[Joint], device: torch.device, dtypes: Sequence[torch.dtype]) -> Generator[Joint]:
    """The batches on `device`, each in its run's dtype; what runs share is moved once."""

    def moved(joint: Joint) -> Joint:
        done: dict[tuple[int, torch.dtype], TrainingBatch] = {}
        for batch, dtype in zip(joint, dtypes, strict=True):
            if batch is not None and (id(batch), dtype) not in done:
                done[id(batch), dtype] = batch.to(device, dtype)
        return tuple(None if batch is None else done[id(batch), dtype] for batch, dtype in zip(joint, dtypes, strict=True))

    def tensors(joint: Joint) -> list[Tensor]:
        return [tensor for batch in joint if batch is not None for tensor in batch.tensors]

    return moved_ahead(batches, device, moved, tensors)


def _together(sources: Sequence[Source]) -> list[list[int]]:
    """Places of sources that are read at once: those that differ in nothing but what they take of a store's batch."""
    groups: list[tuple[Source, list[int]]] = []
    for place, source in enumerate(sources):
        alike = _reading(source)
        group = next((places for other, places in groups if isinstance(alike, StoreSource) and other == alike), None)
        if group is None:
            groups.append((alike, [place]))
        else:
            group.append(place)
    return [places for _, places in groups]


def _reading(source: Source) -> Source:
    """A store's source without what it takes of a batch; another source as it is."""
    if not isinstance(source, StoreSource):
        return source
    return dataclasses.replace(source, hooks_in=(), hooks_out=(), limits=NormLimits())


def _stream(sources: Sequence[Source], starts: Sequence[int], places: Sequence[int]) -> Iterator[Mapping[int, TrainingBatch]]:
    """{place: batch} of sources that are read at once, from the least of their starts on."""
    first, start = sources[places[0]], min(starts[place] for place in places)
    if not isinstance(first, StoreSource):
        yield from ({places[0]: batch} for batch in first.batches(start))
        return
    alike: list[tuple[StoreSource, list[int]]] = []
    for place in places:
        source = sources[place]
        assert isinstance(source, StoreSource)
        same = next((others for other, others in alike if other == source), None)
        if same is None:
            alike.append((source, [place]))
        else:
            same.append(place)
    hook_points = dict.fromkeys(hook for source, _ in alike for hook in source.hook_points)
    for stored in first.read(start, hook_points):
        found: dict[int, TrainingBatch] = {}
        for source, own in alike:
            due = [place for place in own if starts[place] <= stored.index]
            if due:
                found |= dict.fromkeys(due, source.selected(stored))
        yield found
