"""Shuffled batches out of chunks, in the order of pipeline.activations.order, read ahead in background threads.

A window's chunks are read into one buffer, and batches are gathered from it by the window's permutation. One thread reads the
next window into a second buffer while batches are gathered from the first; another gathers the next batches while the
consumer computes. Where one window holds all rows it is read once and gathered from in every epoch.
"""

from __future__ import annotations

import itertools
import math
import mmap
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.order import BatchPlan
from pipeline.activations.schema import ArrayLayout

BATCHES_AHEAD = 3


class ChunkSource(Protocol):
    """An array that gives rows of one chunk."""

    layout: ArrayLayout

    def read_chunk_into(self, out: Tensor, chunk: int, start: int, stop: int) -> None: ...


class RowsMeta(NamedTuple):
    """Where rows come from: tokens, positions, mask [n] or [n, T]; context_ids [n] (index into tokens.zarr's train split)."""

    tokens: Tensor
    positions: Tensor
    context_ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class ActivationBatch:
    """One batch; its tensors belong to it alone and stay valid.

    Attributes:
        index: number of the batch, counted over all epochs.
        epoch: pass over the rows, from 0.
        rows: int64 [B], store rows.
        activations: {hook point: [B, d] (1-D) or [B, T, d] (2-D)}.
        mask: bool [B] or [B, T], True where the token is kept (all True in 1-D).
    """

    index: int
    epoch: int
    rows: Tensor
    activations: dict[str, Tensor]
    mask: Tensor
    read_meta: Callable[[Tensor], RowsMeta] = field(repr=False)

    @cached_property
    def meta(self) -> RowsMeta:
        """Where the batch's rows come from; read from the store when first asked for (training does not ask)."""
        return self.read_meta(self.rows)

    @property
    def tokens(self) -> Tensor:
        """int32 [B] or [B, T], token ids."""
        return self.meta.tokens

    @property
    def positions(self) -> Tensor:
        """int32 [B] or [B, T], positions in the context."""
        return self.meta.positions

    @property
    def context_ids(self) -> Tensor:
        """int32 [B], contexts of tokens.zarr's train split."""
        return self.meta.context_ids


