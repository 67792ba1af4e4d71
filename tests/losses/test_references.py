"""Every sparsity loss and the pre-act loss against sums over plain numbers, and their gradients by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.losses.pre_act import pre_act_loss
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.losses.sparsity.l0 import l0_loss
from pipeline.losses.sparsity.power import power_loss
from pipeline.losses.sparsity.tanh import tanh_loss
from pipeline.losses.sparsity.tanh_quad import tanh_quad_loss
from pipeline.losses.sparsity_losses import SparsityInputs
from tests.losses.cases import CASES, Entry, make_inputs, mean, randn, tokens

Tokens = list[list[list[Entry]]]


def _over_rows(per_row: Callable[[list[Entry]], float]) -> Callable[[Tokens], float]:
    """Mean over tokens and layers of a function of one token's features in one layer."""
    return lambda kept: mean([per_row(row) for token in kept for row in token])


def _power(p: float) -> Callable[[Tokens], float]:
    return _over_rows(lambda row: sum((e.f * e.n) ** p for e in row) ** (1 / p))


def _tanh_quad(kept: Tokens, c: float, s: float) -> float:
    total = 0.0
    n_layers, width = len(kept[0]), len(kept[0][0])
    for layer in range(n_layers):
        for i in range(width):
            q = mean([math.tanh(c * token[layer][i].f * token[layer][i].n) for token in kept])
            total += q * (1 + q / s)
    return total / n_layers


def _quadratic(kept: Tokens, target: float) -> float:
    n_layers = len(kept[0])
    l0 = [mean([float(sum(e.z > e.theta for e in token[layer])) for token in kept]) for layer in range(n_layers)]
    return mean([(value / target - 1) ** 2 for value in l0])


REFERENCES: dict[str, tuple[Callable[..., Tensor], dict[str, Any], Callable[[Tokens], float]]] = {
    "power-1": (power_loss, {}, _power(1.0)),
    "power-1.5": (power_loss, {"p": 1.5}, _power(1.5)),
    "power-2": (power_loss, {"p": 2.0}, _power(2.0)),
    "tanh": (tanh_loss, {}, _over_rows(lambda row: sum(math.tanh(4 * e.f * e.n) for e in row))),
    "tanh-0.7": (
        tanh_loss,
        {"tanh_stretch_coefficient": 0.7},
        _over_rows(lambda row: sum(math.tanh(0.7 * e.f * e.n) for e in row)),
    ),
    "tanh-quad": (tanh_quad_loss, {}, lambda kept: _tanh_quad(kept, 4.0, 0.01)),
    "tanh-quad-other": (
        tanh_quad_loss,
        {"tanh_stretch_coefficient": 1.5, "frequency_scale": 0.3},
        lambda kept: _tanh_quad(kept, 1.5, 0.3),
    ),
    "l0": (l0_loss, {}, _over_rows(lambda row: float(sum(e.z > e.theta for e in row)))),
    "l0-steered": (l0_loss, {"target_l0": 1.5}, _over_rows(lambda row: float(sum(e.z > e.theta for e in row)))),
    "l0-quadratic": (l0_loss, {"target_l0": 1.5, "target_l0_mode": "quadratic"}, lambda kept: _quadratic(kept, 1.5)),
    "pre-act": (pre_act_loss, {"include_norm": True}, _over_rows(lambda row: sum(max(e.theta - e.z, 0) for e in row))),
    "pre-act-h": (
        pre_act_loss,
        {"include_norm": False},
        _over_rows(lambda row: sum(max(e.theta - e.z, 0) * e.n for e in row)),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize(("shape", "masked"), CASES)
def test_value_is_the_sum_by_plain_numbers(name: str, shape: str, masked: bool) -> None:
    function, fields, reference = REFERENCES[name]
    inputs = make_inputs(shape, masked)
    found = function(inputs, **fields)
    assert found.shape == ()
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(reference(tokens(inputs)), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in REFERENCES if not name.startswith(("l0", "pre"))])
@pytest.mark.parametrize(("shape", "masked"), CASES)
def test_gradients_reach_features_and_norms(name: str, shape: str, masked: bool) -> None:
    function, fields, _ = REFERENCES[name]
    inputs = make_inputs(shape, masked)
    f = torch.where(inputs.f == 0, 0.1, inputs.f).requires_grad_()  # a root has no derivative at 0
    norms = inputs.norms.requires_grad_()
    assert torch.autograd.gradcheck(lambda f, n: function(inputs._replace(f=f, norms=n), **fields), (f, norms))


@pytest.mark.parametrize("include_norm", [True, False])
@pytest.mark.parametrize(("shape", "masked"), CASES)
def test_pre_act_gradients_reach_all_that_enters(include_norm: bool, shape: str, masked: bool) -> None:
    inputs = make_inputs(shape, masked)
    assert inputs.thresholds is not None
    leaves = [tensor.requires_grad_() for tensor in (inputs.z, inputs.thresholds, inputs.norms)]

    def loss(z: Tensor, theta: Tensor, norms: Tensor) -> Tensor:
        return pre_act_loss(inputs._replace(z=z, thresholds=theta, norms=norms), include_norm)

    assert torch.autograd.gradcheck(loss, leaves)
    found = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)
    assert (found[2] is None) == include_norm


@pytest.mark.parametrize(("shape", "masked"), CASES)
def test_reconstruction_gradients(shape: str, masked: bool) -> None:
    inputs = make_inputs(shape, masked)
    r, y = inputs.f.requires_grad_(), randn(*inputs.f.shape, seed=9).requires_grad_()
    if masked:  # a difference of thousands leaves finite differences no digits
        assert inputs.mask is not None
        r = torch.where(inputs.mask.reshape(*inputs.mask.shape, *(1,) * (r.ndim - inputs.mask.ndim)), r.detach(), 2.0)
        r.requires_grad_()
    assert torch.autograd.gradcheck(lambda r, y: reconstruction_loss(r, y, inputs.mask), (r, y))


@pytest.mark.parametrize("name", REFERENCES)
def test_no_kept_token_is_zero_and_has_no_gradient(name: str) -> None:
    function, fields, _ = REFERENCES[name]
    inputs = make_inputs("layers", True)
    assert inputs.thresholds is not None
    leaves = [tensor.requires_grad_() for tensor in (inputs.f, inputs.norms, inputs.thresholds)]
    found = function(inputs._replace(mask=torch.zeros(6, dtype=torch.bool)), **fields)
    assert float(found.detach()) == (1 if name == "l0-quadratic" else 0)  # an L0 of 0 is a whole target away
    found.backward()
    assert all(leaf.grad is None or (leaf.grad == 0).all() for leaf in leaves)


BF16 = {name: case for name, case in REFERENCES.items() if name != "power-1.5"}


@pytest.mark.parametrize("name", BF16)
@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_inputs_are_reduced_in_float32(name: str, masked: bool) -> None:
    """bf16 counts by steps of 2 from 256 on: 1,000 features would not sum up."""
    function, fields, _ = BF16[name]
    f, z = randn(64, 1000, seed=1).relu().bfloat16(), (randn(64, 1000) + 0.5).bfloat16()
    norms, theta = randn(1000, seed=2).abs() + 0.2, randn(1000, seed=3).abs() + 0.05
    mask = torch.arange(64) % 3 != 1 if masked else None
    exact = function(SparsityInputs(f.double(), z.double(), norms.float().double(), theta.float().double(), mask), **fields)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = function(SparsityInputs(f, z, norms.float(), theta.float(), mask), **fields)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(exact), rel=1e-5)
