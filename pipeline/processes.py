"""What the processes of a training know together, where the rows of a batch or the features are dealt to several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound="int | Tensor")


class Reductions(ABC):
    """Over a group of processes. Those of a row group have the same features and rows of their own of every batch; those of a
    feature group the same rows and features of their own.

    Every process calls the same methods in the same order and is given the same results.

    Rows and features are dealt in order: those of the first process come before those of the second.

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
    def gathered(self, values: Tensor, *, alike: bool = False) -> list[Tensor]:
        """The tensors of all processes, in their order; their first dimensions may differ. They carry no gradient.

        `alike`: they have one shape, so that no process has to tell its own first.
        """

    def together(self, values: Sequence[T], flags: Sequence[Tensor]) -> tuple[list[T], list[Tensor]]:
        """:meth:`sum` of the values and :meth:`any` of each of the flags, which travel together: each journey costs a wait."""
        return self.sum(values), [self.any(each) for each in flags]

    def summed(self, part: Tensor) -> Tensor:
        """The sum over the processes, differentiable: what is made of it is the same in all, and so is its gradient, which each
        part gets as it is."""
        if self.size == 1:
            return part
        total: Tensor = _Summed.apply(part, self)
        return total

    def shared(self, whole: Tensor) -> Tensor:
        """`whole`, which all have, as it is; each makes something else of it, so that its gradient is summed over them."""
        if self.size == 1:
            return whole
        same: Tensor = _Shared.apply(whole, self)
        return same

    def placed(self, part: Tensor, dim: int) -> Tensor:
        """`part`, this process's along `dim`, as part of a tensor that the processes have together, for a checkpoint."""
        return part


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Reductions) -> Tensor:
        return group.sum([part])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: Reductions) -> Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.group.sum([grads[0]])[0], None


class OneProcess(Reductions):
    """Nothing to reduce: what comes in goes out."""

    size, rank = 1, 0

    def sum(self, values: Sequence[T]) -> list[T]:
        return list(values)

    def any(self, flags: Tensor) -> Tensor:
        return flags

    def gathered(self, values: Tensor, *, alike: bool = False) -> list[Tensor]:
        return [values]


ONE_PROCESS = OneProcess()
