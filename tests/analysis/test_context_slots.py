"""The kept contexts against sorted lists, however the contexts are cut into batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.analysis.active import ActiveFeatures
from pipeline.analysis.context_slots import N_SOURCES, ContextSlots, Offer
from pipeline.seeding import generator

N, T, F, K, BEFORE, AFTER = 23, 9, 7, 4, 3, 2


def activations(seed: int = 0, ties: bool = False) -> Tensor:
    f = torch.randn(N, T, F, generator=generator(seed, "tests", "slots")).clamp_min(0.0)
    return (f * 2).round() / 2 if ties else f


def filled(f: Tensor, cuts: list[int], sources: bool = False, distinct: bool = False) -> ContextSlots:
    slots = ContextSlots(F, K, BEFORE, AFTER, sources=sources, distinct=distinct)
    numbers = torch.arange(N) * 3
    for start, stop in zip([0, *cuts], [*cuts, N], strict=True):
        offer(slots, f[start:stop], numbers[start:stop], sources)
    return slots


def offer(slots: ContextSlots, f: Tensor, numbers: Tensor, sources: bool = False) -> None:
    largest, position = f.max(1)
    rank = torch.where(largest > 0, largest.double(), -torch.inf)

    def reads(context: Tensor, token: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(N_SOURCES).expand(len(context), -1)
        return places, (numbers[context] * 100 + token * 10 + feature)[:, None] + 0.1 * places

    slots.update(Offer(ActiveFeatures.of(f), numbers, rank, position, keys(numbers, position), reads if sources else None))


def keys(numbers: Tensor, position: Tensor) -> Tensor:
    """Few ones, so that equal ranks have equal keys and others."""
    return (numbers[:, None] + position) % 2


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("cuts", [[], [1], [5, 9, 20], list(range(1, N))])
def test_the_strongest_contexts_are_those_of_a_sorted_list(cuts: list[int], ties: bool) -> None:
    f = activations(ties=ties)
    found = filled(f, cuts).ordered(slice(0, F))
    for feature in range(F):
        best = sorted((-float(f[c, :, feature].max()), c) for c in range(N) if f[c, :, feature].max() > 0)[:K]
        assert found["context"][feature, : len(best)].tolist() == [3 * c for _, c in best]
        for slot, (value, c) in enumerate(best):
            position = int(found["position"][feature, slot])
            assert float(f[c, position, feature]) == -value == float(found["value"][feature, slot])
            window = [float(f[c, t, feature]) if 0 <= t < T else 0.0 for t in range(position - BEFORE, position + AFTER + 1)]
            assert found["window"][feature, slot].tolist() == window


@pytest.mark.parametrize("cuts", [[], [1], [5, 9, 20], list(range(1, N))])
def test_of_equal_rank_and_key_the_earliest_context_is_kept(cuts: list[int]) -> None:
    f = activations(ties=True)
    found = filled(f, cuts, distinct=True).ordered(slice(0, F))
    dropped = 0
    for feature in range(F):
        first: dict[tuple[float, int], int] = {}
        for c in range(N):
            value, position = f[c, :, feature].max(0)
            if value > 0:
                dropped += (-float(value), (3 * c + int(position)) % 2) in first
                first.setdefault((-float(value), (3 * c + int(position)) % 2), c)
        best = sorted((value, c) for (value, _), c in first.items())[:K]
        assert found["context"][feature].tolist() == [3 * c for _, c in best] + [-1] * (K - len(best))
    assert dropped > F


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(1, N - 1)), st.integers(0, 3), st.booleans())
def test_cuts_change_nothing(cuts: set[int], seed: int, distinct: bool) -> None:
    f = activations(seed, ties=True)
    one = filled(f, [], sources=True, distinct=distinct).ordered(slice(0, F))
    other = filled(f, sorted(cuts), sources=True, distinct=distinct).ordered(slice(0, F))
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_empty_slots_and_silent_features() -> None:
    f = torch.zeros(N, T, F)
    f[4, 2, 1] = 1.0
    found = filled(f, [3]).ordered(slice(0, F))
    assert found["context"][1].tolist() == [12, -1, -1, -1]
    assert (found["rank"][[0, 2, 3, 4, 5, 6]] == -torch.inf).all()


def test_sources_belong_to_their_context_and_a_state_goes_on() -> None:
    f = activations()
    whole = filled(f, [], sources=True)
    found = whole.ordered(slice(0, F))
    wanted = found["context"] * 100 + found["position"] * 10 + torch.arange(F)[:, None]
    torch.testing.assert_close(found["source_value"][..., 0], wanted.float())
    first = ContextSlots(F, K, BEFORE, AFTER, sources=True)
    offer(first, f[:10], torch.arange(10) * 3, sources=True)
    second = ContextSlots(F, K, BEFORE, AFTER, sources=True)
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    offer(second, f[10:], torch.arange(10, N) * 3, sources=True)
    for name, tensor in second.ordered(slice(0, F)).items():
        assert torch.equal(tensor, found[name]), name
