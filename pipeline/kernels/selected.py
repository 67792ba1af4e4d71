"""Decode, and the encoder's gradient, from the chosen entries only (CPU).

With N chosen entries of [B, F], f W costs N * D multiplications instead of B * F * D, and so do the gradients of W_D
and of the encoder. All sums are bags of rows (torch.nn.functional.embedding_bag), each bag added up in order by one thread,
so results are the same from run to run.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Places:
    """Where the entries of a sparse matrix [n_rows, n_columns] are, ordered by row.

    Args:
        rows: int64 [N], ascending.
        columns: int64 [N].
        n_rows, n_columns: of the matrix.
    """

    def __init__(self, rows: Tensor, columns: Tensor, n_rows: int, n_columns: int) -> None:
        self.rows, self.columns, self.n_rows, self.n_columns = rows, columns, n_rows, n_columns

    @functools.cached_property
    def row_starts(self) -> Tensor:
        """int64 [n_rows], where each row's entries begin."""
        return torch.searchsorted(self.rows, torch.arange(self.n_rows, device=self.rows.device))

    @functools.cached_property
    def by_column(self) -> tuple[Tensor, Tensor]:
        """The order of the entries by column, and by row within it; and where each column's begin in that order."""
        n = len(self.columns)
        shift = max(n - 1, 1).bit_length()
        # Column and number in one key, as keys without equals need no stable sort; numpy's takes a fifth of torch's.
        keys = (self.columns << shift | torch.arange(n, device=self.columns.device)).numpy()
        kind = np.int32 if self.n_columns << shift < 2**31 else np.int64
        ordered = torch.from_numpy(np.sort(keys.astype(kind)))
        starts = torch.searchsorted(ordered, torch.arange(self.n_columns, dtype=ordered.dtype) << shift)
        return (ordered & ((1 << shift) - 1)).long(), starts

    def with_rows(self, rows: Tensor, n_rows: int) -> Places:
        """The same entries in other rows, in the same order by row."""
        if n_rows == self.n_rows:
            return self
        other = Places(rows, self.columns, n_rows, self.n_columns)
        other.by_column = self.by_column
        return other

    def only(self, wanted: Tensor, n_columns: int | None = None) -> tuple[Tensor, Places]:
        """Some of the entries: their numbers, and their places.

        Args:
            wanted: bool [N].
            n_columns: of the first columns only, if they are of no other; None: as before.
        """
        kept = wanted.nonzero().squeeze(1)
        return kept, Places(
            self.rows.index_select(0, kept), self.columns.index_select(0, kept), self.n_rows, n_columns or self.n_columns
        )


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
        grad_x = grad_W = grad_b = grad_centre = None
        grad = grad.to(W_DF.dtype)
        if ctx.needs_input_grad[0]:
            grad_x = bags(W_DF.T, places.columns, places.row_starts, grad).to(x_BD.dtype)
        if ctx.needs_input_grad[1]:
            order, starts = places.by_column
            rows = places.rows.index_select(0, order)
            grad_W = bags(x_BD.to(W_DF.dtype), rows, starts, grad.index_select(0, order)).T
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            grad_b = grad.new_zeros(places.n_columns).index_add_(0, places.columns, grad)
        if ctx.needs_input_grad[3]:
            assert grad_b is not None
            grad_centre = -(W_DF @ grad_b)
        return grad_x, grad_W, grad_b, grad_centre, None, None


class _SelectedDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_FD: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(values, W_FD)
        ctx.places = places
        return bags(W_FD, places.columns, places.row_starts, values.to(W_FD.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        values, W_FD = ctx.saved_tensors
        places: Places = ctx.places
        grad_values = grad_W = None
        if ctx.needs_input_grad[0]:
            grad_values = products(grad, W_FD, places).to(values.dtype)
        if ctx.needs_input_grad[1]:
            order, starts = places.by_column
            rows = places.rows.index_select(0, order)
            grad_W = bags(grad, rows, starts, values.to(W_FD.dtype).index_select(0, order))
        return grad_values, grad_W, None


def bags(rows_ND: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Row g of the result [len(offsets), D] is sum_j weights[j] * rows[index[j]] over the j of bag g."""
    return embedding_bag(index, rows_ND.contiguous(), offsets, mode="sum", per_sample_weights=weights)


def products(left_RD: Tensor, right_CD: Tensor, places: Places) -> Tensor:
    """<left[row], right[column]> at the places, [N]: what autograd calls for the gradient of a bag's weights."""
    left, right = left_RD.contiguous(), right_CD.contiguous()
    found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left, right, places.columns, places.row_starts, places.rows, 0
    )
    return found


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
    """f W [B, D] from the entries of f [B, F], `values` [N] at the places. Differentiable."""
    found: Tensor = _SelectedDecode.apply(values, W_FD, places)
    return found