def _memory(n_bytes: int) -> mmap.mmap:
    """Anonymous memory, in huge pages where the system has them: random rows then cost fewer address look-ups."""
    memory = mmap.mmap(-1, max(n_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class _Recycler:
    """Uninitialised tensors whose memory is used again once nothing refers to them any more.

    New memory for every batch would cost as much as filling it: the system clears each page first.
    """

    def __init__(self) -> None:
        self.free: dict[int, list[mmap.mmap]] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        n_bytes = math.prod(shape) * dtype.itemsize
        free = self.free.setdefault(n_bytes, [])
        memory = free.pop() if free else _memory(n_bytes)
        owner = np.frombuffer(memory, dtype=np.uint8, count=n_bytes)  # lives as long as a tensor that shares its memory
        weakref.finalize(owner, free.append, memory).atexit = False
        return torch.from_numpy(owner).view(dtype).view(shape)


class _Window:
    """Buffers for one window's rows, filled chunk by chunk."""

    def __init__(self, arrays: Mapping[str, ChunkSource], plan: BatchPlan) -> None:
        self.arrays, self.plan = arrays, plan
        rows = plan.window_rows
        self.tensors = {}
        for name, array in arrays.items():
            shape, dtype = (rows, *array.layout.shape[1:]), array.layout.element.torch_dtype
            self.tensors[name] = torch.frombuffer(_memory(rows * array.layout.row_bytes), dtype=dtype, count=math.prod(shape))
            self.tensors[name] = self.tensors[name].view(shape)
        self.store_rows = torch.empty(rows, dtype=torch.int64)
        self.chunks: np.ndarray | None = None
        self.size = 0

    def load(self, chunks: np.ndarray) -> _Window:
        if self.chunks is not None and np.array_equal(self.chunks, chunks):
            return self
        self.chunks, self.size = None, 0
        for chunk in chunks.tolist():
            start, stop = self.plan.segment(chunk)
            place = slice(self.size, self.size + stop - start)
            for name, array in self.arrays.items():
                array.read_chunk_into(self.tensors[name][place], chunk, start, stop)
            self.store_rows[place] = torch.arange(start, stop)
            self.size = place.stop
        self.chunks = chunks
        return self


class _Windows:
    """The window of a piece; with `ahead`, the next one is read in a thread while this one is used. Two buffers at most."""

    def __init__(self, arrays: Mapping[str, ChunkSource], plan: BatchPlan, ahead: bool, last: tuple[int, int] | None) -> None:
        self.arrays, self.plan, self.last = arrays, plan, last
        self.pool = ThreadPoolExecutor(1, "activation windows") if ahead and plan.n_windows > 1 else None
        self.buffers = [_Window(arrays, plan)]
        self.key: tuple[int, int] | None = None
        self.order = torch.empty(0, dtype=torch.int64)
        self.future: tuple[tuple[int, int], Future[_Window]] | None = None

    def _load(self, buffer: _Window, key: tuple[int, int]) -> _Window:
        return buffer.load(self.plan.windows(key[0])[key[1]])

    def get(self, epoch: int, window: int) -> tuple[_Window, Tensor]:
        """The loaded window and the order of its rows; windows are asked for in order."""
        key = (epoch, window)
        if key != self.key:
            if self.future is not None:
                self.future[1].result()
                self.buffers.reverse()
            if self.future is None or self.future[0] != key:  # an epoch's left-out last rows may be a window of their own
                self._load(self.buffers[0], key)
            self.future = None
            self.key = key
            self.order = self.plan.permutation(epoch, window, self.buffers[0].size)
            self._read_ahead(epoch, window)
        return self.buffers[0], self.order

    def _read_ahead(self, epoch: int, window: int) -> None:
        if self.pool is None:
            return
        key = (epoch, window + 1) if window + 1 < self.plan.n_windows else (epoch + 1, 0)
        if self.last is not None and key > self.last:
            return
        if len(self.buffers) == 1:
            self.buffers.append(_Window(self.arrays, self.plan))
        self.future = key, self.pool.submit(self._load, self.buffers[1], key)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Delivery:
    """What a batch carries.

    Attributes:
        hook_points: their activations.
        read_meta: where rows come from, for batches that are asked.
        dtype: of the activations; None: the storage dtype.
        pinned: in page-locked memory.
    """

    hook_points: Sequence[str]
    read_meta: Callable[[Tensor], RowsMeta]
    dtype: torch.dtype | None = None
    pinned: bool = False


def iterate_batches(
    arrays: Mapping[str, ChunkSource], plan: BatchPlan, delivery: Delivery, *, start: int, stop: int | None, prefetch: bool
) -> Iterator[ActivationBatch]:
    """Batches start..stop (None: for ever) of a plan; `arrays` has the hook points and, in 2-D, the mask."""
    last = None
    if stop is not None and stop > start:
        piece = plan.pieces(stop - 1)[-1]
        last = (piece.epoch, piece.window)
    made = _BatchMaker(_Windows(arrays, plan, prefetch, last), delivery).made(start, stop)
    return _ahead(made) if prefetch else made


class _BatchMaker:
    """Gathers batches from windows; `made` yields them in order."""

    def __init__(self, windows: _Windows, delivery: Delivery) -> None:
        self.windows, self.delivery = windows, delivery
        self.memory = _Recycler()

    def _empty(self, name: str, n: int, dtype: torch.dtype | None = None, pinned: bool = False) -> Tensor:
        layout = self.windows.arrays[name].layout
        shape = (n, *layout.shape[1:])
        if pinned:
            return torch.empty(shape, dtype=dtype or layout.element.torch_dtype, pin_memory=True)
        return self.memory.empty(shape, dtype or layout.element.torch_dtype)

    def batch(self, index: int) -> ActivationBatch:
        """Rows of batch `index` from the windows that it lies in."""
        plan, dtype, pinned = self.windows.plan, self.delivery.dtype, self.delivery.pinned
        pieces = plan.pieces(index)
        n = sum(piece.stop - piece.start for piece in pieces)
        out = {name: self._empty(name, n, pinned=pinned and dtype is None) for name in self.windows.arrays}
        rows = torch.empty(n, dtype=torch.int64)
        done = 0
        for piece in pieces:
            window, order = self.windows.get(piece.epoch, piece.window)
            chosen = order[piece.start : piece.stop]
            place = slice(done, done + len(chosen))
            for name, tensor in out.items():
                torch.index_select(window.tensors[name], 0, chosen, out=tensor[place])
            torch.index_select(window.store_rows, 0, chosen, out=rows[place])
            done = place.stop
        mask = out["mask"] if "mask" in out else torch.ones(n, dtype=torch.bool)
        activations = {name: out[name] for name in self.delivery.hook_points}
        if dtype is not None:
            for name, stored in activations.items():
                activations[name] = self._empty(name, n, dtype, pinned).copy_(stored)
        return ActivationBatch(index, index // plan.batches_per_epoch, rows, activations, mask, self.delivery.read_meta)

    def made(self, start: int, stop: int | None) -> Iterator[ActivationBatch]:
        try:
            for index in itertools.count(start):
                if stop is not None and index >= stop:
                    return
                yield self.batch(index)
        finally:
            self.windows.close()


class _End(NamedTuple):
    error: BaseException | None


def _ahead(batches: Iterator[ActivationBatch]) -> Iterator[ActivationBatch]:
    """`batches` made in a background thread, a few ahead; an error there is raised here, closing ends the thread."""
    made: queue.Queue[Any] = queue.Queue(BATCHES_AHEAD)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                made.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        error: BaseException | None = None
        try:
            for batch in batches:
                if not put(batch):
                    break
        except BaseException as caught:
            error = caught
        finally:
            batches.close()  # type: ignore[attr-defined]
            put(_End(error))

    thread = threading.Thread(target=work, name="activation batches", daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        thread.join()
