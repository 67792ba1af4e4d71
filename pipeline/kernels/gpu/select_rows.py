"""TopK on the device: the k largest of each row, in the order of their places, ties to the smaller place.

Four passes. The largest entry of each group of neighbours; from these a bound that at least k entries reach (at least k
groups have one); the entries that reach it, few more than k, in order; of those the k largest. z is read twice, and nothing
of its size is written. Where more than CAPACITY(k) entries of a row reach the bound (many equal ones), that row is searched
bit by bit instead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.gpu.keys import KEY_BITS, kth_largest, ordered_keys

BLOCK = 4096  # entries of a program that looks for maxima
SCANNED, WARPS = 512, 2  # entries that a scan takes at once, and its warps
MOST_GROUPS = 16384


class RowSelection(NamedTuple):
    """The chosen entries of each row.

    Attributes:
        columns: int32 [B, k], ascending in each row.
        values: [B, k], the entries of h there, in its dtype.
    """

    columns: Tensor
    values: Tensor


@triton.jit
def _keys(value, scale, column, inside, HAS_SCALE: tl.constexpr, BITS: tl.constexpr):
    gating = value.to(tl.float32)
    if HAS_SCALE:
        gating = gating * tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, ordered_keys(gating, BITS), 0)


@triton.jit
def _group_maxima(
    h, scale, maxima, n_columns, n_groups,
    HAS_SCALE: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Upper 16 bits of the largest key of each group."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group = part * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = column < n_columns
    value = tl.load(h + row * n_columns + column, mask=inside, other=0.0)
    keys = _keys(value, scale, column, inside, HAS_SCALE, BITS)
    largest = tl.max((keys >> (BITS - 16)).to(tl.int32), 1)
    tl.store(maxima + row * n_groups + group, largest, mask=group < n_groups)


@triton.jit
def _bounds(maxima, bounds, n_groups, k, BLOCK: tl.constexpr):
    """The k-th largest maximum of each row."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    keys = tl.load(maxima + row * n_groups + at, mask=at < n_groups, other=0).to(tl.uint32)
    tl.store(bounds + row, kth_largest(keys, k, 16).to(tl.int32))


@triton.jit
def _candidates(
    h, scale, bounds, index, values, counts, n_columns, k, capacity,
    HAS_SCALE: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The entries whose upper 16 bits reach their row's bound; of a row with too many the k largest."""
    row = tl.program_id(0).to(tl.int64)
    bound = tl.load(bounds + row).to(tl.uint32)
    count = tl.zeros((), tl.int32)
    for left in range(0, n_columns, BLOCK):
        column = left + tl.arange(0, BLOCK)
        inside = column < n_columns
        value = tl.load(h + row * n_columns + column, mask=inside, other=0.0)
        reach = inside & ((_keys(value, scale, column, inside, HAS_SCALE, BITS) >> (BITS - 16)) >= bound)
        here = tl.sum(reach.to(tl.int32), 0)
        if (here > 0) & (count < capacity):
            slot = count + tl.cumsum(reach.to(tl.int32), 0) - 1
            fits = reach & (slot < capacity)
            tl.store(index + row * capacity + slot, column, mask=fits)
            tl.store(values + row * capacity + slot, value, mask=fits)
        count += here
    if count > capacity:
        threshold = tl.zeros((), tl.uint32)
        bit = tl.full((), 1 << (BITS - 1), tl.uint32)
        for _ in range(BITS):
            candidate = threshold | bit
            reached = tl.zeros((), tl.int32)
            for left in range(0, n_columns, BLOCK):
                column = left + tl.arange(0, BLOCK)
                inside = column < n_columns
                value = tl.load(h + row * n_columns + column, mask=inside, other=0.0)
                keys = _keys(value, scale, column, inside, HAS_SCALE, BITS)
                reached += tl.sum((keys >= candidate).to(tl.int32), 0)
            threshold = tl.where(reached >= k, candidate, threshold)
            bit = bit >> 1
        above = tl.zeros((), tl.int32)
        for left in range(0, n_columns, BLOCK):
            column = left + tl.arange(0, BLOCK)
            inside = column < n_columns
            value = tl.load(h + row * n_columns + column, mask=inside, other=0.0)
            above += tl.sum((_keys(value, scale, column, inside, HAS_SCALE, BITS) > threshold).to(tl.int32), 0)
        room = k - above
        count = tl.zeros((), tl.int32)
        for left in range(0, n_columns, BLOCK):
            column = left + tl.arange(0, BLOCK)
            inside = column < n_columns
            value = tl.load(h + row * n_columns + column, mask=inside, other=0.0)
            keys = _keys(value, scale, column, inside, HAS_SCALE, BITS)
            level = inside & (keys == threshold)
            chosen = (keys > threshold) | (level & (tl.cumsum(level.to(tl.int32), 0) <= room))
            slot = count + tl.cumsum(chosen.to(tl.int32), 0) - 1
            tl.store(index + row * capacity + slot, column, mask=chosen)
            tl.store(values + row * capacity + slot, value, mask=chosen)
            count += tl.sum(chosen.to(tl.int32), 0)
            room -= tl.sum((level & chosen).to(tl.int32), 0)
    tl.store(counts + row, count)


@triton.jit
def _pick(
    index, values, counts, scale, out_index, out_values, k, capacity,
    HAS_SCALE: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The k largest of each row's candidates."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = at < tl.load(counts + row)
    column = tl.load(index + row * capacity + at, mask=inside, other=0)
    value = tl.load(values + row * capacity + at, mask=inside, other=0.0)
    keys = _keys(value, scale, column, inside, HAS_SCALE, BITS)
    threshold = kth_largest(keys, k, BITS)
    above = inside & (keys > threshold)
    level = inside & (keys == threshold)
    room = k - tl.sum(above.to(tl.int32), 0)
    chosen = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= room))
    slot = row * k + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(out_index + slot, column, mask=chosen)
    tl.store(out_values + slot, value, mask=chosen)


