"""Decode, and the encoder's gradient, from the chosen entries only (CPU).

With N chosen entries of [B, F], f W costs N * D multiplications instead of B * F * D, and so do the gradients of W_D
and of the encoder. All sums are bags of rows (torch.nn.functional.embedding_bag), each bag added up in order by one thread,
so results are the same from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class _SelectedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, W_DF: Tensor, b_F: Tensor, out_BF: Tensor, flat: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(x_BD, W_DF, flat, offsets)
        ctx.mark_non_differentiable(flat, offsets)
        return out_BF.reshape(-1)[flat]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x_BD, W_DF, flat, offsets = ctx.saved_tensors
        n_features = W_DF.shape[1]
        rows, columns = flat // n_features, flat % n_features
        grad_x = grad_W = grad_b = None
        grad = grad.to(W_DF.dtype)
        if ctx.needs_input_grad[0]:
            grad_x = bags(W_DF.T.contiguous(), columns, offsets, grad).to(x_BD.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            ordered, order = columns.sort(stable=True)
            starts = torch.searchsorted(ordered, torch.arange(n_features, device=flat.device))
            grad_W = bags(x_BD.to(W_DF.dtype), rows[order], starts, grad[order]).T
            grad_b = bags(grad[:, None], order, starts, torch.ones_like(grad)).squeeze(1)
        return grad_x, grad_W, grad_b, None, None, None


def bags(rows_ND: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Row g of the result [len(offsets), D] is sum_j weights[j] * rows[index[j]] over the j of bag g."""
    return embedding_bag(index, rows_ND, offsets, mode="sum", per_sample_weights=weights)


def selected_linear(x_BD: Tensor, W_DF: Tensor, b_F: Tensor, out_BF: Tensor, flat: Tensor, offsets: Tensor) -> Tensor:
    """The entries `flat` of x W + b, with a gradient that touches these entries only.

    Args:
        x_BD: input [B, D].
        W_DF, b_F: weight [D, F] and bias [F].
        out_BF: x W + b [B, F], computed already; no gradient goes through it.
        flat: int64 [N], places in the flattened [B, F], ordered by token.
        offsets: int64 [B], where each token's places begin.

    Returns: [N].
    """
    values: Tensor = _SelectedLinear.apply(x_BD, W_DF, b_F, out_BF.detach(), flat, offsets)
    return values


def selected_decode(values: Tensor, flat: Tensor, offsets: Tensor, W_FD: Tensor) -> Tensor:
    """f W [B, D] from the entries of f: `values` [N] at `flat`, by token as `offsets` [B] says. Differentiable."""
    return bags(W_FD, flat % W_FD.shape[0], offsets, values.to(W_FD.dtype))
