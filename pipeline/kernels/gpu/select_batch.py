"""BatchTopK on the device: the n largest entries of a whole matrix, in the order of their places, ties to the smaller place.

A strided sample gives a bound that somewhat more than n entries should reach; these are written out, in order, and the rest
works on them alone: a histogram of the upper 16 bits of their keys (and one of the lower bits, where values have 32) gives the
n-th largest exactly, and the entries above it, and the first at it, are written at running sums. Where the bound was wrong
(fewer than n reach it, or more than there is room for) the same kernels go over the whole matrix instead; the choice is made
on the device. z is read three times, and nothing of its size is written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.gpu.keys import KEY_BITS, ordered_keys
from pipeline.kernels.gpu.running import running
from pipeline.kernels.gpu.select_rows import row_bounds

BINS = 2**16
BLOCK = 8192  # entries of a program
SCANNED, WARPS = 512, 2  # of one that writes some of them, or works on candidates
WANTED = 170  # entries of the sample that would be chosen
SLACK = 1.5  # candidates aimed at, relative to the budget
ROOM = 4  # candidates there is room for, relative to the budget


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


class _Source(NamedTuple):
    """What the n largest are looked for in: values, their places (None: their own), their number on the device."""

    values: Tensor
    places: Tensor | None
    number: Tensor
    block: int

    @property
    def grid(self) -> tuple[int]:
        return _grid(self.values, self.block)


@triton.jit
def _keys_of(values, count, BLOCK: tl.constexpr, BITS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(values + at, mask=inside, other=0.0)
    return at, inside, value, ordered_keys(value.to(tl.float32), BITS)


@triton.jit
def _count_reach(z, bound, counts, count, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """Entries whose upper 16 bits reach the bound, by block."""
    _, inside, _, keys = _keys_of(z, count, BLOCK, BITS)
    reach = inside & ((keys >> (BITS - 16)) >= tl.load(bound).to(tl.uint32))
    tl.store(counts + tl.program_id(0), tl.sum(reach.to(tl.int32), 0))


@triton.jit
def _write_reach(z, bound, before, n_candidates, places, values, count, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """These entries, in order; nothing if there are no usable candidates."""
    block = tl.program_id(0)
    first, last = tl.load(before + block), tl.load(before + block + 1)
    if (last > first) & (tl.load(n_candidates) > 0):
        at, inside, value, keys = _keys_of(z, count, BLOCK, BITS)
        reach = inside & ((keys >> (BITS - 16)) >= tl.load(bound).to(tl.uint32))
        slot = first + tl.cumsum(reach.to(tl.int32), 0) - 1
        tl.store(places + slot, at, mask=reach)
        tl.store(values + slot, value, mask=reach)


@triton.jit
def _histogram(values, count, bins, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """Upper 16 bits of the keys."""
    n = tl.load(count)
    if tl.program_id(0).to(tl.int64) * BLOCK < n:
        _, inside, _, keys = _keys_of(values, n, BLOCK, BITS)
        tl.atomic_add(bins + (keys >> (BITS - 16)).to(tl.int32), 1, mask=inside, sem="relaxed")


@triton.jit
def _lower_histogram(values, count, upper, bins, BLOCK: tl.constexpr):
    """Lower 16 bits of the 32-bit keys whose upper half is `upper`."""
    n = tl.load(count)
    if tl.program_id(0).to(tl.int64) * BLOCK < n:
        _, inside, _, keys = _keys_of(values, n, BLOCK, 32)
        inside = inside & ((keys >> 16).to(tl.int32) == tl.load(upper))
        tl.atomic_add(bins + (keys & 0xFFFF).to(tl.int32), 1, mask=inside, sem="relaxed")


@triton.jit
def _count(values, count, threshold, above, level, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """Entries above and at the threshold's key, by block."""
    n, n_above, n_level = tl.load(count), tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    if tl.program_id(0).to(tl.int64) * BLOCK < n:
        _, inside, _, keys = _keys_of(values, n, BLOCK, BITS)
        t = tl.load(threshold).to(tl.uint32)
        n_above = tl.sum(((keys > t) & inside).to(tl.int32), 0)
        n_level = tl.sum(((keys == t) & inside).to(tl.int32), 0)
    tl.store(above + tl.program_id(0), n_above)
    tl.store(level + tl.program_id(0), n_level)


