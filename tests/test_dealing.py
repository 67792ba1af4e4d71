"""Work dealt to processes: each number once, all told in order, and a fault that is the same in all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.dealing import by_the_first, in_turns
from pipeline.errors import DataError, NumericsError
from tests.threads import in_threads


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_each_number_is_worked_on_once_and_all_are_told_in_order(size: int) -> None:
    def work(processes: Any) -> tuple[list[int], list[list[int]], list[torch.Tensor]]:
        own: list[int] = []

        def done(number: int) -> tuple[int, torch.Tensor]:
            own.append(number)
            return number * number, torch.full((number,), float(number))

        turns = list(in_turns(11, done, processes, first=2))
        return own, [[square for square, _ in turn] for turn in turns], [tensor for turn in turns for _, tensor in turn]

    found = in_threads(size, work)
    assert sorted(number for own, _, _ in found for number in own) == list(range(2, 11))
    for rank, (own, squares, tensors) in enumerate(found):
        assert own == list(range(2 + rank, 11, size))
        assert [square for turn in squares for square in turn] == [n * n for n in range(2, 11)]
        assert {len(turn) for turn in squares[:-1]} <= {size}
        assert all(torch.equal(tensor, torch.full((n,), float(n))) for n, tensor in zip(range(2, 11), tensors, strict=True))


def test_a_fault_is_that_of_the_first_number_in_all_processes() -> None:
    def work(processes: Any) -> str:
        def done(number: int) -> int:
            if number in (4, 5):
                raise NumericsError(f"number {number}") if number == 4 else DataError("number 5")
            return number

        told: list[int] = []

        def all_turns() -> None:
            for turn in in_turns(9, done, processes):
                told.extend(turn)

        with pytest.raises(NumericsError, match="number 4") as caught:
            all_turns()
        assert told == [0, 1, 2]
        return str(caught.value)

    assert in_threads(3, work) == ["number 4"] * 3


def test_a_bug_in_one_is_not_told_to_the_others() -> None:
    def work(processes: Any) -> None:
        list(in_turns(3, lambda number: 1 // (number - 1), processes))

    with pytest.raises(ZeroDivisionError):
        in_threads(3, work)


def test_the_first_alone_does_it() -> None:
    calls: list[int] = []

    def work(processes: Any) -> str:
        return by_the_first(lambda: calls.append(processes.rank) or "told", processes)

    assert in_threads(3, work) == ["told"] * 3
    assert calls == [0]
