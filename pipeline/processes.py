"""What a step's processes know together: counts, flags and gradients of a batch whose rows are dealt to several of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T", bound="int | Tensor")


class Reductions(ABC):
    """Over the processes that train one dictionary, each with all of it and with rows of its own of every batch.

    Every process calls the same methods in the same order and is given the same results.

    Rows are dealt in order: those of the first process come before those of the second.

    Attributes:
        size: number of processes.
        rank: which one this is, from 0.
    """

    size: int
    rank: int

    @abstractmethod
    def sum(self, values: Sequence[T]) -> list[T]:
        """Each value summed over the processes; several at once, so that they can travel together."""

    @abstractmethod
    def any(self, flags: Tensor) -> Tensor:
        """Where a flag is set in any process, bool of the shape of `flags`."""

    @abstractmethod
    def gathered(self, values: Tensor) -> list[Tensor]:
        """The tensors of all processes, in their order; their first dimensions may differ. They carry no gradient."""


class OneProcess(Reductions):
    """Nothing to reduce: what comes in goes out."""

    size, rank = 1, 0

    def sum(self, values: Sequence[T]) -> list[T]:
        return list(values)

    def any(self, flags: Tensor) -> Tensor:
        return flags

    def gathered(self, values: Tensor) -> list[Tensor]:
        return [values]


ONE_PROCESS = OneProcess()
