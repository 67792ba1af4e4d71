"""The straight-through gradient of JumpReLU's thresholds, of a reconstruction made of entries.

    dt_i = -theta_i^2 / (w s_i) sum_b <g_b, W_D[i]> 1[ |z_bi - theta_i| < w / 2 and z_bi > 0 ]

with g the gradient of the reconstruction, z = h s the gating values, w the window (SPEC 2.1). The products <g_b, W_D[i]> of
ROWS tokens at a time stay in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS, DEVICE_ROWS = 128, 2048


class _ThresholdGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_hat: Tensor, log_threshold: Tensor, W_FD: Tensor, z_BF: Tensor, scale_F: Tensor | None, window: float
    ) -> Tensor:
        ctx.save_for_backward(log_threshold, W_FD, z_BF)
        ctx.scale, ctx.window = scale_F, window
        return x_hat.view_as(x_hat)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None, None, None
        log_threshold, W_FD, z_BF = ctx.saved_tensors
        theta = log_threshold.exp()
        least, most = (theta - ctx.window / 2).clamp_min(0.0), theta + ctx.window / 2
        total = torch.zeros_like(theta)
        rows = ROWS if z_BF.device.type == "cpu" else DEVICE_ROWS
        product = W_FD.new_empty(rows, len(W_FD))
        for z, g in zip(z_BF.split(rows), grad.to(W_FD.dtype).split(rows), strict=True):
            by_feature = torch.mm(g, W_FD.T, out=product[: len(g)])
            total += by_feature.mul_((z > least) & (z < most)).sum(0, dtype=total.dtype)
        total *= -theta.square() / ctx.window
        if ctx.scale is not None:
            total /= ctx.scale
        return grad, total, None, None, None, None


def with_threshold_gradient(
    x_hat: Tensor, log_threshold: Tensor, W_FD: Tensor, z_BF: Tensor, scale_F: Tensor | None, window: float
) -> Tensor:
    """`x_hat` [B, D] as it is, whose gradient also reaches the thresholds.

    Args:
        x_hat: f W_D, of the features whose z exceeds its threshold.
        log_threshold: t = log theta [F], differentiable.
        W_FD: [F, D], in the dtype of the products.
        z_BF: gating values [B, F], without gradient.
        scale_F: s [F]; None: 1.
        window: w, in the units of z.
    """
    scale = None if scale_F is None else scale_F.detach()
    found: Tensor = _ThresholdGradient.apply(x_hat, log_threshold, W_FD.detach(), z_BF.detach(), scale, window)
    return found
