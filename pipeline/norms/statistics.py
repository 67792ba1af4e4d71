"""Streaming statistics of activations at one hook point: mergeable, in any order, in memory that does not grow.

Kept, all in float64 (counts in int64), for rows x of width d:

- n, sum of ||x||, sum of ||x||^2, sum of x, sum of x x^T, of the rows that are not massive (pipeline/norms/exclusion.py);
- the number of massive rows, the largest norm, and a histogram of ||x|| of all rows, massive ones too, in bins of equal
  relative width 1e-3, from which any quantile follows to 1e-3 relative;
- the number of rows with a non-finite value, which take no part in anything else.

Merging adds them up. Sums of float64 values differ by rounding between orders, about 1e-15 relative.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.norms.exclusion import MASSIVE_FACTOR

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
        median_norm: median norm of some of the rows, by which massive ones are told; None: none is.
        max_norm_factor: activations.max_norm_factor; None: rows above MASSIVE_FACTOR medians are massive.
    """

    def __init__(
        self,
        width: int,
        device: str | torch.device = "cpu",
        median_norm: float | None = None,
        max_norm_factor: float | None = None,
    ) -> None:
        self.width, self.device = width, torch.device(device)
        self.median_norm, self.max_norm_factor = median_norm, max_norm_factor
        self.massive_norm = None if median_norm is None else (max_norm_factor or MASSIVE_FACTOR) * median_norm
        self.n = 0
        self.n_massive = 0
        self.largest_norm = 0.0
        self.nonfinite = 0
        self.sum_norm = 0.0
        self.sum_square = 0.0
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.outer = torch.zeros((width, width), dtype=torch.float64, device=device)
        # Bin 0: norms below LOWEST_NORM (zero among them); bins 1..N_BINS; the last: above HIGHEST_NORM.
        self.counts = torch.zeros(N_BINS + 2, dtype=torch.int64)

    def update(self, x: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Add rows.

        Args:
            x: [..., d], any float dtype.
            mask: bool [...], True where a row counts; None: all.

        Returns: bool [...], True for a massive row that counts; None where there is none.
        """
        rows = x.reshape(-1, self.width)
        if mask is not None:
            rows = rows[mask.reshape(-1)]
        before, step = self.n_massive, max(_BLOCK_ELEMENTS // self.width, 1)
        massive = [
            self._add(rows[start : start + step].to(device=self.device, dtype=torch.float64))
            for start in range(0, len(rows), step)
        ]
        if self.n_massive == before:
            return None
        found = torch.zeros(x.shape[:-1], dtype=torch.bool)
        found[torch.ones_like(found) if mask is None else mask.cpu()] = torch.cat(massive).cpu()
        return found

    @property
    def n_excluded(self) -> int:
        """Rows that activations.max_norm_factor leaves out: the massive ones, none where it is null."""
        return 0 if self.max_norm_factor is None else self.n_massive

    def _add(self, rows: Tensor) -> Tensor:
        """Add rows; which of them are massive."""
        squares = rows.square().sum(dim=1)
        every = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        finite = torch.isfinite(rows).all(dim=1) if not bool(torch.isfinite(squares).all()) else ~every
        if len(finite) > (n_finite := int(finite.sum())):
            self.nonfinite += len(finite) - n_finite
            rows, squares = rows[finite], squares[finite]
        norms = squares.sqrt()
        bins = (norms.clamp(min=LOWEST_NORM / 2).log() - math.log(LOWEST_NORM)).div(BIN_WIDTH).floor().long() + 1
        self.counts += torch.bincount(bins.clamp(0, N_BINS + 1).cpu(), minlength=N_BINS + 2)
        if len(norms):
            self.largest_norm = max(self.largest_norm, float(norms.max()))
        if self.massive_norm is not None and bool((massive := norms > self.massive_norm).any()):
            every[finite] = massive
            self.n_massive += int(massive.sum())
            rows, squares, norms = rows[~massive], squares[~massive], norms[~massive]
        self.n += len(rows)
        self.sum_norm += float(norms.sum())
        self.sum_square += float(squares.sum())
        self.total += rows.sum(dim=0)
        self.outer.addmm_(rows.T, rows)
        return every

    def merge(self, other: ActivationStatistics) -> ActivationStatistics:
        """The statistics of both sets of rows together; neither is changed.

        Raises:
            ValueError: other widths, or massive rows told by another norm.
        """
        if self.width != other.width:
            raise ValueError(f"statistics of width {self.width} and {other.width} cannot be merged")
        rule = (self.median_norm, self.max_norm_factor)
        if rule != (other.median_norm, other.max_norm_factor):
            raise ValueError("statistics with other median norms or factors cannot be merged: their massive rows differ")
        merged = ActivationStatistics(self.width, self.device, *rule)
        merged.n, merged.nonfinite = self.n + other.n, self.nonfinite + other.nonfinite
        merged.n_massive = self.n_massive + other.n_massive
        merged.largest_norm = max(self.largest_norm, other.largest_norm)
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
        """The norm below which a share q of all rows lies, massive ones too; within a bin the logarithm is interpolated."""
        edges = _bin_edges()
        cumulative = np.cumsum(self.counts.numpy())
        wanted = q * (self.n + self.n_massive)
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
