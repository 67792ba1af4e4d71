"""Entries on a CUDA device: the Triton kernels of this folder as EntryKernels; what they do not take is torch's.

Rows are gathered in the dtype of the products, everything is added up in float32.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from pipeline.kernels.entries import Places
from pipeline.kernels.gpu.accumulate import FeatureRuns, accumulate_rows, feature_runs
from pipeline.kernels.gpu.decode import sparse_decode, values_gradient
from pipeline.kernels.gpu.keys import KEY_BITS
from pipeline.kernels.gpu.select_batch import select_batch
from pipeline.kernels.gpu.select_rows import select_rows
from pipeline.kernels.reference import TorchEntries

MOST_ENTRIES = 2**31  # of a matrix whose k largest are looked for: places are int32
MOST_K = 2**16  # of a row: one program holds twice as many candidates


class TritonEntries(TorchEntries):
    """Triton kernels.

    Args:
        dtype: of the products: float32, or what autocast computes in.
        sparsity_threshold: share of inactive features from which sums over entries are used in place of dense products.
    """

    def __init__(self, dtype: torch.dtype, sparsity_threshold: float) -> None:
        self.dtype, self.sparsity_threshold = dtype, sparsity_threshold
        share = 1 - sparsity_threshold
        self.rule = (
            f"by Triton kernels from the active features alone (chosen entries) where they are at most {share:.3g} of all, "
            "else from all (dense products)"
        )

    def largest(self, rows: Tensor, k: int) -> Tensor:
        if k > MOST_K:
            _say_once(f"top_k {k:,} is above the {MOST_K:,} of the selection by Triton: torch.topk selects")
            return super().largest(rows, k)
        columns = select_rows(_ranked(rows), k).columns
        return (columns + torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1]).reshape(-1)

    def largest_of_all(self, rows: Tensor, k: int) -> Tensor:
        if rows.numel() >= MOST_ENTRIES:
            _say_once(f"{rows.numel():,} values are above the {MOST_ENTRIES:,} of the selection by Triton: torch.topk selects")
            return super().largest_of_all(rows, k)
        return select_batch(_ranked(rows), k).flat

    def entries_pay(self, dtype: torch.dtype, share: float) -> bool:
        return dtype == torch.float32 and 1 - share >= self.sparsity_threshold

    def operand(self, matrix: Tensor) -> Tensor:
        return matrix.to(self.dtype).contiguous()

    def ordered(self, places: Places) -> FeatureRuns:
        return feature_runs(places.columns.int(), places.rows.int(), places.n_columns)

    def row_sums(self, values: Tensor, places: Places, matrix: Tensor) -> Tensor:
        return sparse_decode(values, places.columns, places.row_starts, matrix, dtype=torch.float32)

    def column_sums(self, values: Tensor, places: Places, matrix: Tensor) -> Tensor:
        return accumulate_rows(values, matrix, self._runs(places))[0]

    def column_totals(self, values: Tensor, places: Places) -> Tensor:
        ones = torch.ones(places.n_rows, 1, device=values.device)
        return accumulate_rows(values, ones, self._runs(places))[0].squeeze(1)

    def products(self, left: Tensor, right: Tensor, places: Places) -> Tensor:
        return values_gradient(left, places.columns, places.row_starts, right)

    @staticmethod
    def _runs(places: Places) -> FeatureRuns:
        runs: FeatureRuns = places.by_column
        return runs._replace(tokens=places.rows.int().index_select(0, runs.order))


@functools.cache
def _say_once(what: str) -> None:
    logging.getLogger(__name__).warning("%s", what)


def _ranked(rows: Tensor) -> Tensor:
    """Contiguous, in a dtype that the selections rank."""
    return (rows if rows.dtype in KEY_BITS else rows.float()).contiguous()
