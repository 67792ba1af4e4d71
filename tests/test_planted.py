"""The benchmarks' planted data is what it says it is: statistics against the stated formulas, by naive loops."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from benchmarks.planted import DATA_SEED, EASY, MAIN, SECOND, SETS, PlantedSet
from pipeline.dictionaries.build import build_dictionary
from pipeline.suites.recovery import recovery
from tests.messages import saying

SMALL = PlantedSet(
    name="small", width=12, n_directions=30, active=6, exponent=1.0, mean_norm=2.0, noise_norm=0.3, scale=4.0, l0=8
)


@pytest.mark.parametrize("about", [*SETS.values(), SMALL], ids=lambda about: about.name)
def test_probabilities_follow_the_rank_and_sum_to_the_mean_number_active(about: PlantedSet) -> None:
    p = about.probabilities().double()
    assert p.sum().item() == pytest.approx(about.active, rel=1e-5)
    assert p.max() <= about.cap
    free = [(rank, float(q)) for rank, q in enumerate(p, start=1) if q < about.cap - 1e-6]
    constants = [q * rank**about.exponent for rank, q in free]
    assert max(constants) == pytest.approx(min(constants), rel=1e-4)
    # What is capped would be above the cap without it.
    assert all(constants[0] * rank**-about.exponent >= about.cap - 1e-6 for rank in range(1, free[0][0]))


def test_a_cap_binds_where_it_must() -> None:
    p = SMALL.probabilities()
    assert p[0] == SMALL.cap
    assert p[-1] < SMALL.cap
    with pytest.raises(ValueError, match=saying("small:", 30, 0.1, 6)):
        dataclasses.replace(SMALL, cap=0.1).probabilities()


def test_coefficients_are_used_as_often_and_as_large_as_stated() -> None:
    planted = SMALL.draw(0)
    a = planted.coefficients(40_000, torch.Generator().manual_seed(5)).double()
    used = (a > 0).double().mean(0)
    # Five standard errors of a share.
    error = 5 * (planted.probabilities * (1 - planted.probabilities) / len(a)).sqrt()
    assert ((used - planted.probabilities).abs() < error).all()
    sizes = a[a > 0] - 0.5
    assert sizes.min() >= 0
    assert sizes.mean().item() == pytest.approx(1.0, abs=0.02)
    assert sizes.std().item() == pytest.approx(1.0, abs=0.02)  # an exponential's deviation is its mean


def test_rows_are_the_mixture_with_mean_and_noise_times_the_scale() -> None:
    silent = dataclasses.replace(SMALL, noise_norm=0.0)
    planted, noisy = silent.draw(3), SMALL.draw(3)
    rows = planted.rows(5, "train").double()
    a = planted.coefficients(4096, planted.stream("rows", "train", 0)).double()
    for row in range(5):
        wanted = [0.0] * 12
        for j in range(12):
            total = float(planted.mean[j])
            for i in range(30):
                total += float(a[row, i]) * float(planted.directions[i, j])
            wanted[j] = 4.0 * total
        torch.testing.assert_close(rows[row], torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    noise = (noisy.rows(4096, "train") - planted.rows(4096, "train")) / 4.0
    assert noise.square().sum(1).mean().sqrt().item() == pytest.approx(0.3, rel=0.02)
    assert noise.mean(0).abs().max() < 5 * 0.3 / math.sqrt(12 * 4096)


def test_directions_and_mean_have_the_stated_lengths() -> None:
    for about in SETS.values():
        planted = about.draw(0)
        torch.testing.assert_close(planted.directions.norm(dim=-1), torch.ones(about.n_directions))
        assert planted.mean.norm().item() == pytest.approx(about.mean_norm, abs=1e-5)
        assert planted.directions.shape == (about.n_directions, about.width)


def test_draws_and_parts_differ_and_repeat() -> None:
    first = SMALL.draw(0)
    torch.testing.assert_close(first.rows(50, "train"), SMALL.draw(0).rows(5000, "train")[:50], rtol=0, atol=0)
    assert not torch.equal(first.rows(50, "train"), first.rows(50, "held out"))
    assert not torch.equal(first.rows(5000, "train")[4096:4196], first.rows(100, "train"))
    assert not torch.equal(first.directions, SMALL.draw(1).directions)


def test_no_dictionary_starts_at_the_planted_directions() -> None:
    planted = EASY.draw(0)
    other = torch.randn(EASY.n_directions, EASY.width, generator=torch.Generator().manual_seed(99))
    by_chance = recovery(planted.directions, other).mean()
    for seed in (0, DATA_SEED):
        fields = {"kind": "sae", "d_in": EASY.width, "d_sae": EASY.n_directions, "act_fn": "topk", "top_k": 4}
        start = build_dictionary(fields, seed=seed).state_dict()["W_D"]
        assert recovery(planted.directions, start).mean() < by_chance + 0.02


def test_recovery_is_the_mean_maximum_cosine_with_equal_weights() -> None:
    directions = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    rows = torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, 0.0]])
    # The third is opposite to a row, which does not count as found: its best is the row of length 0.
    torch.testing.assert_close(recovery(directions, rows), torch.tensor([1.0, 0.8, 0.0]))


def test_the_sets_are_those_of_the_benchmark() -> None:
    assert (MAIN.width, MAIN.n_directions, MAIN.active, MAIN.exponent, MAIN.cap) == (256, 2048, 16, 0.5, 0.5)
    assert (MAIN.mean_norm, MAIN.noise_norm, MAIN.scale, MAIN.l0) == (2.0, 0.3, 4.0, 32)
    assert (EASY.width, EASY.n_directions, EASY.active, EASY.exponent) == (128, 512, 8, 0.0)
    assert all(getattr(SECOND, name) != getattr(MAIN, name) for name in ("width", "active", "exponent", "mean_norm"))
