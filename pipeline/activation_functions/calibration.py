"""One JumpReLU threshold from batches of a topk-family dictionary (SPEC 2.2).

Two estimates, in gating units:
  mean of minimum   mean over batches of the smallest positive kept z (Bussmann et al. 2024)
  quantile          halfway between the K-th and the (K+1)-th largest z of all batches, K the number of kept entries
The one whose L0 on these batches is nearer to the dictionary's own is used. For BatchTopK the two agree; the minimum
over a batch of per-token TopK gates is an extreme value, there the quantile wins.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pipeline.errors import NumericsError

POOL_FACTOR = 4  # a batch's z are remembered down to its (4 k tokens)-th largest: room for batches that differ


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        threshold: theta, in gating units.
        mean_of_minimum, quantile: the two estimates.
        l0_before: open features per kept token under the trained gate.
        l0_after: under z > threshold, on the same tokens.
        n_tokens: kept tokens.
    """

    threshold: float
    mean_of_minimum: float
    quantile: float
    l0_before: float
    l0_after: float
    n_tokens: int


class ThresholdCalibrator:
    """Collects batches; memory is 4 k values per token.

    Args:
        k: the trained gate's features per token.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._pools: list[Tensor] = []
        self._minima: list[float] = []
        self._edge = 0.0
        self._n_kept = 0
        self._n_tokens = 0

    def add(self, z: Tensor, support: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch: z [..., F], support bool [..., F] of the trained gate, mask bool [...] (token dimensions)."""
        rows = z.reshape(-1, z.shape[-1])
        support = support.reshape(rows.shape)
        if mask is not None:
            kept_rows = mask.reshape(-1)
            rows, support = rows[kept_rows], support[kept_rows]
        self._n_tokens += rows.shape[0]
        open_values = rows[support & (rows > 0)]
        self._n_kept += open_values.numel()
        if open_values.numel():
            self._minima.append(float(open_values.min()))
        positive = rows[rows > 0]
        room = POOL_FACTOR * self.k * rows.shape[0]
        if positive.numel() > room:
            positive = positive.topk(room, sorted=False).values
            self._edge = max(self._edge, float(positive.min()))
        self._pools.append(positive.double().cpu())

    def result(self) -> Calibration:
        """The threshold.

        Raises:
            NumericsError: no positive gating value was kept.
        """
        if not self._n_kept:
            raise NumericsError(
                f"calibration: no positive gating value was kept on {self._n_tokens:,} tokens, so there is no "
                f"threshold: L0 before 0.0 (budget {self.k}), L0 after 0.0; the dictionary is dead or its input is not "
                "scaled as it was in training"
            )
        values = torch.cat(self._pools).sort(descending=True).values
        below = float(values[self._n_kept]) if len(values) > self._n_kept else 0.0
        quantile = (float(values[self._n_kept - 1]) + below) / 2
        mean_of_minimum = sum(self._minima) / len(self._minima)

        def served(threshold: float) -> float:
            return float((values > threshold).sum()) / self._n_tokens

        l0_before = self._n_kept / self._n_tokens
        usable = [theta for theta in (mean_of_minimum, quantile) if theta >= self._edge] or [mean_of_minimum]
        threshold = min(usable, key=lambda theta: abs(served(theta) - l0_before))
        return Calibration(threshold, mean_of_minimum, quantile, l0_before, served(threshold), self._n_tokens)