def select_rows(h: Tensor, k: int, scale: Tensor | None = None) -> RowSelection:
    """The k entries of each row with the largest gating value h * scale.

    Args:
        h: [B, F] contiguous, float32, float16 or bfloat16.
        k: at most F.
        scale: [F] float32, not negative; None: 1. With it gating values are compared in float32.
    """
    n_rows, n_columns = h.shape
    bits = 32 if scale is not None else KEY_BITS[h.dtype]
    scaled = {"HAS_SCALE": scale is not None, "BITS": bits}

    def ints(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=h.device)

    bounds = row_bounds(h, k, scale)
    block = min(SCANNED, triton.next_power_of_2(n_columns))
    capacity = min(triton.next_power_of_2(2 * k + 64), triton.next_power_of_2(n_columns))
    index, counts = ints(n_rows, capacity), ints(n_rows)
    values = torch.empty(n_rows, capacity, dtype=h.dtype, device=h.device)
    _candidates[(n_rows,)](
        h, scale, bounds, index, values, counts, n_columns, k, capacity, BLOCK=block, num_warps=WARPS, **scaled
    )
    out_index, out_values = ints(n_rows, k), torch.empty(n_rows, k, dtype=h.dtype, device=h.device)
    _pick[(n_rows,)](
        index, values, counts, scale, out_index, out_values, k, capacity,
        BLOCK=capacity, num_warps=max(1, min(8, capacity // 512)), **scaled,
    )  # fmt: skip
    return RowSelection(out_index, out_values)


def row_bounds(h: Tensor, k: int, scale: Tensor | None = None) -> Tensor:
    """Upper 16 bits of a key that at least k entries of each row, and few more, reach: int32 [B]; arguments as above."""
    n_rows, n_columns = h.shape
    bits = 32 if scale is not None else KEY_BITS[h.dtype]
    group = _group(n_columns, k)
    n_groups = triton.cdiv(n_columns, group)
    maxima = torch.empty(n_rows, n_groups, dtype=torch.int32, device=h.device)
    bounds = torch.empty(n_rows, dtype=torch.int32, device=h.device)
    block = max(min(BLOCK, triton.next_power_of_2(n_columns)), group)
    grid = (n_rows, triton.cdiv(n_groups, block // group))
    _group_maxima[grid](h, scale, maxima, n_columns, n_groups, HAS_SCALE=scale is not None, GROUP=group, BLOCK=block, BITS=bits)
    of_groups = triton.next_power_of_2(n_groups)
    _bounds[(n_rows,)](maxima, bounds, n_groups, k, BLOCK=of_groups, num_warps=max(1, min(8, of_groups // 1024)))
    return bounds


def _group(n_columns: int, k: int) -> int:
    """Entries in a group: so many that there are about 1,024 groups, or 8 k where that is more."""
    groups = min(max(1024, 8 * triton.next_power_of_2(k)), MOST_GROUPS)
    return max(1, triton.next_power_of_2(n_columns) // groups)
