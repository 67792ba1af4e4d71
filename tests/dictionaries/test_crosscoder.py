"""Crosscoder against a loop and finite differences, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.registry import build_dictionary
from pipeline.errors import ParamsError
from pipeline.evaluation.decoder import decoder_metrics
from tests.dictionaries.make import LAYERS_IN, LAYERS_OUT, filled, read_by

FIELDS: dict[str, Any] = {"kind": "crosscoder", "hook_points_in": LAYERS_IN}
P, D, F = 3, 6, 20


@torch.no_grad()
@pytest.mark.parametrize("include_norm", [True, False])
def test_equals_a_loop(include_norm: bool) -> None:
    made = filled(act_fn="jumprelu", sparsity_include_decoder_norm=include_norm, **FIELDS)
    x = read_by(made, 5)
    codes, x_hat = made.run(x)
    w = {name: tensor.tolist() for name, tensor in made.state_dict().items()}
    for b in range(5):
        f = []
        for i in range(F):
            h = w["b_E"][i] + sum(float(x[b, p, d]) * w["W_E"][p][d][i] for p in range(P) for d in range(D))
            n = math.sqrt(sum(v * v for p in range(P) for v in w["W_D"][p][i]))
            z = h * n if include_norm else h
            assert float(codes.h[b, i]) == pytest.approx(h, rel=1e-12)
            assert float(codes.norms[i]) == pytest.approx(n, rel=1e-12)
            f.append(h if z > math.exp(w["log_jumprelu_threshold"][i]) else 0.0)
            assert float(codes.f[b, i]) == pytest.approx(f[i], rel=1e-12)
        for p in range(P):
            for d in range(D):
                wanted = w["b_D"][p][d] + sum(f[i] * w["W_D"][p][i][d] for i in range(F))
                assert float(x_hat[b, p, d]) == pytest.approx(wanted, rel=1e-11, abs=1e-12)


class _Scored(torch.nn.Module):
    def __init__(self, made: Dictionary) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        codes, x_hat = self.made.run(x)
        return x_hat.square().sum() + (codes.f * codes.norms).tanh().sum()


def test_gradients_equal_finite_differences() -> None:
    made = filled(act_fn="relu", d_sae=5, **FIELDS)
    names = [f"made.{name}" for name, _ in made.named_parameters()]
    leaves = [read_by(made, 3).requires_grad_(), *(p.detach().clone().requires_grad_() for p in made.parameters())]

    def value(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(_Scored(made), dict(zip(names, weights, strict=True)), (x,))

    torch.autograd.gradcheck(value, leaves, atol=1e-7, rtol=1e-6)


def test_where_a_feature_is_written_is_reported() -> None:
    """Feature 0 is exclusive to the first hook point, feature 1 the same at the first two, feature 2 opposite there."""
    made = build_dictionary({**FIELDS, "d_in": 2, "d_sae": 3, "act_fn": "relu", "dtype": "float64"})
    rows = torch.zeros(P, 3, 2, dtype=torch.float64)
    rows[0, 0] = torch.tensor([3.0, 4.0])
    rows[:2, 1] = torch.tensor([1.0, 1.0])
    rows[0, 2], rows[1, 2] = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0])
    with torch.no_grad():
        made.get_parameter("W_D").copy_(rows)
    found = decoder_metrics(made)
    first, second, third = LAYERS_IN
    assert [found[f"exclusive_fraction.{hook}"] for hook in LAYERS_IN] == pytest.approx([1 / 3, 0.0, 0.0])
    assert found["shared_fraction"] == pytest.approx(2 / 3)
    assert found[f"written_norm_q50.{first}"] == pytest.approx(2.0)
    assert found[f"written_norm_q95.{third}"] == 0.0
    assert found[f"written_cosine_q50.{first}.{second}"] == pytest.approx(0.0)
    assert found[f"written_cosine_q95.{first}.{second}"] == pytest.approx(0.9)
    assert f"written_cosine_q50.{second}.{third}" not in found


def test_configurations_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ParamsError, match="writes the hook points that it reads"):
        build_dictionary({**FIELDS, "d_in": 4, "d_sae": 8, "hook_points_out": LAYERS_OUT})
    with pytest.raises(ParamsError, match="kind 'crosscoder' has one"):
        build_dictionary({**FIELDS, "d_in": 4, "d_sae": 8, "act_fn": "layertopk"})
    with pytest.raises(ParamsError, match="a hook point is there twice"):
        build_dictionary({"kind": "crosscoder", "hook_points_in": ["a", "a"], "d_in": 4, "d_sae": 8})
