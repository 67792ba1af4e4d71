"""tanh and tanh-quad by hand; tests/losses/test_references.py has the sums over plain numbers."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.losses.sparsity.tanh import tanh_loss
from pipeline.losses.sparsity.tanh_quad import tanh_quad_loss
from pipeline.losses.sparsity_losses import SparsityInputs
from tests.losses.cases import randn


def _with_tanh(values: list[list[float]]) -> SparsityInputs:
    """Inputs whose tanh(4 f n) are these values."""
    norms = torch.tensor([0.5, 2.0], dtype=torch.float64)
    f = torch.tensor(values, dtype=torch.float64).atanh() / 4 / norms
    return SparsityInputs(f, f, norms)


def test_tanh_by_hand() -> None:
    f = torch.tensor([[0.0, 0.25], [0.5, 0.0]])
    found = tanh_loss(SparsityInputs(f, f, torch.tensor([1.0, 2.0])))
    assert float(found) == pytest.approx((math.tanh(2) + math.tanh(2)) / 2, rel=1e-6)


def test_tanh_counts_features_that_are_large() -> None:
    f = torch.tensor([[0.0, 30.0, 50.0], [0.0, 0.0, 9.0]])
    assert float(tanh_loss(SparsityInputs(f, f, torch.ones(3)))) == 1.5


@pytest.mark.parametrize("values", [[[0.5, 0.01]], [[0.8, 0.02], [0.2, 0.0]]])
def test_tanh_quad_worked_check(values: list[list[float]]) -> None:
    """q = [0.5, 0.01], s = 0.01: 0.5 x 51 + 0.01 x 2; the mean over tokens comes before the square."""
    assert float(tanh_quad_loss(_with_tanh(values))) == pytest.approx(25.52, rel=1e-12)


def test_tanh_quad_marginal_price() -> None:
    """At q = s a further use costs three times the first one: d loss / d q = 1 + 2 q / s."""
    inputs = _with_tanh([[0.25, 1e-12]])
    f = inputs.f.requires_grad_()
    (grad,) = torch.autograd.grad(tanh_quad_loss(inputs._replace(f=f), frequency_scale=0.25), f)
    (plain,) = torch.autograd.grad(tanh_loss(inputs._replace(f=f)), f)
    torch.testing.assert_close(grad / plain, torch.tensor([[3.0, 1.0]], dtype=torch.float64))


def test_tanh_quad_of_layers_counts_each_layer_by_itself() -> None:
    """The mean of the layers' losses, not the loss of frequencies averaged over layers."""
    f, n = randn(6, 3, 5).relu(), randn(3, 5, seed=1).abs()
    per_layer = [float(tanh_quad_loss(SparsityInputs(f[:, j], f[:, j], n[j]))) for j in range(3)]
    assert float(tanh_quad_loss(SparsityInputs(f, f, n))) == pytest.approx(sum(per_layer) / 3, rel=1e-12)
