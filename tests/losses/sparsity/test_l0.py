"""The l0 loss: its straight-through gradient by hand, by a naive loop, by differences, and as the density it estimates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.losses.sparsity.l0 import l0_loss
from pipeline.losses.sparsity_losses import SparsityInputs
from pipeline.seeding import generator
from tests.losses.cases import CASES, make_inputs, mean, randn, tokens
from tests.messages import saying

DOUBLE = torch.float64
Z = torch.tensor([[0.6, 0.9], [0.4, 2.0]], dtype=DOUBLE)
THETA = torch.tensor([0.5, 1.0], dtype=DOUBLE)


def _inputs(z: Tensor, theta: Tensor, mask: Tensor | None = None) -> SparsityInputs:
    return SparsityInputs(torch.where(z > theta, z, 0.0), z, torch.ones_like(theta), theta, mask)


def _gradient(inputs: SparsityInputs, **fields: object) -> Tensor:
    assert inputs.thresholds is not None
    theta = inputs.thresholds.clone().requires_grad_()
    (grad,) = torch.autograd.grad(l0_loss(inputs._replace(thresholds=theta), **fields), theta)  # type: ignore[arg-type]
    return grad


def test_by_hand() -> None:
    """One feature open on each token; the window of 0.4 holds both z of the first feature and one of the second."""
    inputs = _inputs(Z, THETA)
    assert float(l0_loss(inputs)) == 1
    torch.testing.assert_close(_gradient(inputs, l0_bandwidth=0.4), torch.tensor([-2.5, -1.25], dtype=DOUBLE))


def test_quadratic_by_hand() -> None:
    """(1/2 - 1)^2, and its derivative 2 (1/2 - 1) / 2 times that of the mean L0."""
    inputs = _inputs(Z, THETA)
    fields = {"l0_bandwidth": 0.4, "target_l0": 2.0, "target_l0_mode": "quadratic"}
    assert float(l0_loss(inputs, **fields)) == 0.25  # type: ignore[arg-type]
    torch.testing.assert_close(_gradient(inputs, **fields), torch.tensor([1.25, 0.625], dtype=DOUBLE))


def test_borders() -> None:
    """z = theta is closed; the window leaves out its ends and what is not positive."""
    theta = torch.tensor([1.0, 0.25, 0.25, 0.25], dtype=DOUBLE)
    z = torch.tensor([[1.0, 0.75, -0.125, 0.0], [1.5, -0.25, 0.125, 0.5]], dtype=DOUBLE)
    inputs = _inputs(z, theta)
    assert float(l0_loss(inputs)) == (1 + 2) / 2
    torch.testing.assert_close(_gradient(inputs, l0_bandwidth=1.0), torch.tensor([-0.5, 0, -0.5, -0.5], dtype=DOUBLE))


@pytest.mark.parametrize("mode", ["threshold", "quadratic"])
def test_thresholds_alone_get_a_gradient(mode: str) -> None:
    """None, not zeros: nothing upstream of z is visited."""
    inputs = _inputs(Z, THETA)
    leaves = [tensor.clone().requires_grad_() for tensor in (inputs.f, inputs.z, inputs.norms)]
    fields = {"l0_bandwidth": 0.4, "target_l0": 2.0, "target_l0_mode": mode}
    f, z, norms = leaves
    theta = THETA.clone().requires_grad_()
    l0_loss(SparsityInputs(f, z * norms, norms, theta), **fields).backward()  # type: ignore[arg-type]
    assert [leaf.grad for leaf in leaves] == [None, None, None]
    assert theta.grad is not None
    assert not l0_loss(SparsityInputs(f, z * norms, norms, THETA), **fields).requires_grad  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [None, 1.5])
@pytest.mark.parametrize(("shape", "masked"), CASES)
def test_gradient_by_a_loop(shape: str, masked: bool, target: float | None) -> None:
    inputs = make_inputs(shape, masked)
    kept, eps = tokens(inputs), 0.8
    n_layers, width = len(kept[0]), len(kept[0][0])
    wanted = torch.zeros(n_layers, width, dtype=DOUBLE)
    for layer in range(n_layers):
        l0 = mean([float(sum(e.z > e.theta for e in token[layer])) for token in kept])
        outer = 1 if target is None else 2 * (l0 / target - 1) / target
        for i in range(width):
            entries = [token[layer][i] for token in kept]
            share = mean([float(abs(e.z - e.theta) < eps / 2 and e.z > 0) for e in entries])
            wanted[layer, i] = -outer * share / eps / n_layers
    found = _gradient(inputs, l0_bandwidth=eps, target_l0=target, target_l0_mode="quadratic")
    assert (wanted != 0).any()
    torch.testing.assert_close(found.reshape(n_layers, width), wanted, rtol=1e-12, atol=0)


def test_gradient_is_the_difference_across_the_window() -> None:
    """(L0(theta + eps/2) - L0(theta - eps/2)) / eps of the loss's own values, for thresholds above eps/2."""
    z, theta, eps = randn(500, 4) + 0.5, torch.tensor([0.3, 0.5, 1.0, 1.7], dtype=DOUBLE), 0.25
    found = _gradient(_inputs(z, theta), l0_bandwidth=eps)
    for i in range(4):
        step = torch.zeros(4, dtype=DOUBLE)
        step[i] = eps / 2
        above, below = (float(l0_loss(_inputs(z, theta + sign * step))) for sign in (1, -1))
        assert float(found[i]) == pytest.approx((above - below) / eps, rel=1e-10)


def _normal_density(x: float, mu: float, sigma: float) -> float:
    return math.exp(-0.5 * ((x - mu) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("density", ["exponential", "normal"])
def test_gradient_estimates_the_density_at_the_threshold(density: str) -> None:
    """d/dtheta E[H(z - theta)] = -p(theta): Rajamanoharan et al. 2024, section 4; within five standard errors."""
    n, eps = 400_000, 0.1
    theta = torch.tensor([0.2, 0.6, 1.0, 2.0], dtype=DOUBLE)
    draws = generator(0, "losses", density)
    if density == "exponential":
        z = -torch.rand(n, 4, generator=draws, dtype=DOUBLE).clamp_min(1e-300).log()
        p = [math.exp(-t) for t in theta.tolist()]
    else:
        z = 0.8 + 0.7 * torch.randn(n, 4, generator=draws, dtype=DOUBLE)
        p = [_normal_density(t, 0.8, 0.7) for t in theta.tolist()]
    found = _gradient(_inputs(z, theta), l0_bandwidth=eps)
    for value, wanted in zip(found.tolist(), p, strict=True):
        assert value == pytest.approx(-wanted, abs=5 * math.sqrt(wanted / (n * eps)))


def test_log_thresholds_take_the_chain_rule() -> None:
    t = THETA.log().requires_grad_()
    l0_loss(_inputs(Z, THETA)._replace(thresholds=t.exp()), l0_bandwidth=0.4).backward()
    torch.testing.assert_close(t.grad, torch.tensor([-2.5 * 0.5, -1.25], dtype=DOUBLE))


def test_target_is_per_layer() -> None:
    """Layers that miss the target on either side do not cancel."""
    z = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]], dtype=DOUBLE)
    found = l0_loss(_inputs(z, torch.full((2, 3), 0.5, dtype=DOUBLE)), target_l0=2.0, target_l0_mode="quadratic")
    assert float(found) == 0.25


def test_without_thresholds_it_is_refused() -> None:
    with pytest.raises(ParamsError, match=saying("trainer.sparsity_loss_type:", "l0", "dictionary.act_fn", "jumprelu")):
        l0_loss(SparsityInputs(Z, Z, THETA))
