"""The k largest of each row, and of all, against sorting: odd sizes, ties, values that are no numbers, threads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.kernels import largest
from pipeline.kernels.largest import SAMPLE_FROM, largest_places, largest_places_of_all
from pipeline.kernels.row_parts import FEWEST
from pipeline.seeding import generator
from tests.activation_functions.cases import DTYPES, KINDS, PROPERTY, gating_values


def by_sorting(rows: Tensor, k: int) -> list[int]:
    """What is no number first, then by value, then by place; in the order of places."""
    found = []
    for number, row in enumerate(rows.double().tolist()):
        ranked = sorted(range(len(row)), key=lambda i: (-(math.inf if math.isnan(row[i]) else row[i]), i))
        found += sorted(number * len(row) + i for i in ranked[:k])
    return found


def drawn(kind: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype, broken: bool) -> Tensor:
    g = generator(seed, "rows")
    rows = gating_values(kind, shape, g)
    if broken:
        rows = torch.where(torch.rand(shape, generator=g) < 0.1, torch.nan, rows)
        rows = torch.where(torch.rand(shape, generator=g) < 0.1, -torch.inf, rows)
    return rows.to(dtype)


@PROPERTY
@given(
    n=st.integers(1, 5),
    f=st.sampled_from([1, 2, 7, 8, 24, 40, 64, 96, 128, 200, 512]),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    share=st.floats(0.0, 1.0),
    broken=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_they_are_found_at_every_size(
    n: int, f: int, kind: str, dtype: torch.dtype, share: float, broken: bool, seed: int
) -> None:
    rows = drawn(kind, (n, f), seed, dtype, broken)
    k = max(1, int(share * f))
    assert largest_places(rows, k).tolist() == by_sorting(rows, k)
    of_all = int(share * n * f)
    with mock.patch.object(largest, "SAMPLE_FROM", 32):
        assert largest_places_of_all(rows, of_all).tolist() == by_sorting(rows.reshape(1, -1), of_all)


@pytest.mark.parametrize("kind", KINDS)
def test_of_groups_of_every_size(kind: str) -> None:
    """Few of many: the bound is taken of groups, small and large."""
    for f, k in ((128, 1), (512, 1), (2048, 1), (8192, 1), (8192, 3), (4096, 31)):
        rows = drawn(kind, (3, f), 0, torch.float32, broken=False)
        assert largest_places(rows, k).tolist() == by_sorting(rows, k)


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_more_rows_than_a_thread_looks_at() -> None:
    rows = drawn("ties", (2 * FEWEST + 3, 64), 0, torch.float32, broken=True)
    for n in (1, 2):
        with threads(n):
            assert largest_places(rows, 4).tolist() == by_sorting(rows, 4)


def test_rows_that_do_not_lie_one_after_the_other() -> None:
    rows = drawn("ties", (64, 6), 0, torch.float32, broken=False).T
    assert not rows.is_contiguous()
    assert largest_places(rows, 2).tolist() == by_sorting(rows, 2)


def test_a_large_batch_ranks_fewer_values_than_it_has() -> None:
    """The sample is for speed: if it were never used, nothing else here would tell."""
    n, f = SAMPLE_FROM // 512, 512
    ranked: list[int] = []
    partition = np.partition

    def counted(values: np.ndarray, *args: object, **kwargs: object) -> object:
        ranked.append(values.size)
        return partition(values, *args, **kwargs)  # type: ignore[call-overload]

    with mock.patch.object(np, "partition", counted):
        largest_places_of_all(torch.randn(n, f, generator=generator(0, "ranked")), 8 * n)
    assert sum(ranked) < n * f / 8
