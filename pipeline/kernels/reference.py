"""What every kernel computes, in plain torch, on any device: the truth that the others are tested against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.kernels.entries import EntryKernels, Places


def selected_linear(x_BD: Tensor, W_DF: Tensor, b_F: Tensor, flat: Tensor) -> Tensor:
    """The entries `flat` (int64 [N], places in the flattened [B, F]) of x W + b."""
    return (x_BD @ W_DF + b_F).reshape(-1)[flat]


def selected_decode(values: Tensor, flat: Tensor, n_tokens: int, W_FD: Tensor) -> Tensor:
    """f W [n_tokens, D], where f [n_tokens, F] is `values` [N] at the places `flat` and 0 elsewhere."""
    n_features = W_FD.shape[0]
    f = torch.zeros(n_tokens * n_features, dtype=values.dtype, device=values.device).scatter(0, flat, values)
    return f.reshape(n_tokens, n_features) @ W_FD


class TorchEntries(EntryKernels):
    """torch's own functions; dense products always pay, as nothing here is faster."""

    rule = "by dense products"
    counts_freely = False

    def largest(self, rows: Tensor, k: int) -> Tensor:
        index = torch.topk(rows, k, dim=-1, sorted=False).indices.sort(-1).values
        return (index + torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1]).reshape(-1)

    def largest_of_all(self, rows: Tensor, k: int) -> Tensor:
        return rows.reshape(-1).topk(k, sorted=False).indices.sort().values

    def above(self, rows: Tensor, bounds: Tensor, kept: Tensor | None) -> Tensor:
        above = ~(rows <= bounds)
        if kept is not None:
            above &= kept[:, None]
        return above.reshape(-1).nonzero().squeeze(1)

    def entries_pay(self, dtype: torch.dtype, share: float) -> bool:
        return False

    def operand(self, matrix: Tensor) -> Tensor:
        return matrix

    def ordered(self, places: Places) -> Any:
        return None

    def row_sums(self, values: Tensor, places: Places, matrix: Tensor) -> Tensor:
        rows = values.to(matrix.dtype)[:, None] * matrix[places.columns]
        return matrix.new_zeros(places.n_rows, matrix.shape[1]).index_add_(0, places.rows, rows)

    def column_sums(self, values: Tensor, places: Places, matrix: Tensor) -> Tensor:
        rows = values.to(matrix.dtype)[:, None] * matrix[places.rows]
        return matrix.new_zeros(places.n_columns, matrix.shape[1]).index_add_(0, places.columns, rows)

    def column_totals(self, values: Tensor, places: Places) -> Tensor:
        return values.new_zeros(places.n_columns).index_add_(0, places.columns, values)

    def products(self, left: Tensor, right: Tensor, places: Places) -> Tensor:
        return (left[places.rows] * right[places.columns]).sum(-1)
