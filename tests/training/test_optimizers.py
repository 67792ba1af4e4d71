"""Optimisers against naive float64 loops; clipping, skipping, loss scaling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.errors import CheckpointError, ParamsError
from pipeline.seeding import generator
from pipeline.training.optimizers import GradientScaler, build_optimizer, clip_gradients_, global_norm, gradient_norms

BETAS, EPS = (0.5, 0.99), 1e-8


def gradients(steps: int, shape: tuple[int, ...] = (3, 4)) -> list[torch.Tensor]:
    draw = generator(0, "tests", "gradients")
    found = [torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(steps)]
    return [torch.where(torch.rand(shape, generator=draw) < 0.4, 0.0, g) for g in found]


def naive(
    start: torch.Tensor,
    grads: list[torch.Tensor],
    lr: float,
    sparse: bool,
    eps: float = EPS,
    betas: tuple[float, float] = BETAS,
) -> torch.Tensor:
    b1, b2 = betas
    w, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, grad in enumerate(grads, start=1):
        for i in range(w.numel()):
            g = float(grad.view(-1)[i])
            m.view(-1)[i] = b1 * m.view(-1)[i] + (1 - b1) * g
            v.view(-1)[i] = b2 * v.view(-1)[i] + (1 - b2) * g * g
            if sparse and g == 0:
                continue
            m_hat, v_hat = float(m.view(-1)[i]) / (1 - b1**t), float(v.view(-1)[i]) / (1 - b2**t)
            w.view(-1)[i] -= lr * m_hat / (math.sqrt(v_hat) + eps)
    return w


@pytest.mark.parametrize("name", ["adam", "sparseadam"])
def test_update_is_the_formula(name: str) -> None:
    start = torch.randn(3, 4, generator=generator(1, "tests"), dtype=torch.float64)
    parameters = {"W": nn.Parameter(start.clone()), "t": nn.Parameter(start.clone())}
    optimizer = build_optimizer(name, parameters, lr_factors={"t": 0.1}, betas=BETAS, eps=EPS)
    grads = gradients(6)
    for grad in grads:
        for parameter in parameters.values():
            parameter.grad = grad.clone()
        optimizer.step(0.01)
    torch.testing.assert_close(parameters["W"].data, naive(start, grads, 0.01, name == "sparseadam"), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(parameters["t"].data, naive(start, grads, 0.001, name == "sparseadam"), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.999), (0.5, 0.99), (0.0, 0.0)])
@pytest.mark.parametrize("name", ["adam", "sparseadam"])
def test_the_first_steps_are_those_of_float64(name: str, betas: tuple[float, float]) -> None:
    """1 - beta^t of the first steps is small: computed in float32, updates of float64 weights would be 1e-5 off."""
    start = torch.randn(3, 4, generator=generator(1, "tests"), dtype=torch.float64)
    grads = gradients(3)
    for steps in (1, 2, 3):
        parameter = nn.Parameter(start.clone())
        optimizer = build_optimizer(name, {"W": parameter}, betas=betas, eps=EPS)
        for grad in grads[:steps]:
            parameter.grad = grad.clone()
            optimizer.step(0.01)
        wanted = naive(start, grads[:steps], 0.01, name == "sparseadam", betas=betas)
        torch.testing.assert_close(parameter.data, wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["adam", "sparseadam"])
def test_eps_is_added_to_the_root(name: str) -> None:
    start = torch.randn(3, 4, generator=generator(1, "tests"), dtype=torch.float64)
    parameters, grads = {"W": nn.Parameter(start.clone())}, gradients(6)
    optimizer = build_optimizer(name, parameters, betas=BETAS, eps=0.3)
    for grad in grads:
        parameters["W"].grad = grad.clone()
        optimizer.step(0.01)
    wanted = naive(start, grads, 0.01, name == "sparseadam", eps=0.3)
    torch.testing.assert_close(parameters["W"].data, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["adam", "sparseadam"])
def test_a_skipped_step_changes_nothing(name: str) -> None:
    parameter = nn.Parameter(torch.ones(5))
    optimizer = build_optimizer(name, {"W": parameter})
    parameter.grad = torch.full((5,), 0.5)
    optimizer.step(0.1, torch.zeros(()))
    before = {k: v.clone() for k, v in optimizer.state().items()} | {"W": parameter.detach().clone()}
    parameter.grad = torch.full((5,), float("nan"))
    optimizer.step(0.1, torch.ones(()))
    after = {**optimizer.state(), "W": parameter.detach()}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert float(before["W/step"]) == 1.0


@pytest.mark.parametrize("name", ["adam", "sparseadam"])
def test_state_round_trip_is_exact(name: str) -> None:
    grads = [g.float() for g in gradients(6)]

    def trained(cut: int | None) -> torch.Tensor:
        parameter = nn.Parameter(torch.ones(3, 4))
        optimizer = build_optimizer(name, {"W": parameter}, betas=BETAS)
        for step, grad in enumerate(grads):
            if step == cut:
                state = {key: tensor.clone() for key, tensor in optimizer.state().items()}
                parameter = nn.Parameter(parameter.detach().clone())
                optimizer = build_optimizer(name, {"W": parameter}, betas=BETAS)
                optimizer.load(state)
            parameter.grad = grad.clone()
            optimizer.step(0.01)
        return parameter.detach()

    assert torch.equal(trained(None), trained(3))
    with pytest.raises(CheckpointError):
        build_optimizer(name, {"W": nn.Parameter(torch.ones(2))}).load({"W/step": torch.zeros(())})


def test_unknown_optimizer() -> None:
    with pytest.raises(ParamsError, match=r"trainer\.optimizer.*did you mean 'adam'"):
        build_optimizer("adamw", {"W": nn.Parameter(torch.ones(2))})


def test_clipping_is_global_and_leaves_thresholds_out() -> None:
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in ("W", "b", "t")}
    for name, values in (("W", [3.0, 0.0]), ("b", [0.0, 4.0]), ("t", [100.0, 100.0])):
        parameters[name].grad = torch.tensor(values)
    parameters["idle"] = nn.Parameter(torch.zeros(2))
    norms = gradient_norms(parameters)
    assert {name: float(norm) for name, norm in norms.items()} == pytest.approx({"W": 3.0, "b": 4.0, "t": 2**0.5 * 100})
    norm = global_norm(norms, frozenset({"t"}))
    assert float(norm) == pytest.approx(5.0)
    assert float(global_norm({})) == 0.0
    clip_gradients_(parameters, norm, 1.0, frozenset({"t"}))
    torch.testing.assert_close(parameters["W"].grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(parameters["b"].grad, torch.tensor([0.0, 0.8]))
    torch.testing.assert_close(parameters["t"].grad, torch.tensor([100.0, 100.0]))
    clip_gradients_(parameters, torch.tensor(1.0), 10.0)
    torch.testing.assert_close(parameters["b"].grad, torch.tensor([0.0, 0.8]))  # short gradients are not stretched


def test_gradient_scaler_halves_on_overflow_and_grows_after_good_steps() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    scaler = GradientScaler(True, "cpu", growth_interval=2)
    scaler.scaled((parameter * 3).sum()).backward()
    overflow = scaler.unscale_({"W": parameter})
    torch.testing.assert_close(parameter.grad, torch.tensor([3.0]))
    assert overflow is not None
    assert float(overflow) == 0.0
    scaler.update(overflow)
    parameter.grad = torch.tensor([float("inf")])
    bad = scaler.unscale_({"W": parameter})
    assert bad is not None
    assert float(bad) == 1.0
    scaler.update(bad)
    assert float(scaler.scale) == 2.0**15
    for _ in range(2):
        scaler.update(torch.zeros(()))
    assert (float(scaler.scale), int(scaler.good_steps)) == (2.0**16, 0)
    assert GradientScaler(False, "cpu").unscale_({}) is None
