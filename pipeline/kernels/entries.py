"""Entries of a sparse matrix: where they are, and what chooses them and adds them up on a kind of device."""

from __future__ import annotations

import abc
import functools
from typing import Any

import torch
from torch import Tensor


class EntryKernels(abc.ABC):
    """How entries are chosen and added up.

    Every sum is added up in a fixed order, so results are the same from run to run.

    Attributes:
        rule: when it works on entries, for users.
        counts_freely: asking how many entries exceed a bound waits for no device.
    """

    rule: str
    counts_freely: bool

    @abc.abstractmethod
    def largest(self, rows: Tensor, k: int) -> Tensor:
        """Where the k largest of each row [R, n] are: int64 [R k], places in the flattened rows, ascending.

        Of equal values those of the smallest places are taken. What is not a number counts as largest.
        """

    @abc.abstractmethod
    def largest_of_all(self, rows: Tensor, k: int) -> Tensor:
        """Where the k largest of all values are, likewise; int64 [k]."""

    @abc.abstractmethod
    def above(self, rows: Tensor, bounds: Tensor, kept: Tensor | None) -> Tensor:
        """Where values exceed the bound of their column [n], or are no number, in the rows that are kept (bool [R])."""

    @abc.abstractmethod
    def entries_pay(self, dtype: torch.dtype, share: float) -> bool:
        """Whether sums over this share of all entries are faster than dense products, for weights of this dtype."""

    @abc.abstractmethod
    def operand(self, matrix: Tensor) -> Tensor:
        """The matrix as sums take its rows: contiguous, in the dtype of the products."""

    @abc.abstractmethod
    def ordered(self, places: Places) -> Any:
        """The entries' order by column, as `column_sums` takes it; the rows play no part in it."""

    @abc.abstractmethod
    def row_sums(self, values: Tensor, places: Places, matrix: Tensor) -> Tensor:
        """For each row r the sum of values[j] matrix[column of j] over its entries j; matrix: operand [C, D]. [R, D]."""

    @abc.abstractmethod
    def column_sums(self, values: Tensor, places: Places, matrix: Tensor) -> Tensor:
        """For each column c the sum of values[j] matrix[row of j] over its entries j; matrix: operand [R, D]. [C, D]."""

    @abc.abstractmethod
    def column_totals(self, values: Tensor, places: Places) -> Tensor:
        """For each column the sum of its values, [C]."""

    @abc.abstractmethod
    def products(self, left: Tensor, right: Tensor, places: Places) -> Tensor:
        """<left[row of j], right[column of j]> of every entry j; operands [R, D] and [C, D]. [N]."""


class Places:
    """Where the entries of a sparse matrix [n_rows, n_columns] are, ordered by row.

    Args:
        rows: int64 [N], ascending.
        columns: int64 [N].
        n_rows, n_columns: of the matrix.
        kernels: what adds up such entries.
    """

    def __init__(self, rows: Tensor, columns: Tensor, n_rows: int, n_columns: int, kernels: EntryKernels) -> None:
        self.rows, self.columns, self.n_rows, self.n_columns, self.kernels = rows, columns, n_rows, n_columns, kernels

    @functools.cached_property
    def row_starts(self) -> Tensor:
        """int64 [n_rows + 1], where each row's entries begin, and N."""
        return torch.searchsorted(self.rows, torch.arange(self.n_rows + 1, device=self.rows.device))

    @functools.cached_property
    def by_column(self) -> Any:
        """The order of the entries by column, and by row within it, as the kernels take it."""
        return self.kernels.ordered(self)

    def with_rows(self, rows: Tensor, n_rows: int) -> Places:
        """The same entries in other rows, in the same order by row."""
        if n_rows == self.n_rows:
            return self
        other = Places(rows, self.columns, n_rows, self.n_columns, self.kernels)
        other.by_column = self.by_column
        return other

    def only(self, wanted: Tensor, n_columns: int | None = None) -> tuple[Tensor, Places]:
        """Some of the entries: their numbers, and their places.

        Args:
            wanted: bool [N].
            n_columns: of the first columns only, if they are of no other; None: as before.
        """
        kept = wanted.nonzero().squeeze(1)
        rows, columns = self.rows.index_select(0, kept), self.columns.index_select(0, kept)
        return kept, Places(rows, columns, self.n_rows, n_columns or self.n_columns, self.kernels)
