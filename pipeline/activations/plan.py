"""Which token goes to which row: decided from the tokens alone, before any model runs.

1. Contexts of the train split are put in an order drawn from perm_seed; the first ones that give `total_tokens` kept tokens
   are used.
2. activations-1d: their kept tokens end to end, cut after total_tokens, are the row sequence; it is cut into blocks of
   BLOCK_ROWS rows, and each block's rows are permuted by a generator named after the block. activations-2d: the contexts
   themselves are the rows.
3. Model batch m is contexts m B .. (m + 1) B of the order, always: a block that is computed again after a kill meets the
   same batches, so the same bits.

So stores of several models over one token store have the same rows in the same order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.fingerprint import GenerationSettings
from pipeline.activations.schema import BLOCK_ROWS
from pipeline.corpus.packing import kept_tokens
from pipeline.errors import DataError
from pipeline.seeding import generator

IN_MEMORY_BYTES = 2**30
_READ_CONTEXTS = 8192


class Split(Protocol):
    """What is asked of a token store's split."""

    n_contexts: int
    context_size: int

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray: ...
    def counted(self, start: int = 0, stop: int | None = None) -> np.ndarray | None: ...


class Tokens(Protocol):
    """What is asked of a token store."""

    digest: str
    context_size: int
    ignore_token_ids: tuple[int, ...]
    ignore_positions: int

    @property
    def train(self) -> Split: ...


class ContextTokens:
    """Every token of a split for random access: in memory, or in a file without a name where it is larger than 1 GiB."""

    def __init__(
        self, split: Split, ignore_token_ids: Sequence[int], ignore_positions: int = 0, scratch: str | None = None
    ) -> None:
        shape = (split.n_contexts, split.context_size)
        self.tokens = _room(shape, np.int32, scratch)
        self._counted: np.ndarray | None = None
        self._ignored, self._positions = tuple(ignore_token_ids), ignore_positions
        self.kept_counts = np.empty(split.n_contexts, dtype=np.int64)
        for start in range(0, split.n_contexts, _READ_CONTEXTS):
            part = split.read(start, start + _READ_CONTEXTS)
            self.tokens[start : start + len(part)] = part
            counted = split.counted(start, start + len(part))
            if counted is not None:
                if self._counted is None:
                    self._counted = _room(shape, np.bool_, scratch)
                self._counted[start : start + len(part)] = counted
            self.kept_counts[start : start + len(part)] = self.mask(np.arange(start, start + len(part))).sum(axis=1)

    def mask(self, context_ids: np.ndarray) -> np.ndarray:
        """bool [n, T] of some contexts: True where a token is kept."""
        kept = kept_tokens(self.take(context_ids), self._ignored, self._positions)
        return kept if self._counted is None else kept & self._counted[context_ids]

    def take(self, context_ids: np.ndarray) -> np.ndarray:
        """int32 [n, T]."""
        return np.asarray(self.tokens[context_ids])


def _room(shape: tuple[int, int], dtype: type[np.generic], scratch: str | None) -> np.ndarray:
    if np.dtype(dtype).itemsize * shape[0] * shape[1] <= IN_MEMORY_BYTES:
        return np.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile(dir=scratch) as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


@dataclass(frozen=True)
class RowPlan:
    """The order of contexts and rows.

    Attributes:
        contexts: int64 [n], ids of the contexts used, in order.
        offsets: int64 [n + 1], sequence position at which each context's rows start.
        n_rows: rows of the store.
        block_rows: rows per block.
        model_batch_size: contexts per pass of the model.
        perm_seed: seed of the rows' order.
        flat: whether rows are tokens (activations-1d).
    """

    contexts: np.ndarray
    offsets: np.ndarray
    n_rows: int
    block_rows: int
    model_batch_size: int
    perm_seed: int
    flat: bool

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.n_rows // self.block_rows)

    def block(self, block: int) -> tuple[int, int]:
        """Rows (and sequence positions) of a block."""
        return block * self.block_rows, min((block + 1) * self.block_rows, self.n_rows)

    def permutation(self, block: int) -> Tensor | None:
        """int64: which sequence position of the block each of its rows holds; None: the same one."""
        if not self.flat:
            return None
        start, stop = self.block(block)
        return torch.randperm(stop - start, generator=generator(self.perm_seed, "rows", block))

    def store_row(self, position: int) -> int:
        """The row that sequence position `position` is stored at."""
        block = position // self.block_rows
        order = self.permutation(block)
        within = position - block * self.block_rows
        return position if order is None else block * self.block_rows + int((order == within).nonzero())

    def contexts_within(self, rows: tuple[int, int]) -> np.ndarray:
        """int64: ids of the contexts all of whose rows are among rows (first, last + 1), in order."""
        first, last = rows
        outside = []  # sequence positions of other rows, in the blocks at both ends
        for block in {first // self.block_rows, (last - 1) // self.block_rows}:
            start, stop = self.block(block)
            order, here = self.permutation(block), np.arange(start, stop)
            positions = here if order is None else start + order.numpy()
            outside.append(positions[(here < first) | (here >= last)])
        low, high = first // self.block_rows * self.block_rows, self.block((last - 1) // self.block_rows)[1]
        starts, stops = self.offsets[:-1], self.offsets[1:]
        within = (starts >= low) & (stops <= high) & (starts < stops)
        within[np.searchsorted(self.offsets, np.concatenate(outside), side="right") - 1] = False
        return self.contexts[within]

    def batches(self, block: int) -> range:
        """The model batches that a block's rows come from."""
        start, stop = self.block(block)
        first = int(np.searchsorted(self.offsets, start, side="right")) - 1
        last = int(np.searchsorted(self.offsets, stop, side="left")) - 1
        return range(first // self.model_batch_size, last // self.model_batch_size + 1)

    def batch(self, batch: int) -> slice:
        """The contexts of a model batch, as a slice of `contexts`."""
        return slice(batch * self.model_batch_size, min((batch + 1) * self.model_batch_size, len(self.contexts)))

    @cached_property
    def n_batches(self) -> int:
        """Model batches in all."""
        return -(-len(self.contexts) // self.model_batch_size)


def plan_rows(tokens: ContextTokens, settings: GenerationSettings, chunk_rows: int) -> RowPlan:
    """The order of rows for a token store.

    Args:
        tokens: the train split.
        settings: total_tokens, target, perm_seed, model_batch_size.
        chunk_rows: rows per chunk; a 2-D block is one chunk.

    Raises:
        DataError: fewer kept tokens than total_tokens.
    """
    counts = tokens.kept_counts
    order = torch.randperm(len(counts), generator=generator(settings.perm_seed, "contexts")).numpy()
    kept = np.cumsum(counts[order])
    available = int(kept[-1]) if len(kept) else 0
    if available < settings.total_tokens:
        raise DataError(
            f"data/tokens.zarr: too little text: activations.total_tokens = {settings.total_tokens:,}, but the training split "
            f"holds {available:,} tokens that are not ignored; give more text or lower activations.total_tokens"
        )
    used = order[: int(np.searchsorted(kept, settings.total_tokens, side="left")) + 1]
    flat = settings.target == "activations-1d"
    sizes = counts[used] if flat else np.ones(len(used), dtype=np.int64)
    return RowPlan(
        contexts=used,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        n_rows=settings.total_tokens if flat else len(used),
        block_rows=BLOCK_ROWS if flat else chunk_rows,
        model_batch_size=settings.model_batch_size,
        perm_seed=settings.perm_seed,
        flat=flat,
    )
