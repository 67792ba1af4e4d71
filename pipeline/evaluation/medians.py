"""Median of many positive numbers that come batch by batch, in memory that does not grow with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BIN_WIDTH = 1e-3  # of the natural logarithm
LOWEST, HIGHEST = 1e-12, 1e12
N_BINS = math.ceil(math.log(HIGHEST / LOWEST) / BIN_WIDTH)


class StreamingMedian:
    """Counts of numbers in bins of equal relative width.

    A number counts as the geometric middle of its bin, so that the median is off by at most half a width, 5.1e-4 relative;
    below LOWEST it counts as 0, above HIGHEST as HIGHEST.
    """

    def __init__(self) -> None:
        # Bin 0: below LOWEST; bins 1..N_BINS; the last: above HIGHEST.
        self.counts = torch.zeros(N_BINS + 2, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Add numbers >= 0, float64 of any shape; infinity is one."""
        logs = values.flatten().clamp(LOWEST / 2, 2 * HIGHEST).log()
        bins = ((logs - math.log(LOWEST)) / BIN_WIDTH).floor().long() + 1
        self.counts += torch.bincount(bins.clamp(0, N_BINS + 1).cpu(), minlength=N_BINS + 2)

    def add_all(self, other: StreamingMedian) -> None:
        """Add what another one has counted."""
        self.counts += other.counts

    def value(self) -> float | None:
        """The median (of an even number of numbers the mean of the middle two); None: there are none."""
        cumulative = self.counts.cumsum(0)
        n = int(cumulative[-1])
        if n == 0:
            return None
        bins = torch.searchsorted(cumulative, torch.tensor([(n - 1) // 2, n // 2]), right=True).tolist()
        return sum(map(_middle, bins)) / 2


def _middle(place: int) -> float:
    if place == 0:
        return 0.0
    return HIGHEST if place > N_BINS else LOWEST * math.exp(BIN_WIDTH * (place - 0.5))
