"""The threshold of a batch that has a wanted number of features a token."""

from __future__ import annotations

import pytest
import torch

from pipeline.activation_functions.calibration import quantile_threshold
from pipeline.errors import NumericsError
from tests.messages import saying


def counted(z: torch.Tensor, theta: torch.Tensor) -> int:
    return sum(1 for value in z.flatten().tolist() if value > float(theta))


@pytest.mark.parametrize("target", [0.5, 1, 3.2, 7])
@pytest.mark.parametrize("shape", [(40, 30), (5, 8, 30)])
def test_the_wanted_number_is_above_it(target: float, shape: tuple[int, ...]) -> None:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert counted(z, quantile_threshold(z, target)) == round(target * 40)


def test_masked_tokens_are_not_counted() -> None:
    z = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40) % 4 > 0
    z[~mask] = 100.0
    assert counted(z[mask], quantile_threshold(z, 2.0, mask)) == 60


def test_with_too_few_positive_values_all_of_them_are_above_it() -> None:
    z = torch.tensor([[-1.0, 2.0, -3.0], [0.0, 0.5, -1.0]])
    theta = quantile_threshold(z, 2.0)
    assert 0 < float(theta) < 0.5


def test_it_lies_halfway_between_two_values() -> None:
    assert float(quantile_threshold(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 2)) == 2.5
    assert float(quantile_threshold(torch.tensor([[4.0, -1.0]]), 1)) == 2.0


def test_without_a_positive_value_there_is_none() -> None:
    with pytest.raises(NumericsError, match=saying("target_l0 3:", "2 tokens", "initializer")):
        quantile_threshold(-torch.ones(2, 5), 3)
