"""Reconstruction, power, pre-act and AuxK by hand, with masks, layers and awkward values."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import ParamsError
from pipeline.losses.auxk import auxk_loss
from pipeline.losses.pre_act import pre_act_loss
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.losses.sparsity.power import power_loss
from pipeline.losses.sparsity_losses import SparsityInputs
from tests.losses.cases import randn
from tests.messages import saying


def test_reconstruction_by_hand() -> None:
    r, y = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert float(reconstruction_loss(r, y)) == (5 + 9) / 2
    assert float(reconstruction_loss(r, y, torch.tensor([False, True]))) == 9


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (6, 4, 5)])
def test_reconstruction_is_a_mean_over_kept_tokens_and_layers(shape: tuple[int, ...]) -> None:
    r, y = randn(*shape), randn(*shape, seed=1)
    token_shape = shape[:2] if shape == (2, 3, 5) else shape[:1]
    mask = torch.arange(math.prod(token_shape)).reshape(token_shape) % 3 != 1
    errors = [float((a - b).square().sum()) for a, b in zip(r[mask].reshape(-1, 5), y[mask].reshape(-1, 5), strict=True)]
    assert float(reconstruction_loss(r, y, mask)) == pytest.approx(sum(errors) / len(errors), rel=1e-12)
    everything = torch.ones_like(mask)
    assert float(reconstruction_loss(r, y, everything)) == pytest.approx(float(reconstruction_loss(r, y)), rel=1e-12)


def test_masked_garbage_reaches_neither_loss_nor_gradient() -> None:
    r = randn(3, 2).requires_grad_()
    y = randn(3, 2, seed=1)
    y[1] = torch.nan
    loss = reconstruction_loss(r, y, torch.tensor([True, False, True]))
    loss.backward()
    assert loss.isfinite()
    assert r.grad is not None
    assert (r.grad[[0, 2]] != 0).all()


def test_no_kept_token_is_zero_not_a_division_by_zero() -> None:
    mask = torch.zeros(3, dtype=torch.bool)
    assert float(reconstruction_loss(randn(3, 2), randn(3, 2, seed=1), mask)) == 0
    assert float(power_loss(SparsityInputs(randn(3, 4).abs(), randn(3, 4), randn(4).abs(), None, mask))) == 0


def test_reductions_run_in_float32_under_autocast() -> None:
    r, y = torch.zeros(300, 64, dtype=torch.bfloat16), torch.full((300, 64), 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reconstruction_loss(r, y)
        sparsity = power_loss(SparsityInputs(torch.full((300, 64), 0.1), y, torch.ones(64)))
    assert loss.dtype == sparsity.dtype == torch.float32
    assert float(loss) == pytest.approx(0.64, rel=1e-5)
    assert float(sparsity) == pytest.approx(6.4, rel=1e-5)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_power_by_scalars(p: float) -> None:
    f, n = randn(7, 5).relu(), randn(5, seed=1).abs()
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    tokens = [sum((float(f[b, i]) * float(n[i])) ** p for i in range(5)) ** (1 / p) for b in range(7) if bool(mask[b])]
    found = power_loss(SparsityInputs(f, f, n, None, mask), p=p)
    assert float(found) == pytest.approx(sum(tokens) / len(tokens), rel=1e-12)


def test_power_averages_over_layers() -> None:
    f, n = randn(6, 3, 5).relu(), randn(3, 5, seed=1).abs()
    per_layer = [float(power_loss(SparsityInputs(f[:, j], f[:, j], n[j]))) for j in range(3)]
    assert float(power_loss(SparsityInputs(f, f, n))) == pytest.approx(sum(per_layer) / 3, rel=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_power_gradients_reach_features_and_norms(p: float) -> None:
    f, n = (randn(4, 5).abs() + 0.1).requires_grad_(), (randn(5, seed=1).abs() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, n: power_loss(SparsityInputs(f, f, n), p=p), (f, n))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_a_token_without_features_has_finite_gradients(p: float) -> None:
    f, n = torch.zeros(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    power_loss(SparsityInputs(f, f, n), p=p).backward()
    assert f.grad is not None
    assert f.grad.isfinite().all()


def test_p_below_one_is_refused() -> None:
    with pytest.raises(ParamsError, match=saying("trainer.p:", 1, 0.5)):
        power_loss(SparsityInputs(randn(2, 3), randn(2, 3), randn(3)), p=0.5)


def test_pre_act_by_hand() -> None:
    """Only features below their thresholds count; in h's domain each by its norm."""
    z, theta = torch.tensor([[0.5, 3.0], [-1.0, 1.0]]), torch.tensor([1.0, 2.0])
    inputs = SparsityInputs(z.relu(), z, torch.tensor([10.0, 100.0]), theta)
    assert float(pre_act_loss(inputs, True)) == (0.5 + 2 + 1) / 2
    assert float(pre_act_loss(inputs, False)) == (5 + 20 + 100) / 2
    assert float(pre_act_loss(inputs._replace(mask=torch.tensor([True, False])), False)) == 5


