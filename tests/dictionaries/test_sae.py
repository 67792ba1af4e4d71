"""SAE and transcoder against loops over scalars and finite differences, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary, config_from_dict
from pipeline.dictionaries.codes import Codes
from tests.dictionaries.make import filled, inputs

VARIANTS: list[dict[str, Any]] = [
    {},
    {"sparsity_include_decoder_norm": False},
    {"use_glu_encoder": True},
    {"apply_b_dec_to_input": True, "use_glu_encoder": True},
    {"use_decoder_bias": False},
    {"kind": "transcoder", "d_out": 5},
    {"kind": "transcoder", "d_out": 9, "skip": True, "use_glu_encoder": True, "sparsity_include_decoder_norm": False},
]


def naive(dictionary: Dictionary, x: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """(f, x_hat) by SPEC 1.1 and 2, one scalar at a time."""
    config = dictionary.config
    w = {name: tensor.tolist() for name, tensor in dictionary.state_dict().items()}
    b_D = w.get("b_D", [0.0] * config.d_out)
    D, F, D_out = config.d_in, config.d_sae, config.d_out
    n = [math.sqrt(sum(v * v for v in row)) for row in w["W_D"]]
    all_h, all_z = [], []
    for token in x.tolist():
        e = [v - b_D[d] for d, v in enumerate(token)] if config.apply_b_dec_to_input else token
        h = [sum(e[d] * w["W_E"][d][i] for d in range(D)) + w["b_E"][i] for i in range(F)]
        if config.use_glu_encoder:
            g = [sum(e[d] * w["W_G"][d][i] for d in range(D)) + w["b_G"][i] for i in range(F)]
            h = [h[i] / (1 + math.exp(-g[i])) for i in range(F)]
        all_h.append(h)
        all_z.append([h[i] * n[i] if config.sparsity_include_decoder_norm else h[i] for i in range(F)])
    opened = open_entries(dictionary, all_z)
    f = [[h[i] if (b, i) in opened else 0.0 for i in range(F)] for b, h in enumerate(all_h)]
    x_hat = []
    for b, token in enumerate(x.tolist()):
        row = [sum(f[b][i] * w["W_D"][i][j] for i in range(F)) + b_D[j] for j in range(D_out)]
        if config.skip:
            row = [row[j] + sum(token[d] * w["W_skip"][d][j] for d in range(D)) for j in range(D_out)]
        x_hat.append(row)
    return f, x_hat


def open_entries(dictionary: Dictionary, z: list[list[float]]) -> set[tuple[int, int]]:
    config = dictionary.config
    positive = [(v, b, i) for b, row in enumerate(z) for i, v in enumerate(row) if v > 0]
    if config.act_fn == "relu":
        return {(b, i) for _, b, i in positive}
    if config.act_fn == "jumprelu":
        theta = [math.exp(t) for t in dictionary.log_jumprelu_threshold.tolist()]
        return {(b, i) for v, b, i in positive if v > theta[i]}
    if config.act_fn == "batchtopk":
        return {(b, i) for _, b, i in sorted(positive)[-config.top_k * len(z) :]}
    per_token = [sorted((v, i) for v, t, i in positive if t == b)[-config.top_k :] for b in range(len(z))]
    return {(b, i) for b, kept in enumerate(per_token) for _, i in kept}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("act_fn", ["relu", "topk", "batchtopk", "jumprelu"])
def test_equals_the_formula_scalar_by_scalar(act_fn: str, variant: dict[str, Any]) -> None:
    for top_k in (1, 4):  # 1 of 20 goes by the entry-wise kernels, 4 does not
        dictionary, x = filled(act_fn=act_fn, **{"top_k": top_k, **variant}), inputs(7, 6)
        f, x_hat = naive(dictionary, x)
        codes, reconstruction = dictionary.run(x)
        torch.testing.assert_close(codes.f, torch.tensor(f, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(reconstruction, torch.tensor(x_hat, dtype=torch.float64), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(dictionary(x), reconstruction, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("act_fn", ["relu", "topk", "batchtopk"])
@pytest.mark.parametrize("top_k", [1, 4])
def test_gradients_equal_finite_differences(act_fn: str, variant: dict[str, Any], top_k: int) -> None:
    """Decoder norms take part: the loss has f * n, and a moved norm moves it (support fixed by a small step)."""
    dictionary, x = filled(act_fn=act_fn, top_k=top_k, **variant), inputs(9, 6)
    label = inputs(9, dictionary.config.d_out, seed=1)

    def value() -> Tensor:
        codes, x_hat = dictionary.run(x)
        return (x_hat - label).square().sum() + 0.7 * (codes.f * codes.norms).sum()

    value().backward()
    step = 1e-6
    for name, parameter in dictionary.named_parameters():
        weights, gradient = parameter.detach(), parameter.grad
        assert gradient is not None
        for number in range(0, weights.numel(), max(1, weights.numel() // 7)):
            place = torch.unravel_index(torch.tensor(number), weights.shape)
            before = float(weights[place])
            ends = []
            for sign in (1, -1):
                weights[place] = before + sign * step
                ends.append(float(value().detach()))
            weights[place] = before
            expected = (ends[0] - ends[1]) / (2 * step)
            assert float(gradient[place]) == pytest.approx(expected, rel=2e-5, abs=2e-5), (name, place)


def test_gradient_reaches_the_input_on_both_paths() -> None:
    for top_k in (1, 4):
        dictionary = filled(act_fn="topk", top_k=top_k, use_glu_encoder=True)
        x = inputs(5, 6).requires_grad_()
        assert torch.autograd.gradcheck(lambda t, d=dictionary: d.run(t)[1], (x,), eps=1e-7, atol=1e-5)


def test_a_feature_without_a_decoder_row_stays_closed() -> None:
    for act_fn in ("relu", "topk", "batchtopk", "jumprelu"):
        dictionary, x = filled(act_fn=act_fn, top_k=20), inputs(6, 6)
        with torch.no_grad():
            dictionary.W_D[3] = 0
        codes, x_hat = dictionary.run(x)
        assert (codes.f[:, 3] == 0).all()
        (x_hat.square().sum() + (codes.f * codes.norms).sum()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in dictionary.parameters())


def test_decode_dead_takes_the_top_dead_features_unrectified() -> None:
    dictionary, x = filled(act_fn="topk", use_glu_encoder=True), inputs(8, 6)
    live = dictionary.codes(x)
    codes = Codes(live.h.detach(), live.z.detach(), live.f.detach(), live.norms.detach())
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[2, 5, 11, 17]] = True
    for k_aux in (1, 3, 4, 512):
        expected = torch.zeros(8, 6, dtype=torch.float64)
        for b in range(8):
            ranked = sorted(dead.nonzero().flatten().tolist(), key=lambda i: -float(codes.z[b, i]))
            for i in ranked[: min(k_aux, 4)]:
                expected[b] += codes.h[b, i] * dictionary.W_D[i]
        found = dictionary.decode_dead(codes.z, codes.h, dead, k_aux)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    nothing = dictionary.decode_dead(codes.z, codes.h, torch.zeros_like(dead), 3)
    assert (nothing == 0).all()


def test_decode_dead_gives_negative_features_a_gradient() -> None:
    dictionary, x = filled(act_fn="topk"), inputs(8, 6)
    with torch.no_grad():
        dictionary.b_E[4] = -1000.0
    codes = dictionary.codes(x)
    dead = torch.arange(20) == 4
    dictionary.decode_dead(codes.z, codes.h, dead, 512).sum().backward()
    assert dictionary.W_E.grad[:, 4].abs().sum() > 0  # type: ignore[index]
    assert dictionary.W_E.grad[:, :4].abs().sum() == 0  # type: ignore[index]


def test_base_initialisation() -> None:
    dictionary = build_dictionary({"kind": "sae", "d_in": 32, "expansion_factor": 2.5, "act_fn": "jumprelu"}, seed=1)
    assert dictionary.config.d_sae == 80
    assert torch.equal(dictionary.W_E, dictionary.W_D.T)
    assert 0.97 < float(dictionary.W_D.detach().abs().max()) <= 1.0
    assert (dictionary.b_E == 0).all()
    assert (dictionary.b_D == 0).all()
    torch.testing.assert_close(dictionary.thresholds(), torch.full((80,), 0.1))


def test_initialisation_options() -> None:
    config = {"kind": "transcoder", "d_in": 8, "d_out": 8, "d_sae": 300, "act_fn": "jumprelu", "skip": True}
    options = {
        "decoder_uniform_bound": 0.25,
        "init_encoder_with_decoder_transpose_factor": 2.0,
        "init_log_jumprelu_threshold_value": -1.0,
    }
    scaled = build_dictionary({**config, **options})
    assert 0.24 < float(scaled.W_D.detach().abs().max()) <= 0.25
    assert torch.equal(scaled.W_E, 2.0 * scaled.W_D.T)
    assert (scaled.log_jumprelu_threshold == -1.0).all()
    assert (scaled.W_skip == 0).all()
    drawn = build_dictionary({**config, "encoder_uniform_bound": 0.5, "init_encoder_with_decoder_transpose": False})
    assert 0.48 < float(drawn.W_E.detach().abs().max()) <= 0.5
    assert not torch.equal(drawn.W_E, drawn.W_D.T)


def test_only_the_transcoder_adds_what_it_skips() -> None:
    dictionary, x = filled(kind="transcoder", d_out=5, skip=True), inputs(4, 6)
    f = dictionary.encode(x)
    torch.testing.assert_close(dictionary(x) - dictionary.decode(f), x @ dictionary.W_skip)


@pytest.mark.parametrize("amp", [torch.bfloat16])
def test_runs_under_autocast(amp: torch.dtype) -> None:
    for act_fn in ("relu", "topk", "batchtopk", "jumprelu"):
        dictionary = filled(act_fn=act_fn, dtype="float32", top_k=1, use_glu_encoder=True)
        x = inputs(20, 6, dtype=torch.float32)
        with torch.autocast("cpu", dtype=amp):
            codes, x_hat = dictionary.run(x)
        x_hat.float().square().sum().backward()
        reference = dictionary(x)
        assert float(((x_hat.float() - reference).norm() / reference.norm()).detach()) < 0.1
        assert all(p.grad is None or p.grad.isfinite().all() for p in dictionary.parameters())
        assert codes.norms.dtype == torch.float32


def test_drawn_weights_fill_their_bounds() -> None:
    """W_D ~ U(-b, b): both signs, mean 0, variance b^2 / 3."""
    made = build_dictionary({"kind": "sae", "d_in": 64, "d_sae": 500, "act_fn": "relu", "decoder_uniform_bound": 0.5}, seed=0)
    w = made.W_D.detach().double()
    assert 0.499 < float(w.max()) <= 0.5
    assert -0.5 <= float(w.min()) < -0.499
    assert float(w.square().mean()) == pytest.approx(0.25 / 3, rel=0.02)
    assert abs(float(w.mean())) < 0.01


def test_defaults_are_those_of_the_specification() -> None:
    config = config_from_dict({"kind": "sae", "d_in": 4, "d_sae": 8})
    found = {
        name: getattr(config, name)
        for name in (
            "act_fn",
            "top_k",
            "use_decoder_bias",
            "sparsity_include_decoder_norm",
            "norm_activation",
            "use_glu_encoder",
            "jumprelu_threshold_window",
            "apply_b_dec_to_input",
            "skip",
        )
    }
    assert found == {
        "act_fn": "relu",
        "top_k": 50,
        "use_decoder_bias": True,
        "sparsity_include_decoder_norm": True,
        "norm_activation": "dataset-wise",
        "use_glu_encoder": False,
        "jumprelu_threshold_window": 2.0,
        "apply_b_dec_to_input": False,
        "skip": False,
    }
