"""Gradients of SAE and transcoder: finite differences in float64 through run(), away from the gates' jumps.

Every output that a loss uses takes part (h, z, f, n and the reconstruction), each entry with a weight of its own, so that
a gradient that is dropped anywhere shows. The threshold's gradient is no derivative: it has its own loops below.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from pipeline.dictionaries.base import Dictionary, Gate
from pipeline.kernels.cpu import CpuEntries
from pipeline.seeding import generator
from tests.dictionaries.make import ACT_FNS, filled, inputs

D, F, D_OUT = 3, 13, 2
MARGIN = 1e-4  # how far every z stays from where it opens or closes; a finite difference moves it by about 1e-6
WINDOW = 1e-5  # of JumpReLU: narrower than the margin, so that thresholds have the gradient 0 of a step
VARIANTS: dict[str, dict[str, Any]] = {
    "sae": {"kind": "sae"},
    "glu": {"kind": "sae", "use_glu_encoder": True},
    "b_D at the input": {"kind": "sae", "apply_b_dec_to_input": True},
    "b_D at both inputs of a glu": {"kind": "sae", "apply_b_dec_to_input": True, "use_glu_encoder": True},
    "no b_D": {"kind": "sae", "use_decoder_bias": False},
    "transcoder": {"kind": "transcoder", "d_out": D_OUT},
    "skip": {"kind": "transcoder", "d_out": D_OUT, "skip": True},
    "skip and glu": {"kind": "transcoder", "d_out": D_OUT, "skip": True, "use_glu_encoder": True},
}
GATES = [("relu", 1), ("jumprelu", 1), ("topk", 1), ("topk", 4), ("batchtopk", 1), ("batchtopk", 4)]  # k 1: by the entries
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_gate = pytest.mark.parametrize(("act_fn", "k"), GATES)
both_gatings = pytest.mark.parametrize("include_norm", [True, False])


class Running(nn.Module):
    """A dictionary whose call is run()."""

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        codes, x_hat = self.dictionary.run(x, mask)
        return (codes.h, codes.z, codes.f, codes.norms, x_hat)


def margin(dictionary: Dictionary, x: Tensor, mask: Tensor | None) -> float:
    """The least distance of a gating value from the place where the support changes."""
    z = dictionary.codes(x, mask).z.detach().reshape(-1, F)
    k, act_fn = dictionary.config.top_k, dictionary.config.act_fn
    z = z if mask is None else z[mask.reshape(-1)]
    if act_fn == "jumprelu":
        return float((z - dictionary.log_jumprelu_threshold.detach().exp()).abs().min())
    to_zero = float(z.abs().min())
    if act_fn == "relu":
        return to_zero
    ranked = (z if act_fn == "topk" else z.reshape(1, -1)).sort(descending=True).values
    cut = k if act_fn == "topk" else k * len(z)
    gaps = (ranked[:, cut - 1] - ranked[:, cut])[ranked[:, cut - 1] > 0]  # below 0 nothing is at the cut
    return min([to_zero, *gaps.tolist()])


def away_from_the_jumps(
    variant: str, act_fn: str, k: int, include_norm: bool, tokens: int
) -> tuple[Dictionary, Tensor, Tensor]:
    """A dictionary, its input [tokens, D] and a mask, the first seed's whose support holds still."""
    fields = {**VARIANTS[variant], "sparsity_include_decoder_norm": include_norm, "jumprelu_threshold_window": WINDOW}
    for seed in range(50):
        dictionary = filled(seed, act_fn=act_fn, top_k=k, d_in=D, d_sae=F, **fields)
        x, mask = inputs(tokens, D, seed), torch.rand(tokens, generator=generator(seed, "mask")) < 0.7
        if 0 < int(mask.sum()) < tokens and min(margin(dictionary, x, m) for m in (None, mask)) > MARGIN:
            return dictionary, x, mask
    raise AssertionError("no such seed")


@every_variant
@every_gate
@both_gatings
def test_run_equals_finite_differences(variant: str, act_fn: str, k: int, include_norm: bool) -> None:
    dictionary, x, mask = away_from_the_jumps(variant, act_fn, k, include_norm, tokens=4)
    assert CpuEntries().entries_pay(torch.float64, k / F) == (k == 1)
    running = Running(dictionary)
    names = [name for name, _ in running.named_parameters()]
    leaves = [x, *(p.detach().clone() for p in running.parameters())]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    cases: list[tuple[Tensor | None, tuple[int, ...]]] = [(mask.reshape(2, 2), (2, 2))]
    if variant in ("sae", "skip and glu"):
        cases.append((None, (4,)))
    for given_mask, shape in cases:
        with torch.no_grad():
            shapes = [out.shape for out in running(x.reshape(*shape, D), given_mask)]
        weigh = generator(0, "weights of the outputs")
        drawn = torch.cat([torch.randn(out, generator=weigh, dtype=torch.float64).flatten() for out in shapes])

        def value(
            x: Tensor, *weights: Tensor, given: Any = given_mask, shape: tuple[int, ...] = shape, drawn: Tensor = drawn
        ) -> Tensor:
            arguments = (x.reshape(*shape, D), given)
            outputs = functional_call(running, dict(zip(names, weights, strict=True)), arguments)
            return torch.cat([out.flatten() for out in outputs]) @ drawn

        assert gradcheck(value, tuple(leaves), eps=1e-6, atol=1e-6, rtol=1e-5)


