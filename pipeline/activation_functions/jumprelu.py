"""JumpReLU with a straight-through window for its threshold (SPEC 2.1).

    y = z * 1[z > theta],   theta = exp(t)
    dz = g * 1[z > theta]
    dtheta_i = sum_b g_bi * (-theta_i / w) * 1[ |z_bi - theta_i| < w/2 and z_bi > 0 ],   dt = theta * dtheta

Sources: Rajamanoharan et al. 2024 (arXiv 2407.14435); Anthropic Circuits Update January 2025.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.activation_functions.interface import (
    ActivationFunction,
    GateSettings,
    Selection,
    mask_features,
    selection_above,
)
from pipeline.errors import ParamsError


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, window: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.window = window
        # Not z * (z > theta), which gives -0; what is not a number is passed on, so that the loss notices it.
        return torch.where(z <= theta, 0.0, z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        z, theta = ctx.saved_tensors
        grad_z = grad * (z > theta) if ctx.needs_input_grad[0] else None
        grad_theta = None
        if ctx.needs_input_grad[1]:
            near = ((z - theta).abs_() < ctx.window / 2) & (z > 0)
            per_entry = grad * near
            grad_theta = per_entry.reshape(-1, *theta.shape).sum(0) * (-theta / ctx.window)
        return grad_z, grad_theta, None


def jumprelu(z: Tensor, log_threshold: Tensor, window: float = 2.0) -> Tensor:
    """y = z * 1[z > theta] with the straight-through gradient of this module's docstring.

    Args:
        z: gating values [..., F] (or [..., L, F]).
        log_threshold: t = log theta, [F] (or [L, F]); the result has its dtype.
        window: full width w of the window, in the units of z.

    Returns: [..., F].
    """
    theta = log_threshold.exp()
    y: Tensor = _JumpReLU.apply(z.to(theta.dtype), theta, window)
    return y


class JumpReLU(ActivationFunction):
    """Keeps z > theta, theta learned per feature."""

    def support(self, z: Tensor, settings: GateSettings) -> Tensor:
        theta = _log_threshold(settings).exp()
        return mask_features(~(z.to(theta.dtype) <= theta), settings.mask)

    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        theta = _log_threshold(settings).detach().exp()
        return selection_above(z.to(theta.dtype), theta, settings)

    def threshold(self, smallest: Tensor, settings: GateSettings) -> Tensor:
        return _log_threshold(settings).exp()

    def features(self, h: Tensor, z: Tensor, scale: Tensor | None, settings: GateSettings) -> Tensor:
        y = jumprelu(z, _log_threshold(settings), settings.window)
        f = y if scale is None else y / scale
        if settings.mask is None:
            return f
        return torch.where(settings.mask.reshape(*settings.mask.shape, *(1,) * (f.ndim - settings.mask.ndim)), f, 0.0)


def _log_threshold(settings: GateSettings) -> Tensor:
    if settings.log_threshold is None:
        raise ParamsError("act_fn jumprelu needs log_jumprelu_threshold")
    return settings.log_threshold
