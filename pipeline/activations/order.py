"""The order in which a store's rows are read, as a function of the seed.

1. The chunks of the rows to read are put in an order drawn from (seed, epoch) and cut into windows of at least 16 chunks, as
   equal as can be; where one window holds all of them their order does not matter and stays. In runs: the chunks stay in
   order (they are cheaper one after another), and the windows are put in an order drawn from (seed, epoch).
2. A window's rows are permuted by (seed, epoch, window). The epoch's row sequence is its windows' sequences end to end.
3. Batch i of an epoch is rows i B .. (i + 1) B of that sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.seeding import generator

MIN_CHUNKS = 16  # neighbours in a chunk are near in generation order: never mix fewer


class Piece(NamedTuple):
    """Part of a batch: entries start..stop of the row permutation of one window of one epoch."""

    epoch: int
    window: int
    start: int
    stop: int


@dataclass(frozen=True)
class BatchPlan:
    """The order of rows, as a function of the seed.

    Attributes:
        seed: of the order.
        rows: (first, last + 1) of the rows to read.
        chunk_rows: rows that lie together.
        batch_size: rows in a batch.
        buffer_rows: rows mixed at a time.
        drop_last: leave out an epoch's last, smaller batch.
        runs: windows are runs of neighbouring chunks.
    """

    seed: int
    rows: tuple[int, int]
    chunk_rows: int
    batch_size: int
    buffer_rows: int
    drop_last: bool = True
    runs: bool = False

    @property
    def n_rows(self) -> int:
        """Rows in an epoch."""
        return self.rows[1] - self.rows[0]

    @property
    def first_chunk(self) -> int:
        """The chunk with the first row."""
        return self.rows[0] // self.chunk_rows

    @property
    def n_chunks(self) -> int:
        """Chunks in an epoch."""
        return -(-self.rows[1] // self.chunk_rows) - self.first_chunk

    @property
    def n_windows(self) -> int:
        """Windows in an epoch: of at most `buffer_rows` rows, unless that is less than MIN_CHUNKS chunks."""
        wanted = -(-self.n_chunks // max(self.buffer_rows // self.chunk_rows, 1))
        return min(wanted, max(self.n_chunks // MIN_CHUNKS, 1))

    @property
    def window_rows(self) -> int:
        """Rows of the largest window."""
        return -(-self.n_chunks // self.n_windows) * self.chunk_rows

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.n_rows // self.batch_size if self.drop_last else -(-self.n_rows // self.batch_size)

    def segment(self, chunk: int) -> tuple[int, int]:
        """The rows of a chunk that are among the rows to read."""
        return max(chunk * self.chunk_rows, self.rows[0]), min((chunk + 1) * self.chunk_rows, self.rows[1])

    def windows(self, epoch: int) -> list[np.ndarray]:
        """Chunk numbers of each window of an epoch, in order."""
        return _windows(self, epoch)

    def window_sizes(self, epoch: int) -> list[int]:
        """Rows of each window of an epoch."""
        sizes = []
        for chunks in self.windows(epoch):
            size = len(chunks) * self.chunk_rows
            for end in {self.first_chunk, self.first_chunk + self.n_chunks - 1}:
                if end in chunks:
                    start, stop = self.segment(end)
                    size -= self.chunk_rows - (stop - start)
            sizes.append(size)
        return sizes

    def permutation(self, epoch: int, window: int, size: int) -> Tensor:
        """int64 [size], the order of a window's rows."""
        return torch.randperm(size, generator=generator(self.seed, "batch rows", epoch, window))

    def pieces(self, index: int) -> list[Piece]:
        """Where batch `index` (over all epochs) is."""
        epoch, within = divmod(index, self.batches_per_epoch)
        start = within * self.batch_size
        stop = min(start + self.batch_size, self.n_rows)
        found, offset = [], 0
        for window, size in enumerate(_window_sizes(self, epoch)):
            first, last = max(start, offset), min(stop, offset + size)
            if first < last:
                found.append(Piece(epoch, window, first - offset, last - offset))
            offset += size
        return found


@lru_cache(maxsize=8)
def _windows(plan: BatchPlan, epoch: int) -> list[np.ndarray]:
    chunks = np.arange(plan.first_chunk, plan.first_chunk + plan.n_chunks)
    n = plan.n_windows if plan.runs else plan.n_chunks
    order = torch.randperm(n, generator=generator(plan.seed, "batch chunks", epoch)).numpy()
    if plan.runs:
        windows = np.array_split(chunks, plan.n_windows)
        return [windows[i] for i in order]
    return np.array_split(chunks[order] if plan.n_windows > 1 else chunks, plan.n_windows)


@lru_cache(maxsize=8)
def _window_sizes(plan: BatchPlan, epoch: int) -> tuple[int, ...]:
    return tuple(plan.window_sizes(epoch))
