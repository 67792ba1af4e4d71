"""Runs that diverge end with an error; dips, short runs and runs that still learn do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import NumericsError
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.divergence import DivergenceGuard, Verdict
from pipeline.training.fit import fit
from pipeline.training.loop import train
from pipeline.training.source import TensorSource
from tests.training.cases import NORMS, dictionary, params, rows, same

WIDTH = 6


def labels(n: int = 50, seed: int = 0) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)) * 2 + 5


def variance(y: Tensor) -> float:
    """Mean squared distance from the mean, by a loop in float64."""
    wide = y.double()
    centre = sum(wide, start=torch.zeros(WIDTH, dtype=torch.float64)) / len(wide)
    return sum(float((row - centre).square().sum()) for row in wide) / len(wide)


def judged(fvus: Sequence[float], *, same_l0: bool = False, total: int | None = None) -> list[tuple[int, Verdict]]:
    """(steps done, verdict) of a run whose steps have these errors, as shares of the variance; the verdicts that there are."""
    guard = DivergenceGuard(total or len(fvus), (WIDTH,), torch.device("cpu"), same_l0=same_l0)
    y = labels()
    scale, found = variance(y), []
    for step, fvu in enumerate(fvus):
        guard.add(step, torch.tensor(fvu * scale), y, None)
        if (verdict := guard.verdict(step + 1)) is not None:
            found.append((step + 1, verdict))
    return found


def stopped_at(fvus: Sequence[float], **options: bool) -> int | None:
    """Steps after which the run is ended, or None."""
    return next((step for step, verdict in judged(fvus, **options) if verdict.diverged), None)


def falling(n: int, first: float = 0.6, last: float = 0.1) -> list[float]:
    return [first + (last - first) * i / (n - 1) for i in range(n)]


def test_windows_are_a_twentieth_of_the_run_within_bounds() -> None:
    for total, wanted in ((5, 4), (79, 4), (200, 10), (100_000, 200)):
        guard = DivergenceGuard(total, (WIDTH,), torch.device("cpu"), same_l0=True)
        assert guard.window == wanted
        assert len(guard.medians) == math.ceil(total / wanted)


def test_a_verdict_comes_at_the_ends_of_windows_and_of_the_run() -> None:
    assert [step for step, _ in judged(falling(110))] == [*range(5, 111, 5)]
    assert [step for step, _ in judged(falling(7))] == [4, 7]
    assert judged(falling(5))[-1][0] == 5


def test_figures_are_shares_of_the_labels_variance() -> None:
    verdict = judged([1.5, *[3.0] * 9])[-1][1]
    assert verdict.figures == "explained variance is -2 (first step: -0.5), worse than predicting the mean"


def test_a_run_that_learns_goes_on() -> None:
    assert stopped_at(falling(400)) is None
    assert stopped_at([0.5] * 400, same_l0=True) is None


def test_a_blow_up_that_stays_ends_the_run_early() -> None:
    fvus = [*falling(100), *[1e4] * 300]
    assert stopped_at(fvus) == 140  # the windows up to step 120 and up to 140 are the first two that are above the bound


def test_a_dip_shorter_than_half_a_window_does_not_matter() -> None:
    fvus = falling(400)
    for start in (30, 130, 385):
        fvus[start : start + 9] = [1e6] * 9
    assert stopped_at(fvus) is None


def test_a_blow_up_that_recovers_does_not_matter() -> None:
    fvus = [*falling(100), *[1e4 * 0.9**i for i in range(160)], *[0.1] * 140]
    assert stopped_at(fvus) is None


def test_a_start_far_above_the_mean_is_no_blow_up() -> None:
    assert stopped_at([2000.0 * 0.97**i for i in range(400)]) is None


@pytest.mark.parametrize("level", [1.2, 8.0])
def test_a_run_that_stays_worse_than_the_mean_is_ended_once_half_of_it_is_done(level: float) -> None:
    assert stopped_at([0.4, *[level] * 399]) == 200


def test_the_end_must_be_better_than_the_mean() -> None:
    fvus = [0.5] * 380 + [1.3] * 20
    assert stopped_at(fvus) == 400
    assert stopped_at([0.5] * 380 + [1.02] * 20) is None


def test_a_run_that_ended_too_early_is_no_divergence() -> None:
    step, verdict = judged(falling(40, 9.0, 1.4))[-1]
    assert step == 40
    assert verdict.too_short
    assert not verdict.diverged
    assert not judged(falling(40))[-1][1].too_short


def test_the_end_must_not_be_far_above_the_start_where_l0_is_the_same() -> None:
    fvus = [*falling(30, 0.3, 0.2), *[0.7] * 30]
    assert stopped_at(fvus, same_l0=True) == 60
    assert stopped_at(fvus, same_l0=False) is None  # a gate that closes over the run explains less at its end
    assert stopped_at([*falling(30, 0.1, 0.05), *[0.4] * 30], same_l0=True) is None


def test_masked_labels_and_several_hook_points() -> None:
    guard = DivergenceGuard(4, (2, WIDTH), torch.device("cpu"), same_l0=False)
    first, second, mask = labels(seed=1), labels(seed=2) * 3, torch.arange(50) % 3 > 0
    y = torch.stack([first, second], dim=1)
    wild = torch.where(mask[:, None, None], y, 1e6)
    scale = (variance(first[mask]) + variance(second[mask])) / 2
    for step in range(4):
        guard.add(step, torch.tensor(0.25 * scale), wild, mask)
    verdict = guard.verdict(4)
    assert verdict is not None
    assert verdict.figures.startswith("explained variance is 0.75 (first step: 0.75)")


def test_labels_that_do_not_vary_give_no_verdict() -> None:
    guard = DivergenceGuard(4, (WIDTH,), torch.device("cpu"), same_l0=False)
    for step in range(4):
        guard.add(step, torch.tensor(1.0), torch.ones(3, WIDTH), None)
    assert guard.verdict(4) is None


def test_a_state_taken_over_gives_the_same_verdicts() -> None:
    fvus, y = [0.4, *[1.3] * 39], labels()
    whole, resumed = (DivergenceGuard(40, (WIDTH,), torch.device("cpu"), same_l0=True) for _ in range(2))
    for step, fvu in enumerate(fvus):
        if step == 18:
            for name, tensor in whole.state().items():
                resumed.state()[name].copy_(tensor)
        for guard in (whole, resumed) if step >= 18 else (whole,):
            guard.add(step, torch.tensor(fvu * 24), y, None)
            verdict = guard.verdict(step + 1)
            if step >= 18 and guard is resumed:
                assert verdict == whole.verdict(step + 1)
    assert same(whole.state(), resumed.state())


def test_too_large_a_rate_is_named_with_that_of_auto() -> None:
    x = rows(512)
    with pytest.raises(NumericsError) as error:
        fit(x, dictionary={"d_sae": 32, "top_k": 4}, trainer={"total_training_tokens": 6400, "lr": 3.0}, batch_size=64)
    auto = 0.055 * 100**0.25 / math.sqrt(8)
    assert "training: diverged: at step " in str(error.value)
    assert f"trainer.lr 3 is high: auto would be {min(auto, 3.6 / math.sqrt(3200)):.3g}" in str(error.value)


def test_the_state_is_kept_and_the_same_run_says_the_same_again(tmp_path: Path) -> None:
    x = rows(200)

    def run() -> str:
        made = dictionary(top_k=3)
        with Checkpoints(tmp_path / "run", {"a": 1}).opened() as checkpoints, pytest.raises(NumericsError) as error:
            train(
                made,
                TensorSource(x, batch_size=10, seed=0),
                params=params(lr=5.0, lr_warm_up_steps=0),
                norms=NORMS,
                total_steps=80,
                checkpoints=checkpoints,
            )
        assert checkpoints.points()
        return str(error.value)

    first = run()
    assert f"its state is kept in {tmp_path / 'run'}" in first
    assert run() == first


def test_massive_tokens_are_named_as_the_cause_where_no_rule_excludes_them() -> None:
    x = rows(512)
    x[::50, 0] += 3000.0
    with pytest.raises(NumericsError, match=r"set activations\.max_norm_factor to 10\.0"):
        fit(
            x,
            dictionary={"d_sae": 32, "top_k": 4},
            trainer={"total_training_tokens": 6400, "lr": 3.0},
            batch_size=64,
            max_norm_factor=None,
        )