@triton.jit
def _write(
    values, places, count, threshold, above_before, level_before, room, flat, out_values,
    HAS_PLACES: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The chosen entries; of those at the threshold the first, as many as there is room for."""
    block, free = tl.program_id(0), tl.load(room)
    first, levels = tl.load(above_before + block), tl.load(level_before + block)
    here = tl.load(above_before + block + 1) - first
    level_here = tl.load(level_before + block + 1) - levels
    if (here > 0) | ((level_here > 0) & (levels < free)):
        at, inside, value, keys = _keys_of(values, tl.load(count), BLOCK, BITS)
        t = tl.load(threshold).to(tl.uint32)
        above = (keys > t) & inside
        equal = (keys == t) & inside
        chosen = above | (equal & (levels + tl.cumsum(equal.to(tl.int32), 0) <= free))
        slot = first + tl.minimum(levels, free) + tl.cumsum(chosen.to(tl.int32), 0) - 1
        place = at
        if HAS_PLACES:
            place = tl.load(places + at, mask=chosen, other=0)
        tl.store(flat + slot, place, mask=chosen)
        tl.store(out_values + slot, value, mask=chosen)


def select_batch(z: Tensor, n: int) -> BatchSelection:
    """The n largest entries of z.

    Args:
        z: [B, F] contiguous, float32, float16 or bfloat16.
        n: 1 <= n <= B F < 2^31.
    """
    n_rows, n_columns = z.shape
    bits, device = KEY_BITS[z.dtype], z.device
    sources = _sources(z, n, bits)
    bins = torch.zeros(2, BINS, dtype=torch.int32, device=device)
    for source in sources:
        _histogram[source.grid](source.values, source.number, bins[0], BLOCK=source.block, BITS=bits)
    threshold, room = _digit(bins[0], torch.full((), n, dtype=torch.int64, device=device))
    if bits == 32:
        for source in sources:
            _lower_histogram[source.grid](source.values, source.number, threshold, bins[1], BLOCK=source.block)
        lower, room = _digit(bins[1], room)
        threshold = threshold.to(torch.int64) * BINS + lower
    starts = (0, sources[0].grid[0])
    above, level = torch.empty(2, starts[1] + sources[1].grid[0], dtype=torch.int32, device=device)
    for source, start in zip(sources, starts, strict=True):
        _count[source.grid](
            source.values, source.number, threshold, above[start:], level[start:], BLOCK=source.block, BITS=bits
        )
    above_before, level_before = running(above), running(level)
    flat = torch.empty(n, dtype=torch.int64, device=device)
    found = torch.empty(n, dtype=z.dtype, device=device)
    for source, start in zip(sources, starts, strict=True):
        _write[source.grid](
            source.values, source.places, source.number, threshold, above_before[start:], level_before[start:], room,
            flat, found, HAS_PLACES=source.places is not None, BLOCK=source.block, BITS=bits,
        )  # fmt: skip
    rows = torch.arange(n_rows + 1, device=device) * n_columns
    return BatchSelection(flat, found, torch.searchsorted(flat, rows, out_int32=True))


def _sources(z: Tensor, n: int, bits: int) -> list[_Source]:
    """The candidates and the whole matrix; one of them has a count of 0."""
    total = z.numel()
    stride = max(1, n // WANTED) | 1
    sample = z.reshape(1, -1)[:, ::stride].contiguous()
    wanted = min(int(SLACK * n / stride) + 8, sample.numel())
    bound = row_bounds(sample, wanted)
    grid = _grid(z, SCANNED)
    launch = {"BLOCK": SCANNED, "BITS": bits, "num_warps": WARPS}
    counts = torch.empty(grid[0], dtype=torch.int32, device=z.device)
    _count_reach[grid](z, bound, counts, total, **launch)
    before = running(counts)
    capacity = min(ROOM * n, total)
    usable = (before[-1] >= n) & (before[-1] <= capacity)
    n_candidates = torch.where(usable, before[-1], 0)
    places = torch.empty(capacity, dtype=torch.int64, device=z.device)
    values = torch.empty(capacity, dtype=z.dtype, device=z.device)
    _write_reach[grid](z, bound, before, n_candidates, places, values, total, **launch)
    return [_Source(values, places, n_candidates, SCANNED), _Source(z, None, torch.where(usable, 0, total), BLOCK)]


def _grid(values: Tensor, block: int) -> tuple[int]:
    return (triton.cdiv(values.numel(), block),)


def _digit(counts: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """The largest bin with at least n entries in it and above, and how many of n are left for it (int32, int64 scalars)."""
    from_above = counts.flip(0).cumsum(0)
    place = (from_above < n).sum()
    above = torch.nn.functional.pad(from_above, (1, 0)).gather(0, place[None]).squeeze(0)
    return (len(counts) - 1 - place).to(torch.int32), n - above
