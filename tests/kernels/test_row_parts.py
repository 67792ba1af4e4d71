"""Rows handed to several threads."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline.kernels import row_parts
from pipeline.kernels.row_parts import FEWEST, in_parts, share_threads, threads_of_caller


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def rows_of(first: int, last: int) -> list[int]:
    return list(range(first, last))


@pytest.mark.parametrize("n_rows", [0, 1, FEWEST - 1, FEWEST, FEWEST + 1, 3 * FEWEST, 10 * FEWEST + 7])
def test_every_row_once_and_in_order(n_rows: int) -> None:
    found = in_parts(rows_of, (n_rows, 8))
    assert [row for part in found for row in part] == list(range(n_rows))
    assert len(found) <= 3


def test_a_part_of_long_rows_has_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_parts, "MOST_VALUES", 1000)
    found = in_parts(rows_of, (95, 100))
    assert [len(part) for part in found] == [10] * 9 + [5]
    assert [len(part) for part in in_parts(rows_of, (3, 5000))] == [1, 1, 1]


def test_parts_are_worked_on_at_the_same_time() -> None:
    """By all of torch's threads, the caller's among them."""
    together = threading.Barrier(3, timeout=30)

    def part(first: int, last: int) -> int:
        together.wait()
        return threading.get_ident()

    found = in_parts(part, (3 * FEWEST, 8))
    assert len(set(found)) == 3
    assert threading.get_ident() in found


def test_threads_that_work_at_the_same_time_share_them() -> None:
    def shared(callers: int) -> tuple[int, set[int]]:
        torch.set_num_threads(3)
        share_threads(callers)
        return threads_of_caller(), set(in_parts(lambda *_: threading.get_ident(), (6 * FEWEST, 8)))

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(shared, 2).result()[0] == 1
        threads, idents = pool.submit(shared, 3).result()
        assert (threads, len(idents)) == (1, 1)
        assert pool.submit(shared, 1).result()[0] == 3
    assert threads_of_caller() == 3  # of another thread


def test_the_first_fault_is_raised_when_no_part_is_worked_on_any_more() -> None:
    at_work: list[int] = []

    def part(first: int, last: int) -> None:
        at_work.append(first)
        try:
            time.sleep(0.05 if first else 0)
            raise ValueError(f"rows from {first}")
        finally:
            at_work.remove(first)

    with pytest.raises(ValueError, match=r"rows from 0$"):
        in_parts(part, (3 * FEWEST, 8))
    assert at_work == []


def test_in_a_forked_process() -> None:
    """Which has none of its parent's threads."""
    in_parts(rows_of, (3 * FEWEST, 8))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(sum(len(part) for part in in_parts(rows_of, (3 * FEWEST, 8)))))
    child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert queue.get() == 3 * FEWEST
