"""One number that sets how many features are active, from gating values: the threshold of a gate that has none yet, or the
factor of thresholds that are there (SPEC 2.2, 5).

Two estimates of a topk-family dictionary's threshold, in gating units:
  mean of minimum   mean over batches of the smallest positive kept z (Bussmann et al. 2024)
  quantile          halfway between the K-th and the (K+1)-th largest z of all batches, K the number of kept entries
The one whose L0 on these batches is nearer to the dictionary's own is used. For BatchTopK the two agree; the minimum
over a batch of per-token TopK gates is an extreme value, there the quantile wins.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from pipeline.errors import NumericsError
from pipeline.processes import ONE_PROCESS, Reductions

POOL_FACTOR = 4  # a batch's z are remembered down to its (4 k tokens)-th largest: room for batches that differ


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        threshold: theta, in gating units.
        mean_of_minimum, quantile: the two estimates.
        l0_before: active features per kept token under the trained gate.
        l0_after: under z > threshold, on the same tokens.
        n_tokens: kept tokens.
    """

    threshold: float
    mean_of_minimum: float
    quantile: float
    l0_before: float
    l0_after: float
    n_tokens: int


def quantile_threshold(
    z: Tensor, target_l0: float, mask: Tensor | None = None, feature_group: Reductions = ONE_PROCESS
) -> Tensor:
    """The threshold above which a batch has `target_l0` gating values a token.

    Args:
        z: gating values [..., F].
        target_l0: wanted mean number of z > theta over kept tokens, positive.
        mask: bool [...] over tokens, True for a kept one; None: all.
        feature_group: over the processes that hold the other features of the same tokens, as many each.

    Returns: positive scalar of z's dtype, halfway between the K-th and the (K + 1)-th largest z, K = round(target * kept
        tokens); between the smallest positive one and 0 where there are not so many positive ones. On the device of z;
        waits for the device only if there is a mask.

    Raises:
        NumericsError: no positive z (on the CPU; elsewhere the result is not finite).
    """
    rows = z.detach().reshape(-1, z.shape[-1])
    if mask is not None:
        rows = rows[mask.reshape(-1)]
    n_values = rows.numel() * feature_group.size
    count = max(min(round(target_l0 * len(rows)), n_values), 1)
    largest = torch.topk(rows.reshape(-1), min(count + 1, rows.numel())).values
    if feature_group.size > 1:
        largest = torch.cat(feature_group.gathered(largest)).topk(min(count + 1, n_values)).values
    largest = largest.clamp_min(0.0)
    at = largest[count - 1]
    below = largest[count] if len(largest) > count else torch.zeros_like(at)
    least = torch.where(largest > 0, largest, torch.inf).min()
    theta = torch.where(at + below > 0, (at + below) / 2, least / 2)
    if theta.device.type == "cpu" and not bool(theta.isfinite()):
        raise NumericsError(
            f"target_l0 {target_l0:g}: none of the gating values of {len(rows):,} tokens is positive, so that no threshold "
            "opens a feature; look at the encoder's start (initializer)"
        )
    return theta


class ThresholdCalibrator:
    """Collects batches; memory is 4 k values per token.

    Args:
        k: features per token that are aimed at.
    """

    def __init__(self, k: float) -> None:
        self.k = k
        self._pools: list[Tensor] = []
        self._minima: list[float] = []
        self._smallest = 0.0
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
        active_values = rows[support & (rows > 0)]
        self._n_kept += active_values.numel()
        if active_values.numel():
            self._minima.append(float(active_values.min()))
        positive = rows[rows > 0]
        room = math.ceil(POOL_FACTOR * self.k * rows.shape[0])
        if positive.numel() > room:
            positive = positive.topk(room, sorted=False).values
            self._smallest = max(self._smallest, float(positive.min()))
        self._pools.append(positive.double().cpu())

    def result(self, target_l0: float | None = None) -> Calibration:
        """The threshold.

        Args:
            target_l0: wanted L0, met by the quantile; None: that of the trained gate.

        Raises:
            NumericsError: no positive gating value was kept.
        """
        if not self._n_kept:
            raise NumericsError(
                f"calibration: no positive gating value was kept on {self._n_tokens:,} tokens, so there is no "
                f"threshold: L0 before 0.0 (wanted {self.k:g}), L0 after 0.0; the dictionary is dead or its input is not "
                "scaled as it was in training"
            )
        values = torch.cat(self._pools).sort(descending=True).values
        count = self._n_kept if target_l0 is None else min(max(round(target_l0 * self._n_tokens), 1), len(values))
        below = float(values[count]) if len(values) > count else 0.0
        quantile = (float(values[count - 1]) + below) / 2
        mean_of_minimum = sum(self._minima) / len(self._minima)

        def l0_at(threshold: float) -> float:
            return float((values > threshold).sum()) / self._n_tokens

        l0_before = self._n_kept / self._n_tokens
        estimates = (mean_of_minimum, quantile) if target_l0 is None else (quantile,)
        usable = [theta for theta in estimates if theta >= self._smallest] or [estimates[0]]
        threshold = min(usable, key=lambda theta: abs(l0_at(theta) - l0_before))
        return Calibration(threshold, mean_of_minimum, quantile, l0_before, l0_at(threshold), self._n_tokens)