def test_pre_act_pulls_closed_features_up_and_their_thresholds_down() -> None:
    z = torch.tensor([[0.5, 3.0]], requires_grad=True)
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    pre_act_loss(SparsityInputs(z, z, torch.ones(2), theta), True).backward()
    assert z.grad is not None
    assert theta.grad is not None
    assert (z.grad.tolist(), theta.grad.tolist()) == ([[-1.0, 0.0]], [1.0, 0.0])


def test_pre_act_without_thresholds_is_refused() -> None:
    with pytest.raises(ParamsError, match=saying("trainer.lp_coefficient:", "dictionary.act_fn", "jumprelu", "null")):
        pre_act_loss(SparsityInputs(randn(2, 3), randn(2, 3), randn(3)), True)


DEAD = torch.tensor([True, False])


def test_auxk_by_hand_and_without_gradient_to_the_living() -> None:
    r = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    y = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    e_hat = torch.tensor([[0.5, 0.0], [0.0, 1.0]], requires_grad=True)
    found = auxk_loss(r, y, e_hat, DEAD)
    assert float(found.value.detach()) == (0.25 + 9) / 2
    assert int(found.n_dropped) == 0
    found.value.backward()
    assert r.grad is None
    assert e_hat.grad is not None
    assert e_hat.grad.tolist() == [[-0.5, 0.0], [0.0, -3.0]]
    assert float(auxk_loss(r.detach(), y, e_hat.detach(), DEAD, torch.tensor([True, False])).value) == 0.25


def test_auxk_without_dead_features_is_zero() -> None:
    e_hat = torch.zeros(2, 2, requires_grad=True)
    found = auxk_loss(torch.zeros(2, 2), torch.ones(2, 2), e_hat, torch.zeros(5, dtype=torch.bool))
    found.value.backward()
    assert float(found.value.detach()) == 0
    assert e_hat.grad is not None
    assert (e_hat.grad == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_auxk_drops_and_counts_what_is_not_finite(bad: float) -> None:
    e_hat = torch.tensor([[0.5, 0.0], [bad, 1.0], [bad, 1.0]], requires_grad=True)
    mask = torch.tensor([True, True, False])
    found = auxk_loss(torch.zeros(3, 2), torch.ones(3, 2), e_hat, DEAD, mask)
    assert int(found.n_dropped) == 1
    assert float(found.value.detach()) == pytest.approx((0.25 + 1) / 2)
    found.value.backward()
    assert e_hat.grad is not None
    assert e_hat.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 3)])
def test_auxk_gradient_by_differences(shape: tuple[int, ...]) -> None:
    r, y, e_hat = randn(*shape), randn(*shape, seed=1), randn(*shape, seed=2).requires_grad_()
    mask = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1]) % 3 != 1
    assert torch.autograd.gradcheck(lambda e_hat: auxk_loss(r, y, e_hat, DEAD, mask).value, (e_hat,))
