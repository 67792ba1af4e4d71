"""The activation store's layout: arrays, dtypes, chunks, and which rows are trained on.

A Zarr v3 group `<store root>/<fingerprint>/` with one array per hook point, [n_rows, d] (target activations-1d: kept tokens,
rows shuffled) or [n_contexts, T, d] (activations-2d: contexts kept whole) - or several, `hook@part`, where its codec
makes several - and `tokens`, `positions`, `context_ids`, `mask` beside them in the same row order. A "row" is a token in 1-D
and a context in 2-D. Each chunk holds whole rows and is one file `c.<chunk>.0[.0]`, compressed only where that is asked for;
`digests` beside them has a line `<chunk> <xxh3_128 of the file>` for each chunk that is whole. A part that all rows share is
one chunk.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from pipeline.activations.codecs.interface import ROWS, ElementType, storage_codec
from pipeline.activations.remote import cache_directory, stated_url
from pipeline.errors import DataError
from pipeline.files import ensure_writable, root

FORMAT_VERSION = 1
BLOCK_ROWS = 32768  # rows that are shuffled among each other in generation; independent of the width, so stores join
CHUNK_BYTES = 4 * 2**20
ROW_ARRAYS = ("tokens", "positions", "context_ids", "mask")
DIGESTS_FILE = "digests"
PART = "@"  # between a hook point and the name of a part, in an array's name
STORE_ROOT = "set SCOPELINE_STORE to a directory that can be written, or unset it for data/store"
REGENERATE = "run `dvc repro -s -f generate`"


_INTEGER = ElementType(torch.int32, "int32", "<i4", -1)
_BOOLEAN = ElementType(torch.bool, "bool", "|b1", False)


@dataclass(frozen=True)
class ArrayLayout:
    """One array: name, shape (rows first), rows per chunk and element type; whether it is a part that all rows share."""

    name: str
    shape: tuple[int, ...]
    chunk_rows: int
    element: ElementType
    shared: bool = False

    @property
    def item_bytes(self) -> int:
        """Bytes of one number."""
        return np.dtype(self.element.numpy_dtype).itemsize

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.item_bytes

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, and of its file where that is not compressed; the last chunk is filled up."""
        return self.chunk_rows * self.row_bytes

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.shape[0] // self.chunk_rows)

    def chunk_file(self, chunk: int) -> str:
        """File name of a chunk inside the array's directory."""
        return ".".join(["c", str(chunk), *("0" for _ in self.shape[1:])])

    def rows_of(self, chunk: int) -> tuple[int, int]:
        """First row of a chunk and the row after its last."""
        return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.shape[0])


def chunk_rows(d_model: int, storage_dtype: str, context_size: int | None = None) -> int:
    """Rows per chunk: the largest power of two with which a chunk of width `d_model` takes at most 4 MiB.

    Args:
        d_model: width of the model's residual stream (not of one hook point: every array of a store has the same rows).
        storage_dtype: names the codec.
        context_size: T for the 2-D target, None for 1-D.
    """
    layouts = hook_layouts("", 1, d_model, context_size, 1, storage_dtype)
    row_bytes = sum(layout.row_bytes for layout in layouts if not layout.shared)
    fitting = max(CHUNK_BYTES // row_bytes, 1)
    return min(1 << (fitting.bit_length() - 1), BLOCK_ROWS)


def array_name(hook_point: str, part: str) -> str:
    """Name of the array that holds one part of a hook point, as its codec splits it."""
    return hook_point if part == ROWS else f"{hook_point}{PART}{part}"


def hook_layouts(
    hook_point: str, n_rows: int, width: int, context_size: int | None, rows: int, dtype: str
) -> list[ArrayLayout]:
    """Layouts of a hook point's arrays: [n_rows, width], or [n_rows, T, width] where `context_size` is given."""
    inner = () if context_size is None else (context_size,)
    layouts = []
    for part, (element, numbers, shared) in storage_codec(dtype).parts.items():
        name, last = array_name(hook_point, part), numbers or width
        if shared is None:
            layouts.append(ArrayLayout(name, (n_rows, *inner, last), rows, element))
        else:
            layouts.append(ArrayLayout(name, (shared, last), shared, element, shared=True))
    return layouts


def row_layouts(n_rows: int, context_size: int | None, rows: int) -> list[ArrayLayout]:
    """Layouts of the arrays beside the activations, in the order of ROW_ARRAYS."""
    shape = (n_rows,) if context_size is None else (n_rows, context_size)
    return [
        ArrayLayout("tokens", shape, rows, _INTEGER),
        ArrayLayout("positions", shape, rows, _INTEGER),
        ArrayLayout("context_ids", (n_rows,), rows, _INTEGER),
        ArrayLayout("mask", shape, rows, _BOOLEAN),
    ]


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's memory, writable; no copy (bfloat16 has no numpy type, so go by bytes)."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def store_root() -> Path:
    """Where stores are: $SCOPELINE_STORE (a relative one is of the user's checkout), or data/store under the checkout.

    Where it is a URL, the directory that stands for it (remote.py).

    Raises:
        DataError: it is no directory and cannot become one.
    """
    stated = os.environ.get("SCOPELINE_STORE")
    if stated_url() is not None:
        return cache_directory()
    place = root() / Path(stated).expanduser() if stated else root() / "data" / "store"
    if not os.path.isdir(place):
        ensure_writable(place, "activation stores", STORE_ROOT)
    return place


class Rows(Protocol):
    """What is asked of a store whose rows are divided; it need not be there yet."""

    @property
    def target(self) -> str: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def chunk_rows(self) -> int: ...
    @property
    def context_size(self) -> int: ...


def training_rows(store: Rows, calibration_tokens: int) -> tuple[int, int]:
    """The rows that training reads; at least `calibration_tokens` tokens are left after them.

    They end with a chunk, so that few contexts have rows on both sides; in a store of about one chunk they end anywhere.

    Args:
        store: open activations, or the rows that they will have.
        calibration_tokens: `fold.calibration_tokens`; 0 keeps nothing back.

    Returns:
        (0, n).

    Raises:
        DataError: nothing would be left to train on.
    """
    per_row = 1 if store.target == "activations-1d" else store.context_size
    kept_back = -(-calibration_tokens // per_row)
    if kept_back <= 0:
        return 0, store.n_rows
    stop = store.n_rows - kept_back
    if stop <= 0:
        raise DataError(
            f"activation store of {store.n_rows * per_row:,} tokens: fold.calibration_tokens = {calibration_tokens:,} "
            "leaves none to train on; raise activations.total_tokens or lower fold.calibration_tokens"
        )
    return 0, stop // store.chunk_rows * store.chunk_rows or stop


def calibration_rows(store: Rows, calibration_tokens: int) -> tuple[int, int]:
    """The rows after :func:`training_rows`: kept from training, for `fold` to set thresholds on."""
    return training_rows(store, calibration_tokens)[1], store.n_rows
