"""TopK on the device: the k largest of each row, in the order of their places, ties to the smaller place.

A row of up to BLOCK entries is held by one program, which finds its k-th largest key bit by bit. Of a longer row each
program takes one block's k largest, and a second pass the k largest of those. z is read once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.gpu.keys import KEY_BITS, kth_largest, ordered_keys

BLOCK = 8192  # entries that a program holds
MOST_CANDIDATES = 16384  # that the second pass holds


class RowSelection(NamedTuple):
    """The chosen entries of each row.

    Attributes:
        index: int32 [B, k], columns, ascending in each row.
        values: [B, k], the entries of h there, in its dtype.
    """

    index: Tensor
    values: Tensor


@triton.jit
def _select_rows(
    h, places, scale, out_index, out_values, n_columns, k,
    HAS_PLACES: tl.constexpr, HAS_SCALE: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    inside = at < n_columns
    value = tl.load(h + row * n_columns + at, mask=inside, other=0.0)
    column = at
    if HAS_PLACES:
        column = tl.load(places + row * n_columns + at, mask=inside, other=-1)
        inside = column >= 0
    gating = value.to(tl.float32)
    if HAS_SCALE:
        gating = gating * tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    keys = tl.where(inside, ordered_keys(gating, BITS), 0)
    wanted = tl.minimum(k, tl.sum(inside.to(tl.int32), 0))
    threshold = kth_largest(keys, wanted, BITS)
    above = (keys > threshold) & inside
    level = (keys == threshold) & inside
    room = wanted - tl.sum(above.to(tl.int32), 0)
    chosen = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= room))
    slot = (row * tl.num_programs(1) + part) * k + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(out_index + slot, column, mask=chosen)
    tl.store(out_values + slot, value, mask=chosen)
    # Slots of a block with fewer than k entries.
    empty = (row * tl.num_programs(1) + part) * k + wanted + tl.arange(0, BLOCK)
    tl.store(out_index + empty, tl.full((BLOCK,), -1, tl.int32), mask=tl.arange(0, BLOCK) < k - wanted)


def fits(n_columns: int, k: int) -> bool:
    """Whether :func:`select_rows` takes rows of this length and this k."""
    parts = triton.cdiv(n_columns, BLOCK)
    return 1 <= k <= min(n_columns, BLOCK) and (parts == 1 or parts * k <= MOST_CANDIDATES)


def select_rows(h: Tensor, k: int, scale: Tensor | None = None) -> RowSelection:
    """The k entries of each row with the largest gating value h * scale.

    Args:
        h: [B, F] contiguous, float32, float16 or bfloat16.
        k: with F as :func:`fits` says.
        scale: [F] float32, not negative; None: 1. With it gating values are compared in float32.
    """
    n_rows, n_columns = h.shape
    parts = triton.cdiv(n_columns, BLOCK)
    bits = 32 if scale is not None else KEY_BITS[h.dtype]
    index, values = _pass(h, None, scale, k, bits, parts)
    if parts > 1:
        index, values = _pass(values, index, scale, k, bits, 1)
    return RowSelection(index.reshape(n_rows, k), values.reshape(n_rows, k))


def _pass(h: Tensor, places: Tensor | None, scale: Tensor | None, k: int, bits: int, parts: int) -> tuple[Tensor, Tensor]:
    n_rows, n_columns = h.shape
    index = torch.empty(n_rows, parts * k, dtype=torch.int32, device=h.device)
    values = torch.empty(n_rows, parts * k, dtype=h.dtype, device=h.device)
    block = BLOCK if parts > 1 else triton.next_power_of_2(n_columns)
    _select_rows[(n_rows, parts)](
        h, places, scale, index, values, n_columns, k,
        HAS_PLACES=places is not None, HAS_SCALE=scale is not None, BLOCK=block, BITS=bits,
        num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip
    return index, values
