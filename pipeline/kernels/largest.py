"""The places of the k largest of each row, or of what exceeds a bound (CPU), in order.

The k largest are exact, with a fraction of the work of ranking every value:

    m_g = the largest value of group g of neighbours                      one pass over all values
    bound = the k-th largest m of the row                                 so k values at least are not below it
    cut = the k-th largest value of the groups with m >= bound, of which there are k: the k-th largest of the row
    places of these groups whose value is not below the cut

Of one long vector (the k B largest of a batch) the bound comes from a strided sample instead, and where fewer than k values
reach it, from the groups.

Of equal values at the cut those of the smallest places are taken. What is not a number counts as largest.
numpy's partition and search for set flags take a third of the time that torch's take on the CPU.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool1d

from pipeline.kernels.row_parts import in_parts

GROUPS = (64, 32, 16, 8)  # neighbours that one bound is taken of
SAMPLE_STRIDE = 16  # of a vector: one value in so many tells where the candidates lie
SAMPLE_SLACK = 1.15  # candidates aimed at, relative to k
SAMPLE_FROM = 2**18  # values; below, a sample saves nothing

Array = NDArray[Any]


def largest_places(rows: Tensor, k: int) -> Tensor:
    """Where the k largest values of each row are.

    Args:
        rows: floating [R, n] on the CPU.
        k: 1 to n.

    Returns: int64 [R k], places in the flattened rows, ascending.
    """
    rows = _comparable(rows)
    n_rows, n = rows.shape
    if k >= n:
        return torch.arange(rows.numel())
    group = _group(n, k)
    maxima = rows if group == 1 else max_pool1d(rows, group)

    def part(first: int, last: int) -> Array:
        return _places(rows[first:last].numpy(), maxima[first:last].numpy(), k, group) + first * n

    return _together(in_parts(part, (n_rows, n)))


def largest_places_of_all(rows: Tensor, k: int) -> Tensor:
    """Where the k largest of all values are.

    Args:
        rows: floating [R, n] on the CPU.
        k: 0 to R n.

    Returns: int64 [k], places in the flattened rows, ascending.
    """
    vector = _comparable(rows).reshape(-1)
    if k == 0:
        return torch.empty(0, dtype=torch.int64)
    if len(vector) >= SAMPLE_FROM:
        array = vector.numpy()
        # Of a stride that divides no row, or the sample would be of a few columns.
        sample = array[:: next(s for s in range(SAMPLE_STRIDE, len(array)) if math.gcd(s, rows.shape[1]) == 1)]
        wanted = math.ceil(SAMPLE_SLACK * k * len(sample) / len(array)) + 8
        if wanted < len(sample):
            at = len(sample) - wanted
            candidates = np.flatnonzero(~(array <= np.partition(sample, at)[at]))
            if len(candidates) >= k:
                chosen = _among_largest(array.take(candidates)[None], k)[0]
                return torch.from_numpy(candidates[chosen])
    return largest_places(vector[None], k)


def places_above(rows: Tensor, bounds: Tensor, kept: Tensor | None = None) -> Tensor:
    """Where values exceed the bound of their column, or are no number.

    Args:
        rows: floating [R, n] on the CPU.
        bounds: [n].
        kept: bool [R], False for a row of which nothing is wanted; None: all.

    Returns: int64 [N], places in the flattened rows, ascending.
    """
    array, limit = _comparable(rows).numpy(), _comparable(bounds).numpy()

    def part(first: int, last: int) -> Array:
        above = ~(array[first:last] <= limit)
        if kept is not None:
            above &= kept[first:last, None].numpy()
        return np.flatnonzero(above) + first * rows.shape[1]

    return _together(in_parts(part, (len(rows), rows.shape[1])))


def _together(found: list[Array]) -> Tensor:
    return torch.from_numpy(np.concatenate(found)) if found else torch.empty(0, dtype=torch.int64)


def _comparable(rows: Tensor) -> Tensor:
    """Contiguous, of a type that numpy ranks fast."""
    wide = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    return wide.detach().contiguous()


def _group(n: int, k: int) -> int:
    """Neighbours in a group: about the root of 2 n / k, so that both rankings are of as many; 1 where that saves nothing."""
    return next((group for group in GROUPS if group * group <= 2 * n / k and n % group == 0), 1)


def _places(rows: Array, maxima: Array, k: int, group: int) -> Array:
    """Places in the flattened rows [R, n], ascending, k of each row; maxima: [R, n / group].

    Where several maxima are equal to the bound, groups beyond the k-th are not looked at: an equal value of theirs comes after
    one in each group that is.
    """
    chosen = np.flatnonzero(_among_largest(maxima, k))
    if group == 1:
        return chosen
    values = rows.reshape(-1, group).take(chosen, axis=0).reshape(len(rows), -1)
    within = np.flatnonzero(_among_largest(values, k))
    shift = group.bit_length() - 1
    return (chosen.take(within >> shift) << shift) + (within & (group - 1))


def _among_largest(rows: Array, k: int) -> Array:
    """Bool [R, n], k of each row."""
    at = rows.shape[1] - k
    cut = np.partition(rows, at, axis=1)[:, at : at + 1]  # what is not a number comes last
    chosen = ~(rows < cut)
    if np.count_nonzero(chosen) > k * len(rows):
        several = chosen.sum(1) > k
        rows, cut = (np.where(np.isnan(part), np.inf, part) for part in (rows[several], cut[several]))
        above, equal = rows > cut, rows == cut
        chosen[several] = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdims=True)))
    return chosen
