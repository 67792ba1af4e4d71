"""BatchTopK on the device: the n largest entries of a whole matrix, in the order of their places, ties to the smaller place.

A strided sample bounds the n-th largest from below; a histogram of the upper 16 bits of the keys above that bound, and
where the values have 32 bits one of the lower half, gives it exactly (were the bound too high, a second histogram below it).
Entries above it are counted by block and written out at the running sum. z is read three times, four with 32 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.gpu.keys import KEY_BITS, ordered_keys
from pipeline.kernels.gpu.select_rows import fits, select_rows

BINS = 2**16
BLOCK = 4096
SAMPLE = 2**17  # values that tell where the candidates lie
SLACK = 1.5  # candidates aimed at, relative to the budget


class BatchSelection(NamedTuple):
    """The chosen entries of a matrix.

    Attributes:
        flat: int64 [n], places in the flattened matrix, ascending.
        values: [n], the entries there, in their dtype.
        offsets: int32 [B + 1], where the entries of each row begin in `flat`, and n.
    """

    flat: Tensor
    values: Tensor
    offsets: Tensor


@triton.jit
def _block(z, row, part, n_columns, BLOCK: tl.constexpr, BITS: tl.constexpr):
    at = part * BLOCK + tl.arange(0, BLOCK)
    inside = at < n_columns
    value = tl.load(z + row * n_columns + at, mask=inside, other=0.0)
    return at, inside, value, ordered_keys(value.to(tl.float32), BITS)


@triton.jit
def _histogram(
    z, bound, counted, bins, n_columns, n, BELOW: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Upper 16 bits of the keys at or above the bound's; with BELOW of the others, if those were fewer than n."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wanted = True
    if BELOW:
        wanted = tl.load(counted) < n
    if wanted:
        _, inside, _, keys = _block(z, row, part, n_columns, BLOCK, BITS)
        upper = keys >> (BITS - 16)
        least = ordered_keys(tl.load(bound).to(tl.float32), BITS) >> (BITS - 16)
        if BELOW:
            inside = inside & (upper < least)
        else:
            inside = inside & (upper >= least)
        tl.atomic_add(bins + upper.to(tl.int32), 1, mask=inside, sem="relaxed")


@triton.jit
def _lower_histogram(z, upper, bins, n_columns, BLOCK: tl.constexpr):
    """Lower 16 bits of the 32-bit keys whose upper half is `upper`."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _, inside, _, keys = _block(z, row, part, n_columns, BLOCK, 32)
    inside = inside & ((keys >> 16).to(tl.int32) == tl.load(upper))
    tl.atomic_add(bins + (keys & 0xFFFF).to(tl.int32), 1, mask=inside, sem="relaxed")


@triton.jit
def _count(z, threshold, above, level, n_columns, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """Entries above and at the threshold's key, by block."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _, inside, _, keys = _block(z, row, part, n_columns, BLOCK, BITS)
    t = tl.load(threshold).to(tl.uint32)
    at = row * tl.num_programs(1) + part
    tl.store(above + at, tl.sum(((keys > t) & inside).to(tl.int32), 0))
    tl.store(level + at, tl.sum(((keys == t) & inside).to(tl.int32), 0))


@triton.jit
def _write(
    z, threshold, above_before, level_before, n, flat, values, n_columns, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The chosen entries; of those at the threshold the first, as many as there is room for."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block = row * tl.num_programs(1) + part
    n_blocks = tl.num_programs(0) * tl.num_programs(1)
    room = n - tl.load(above_before + n_blocks)
    first, levels = tl.load(above_before + block), tl.load(level_before + block)
    here = tl.load(above_before + block + 1) - first
    level_here = tl.load(level_before + block + 1) - levels
    if (here > 0) | ((level_here > 0) & (levels < room)):
        at, inside, value, keys = _block(z, row, part, n_columns, BLOCK, BITS)
        t = tl.load(threshold).to(tl.uint32)
        above = (keys > t) & inside
        equal = (keys == t) & inside
        chosen = above | (equal & (levels + tl.cumsum(equal.to(tl.int32), 0) <= room))
        slot = first + tl.minimum(levels, room) + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(flat + slot, row * n_columns + at, mask=chosen)
        tl.store(values + slot, value, mask=chosen)


def select_batch(z: Tensor, n: int) -> BatchSelection:
    """The n largest entries of z.

    Args:
        z: [B, F] contiguous, float32, float16 or bfloat16.
        n: 1 <= n <= B F.
    """
    n_rows, n_columns = z.shape
    bits = KEY_BITS[z.dtype]
    grid = (n_rows, triton.cdiv(n_columns, BLOCK))
    block = min(BLOCK, triton.next_power_of_2(n_columns))
    bound = _lower_bound(z, n)
    counts = torch.zeros(BINS, dtype=torch.int32, device=z.device)
    counted = torch.zeros((), dtype=torch.int64, device=z.device)
    for below in (False, True):
        _histogram[grid](z, bound, counted, counts, n_columns, n, BELOW=below, BLOCK=block, BITS=bits)
        counted = counts.sum()
    threshold, more = _digit(counts, torch.full((), n, dtype=torch.int64, device=z.device))
    if bits == 32:
        lower = torch.zeros(BINS, dtype=torch.int32, device=z.device)
        _lower_histogram[grid](z, threshold, lower, n_columns, BLOCK=block)
        threshold = threshold.to(torch.int64) * BINS + _digit(lower, more)[0]
    above, level = (torch.empty(grid, dtype=torch.int32, device=z.device) for _ in range(2))
    _count[grid](z, threshold, above, level, n_columns, BLOCK=block, BITS=bits)
    above_before, level_before = _before(above), _before(level)
    flat = torch.empty(n, dtype=torch.int64, device=z.device)
    values = torch.empty(n, dtype=z.dtype, device=z.device)
    _write[grid](z, threshold, above_before, level_before, n, flat, values, n_columns, BLOCK=block, BITS=bits)
    rows = slice(None, None, grid[1])
    offsets = above_before[rows] + torch.minimum(level_before[rows], n - above_before[-1])
    return BatchSelection(flat, values, offsets)


def _lower_bound(z: Tensor, n: int) -> Tensor:
    """A value that probably more than n entries exceed, from a strided sample; [] in z's dtype."""
    n_values = z.numel()
    stride = max(1, n_values // SAMPLE) | 1
    sample = z.reshape(1, -1)[:, ::stride].contiguous()
    wanted = min(int(SLACK * n / stride) + 32, sample.numel())
    if not fits(sample.numel(), wanted):
        return sample.topk(wanted, sorted=False).values.min()
    return select_rows(sample, wanted).values.min()


def _digit(counts: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """The largest bin with at least n entries in it and above, and how many of n are left for it (int32, int64 scalars)."""
    from_above = counts.flip(0).cumsum(0)
    place = (from_above < n).sum()
    above = torch.where(place > 0, from_above[(place - 1).clamp_min(0)], 0)
    return (len(counts) - 1 - place).to(torch.int32), n - above


def _before(counts: Tensor) -> Tensor:
    """Running sums before each block and after the last, int32."""
    sums = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts.reshape(-1), 0, dtype=torch.int32, out=sums[1:])
    return sums


