"""Entries on the CPU: chosen by numpy (largest.py), added up as bags of rows (torch.nn.functional.embedding_bag).

With N chosen entries of [B, F], f W costs N * D multiplications instead of B * F * D, and so do the gradients of W_D
and of the encoder. Each bag is added up in order by one thread, so results are the same from run to run.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipeline.kernels.entries import EntryKernels, Places
from pipeline.kernels.largest import largest_places, largest_places_of_all, places_above

# Share of entries up to which sums over them win, forward and backward together (benchmarks/results/dictionary_step.md).
CROSSOVER = 1 / 12


class CpuEntries(EntryKernels):
    """numpy and torch on the CPU."""

    rule = (
        f"on the CPU from the active features alone (chosen entries) where they are at most {CROSSOVER:.3g} of all, else "
        "from all (dense products)"
    )
    counts_freely = True

    def largest(self, rows: Tensor, k: int) -> Tensor:
        return largest_places(rows, k)

    def largest_of_all(self, rows: Tensor, k: int) -> Tensor:
        return largest_places_of_all(rows, k)

    def above(self, rows: Tensor, bounds: Tensor, kept: Tensor | None) -> Tensor:
        return places_above(rows, bounds, kept)

    def entries_pay(self, dtype: torch.dtype, share: float) -> bool:
        return dtype in (torch.float32, torch.float64) and share <= CROSSOVER

    def operand(self, matrix: Tensor) -> Tensor:
        return matrix.contiguous()

    def ordered(self, places: Places) -> tuple[Tensor, Tensor]:
        """The order of the entries by column, and by row within it; and where each column's begin in that order."""
        n = len(places.columns)
        shift = max(n - 1, 1).bit_length()
        # Column and number in one key, as keys without equals need no stable sort; numpy's takes a fifth of torch's.
        keys = (places.columns << shift | torch.arange(n)).numpy()
        kind = np.int32 if places.n_columns << shift < 2**31 else np.int64
        ordered = torch.from_numpy(np.sort(keys.astype(kind)))
        starts = torch.searchsorted(ordered, torch.arange(places.n_columns, dtype=ordered.dtype) << shift)
        return (ordered & ((1 << shift) - 1)).long(), starts

    def row_sums(self, values: Tensor, places: Places, matrix: Tensor) -> Tensor:
        return _bags(matrix, places.columns, places.row_starts[:-1], values)

    def column_sums(self, values: Tensor, places: Places, matrix: Tensor) -> Tensor:
        order, starts = places.by_column
        return _bags(matrix, places.rows.index_select(0, order), starts, values.index_select(0, order))

    def column_totals(self, values: Tensor, places: Places) -> Tensor:
        return values.new_zeros(places.n_columns).index_add_(0, places.columns, values)

    def products(self, left: Tensor, right: Tensor, places: Places) -> Tensor:
        # What autograd calls for the gradient of a bag's weights.
        found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            left, right, places.columns, places.row_starts[:-1], places.rows, 0
        )
        return found


def _bags(rows_ND: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Row g of the result [len(offsets), D] is sum_j weights[j] * rows[index[j]] over the j of bag g."""
    return embedding_bag(index, rows_ND, offsets, mode="sum", per_sample_weights=weights.to(rows_ND.dtype))
