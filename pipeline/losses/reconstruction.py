"""l_rec: the squared error of a reconstruction (SPEC 5)."""

from __future__ import annotations

from torch import Tensor

from pipeline.losses.reductions import full_precision, mean_over_tokens, widened


def reconstruction_loss(reconstruction: Tensor, label: Tensor, mask: Tensor | None = None) -> Tensor:
    """l_rec = MEAN( sum_D (r - y)^2 ), MEAN over kept tokens, and over layers or hook points where there are any.

    Args:
        reconstruction: r [..., D] or [..., L, D], normalised.
        label: y of the same shape.
        mask: bool [...] (token dimensions), True for a kept token; None: all.

    Returns: float32 scalar (float64 for float64 input).
    """
    with full_precision(label):
        error = widened(reconstruction) - widened(label)
        return mean_over_tokens(error.square().sum(-1), mask)
