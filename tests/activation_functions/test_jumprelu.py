"""JumpReLU's value and straight-through gradients (SPEC 2.1)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.activation_functions.jumprelu import jumprelu
from pipeline.activation_functions.registry import GateSettings, activation_function
from pipeline.errors import ParamsError
from pipeline.seeding import generator


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


def naive_gradient(z: Tensor, t: Tensor, g: Tensor, window: float) -> tuple[list[float], list[list[float]]]:
    dt = []
    for i, t_i in enumerate(t.tolist()):
        theta = math.exp(t_i)
        dtheta = 0.0
        for b in range(len(z)):
            v = float(z[b, i])
            if abs(v - theta) < window / 2 and v > 0:
                dtheta += float(g[b, i]) * (-theta / window)
        dt.append(theta * dtheta)
    dz = [[float(g[b, i]) * (float(z[b, i]) > math.exp(float(t[i]))) for i in range(z.shape[1])] for b in range(len(z))]
    return dt, dz


@pytest.mark.parametrize("window", [0.001, 0.3, 2.0, 10.0])
@pytest.mark.parametrize("token_shape", [(11,), (3, 4), ()])
def test_gradients_equal_the_formula_entry_by_entry(window: float, token_shape: tuple[int, ...]) -> None:
    g = generator(0, "jumprelu", str(window), str(token_shape))
    z = torch.randn(*token_shape, 5, generator=g, dtype=torch.float64).requires_grad_()
    t = (torch.randn(5, generator=g, dtype=torch.float64) * 0.5).requires_grad_()
    upstream = torch.randn(*token_shape, 5, generator=g, dtype=torch.float64)
    jumprelu(z, t, window).backward(upstream)
    dt, dz = naive_gradient(z.detach().reshape(-1, 5), t.detach(), upstream.reshape(-1, 5), window)
    assert t.grad is not None
    assert z.grad is not None
    assert t.grad.tolist() == pytest.approx(dt, rel=1e-12, abs=1e-15)
    assert z.grad.reshape(-1, 5).tolist() == dz


def test_the_gradient_of_z_passes_gradcheck_away_from_the_jump() -> None:
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64).log()
    z = torch.tensor([[0.3, 0.2, 2.0], [-1.0, 0.9, 0.7]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: jumprelu(v, t), (z,))


def test_the_threshold_gradient_is_the_smoothed_jump() -> None:
    """The window estimates d E[g y] / d theta = -g theta p(theta) for z spread evenly over [0, 4]."""
    n, theta, window = 200_000, 1.3, 0.5
    z = torch.linspace(0, 4, n, dtype=torch.float64)[:, None]
    t = torch.tensor([math.log(theta)], dtype=torch.float64, requires_grad=True)
    jumprelu(z, t, window).mean().backward()
    assert t.grad is not None
    assert float(t.grad) == pytest.approx(-theta * theta / 4, rel=1e-3)


def test_thresholds_of_several_layers() -> None:
    t = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    z = torch.full((5, 2, 3), 1.5, dtype=torch.float64)
    jumprelu(z, t).sum().backward()
    assert t.grad is not None
    assert t.grad.tolist() == [[-2.5] * 3] * 2


def test_the_result_has_the_dtype_of_the_parameter() -> None:
    t = torch.zeros(3, requires_grad=True)
    y = jumprelu(torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True) * 1.5, t)
    assert y.dtype == torch.float32
    y.sum().backward()
    assert t.grad is not None


def test_closed_entries_are_plain_zeros() -> None:
    y = jumprelu(torch.tensor([[-1.0, 0.5, 2.0]]), torch.zeros(3))
    assert [str(v) for v in y[0].tolist()] == ["0.0", "0.0", "2.0"]


def test_masked_tokens_give_thresholds_no_gradient() -> None:
    t = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    z = torch.full((4, 3), 1.2, dtype=torch.float64)
    mask = torch.tensor([True, False, True, False])
    activation_function("jumprelu").features(z, z, None, GateSettings(0, mask, t)).sum().backward()
    assert t.grad is not None
    assert t.grad.tolist() == [-1.0] * 3


def test_jumprelu_without_a_threshold_is_refused() -> None:
    with pytest.raises(ParamsError, match="log_jumprelu_threshold"):
        activation_function("jumprelu").support(torch.ones(1, 2), GateSettings())
