"""Shuffled batches out of chunks, in the order of pipeline.activations.order, read ahead in background threads.

The rows of a window's chunks are read straight to their places in the window's shuffled order, so that a batch is a slice of
the window and nothing is gathered. One thread reads the next window while batches are taken from the present one; another
makes the next batches (in the dtype asked for) while the consumer computes. A window is read anew in every epoch, also where
it holds all rows: from the page cache that costs less than gathering its rows in a new order in memory.
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
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.codecs.interface import ROWS, StorageCodec
from pipeline.activations.order import BatchPlan, Piece
from pipeline.activations.schema import ArrayLayout, array_name
from pipeline.errors import DataError
from pipeline.memory import Need, require_memory

BATCHES_AHEAD = 3
CHUNKS_AHEAD = 16  # of each array, that come from an object store at the same time


class ChunkSource(Protocol):
    """An array that gives rows of one chunk."""

    @property
    def layout(self) -> ArrayLayout: ...
    def ahead(self, chunks: Sequence[int]) -> None: ...
    def scatter_chunk(self, out: Tensor, places: np.ndarray, chunk: int, start: int, stop: int) -> None: ...


class RowsMeta(NamedTuple):
    """Where rows come from: tokens, positions, mask [n] or [n, T]; context_ids [n] (index into tokens.zarr's train split)."""

    tokens: Tensor
    positions: Tensor
    context_ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Encoded:
    """A batch of a hook point as it is stored.

    Attributes:
        parts: {part: its rows}, the shared ones too.
        codec: which decodes them.
        dtype: that is asked for.
    """

    parts: Mapping[str, Tensor]
    codec: StorageCodec
    dtype: torch.dtype

    def on(self, device: torch.device) -> Tensor:
        """The rows on a device: what is stored is moved, then decoded there."""
        parts = {name: part.to(device, non_blocking=True) for name, part in self.parts.items()}
        return self.codec.decode(parts, self.dtype)


@dataclass(frozen=True)
class ActivationBatch:
    """One batch. Its tensors stay valid and are shared with no other batch, but holding them may hold a window's memory.

    Attributes:
        index: number of the batch, counted over all epochs.
        epoch: pass over the rows, from 0.
        rows: int64 [B], store rows.
        activations: {hook point: [B, d] (1-D) or [B, T, d] (2-D)}.
        mask: bool [B] or [B, T], True where the token is kept (all True in 1-D).
        encoded: what is to be decoded where it is used, in place of `activations`.
    """

    index: int
    epoch: int
    rows: Tensor
    activations: dict[str, Tensor]
    mask: Tensor
    read_meta: Callable[[Tensor], RowsMeta] = field(repr=False)
    encoded: Mapping[str, Encoded] = field(default_factory=dict)

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """The activations on a device; asynchronous from page-locked memory."""
        moved = {name: x.to(device, non_blocking=True) for name, x in self.activations.items()}
        return moved | {name: x.on(device) for name, x in self.encoded.items()}

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


class _Closed(Exception):
    """Nobody waits for the window any more."""


class _Window(NamedTuple):
    """A window's rows in their shuffled order."""

    tensors: dict[str, Tensor]
    rows: Tensor


class _Windows:
    """Windows in order; with `ahead`, the next one is read in a thread while batches are taken from this one.

    With `dear`, the one window of all rows is read once, and mixed anew in memory for the next epoch. Once `closing` is set, a
    window that is being read is given up after its present chunk.
    """

    def __init__(
        self,
        arrays: Mapping[str, ChunkSource],
        plan: BatchPlan,
        ahead: bool,
        last: tuple[int, int] | None,
        dear: bool,
        closing: threading.Event,
    ) -> None:
        self.arrays, self.plan, self.last, self.dear, self.closing = arrays, plan, last, dear, closing
        self.memory = _Recycler()
        self.pool = ThreadPoolExecutor(1, "activation windows") if ahead else None
        self.key: tuple[int, int] | None = None
        self.window: _Window | None = None
        self.future: tuple[tuple[int, int], Future[_Window]] | None = None

    def _load(self, epoch: int, number: int, before: _Window | None) -> _Window:
        if self.dear and before is not None and self.plan.n_windows == 1:
            return self._mixed(before, self.plan.permutation(epoch, number, len(before.rows)))
        segments = [(chunk, *self.plan.segment(chunk)) for chunk in self.plan.windows(epoch)[number].tolist()]
        rows = np.concatenate([np.arange(start, stop) for _, start, stop in segments])
        order = self.plan.permutation(epoch, number, len(rows)).numpy()
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        # All of one size, so that memory is used again.
        full = {name: _empty(self.memory, array, self.plan.window_rows) for name, array in self.arrays.items()}
        tensors = {name: x[: len(rows)] for name, x in full.items()}
        done = 0
        for number, (chunk, start, stop) in enumerate(segments):
            part = places[done : done + stop - start]
            soon = [following for following, _, _ in segments[number : number + CHUNKS_AHEAD]]
            for array in self.arrays.values():
                array.ahead(soon)
            for name, array in self.arrays.items():
                array.scatter_chunk(tensors[name], part, chunk, start, stop)
            done += stop - start
            if self.closing.is_set():
                raise _Closed
        return _Window(tensors, torch.from_numpy(rows[order]))

    def _mixed(self, window: _Window, order: Tensor) -> _Window:
        """The same rows in another order, that of their numbers permuted."""
        places = torch.empty_like(order)
        places[window.rows - self.plan.rows[0]] = torch.arange(len(order))
        taken = places[order]
        tensors = {}
        for name, array in self.arrays.items():
            out = _empty(self.memory, array, self.plan.window_rows)[: len(order)]
            tensors[name] = torch.index_select(window.tensors[name], 0, taken, out=out)
        return _Window(tensors, window.rows[taken])

    def get(self, piece: Piece) -> _Window:
        """The window of a piece; pieces are asked for in order."""
        key = (piece.epoch, piece.window)
        if key != self.key:
            before = self.window if self.dear else None
            ahead, self.future, self.window = self.future, None, None
            window = ahead[1].result() if ahead is not None else None
            # An epoch's left-out last rows may be a window of their own, read ahead and not asked for.
            if ahead is None or ahead[0] != key or window is None:
                window = self._load(*key, before)
            self.window, self.key = window, key
        assert self.window is not None
        # Not at once: until the consumer has dropped the last batches of the window before, its memory is in use.
        if piece.stop >= min((BATCHES_AHEAD + 2) * self.plan.batch_size, len(self.window.rows) // 4):
            self._read_ahead(piece.epoch, piece.window)
        return self.window

    def _read_ahead(self, epoch: int, window: int) -> None:
        key = (epoch, window + 1) if window + 1 < self.plan.n_windows else (epoch + 1, 0)
        if self.pool is not None and self.future is None and (self.last is None or key <= self.last):
            self.future = key, self.pool.submit(self._load, *key, self.window if self.dear else None)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


def _empty(memory: _Recycler, array: ChunkSource, n: int, dtype: torch.dtype | None = None, pinned: bool = False) -> Tensor:
    shape, dtype = (n, *array.layout.shape[1:]), dtype or array.layout.element.torch_dtype
    return torch.empty(shape, dtype=dtype, pin_memory=True) if pinned else memory.empty(shape, dtype)


@dataclass(frozen=True)
class Delivery:
    """What a batch carries.

    Attributes:
        hook_points: {hook point: its shared parts} of those whose activations it carries.
        read_meta: where rows come from, for batches that are asked.
        codec: which decodes them.
        dtype: of the activations; None: the codec's.
        encoded: as they are stored.
        pinned: in page-locked memory.
    """

    hook_points: Mapping[str, Mapping[str, Tensor]]
    read_meta: Callable[[Tensor], RowsMeta]
    codec: StorageCodec
    dtype: torch.dtype | None = None
    encoded: bool = False
    pinned: bool = False


def too_few_rows(where: str, batch_size: int, n_rows: int) -> DataError:
    """The error for a batch that is larger than all rows that are read."""
    return DataError(
        f"{where}: a batch of {batch_size:,} rows is more than the {n_rows:,} rows to read; lower activations.batch_size or "
        "raise activations.total_tokens"
    )


def require_window(path: Path, plan: BatchPlan, arrays: Mapping[str, ChunkSource], buffer_rows: int) -> None:
    """Refuse a plan without a batch, and windows that cannot be held.

    Args:
        path: of the activations, for messages.
        plan: the order.
        arrays: what windows hold.
        buffer_rows: that were asked for.

    Raises:
        DataError: fewer rows than a batch.
        ParamsError: a window is larger than the memory that is free.
    """
    if plan.batches_per_epoch < 1:
        raise too_few_rows(f"{path}: activations", plan.batch_size, plan.n_rows)
    n_bytes = plan.window_rows * sum(array.layout.row_bytes for array in arrays.values())
    mixed = {"activations.buffer_size": buffer_rows}
    require_memory(Need(f"a window of {plan.window_rows:,} rows", n_bytes, mixed))


def iterate_batches(
    arrays: Mapping[str, ChunkSource],
    plan: BatchPlan,
    delivery: Delivery,
    *,
    start: int,
    stop: int | None,
    prefetch: bool,
    dear: bool = False,
) -> Iterator[ActivationBatch]:
    """Batches start..stop (None: for ever) of a plan; `arrays` has the hook points' and, in 2-D, the mask.

    Args:
        arrays: the sources.
        plan: the order.
        delivery: what a batch carries.
        start: index of the first batch.
        stop: index after the last; None: for ever.
        prefetch: work ahead in background threads.
        dear: reading costs more than memory: where one window holds all rows, it is read once.
    """
    last = None
    if stop is not None and stop > start:
        piece = plan.pieces(stop - 1)[-1]
        last = (piece.epoch, piece.window)
    closing = threading.Event()
    made = _BatchMaker(_Windows(arrays, plan, prefetch, last, dear, closing), delivery).made(start, stop)
    return _ahead(made, closing) if prefetch else made


class _BatchMaker:
    """Gathers batches from windows; `made` yields them in order."""

    def __init__(self, windows: _Windows, delivery: Delivery) -> None:
        self.windows, self.delivery = windows, delivery
        self.memory = _Recycler()

    def batch(self, index: int) -> ActivationBatch:
        """Batch `index`: a slice of a window, or slices of several end to end."""
        plan, delivery = self.windows.plan, self.delivery
        parts = []
        for piece in plan.pieces(index):
            window, place = self.windows.get(piece), slice(piece.start, piece.stop)
            parts.append(_Window({name: x[place] for name, x in window.tensors.items()}, window.rows[place]))
        rows = torch.cat([part.rows for part in parts])
        found = parts[0].tensors
        if len(parts) > 1:
            for name, array in self.windows.arrays.items():
                out = _empty(self.memory, array, len(rows))
                found[name] = torch.cat([part.tensors[name] for part in parts], out=out)
        mask = found["mask"].clone() if "mask" in found else torch.ones(len(rows), dtype=torch.bool)
        encoded = {name: self._encoded(name, found) for name in delivery.hook_points}
        activations = {} if delivery.encoded else {name: self._decoded(name, x) for name, x in encoded.items()}
        left = encoded if delivery.encoded else {}
        return ActivationBatch(index, index // plan.batches_per_epoch, rows, activations, mask, delivery.read_meta, left)

    def _encoded(self, hook_point: str, found: Mapping[str, Tensor]) -> Encoded:
        delivery = self.delivery
        parts = {part: found[array_name(hook_point, part)] for part in delivery.codec.token_parts}
        if delivery.encoded and delivery.pinned:
            parts = {part: x.pin_memory() for part, x in parts.items()}
        shared = delivery.hook_points[hook_point]
        return Encoded({**parts, **shared}, delivery.codec, delivery.dtype or delivery.codec.dtype)

    def _decoded(self, hook_point: str, encoded: Encoded) -> Tensor:
        delivery, rows, out = self.delivery, encoded.parts[ROWS], None
        if delivery.dtype is not None or delivery.pinned or rows.dtype != encoded.dtype:
            out = _empty(self.memory, self.windows.arrays[hook_point], len(rows), encoded.dtype, delivery.pinned)
        return delivery.codec.decode(encoded.parts, encoded.dtype, out)

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


def _ahead(batches: Iterator[ActivationBatch], stopped: threading.Event) -> Iterator[ActivationBatch]:
    """`batches` made in a background thread, a few ahead; an error there is raised here, closing sets `stopped` and ends it."""
    made: queue.Queue[Any] = queue.Queue(BATCHES_AHEAD)

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
    try:
        thread.start()
        while True:
            item = made.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        # Not started where a signal came before; the thread itself where the last reference to this generator ended there.
        if thread.ident not in (None, threading.get_ident()):
            thread.join()
