"""JumpReLU's value and straight-through gradients (SPEC 2.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.activation_functions.interface import GateSettings, activation_function
from pipeline.activation_functions.jumprelu import jumprelu
from pipeline.errors import ParamsError
from pipeline.seeding import generator
from tests.activation_functions.cases import PROPERTY, Case, cases

WINDOWS = (1e-3, 0.3, 1.0, 2.0, 10.0)


def test_the_worked_check_of_the_specification() -> None:
    t = torch.tensor([0.5, 1.0, 2.0, 0.05], dtype=torch.float64).log().requires_grad_()
    z = torch.tensor([[0.6, 1.9, -0.2, 0.02], [0.2, 2.1, 2.9, 0.5]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], dtype=torch.float64)
    y = jumprelu(z, t, window=2.0)
    y.backward(g)
    assert y.tolist() == [[0.6, 1.9, 0.0, 0.0], [0.0, 2.1, 2.9, 0.5]]
    assert t.grad is not None
    assert t.grad.tolist() == pytest.approx([-0.75, -1.0, -14.0, -0.015], rel=1e-12)
    assert z.grad is not None
    assert z.grad.tolist() == [[1.0, 2.0, 0.0, 0.0], [0.0, 6.0, 7.0, 8.0]]


# Against a loop -----------------------------------------------------------------------------------------------------


def naive(z: list[list[float]], theta: list[list[float]], g: list[list[float]], window: float) -> tuple[list, list, list]:
    """(y, dz, dt) by rows of one token and layer; `theta` has a row per layer."""
    dt = [[0.0] * len(row) for row in theta]
    y, dz = [], []
    for number, (values, upstream) in enumerate(zip(z, g, strict=True)):
        layer = number % len(theta)
        y.append([v if v > edge else 0.0 for v, edge in zip(values, theta[layer], strict=True)])
        dz.append([u if v > edge else 0.0 for v, u, edge in zip(values, upstream, theta[layer], strict=True)])
        for i, (v, u, edge) in enumerate(zip(values, upstream, theta[layer], strict=True)):
            if abs(v - edge) < window / 2 and v > 0:
                dt[layer][i] += edge * u * (-edge / window)
    return y, dz, dt


@pytest.mark.parametrize("layers", [False, True])
@PROPERTY
@given(data=st.data(), window=st.sampled_from(WINDOWS))
def test_value_and_gradients_equal_the_formula_entry_by_entry(layers: bool, data: st.DataObject, window: float) -> None:
    case = data.draw(cases(layers=layers))
    z, t = case.z.clone().requires_grad_(), case.t.clone().requires_grad_()
    theta = t.detach().exp()
    # Rounding may put a value on the other side of the window's end; in float64 this costs no case worth having.
    assume(bool((((z.detach().to(theta.dtype) - theta).abs() - window / 2).abs() > 1e-5).all()))
    y = jumprelu(z, t, window)
    assert y.dtype == t.dtype
    upstream = torch.randn(y.shape, generator=generator(case.k, "upstream"), dtype=torch.float64).to(t.dtype)
    y.backward(upstream)
    assert z.grad is not None
    assert t.grad is not None
    width = z.shape[-1]
    by_row = [tensor.detach().reshape(-1, width).tolist() for tensor in (z, theta, upstream)]
    wanted = naive(*by_row, window)
    exact = t.dtype == torch.float64
    for got, want in zip((y, z.grad, t.grad), wanted, strict=True):
        want = torch.tensor(want, dtype=torch.float64).reshape(got.shape).to(got.dtype)
        torch.testing.assert_close(got.detach(), want, rtol=1e-12 if exact else 2e-5, atol=1e-13 if exact else 1e-4)


@PROPERTY
@given(case=cases(), window=st.sampled_from(WINDOWS))
def test_masked_tokens_give_thresholds_no_gradient(case: Case, window: float) -> None:
    def gradients(z: Tensor, mask: Tensor | None) -> list[Tensor]:
        z, t = z.double().requires_grad_(), case.t.double().requires_grad_()
        f = activation_function("jumprelu").features(z, z, None, GateSettings(0, mask, t, window))
        return list(torch.autograd.grad(f.square().sum(), [z, t]))

    dz, dt = gradients(case.z, case.mask)
    rows = case.z.reshape(-1, case.z.shape[-1])
    dz_alone, dt_alone = gradients(rows[case.kept], None)
    torch.testing.assert_close(dt, dt_alone, rtol=1e-12, atol=1e-12)
    dz = dz.reshape(rows.shape)
    torch.testing.assert_close(dz[case.kept], dz_alone, rtol=1e-12, atol=0.0)
    assert (dz[~case.kept] == 0).all()


def test_the_ends_of_the_window_and_zero_are_outside() -> None:
    """theta 1: z of 0.5 and 1.5 are at the ends of a window of 1; a window of 4 reaches below 0 but takes no z <= 0."""
    for window, values, inside in ((1.0, [0.5, 0.5 + 2**-20, 1.5 - 2**-20, 1.5], 2), (4.0, [-0.5, 0.0, 2**-20, 2.0], 2)):
        t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        jumprelu(torch.tensor(values, dtype=torch.float64)[:, None], t, window).sum().backward()
        assert t.grad is not None
        assert float(t.grad) == -inside / window


def test_z_equal_to_the_threshold_is_closed() -> None:
    z = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    y = jumprelu(z, torch.zeros(2, dtype=torch.float64))
    y.sum().backward()
    assert y.tolist() == [[0.0, 0.0]]
    assert z.grad is not None
    assert z.grad.tolist() == [[0.0, 0.0]]


# Against what the paper derives -------------------------------------------------------------------------------------
#
# For z of density p and an upstream gradient g that may depend on z and on anything else,
#     J(theta) = E[g JumpReLU_theta(z)] = integral over z > theta of z p(z) E[g | z],   dJ/dtheta = -theta p(theta) E[g | theta].
# The pseudo-gradient is the estimate of it with a rectangle of width w as the kernel, whose mean over samples is
#     -theta (1/w) integral over the window of p(z) E[g | z] = -theta (q(theta) + w^2/24 q''(theta) + ...),   q(z) = p(z) E[g | z].


def density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def mean_g(z: float) -> float:
    return 2.0 + math.cos(2.0 * z)


def slope_of_j(theta: float) -> float:
    """dJ/dtheta by central differences of Simpson's rule for J between theta and 10."""

    def j(edge: float) -> float:
        n = 4000
        ends = [edge + (10.0 - edge) * i / n for i in range(n + 1)]
        weights = [1.0 if i in (0, n) else 4.0 if i % 2 else 2.0 for i in range(n + 1)]
        integral = sum(w * z * density(z) * mean_g(z) for w, z in zip(weights, ends, strict=True))
        return integral * (10.0 - edge) / n / 3

    return (j(theta + 1e-4) - j(theta - 1e-4)) / 2e-4