@both_gatings
def test_nested_reconstructions_equal_finite_differences(include_norm: bool) -> None:
    dictionary, x, _ = away_from_the_jumps("skip", "batchtopk", 4, include_norm, tokens=4)
    names = [name for name, _ in dictionary.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in dictionary.parameters()]

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dictionary = dictionary

        def forward(self, x: Tensor) -> Tensor:
            found = dictionary.reconstructions(dictionary.codes(x), x, (2, 7, F))
            return torch.stack([(number + 1) * r.square().sum() for number, r in enumerate(found)]).sum()

    def value(*weights: Tensor) -> Tensor:
        named = {f"dictionary.{name}": weight for name, weight in zip(names, weights, strict=True)}
        result: Tensor = functional_call(Nested(), named, (x,))
        return result

    assert gradcheck(value, tuple(leaves), eps=1e-6, atol=1e-5, rtol=1e-5)


# What the decoder norm does -----------------------------------------------------------------------------------------


@every_gate
@both_gatings
def test_the_gradient_flows_through_the_decoder_norm(act_fn: str, k: int, include_norm: bool) -> None:
    """d n_i / d W_D[i] = W_D[i] / n_i, in f n and in z = h n; in f = act(h n) / n the norm cancels."""
    dictionary, x, _ = away_from_the_jumps("transcoder", act_fn, k, include_norm, tokens=6)

    def gradient(which: str) -> Tensor:
        codes, _ = dictionary.run(x)
        value = {"f": codes.f, "z": codes.z, "f n": codes.f * codes.norms}[which].sum()
        if not value.requires_grad:
            return torch.zeros(F, D_OUT, dtype=torch.float64)
        (found,) = torch.autograd.grad(value, dictionary.W_D, allow_unused=True)
        return torch.zeros(F, D_OUT, dtype=torch.float64) if found is None else found

    codes, _ = dictionary.run(x)
    h, f, rows = codes.h.tolist(), codes.f.tolist(), dictionary.W_D.tolist()
    for which, slopes in {
        "f": [0.0] * F,
        "z": [sum(row[i] for row in h) if include_norm else 0.0 for i in range(F)],
        "f n": [sum(row[i] for row in f) for i in range(F)],
    }.items():
        wanted = [[slopes[i] * v / math.sqrt(sum(w * w for w in rows[i])) for v in rows[i]] for i in range(F)]
        torch.testing.assert_close(gradient(which), torch.tensor(wanted, dtype=torch.float64), rtol=1e-11, atol=1e-11)


# Thresholds ---------------------------------------------------------------------------------------------------------


@every_variant
@both_gatings
@pytest.mark.parametrize("window", [None, 0.7])
def test_thresholds_get_the_windows_gradient_through_the_whole_dictionary(
    variant: str, include_norm: bool, window: float | None
) -> None:
    """dt_i = sum_b (g_bi / n_i) (-theta_i^2 / w) 1[|z_bi - theta_i| < w/2 and z_bi > 0], g the gradient of f.

    g = v . W_D[i] for a loss that is v . x_hat; without the norm in the gate there is no 1 / n_i."""
    fields = {**VARIANTS[variant], "sparsity_include_decoder_norm": include_norm, "jumprelu_threshold_window": 1.3}
    dictionary, x = filled(act_fn="jumprelu", d_in=D, d_sae=F, **fields), inputs(40, D)
    mask = torch.arange(40) % 4 > 0
    codes, x_hat = dictionary.run(x, mask, Gate(window=window))
    v = torch.randn(x_hat.shape, generator=generator(0, "v"), dtype=torch.float64)
    (x_hat * v).sum().backward()
    z, theta, rows = codes.z.tolist(), dictionary.log_jumprelu_threshold.detach().exp().tolist(), dictionary.W_D.tolist()
    w = 1.3 if window is None else window
    n_inside = 0
    for i in range(F):
        n = math.sqrt(sum(r * r for r in rows[i])) if include_norm else 1.0
        wanted = 0.0
        for b in range(40):
            if mask[b] and abs(z[b][i] - theta[i]) < w / 2 and z[b][i] > 0:
                n_inside += 1
                g = sum(a * r for a, r in zip(v[b].tolist(), rows[i], strict=True))
                wanted += theta[i] * (g / n) * (-theta[i] / w)
        found = dictionary.log_jumprelu_threshold.grad
        assert found is not None
        assert float(found[i]) == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    assert n_inside > 5


def test_every_gate_of_the_contract_is_here() -> None:
    assert {act_fn for act_fn, _ in GATES} == set(ACT_FNS)
