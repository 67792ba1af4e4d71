"""AuxK: dead features learn to explain what the living ones leave (SPEC 5). Source: Gao et al. 2024, appendix A.2."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.losses.reductions import aligned, full_precision, mean_over_tokens, widened


class AuxKLoss(NamedTuple):
    """The unweighted term and, for the log, how many tokens were dropped for not being finite (int64 scalar)."""

    value: Tensor
    n_dropped: Tensor


def auxk_loss(
    reconstruction: Tensor, label: Tensor, dead_reconstruction: Tensor, dead: Tensor, mask: Tensor | None = None
) -> AuxKLoss:
    """MEAN( sum_D (e - e_hat)^2 ), e = (y - r) detached; 0 when no feature is dead.

    Args:
        reconstruction: r [..., D], normalised.
        label: y, same shape.
        dead_reconstruction: e_hat, same shape: Dictionary.decode_dead, which marks tokens with a non-finite h as nan.
        dead: bool, True for a dead feature, any shape.
        mask: bool [...] over tokens, True for a kept token; None: all.

    Returns: the term; a token (and layer) whose error is not finite is dropped from it, and from its gradient, and
        counted.
    """
    with full_precision(label):
        error = (widened(label) - widened(reconstruction)).detach()
        e_hat = widened(dead_reconstruction)
        with torch.no_grad():
            finite = (error - e_hat).square().sum(-1).isfinite()
            dropped = ~finite if mask is None else ~finite & aligned(mask, finite)
        difference = torch.where(finite[..., None], error - e_hat, 0.0)
        value = mean_over_tokens(difference.square().sum(-1), mask)
        return AuxKLoss(torch.where(dead.any(), value, 0.0), dropped.sum())
