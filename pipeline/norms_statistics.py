"""Streaming statistics of activations at one hook point: mergeable, in any order, in memory that does not grow.

Kept, all in float64 (counts in int64), for rows x of width d:

- n, sum of ||x||, sum of ||x||^2, sum of x, sum of x x^T;
- a histogram of ||x|| in bins of equal relative width 1e-3, from which any quantile follows to 1e-3 relative;
- the number of rows with a non-finite value, which take no part in anything else.

Merging adds them up. Sums of float64 values differ by rounding between orders, about 1e-15 relative.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

BIN_WIDTH = 1e-3  # of the natural logarithm
LOWEST_NORM, HIGHEST_NORM = 1e-8, 1e12
N_BINS = math.ceil(math.log(HIGHEST_NORM / LOWEST_NORM) / BIN_WIDTH)
QUANTILES = (0.01, 0.5, 0.99, 0.999)
MAX_EIGENVECTORS = 1024
_BLOCK_ELEMENTS = 2**21


class ActivationStatistics:
    """Statistics of the rows seen so far.

    Args:
        width: d.
        device: where the sums are kept and computed.
    """

    def __init__(self, width: int, device: str | torch.device = "cpu") -> None:
        self.width, self.device = width, torch.device(device)
        self.n = 0
        self.nonfinite = 0
        self.sum_norm = 0.0
        self.sum_square = 0.0
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.outer = torch.zeros((width, width), dtype=torch.float64, device=device)
        # Bin 0: norms below LOWEST_NORM (zero among them); bins 1..N_BINS; the last: above HIGHEST_NORM.
        self.counts = torch.zeros(N_BINS + 2, dtype=torch.int64)

    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Add rows.

        Args:
            x: [..., d], any float dtype.
            mask: bool [...], True where a row counts; None: all.
        """
        rows = x.reshape(-1, self.width)
        if mask is not None:
            rows = rows[mask.reshape(-1)]
        step = max(_BLOCK_ELEMENTS // self.width, 1)
        for start in range(0, len(rows), step):
            self._add(rows[start : start + step].to(device=self.device, dtype=torch.float64))

    def _add(self, rows: Tensor) -> None:
        squares = rows.square().sum(dim=1)
        finite = torch.isfinite(rows).all(dim=1) if not bool(torch.isfinite(squares).all()) else None
        if finite is not None:
            self.nonfinite += int((~finite).sum())
            rows, squares = rows[finite], squares[finite]
        norms = squares.sqrt()
        self.n += len(rows)
        self.sum_norm += float(norms.sum())
        self.sum_square += float(squares.sum())
        self.total += rows.sum(dim=0)
        self.outer.addmm_(rows.T, rows)
        bins = (norms.clamp(min=LOWEST_NORM / 2).log() - math.log(LOWEST_NORM)).div(BIN_WIDTH).floor().long() + 1
        self.counts += torch.bincount(bins.clamp(0, N_BINS + 1).cpu(), minlength=N_BINS + 2)

    def merge(self, other: ActivationStatistics) -> ActivationStatistics:
        """The statistics of both sets of rows together; neither is changed.

        Raises:
            ValueError: other widths.
        """
        if self.width != other.width:
            raise ValueError(f"statistics of width {self.width} and {other.width} cannot be merged")
        merged = ActivationStatistics(self.width, self.device)
        merged.n, merged.nonfinite = self.n + other.n, self.nonfinite + other.nonfinite
        merged.sum_norm = self.sum_norm + other.sum_norm
        merged.sum_square = self.sum_square + other.sum_square
        merged.total = self.total + other.total.to(self.device)
        merged.outer = self.outer + other.outer.to(self.device)
        merged.counts = self.counts + other.counts
        return merged

    @property
    def mean_norm(self) -> float:
        """Mean over rows of the L2 norm: m_p."""
        return self.sum_norm / self.n

    @property
    def mean_square(self) -> float:
        """Mean over rows of the squared L2 norm, E||x||^2."""
        return self.sum_square / self.n

    def mean(self) -> Tensor:
        """float64 [d], the mean row."""
        return self.total / self.n

    def covariance(self) -> Tensor:
        """float64 [d, d], E (x - mean)(x - mean)^T."""
        mean = self.mean()
        covariance = self.outer / self.n - torch.outer(mean, mean)
        return (covariance + covariance.T) / 2

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of the covariance, float64 [d], descending, none below 0; its leading eigenvectors, rows [r, d].

        An eigenvector's component of largest size is positive, so that equal data give equal vectors.
        """
        values, vectors = torch.linalg.eigh(self.covariance())
        rows = vectors.flip(1)[:, :MAX_EIGENVECTORS].T.contiguous()
        largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
        return values.flip(0).clamp(min=0.0).cpu(), torch.where(largest < 0, -rows, rows).cpu()

    def quantile(self, q: float) -> float:
        """The norm below which a share q of the rows lies; within a bin the logarithm is interpolated."""
        edges = _bin_edges()
        cumulative = np.cumsum(self.counts.numpy())
        wanted = q * self.n
        found = int(np.searchsorted(cumulative, wanted, side="left"))
        if found == 0:
            return 0.0
        before = int(cumulative[found - 1])
        share = (wanted - before) / int(self.counts[found])
        if found == N_BINS + 1:
            return float(edges[-1])
        return float(edges[found - 1] * math.exp(share * BIN_WIDTH))

    def histogram(self) -> tuple[Tensor, Tensor]:
        """Edges float64 [m + 1] and counts int64 [m] of the norm histogram, empty bins at both ends left out."""
        filled = self.counts[1:-1].nonzero().flatten()
        if not len(filled):
            return torch.zeros(1, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        first, last = int(filled[0]), int(filled[-1])
        return torch.from_numpy(_bin_edges()[first : last + 2]), self.counts[1 + first : last + 2].clone()


def effective_rank(eigenvalues: Tensor) -> int:
    """exp of the entropy of the normalised eigenvalues, rounded up (Roy and Vetterli 2007); 0 for a zero covariance.

    Args:
        eigenvalues: [d], none negative.
    """
    total = float(eigenvalues.sum())
    if total <= 0.0:
        return 0
    shares = eigenvalues.double() / total
    entropy = -float(torch.special.xlogy(shares, shares).sum())
    return math.ceil(math.exp(entropy) - 1e-9 * len(eigenvalues))


def _bin_edges() -> np.ndarray:
    return LOWEST_NORM * np.exp(BIN_WIDTH * np.arange(N_BINS + 1))
