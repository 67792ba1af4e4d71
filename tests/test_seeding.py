"""Named generators: equal names give equal streams, others have nothing to do with each other."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.seeding import derive, generator, numpy_generator


def test_streams_are_the_same_today_and_tomorrow():
    """These numbers are in every hash of a run."""
    assert derive(0) == 2033344993903900207
    assert derive(0, "rows", 3) == 5340234991258578448
    assert torch.randint(1000, (4,), generator=generator(0, "rows", 3)).tolist() == [842, 572, 488, 64]
    assert numpy_generator(0, "rows", 3).integers(1000, size=4).tolist() == [84, 646, 720, 279]


def test_names_and_their_order_and_kind_matter():
    keys = [
        (0,),
        (1,),
        (0, "a"),
        (0, "b"),
        (0, "a", "b"),
        (0, "b", "a"),
        (0, 1),
        (0, "1"),
        (0, 1, 1),
        (0, 11),
        (0, ""),
        (0, "a", ""),
        (10, "a"),
    ]
    seeds = [derive(*key) for key in keys]
    assert len(set(seeds)) == len(keys)


def test_whole_numbers_of_any_type_count_alike():
    kinds = [3, np.int64(3), np.int32(3), np.uint8(3)]
    assert len({derive(0, "rows", kind) for kind in kinds}) == 1
    assert derive(np.int64(7), "a") == derive(7, "a")
    assert derive(0, True) != derive(0, 1)


@given(st.integers(-(2**63), 2**64), st.lists(st.text() | st.integers(), max_size=4))
def test_seeds_fit_every_generator(seed, names):
    value = derive(seed, *names)
    assert 0 <= value < 2**63
    generator(seed, *names)
    numpy_generator(seed, *names)


def test_streams_do_not_move_each_other_or_the_global_generators():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = generator(0, "a")
    a = torch.rand(5, generator=first)
    torch.rand(100, generator=generator(0, "b"))
    numpy_generator(0, "c").random(100)
    assert torch.equal(torch.rand(5, generator=generator(0, "a")), a)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_streams_are_not_correlated():
    draws = np.stack([numpy_generator(0, "stream", i).standard_normal(4000) for i in range(12)])
    for a, b in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.08


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_torch_generator_is_on_the_cpu(seed):
    assert generator(seed).device == torch.device("cpu")
