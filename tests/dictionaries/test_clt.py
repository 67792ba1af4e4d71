"""Cross-layer transcoder against a triple loop and finite differences, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import ParamsError
from pipeline.kernels.grouped import grouped_decode
from pipeline.seeding import generator
from tests.dictionaries.make import LAYERS_IN, LAYERS_OUT, filled, read_by

HOOKS: dict[str, Any] = {"kind": "clt", "hook_points_in": LAYERS_IN, "hook_points_out": LAYERS_OUT}
L, D, F = 3, 6, 20


def scalars(tensor: Tensor) -> Any:
    return tensor.detach().tolist()


@pytest.mark.parametrize("include_norm", [True, False])
def test_equals_a_triple_loop(include_norm: bool) -> None:
    made = filled(act_fn="jumprelu", sparsity_include_decoder_norm=include_norm, **HOOKS)
    x = read_by(made, 5)
    with torch.no_grad():
        codes, x_hat = made.run(x)
    weights = {name: scalars(tensor) for name, tensor in made.state_dict().items()}
    for b in range(5):
        f = [[0.0] * F for _ in range(L)]
        for layer in range(L):
            for i in range(F):
                h = weights["b_E"][layer][i] + sum(float(x[b, layer, d]) * weights["W_E"][layer][d][i] for d in range(D))
                n = math.sqrt(sum(v * v for j in range(layer, L) for v in weights[f"W_D.{j}"][layer][i]))
                z = h * n if include_norm else h
                assert float(codes.h[b, layer, i]) == pytest.approx(h, rel=1e-12)
                assert float(codes.norms[layer, i]) == pytest.approx(n, rel=1e-12)
                assert float(codes.z[b, layer, i]) == pytest.approx(z, rel=1e-12)
                f[layer][i] = h if z > math.exp(weights["log_jumprelu_threshold"][layer][i]) else 0.0
                assert float(codes.f[b, layer, i]) == pytest.approx(f[layer][i], rel=1e-12)
        for j in range(L):
            for d in range(D):
                wanted = weights["b_D"][j][d] + sum(
                    f[layer][i] * weights[f"W_D.{j}"][layer][i][d] for layer in range(j + 1) for i in range(F)
                )
                assert float(x_hat[b, j, d]) == pytest.approx(wanted, rel=1e-11, abs=1e-12)


def test_tensors_have_the_names_of_the_specification() -> None:
    made = filled(act_fn="jumprelu", **HOOKS)
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    assert shapes == {
        "W_E": (L, D, F),
        "b_E": (L, F),
        "b_D": (L, D),
        "log_jumprelu_threshold": (L, F),
        "W_D.0": (1, F, D),
        "W_D.1": (2, F, D),
        "W_D.2": (3, F, D),
    }


@pytest.mark.parametrize("include_norm", [True, False])
def test_gradients_equal_finite_differences(include_norm: bool) -> None:
    """Through the concatenated norms too (they are in the loss), and through a zero row."""
    made = filled(act_fn="relu", d_sae=4, sparsity_include_decoder_norm=include_norm, **HOOKS)
    x = read_by(made, 3)
    names = [name for name, _ in made.named_parameters()]
    leaves = [x.requires_grad_(), *(p.detach().clone().requires_grad_() for p in made.parameters())]

    def value(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(_Scored(made), dict(zip((f"made.{n}" for n in names), weights, strict=True)), (x,))

    torch.autograd.gradcheck(value, leaves, atol=1e-7, rtol=1e-6)


class _Scored(torch.nn.Module):
    def __init__(self, made: Dictionary) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        codes, x_hat = self.made.run(x)
        return x_hat.square().sum() + (codes.f * codes.norms).tanh().sum()


def test_a_zero_row_has_a_finite_gradient() -> None:
    made = filled(act_fn="relu", **HOOKS)
    with torch.no_grad():
        made.scale_decoder_(torch.zeros(L, F, dtype=torch.float64))
    made.run(read_by(made, 5))[1].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_decoding_holds_one_gradient_of_the_features() -> None:
    """No [B, L, L, F], and no padded copy of the features for each target."""
    draw = generator(0, "tests", "grouped")
    f = torch.rand(64, 5, 32, generator=draw).requires_grad_()
    blocks = [torch.randn(j + 1, 32, 3, generator=draw).requires_grad_() for j in range(5)]
    seen: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            seen.extend(
                t.untyped_storage().nbytes() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)
            )
            return out

    with Watch():
        grouped_decode(f, blocks).square().sum().backward()
    assert max(seen) <= f.numel() * 4


@torch.no_grad()
@pytest.mark.parametrize("start", ["drawn", "by_sources", "zero"])
def test_starts(start: str) -> None:
    made = build_dictionary({"d_in": 40, "d_sae": 300, "act_fn": "relu", "cross_layer_decoders": start, **HOOKS}, seed=0)
    bound = (L * 40) ** -0.5
    assert float(made.get_parameter("W_E").abs().max()) == pytest.approx(300**-0.5, rel=1e-3)
    for j in range(L):
        block = made.get_parameter(f"W_D.{j}")
        own, cross = float(block[j].abs().max()), block[:j].abs()
        assert own == pytest.approx(bound / math.sqrt(j + 1) if start == "by_sources" else bound, rel=1e-2)
        if j:
            assert float(cross.max()) == pytest.approx(0.0 if start == "zero" else own, rel=1e-2)


def test_configurations_that_make_no_sense_are_refused() -> None:
    def build(**fields: Any) -> None:
        build_dictionary({**HOOKS, "d_in": 4, "d_sae": 8, **fields})

    with pytest.raises(ParamsError, match="hook_points_out: 2 hook points for the 3"):
        build(hook_points_out=LAYERS_OUT[:2])
    with pytest.raises(ParamsError, match="does not write what it reads"):
        build(hook_points_out=LAYERS_IN)
    with pytest.raises(ParamsError, match="at least two hook points"):
        build(hook_points_in=LAYERS_IN[:1], hook_points_out=LAYERS_OUT[:1])
    with pytest.raises(ParamsError, match="one width"):
        build(d_out=5)
