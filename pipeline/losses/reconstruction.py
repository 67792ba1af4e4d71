"""l_rec: the squared error of a reconstruction (SPEC 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.losses.reductions import full_precision, mean_over_tokens, widened


class _MeanSquaredError(torch.autograd.Function):
    """mean over rows of ||r - y||^2 and its gradient in r, each in one pass over the error."""

    @staticmethod
    def forward(ctx: Any, reconstruction: Tensor, label: Tensor) -> Tensor:
        error = widened(reconstruction) - widened(label)
        ctx.save_for_backward(error)
        ctx.n_rows, ctx.dtype = error.numel() // error.shape[-1], reconstruction.dtype
        return torch.linalg.vector_norm(error, dim=-1).square().mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (error,) = ctx.saved_tensors
        return (error * (grad * 2 / ctx.n_rows)).to(ctx.dtype), None


def reconstruction_loss(reconstruction: Tensor, label: Tensor, mask: Tensor | None = None) -> Tensor:
    """l_rec = MEAN( sum_D (r - y)^2 ), MEAN over kept tokens, and over layers or hook points where there are any.

    Args:
        reconstruction: r [..., D] or [..., L, D], normalised.
        label: y of the same shape.
        mask: bool [...] (token dimensions), True for a kept token; None: all.

    Returns: float32 scalar (float64 for float64 input).
    """
    with full_precision(label):
        if mask is None and not label.requires_grad:
            value: Tensor = _MeanSquaredError.apply(reconstruction, label)
            return value
        error = widened(reconstruction) - widened(label)
        return mean_over_tokens(error.square().sum(-1), mask)
