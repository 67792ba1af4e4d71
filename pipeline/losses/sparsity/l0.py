"""L0 itself, with a straight-through gradient for JumpReLU's thresholds (SPEC 5): Gemma Scope's sparsity loss.

    L0 = MEAN( sum_i H(z_i - theta_i) )
    dL0/dtheta_i = -(1/eps) MEAN 1[ |z_i - theta_i| < eps/2 and z_i > 0 ],   dL0/dz = 0

E[H(z - theta)] is differentiable although H is not: its derivative is -p(theta), p the density of z, and the above
estimates that density from a batch with a rectangular kernel of width eps.

Sources: Rajamanoharan et al. 2024 (arXiv 2407.14435), sections 3 and 4; Lieberum et al. 2024 (Gemma Scope). The quadratic
form around a wanted L0: Gemma Scope 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.losses.reductions import full_precision, mean_over_tokens, mean_per_entry, widened
from pipeline.losses.sparsity_losses import SparsityInputs, SparsityLoss

QUADRATIC = "quadratic"


class _Count(torch.autograd.Function):
    """sum_i H(z_i - theta_i): [..., F] -> [...]; the gradient is theta's alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return (z > theta).sum(-1, dtype=theta.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, None]:
        (grad,) = grads
        z, theta = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return None, None, None
        near = ((z - theta).abs_() < ctx.bandwidth / 2) & (z > 0)
        per_entry = grad[..., None] * near
        return None, per_entry.reshape(-1, *theta.shape).sum(0) / -ctx.bandwidth, None


def _counts(inputs: SparsityInputs, bandwidth: float) -> tuple[Tensor, int]:
    """Active features of each token [...] (and layer), and how many dimensions of layers that has."""
    if inputs.thresholds is None:
        raise ParamsError(
            "trainer.sparsity_loss_type: l0 is a loss of thresholds, and this dictionary has none; "
            "set dictionary.act_fn to jumprelu, or take another sparsity loss"
        )
    theta = widened(inputs.thresholds)
    counts: Tensor = _Count.apply(inputs.z.detach().to(theta.dtype), theta, bandwidth)
    return inputs.over_features(counts), theta.ndim - 1


def _mean_l0(inputs: SparsityInputs, *, l0_bandwidth: float, target_l0: float | None, target_l0_mode: str) -> Tensor | None:
    """In quadratic mode, what is squared: mean L0 over kept tokens, a scalar (or [L])."""
    if target_l0 is None or target_l0_mode != QUADRATIC:
        return None
    with full_precision(inputs.z):
        counts, layer_dims = _counts(inputs, l0_bandwidth)
        return mean_per_entry(counts, inputs.mask, layer_dims)


def l0_loss(
    inputs: SparsityInputs,
    *,
    l0_bandwidth: float = 0.001,
    target_l0: float | None = None,
    target_l0_mode: str = "threshold",
) -> Tensor:
    """MEAN( sum_i H(z_i - theta_i) ); in quadratic mode ( that / target_l0 - 1 )^2.

    A layer of several counts by itself, and the layers are averaged: target_l0, like top_k, is per layer.

    Args:
        inputs: z [..., F], thresholds [F], mask and step_statistic are used.
        l0_bandwidth: eps > 0, full width of the window around a threshold, in the units of z. It changes the gradient only.
        target_l0: wanted mean number of active features per token (and layer), > 0.
        target_l0_mode: "quadratic" with a target_l0 gives the quadratic form; everything else the plain one.

    Returns: scalar in the dtype of the thresholds (at least float32), unweighted. Only the thresholds get a gradient.

    Raises:
        ParamsError: the dictionary has no thresholds.
    """
    mean = _mean_l0(inputs, l0_bandwidth=l0_bandwidth, target_l0=target_l0, target_l0_mode=target_l0_mode)
    with full_precision(inputs.z):
        if mean is None or target_l0 is None:
            return mean_over_tokens(_counts(inputs, l0_bandwidth)[0], inputs.mask)
        return (inputs.over_step(mean) / target_l0 - 1).square().mean()


LOSS = SparsityLoss(l0_loss, statistic=_mean_l0)
