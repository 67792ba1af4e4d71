"""One threshold for a topk-family gate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.activation_functions.calibration import Calibration, ThresholdCalibrator
from pipeline.activation_functions.interface import GateSettings, activation_function
from pipeline.errors import NumericsError
from pipeline.seeding import generator
from tests.messages import saying


def calibrate(act_fn: str, batches: list[Tensor], k: int, mask: Tensor | None = None) -> Calibration:
    calibrator = ThresholdCalibrator(k)
    for z in batches:
        calibrator.add(z, activation_function(act_fn).support(z, GateSettings(k, mask)), mask)
    return calibrator.result()


def test_two_batches_by_hand() -> None:
    first = torch.tensor([[5.0, 1.0, 0.5], [4.0, 3.0, -1.0]])
    second = torch.tensor([[6.0, 2.0, 0.1], [0.2, 0.3, -2.0]])
    found = calibrate("batchtopk", [first, second], k=1)
    assert found.mean_of_minimum == (4.0 + 2.0) / 2
    assert found.quantile == (3.0 + 2.0) / 2  # four are kept (6, 5, 4 and the second batch's 2); of all, 3 is the fourth
    assert found.l0_before == 1.0


def test_two_batches_by_hand_the_quantile_counts_all() -> None:
    z = torch.tensor([[5.0, 1.0, 0.5], [4.0, 3.0, -1.0]])
    found = calibrate("batchtopk", [z], k=1)
    assert (found.mean_of_minimum, found.quantile) == (4.0, 3.5)
    assert found.threshold == 3.5
    assert (found.l0_before, found.l0_after, found.n_tokens) == (1.0, 1.0, 2)


@pytest.mark.parametrize("act_fn", ["topk", "batchtopk"])
def test_the_served_l0_is_the_trained_one(act_fn: str) -> None:
    g = generator(0, act_fn)
    scale = torch.rand(1, 300, generator=g) * 2
    batches = [torch.randn(200, 300, generator=g) * scale for _ in range(6)]
    found = calibrate(act_fn, batches[:5], k=8)
    assert found.l0_before == pytest.approx(8)
    assert found.l0_after == pytest.approx(8, rel=1e-3)
    unseen = float((batches[5] > found.threshold).sum()) / 200
    assert unseen == pytest.approx(8, rel=0.02 if act_fn == "batchtopk" else 0.05)


def test_mean_and_quantile_agree_for_batchtopk() -> None:
    g = generator(1, "agree")
    found = calibrate("batchtopk", [torch.randn(500, 256, generator=g) for _ in range(8)], k=8)
    assert found.mean_of_minimum == pytest.approx(found.quantile, rel=0.01)


def test_masked_tokens_do_not_count() -> None:
    g = generator(2, "mask")
    z = torch.randn(100, 64, generator=g)
    mask = torch.arange(100) % 2 == 0
    loud = torch.where(mask[:, None], z, z.abs() * 100)
    masked, plain = calibrate("batchtopk", [loud], 4, mask), calibrate("batchtopk", [z[mask]], 4)
    assert masked == plain


def test_fewer_positive_values_than_the_budget() -> None:
    z = torch.full((4, 8), -1.0)
    z[:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = calibrate("batchtopk", [z], k=5)
    assert found.l0_before == found.l0_after == 1.0
    assert 0 < found.threshold < 1


def test_no_positive_value_is_refused_with_both_numbers() -> None:
    with pytest.raises(NumericsError, match=saying("calibration:", "before 0.0", 2, "after 0.0")):
        calibrate("batchtopk", [-torch.ones(3, 4)], k=2)


def test_batches_of_very_different_scale_fall_back_to_the_mean() -> None:
    """A pool that was cut above the quantile cannot tell it."""
    g = generator(3, "scales")
    loud, quiet = torch.randn(50, 2000, generator=g).abs() * 100, torch.randn(50, 2000, generator=g).abs()
    found = calibrate("batchtopk", [loud, quiet], k=2)
    assert found.threshold > 0
    assert found.threshold == found.mean_of_minimum or found.l0_after == pytest.approx(found.l0_before)