def q(z: float) -> float:
    return density(z) * mean_g(z)


def curvature(function: Callable[[float], float], z: float) -> float:
    return (function(z + 1e-3) - 2 * function(z) + function(z - 1e-3)) / 1e-6


def estimate(z: Tensor, g: Tensor, theta: float, window: float) -> float:
    """The pseudo-gradient of the samples' mean of g JumpReLU with respect to theta (dt = theta dtheta)."""
    t = torch.tensor([math.log(theta)], dtype=torch.float64, requires_grad=True)
    (jumprelu(z[:, None], t, window)[:, 0] * g).mean().backward()
    assert t.grad is not None
    return float(t.grad) / theta


@pytest.mark.parametrize("theta", [0.3, 0.7, 1.2, 2.0])
def test_the_threshold_gradient_estimates_the_slope_of_the_expected_value(theta: float) -> None:
    """n samples, window w. The estimate is a mean of n terms -theta/w g 1[in window], of variance at most
    (theta/w)^2 E[g^2; in window] <= (theta^2/w) p_max (3^2 + 0.5^2), because |E[g | z]| <= 3 and g's noise has deviation 0.5;
    its bias is theta w^2/24 |q''| to leading order. Six deviations and twice that bias are less than a tenth of the
    slope, so that no factor of theta, of the window, or of one half can be missing."""
    n, window = 4_000_000, 0.1
    draws = generator(0, "kernel density", str(theta))
    z = torch.randn(n, generator=draws, dtype=torch.float64)
    g = 2.0 + torch.cos(2.0 * z) + 0.5 * torch.randn(n, generator=draws, dtype=torch.float64)
    slope = slope_of_j(theta)
    assert slope == pytest.approx(-theta * q(theta), rel=1e-5)  # the two references agree
    p_max = density(max(theta - window / 2, 0.0))
    deviation = theta * math.sqrt(p_max * 9.25 / (window * n))
    tolerance = 6 * deviation + 2 * theta * window**2 / 24 * abs(curvature(q, theta))
    assert tolerance < 0.1 * abs(slope)
    assert abs(estimate(z, g, theta, window) - slope) < tolerance


def test_the_estimate_converges_with_the_square_of_the_window() -> None:
    """Without noise: z at the quantiles of its distribution, weights exact. The error is -theta w^2/24 q''(theta)."""
    n, theta = 2_000_000, 1.2
    quantiles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    z = math.sqrt(2.0) * torch.erfinv(2.0 * quantiles - 1.0)
    g = 2.0 + torch.cos(2.0 * z)
    for window in (0.4, 0.2, 0.1):
        error = estimate(z, g, theta, window) + theta * q(theta)
        assert error == pytest.approx(-theta * window**2 / 24 * curvature(q, theta), rel=0.05)


# The rest -----------------------------------------------------------------------------------------------------------


def test_the_window_of_the_settings_is_used() -> None:
    z = torch.tensor([[0.7, 1.2]], dtype=torch.float64)
    for window, wanted in ((2.0, [-0.5, -0.5]), (0.5, [0.0, -2.0])):
        t = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        activation_function("jumprelu").features(z, z, None, GateSettings(0, None, t, window)).sum().backward()
        assert t.grad is not None
        assert t.grad.tolist() == wanted


def test_closed_entries_are_plain_zeros() -> None:
    y = jumprelu(torch.tensor([[-1.0, 0.5, 2.0]]), torch.zeros(3))
    assert [str(v) for v in y[0].tolist()] == ["0.0", "0.0", "2.0"]


def test_jumprelu_without_a_threshold_is_refused() -> None:
    with pytest.raises(ParamsError, match="log_jumprelu_threshold"):
        activation_function("jumprelu").support(torch.ones(1, 2), GateSettings())
