"""Decode, and the encoder's gradient, from the chosen entries only; each entry's sums are those of its places' kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.kernels.entries import Places


class _SelectedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, W_DF: Tensor, b_F: Tensor, centre_D: Tensor | None, values: Tensor, places: Places
    ) -> Tensor:
        ctx.save_for_backward(x_BD, W_DF)
        ctx.places = places
        return values.view_as(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x_BD, W_DF = ctx.saved_tensors
        places: Places = ctx.places
        kernels = places.kernels
        grad_x = grad_W = grad_b = grad_centre = None
        grad = grad.to(W_DF.dtype)
        if ctx.needs_input_grad[0]:
            grad_x = kernels.row_sums(grad, places, kernels.operand(W_DF.T)).to(x_BD.dtype)
        if ctx.needs_input_grad[1]:
            grad_W = kernels.column_sums(grad, places, kernels.operand(x_BD.to(W_DF.dtype))).T
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            grad_b = kernels.column_totals(grad, places)
        if ctx.needs_input_grad[3]:
            assert grad_b is not None
            grad_centre = -(W_DF @ grad_b)
        return grad_x, grad_W, grad_b, grad_centre, None, None


class _SelectedDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_FD: Tensor, places: Places) -> Tensor:
        operand = places.kernels.operand(W_FD)
        ctx.save_for_backward(values, operand)
        ctx.places = places
        return places.kernels.row_sums(values, places, operand)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        values, operand = ctx.saved_tensors
        places: Places = ctx.places
        kernels = places.kernels
        grad_values = grad_W = None
        grad = kernels.operand(grad)
        if ctx.needs_input_grad[0]:
            grad_values = kernels.products(grad, operand, places).to(values.dtype)
        if ctx.needs_input_grad[1]:
            grad_W = kernels.column_sums(values, places, grad)
        return grad_values, grad_W, None


def selected_linear(
    x_BD: Tensor, W_DF: Tensor, b_F: Tensor, values: Tensor, places: Places, centre_D: Tensor | None = None
) -> Tensor:
    """Entries of x W + b, with a gradient that touches these entries only.

    Args:
        x_BD: input [B, D].
        W_DF, b_F: weight [D, F] and bias [F].
        values: [N], the entries at the places, computed already; no gradient goes through them.
        places: in [B, F].
        centre_D: what has been subtracted from the input, [D]; it gets its gradient by way of the bias's.

    Returns: [N].
    """
    found: Tensor = _SelectedLinear.apply(x_BD, W_DF, b_F, centre_D, values.detach(), places)
    return found


def selected_decode(values: Tensor, W_FD: Tensor, places: Places) -> Tensor:
    """f W [B, D] from the entries of f [B, F], `values` [N] at the places, in the dtype of W. Differentiable."""
    found: Tensor = _SelectedDecode.apply(values, W_FD, places)
    return found
