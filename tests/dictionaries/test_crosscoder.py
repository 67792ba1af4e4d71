"""Crosscoder against loops over scalars and finite differences in float64, its fold, and its base draw."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.initial import BaseInitialization
from pipeline.errors import DataError, ParamsError
from pipeline.evaluation.decoder import decoder_metrics
from pipeline.folding import fold_dictionary
from tests.dictionaries.make import ACT_FNS, filled, read_by
from tests.dictionaries.test_sae import open_entries

HOOKS = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post", "tuned:blocks.1.hook_resid_post"]
CONFIG: dict[str, Any] = {"kind": "crosscoder", "hook_points_in": HOOKS}
# Three hook points whose activations have very different lengths.
NORMS = {
    HOOKS[0]: {"mean_norm": 37.0, "mean_square": 1500.0, "d": 6},
    HOOKS[1]: {"mean_norm": 0.08, "mean_square": 0.0081, "d": 6},
    HOOKS[2]: {"mean_norm": 2100.0, "mean_square": 5.0e6, "d": 6},
}
every_gate = pytest.mark.parametrize("act_fn", ACT_FNS)
both_norms = pytest.mark.parametrize("norm", ["joint", "sum"])
both_gating_domains = pytest.mark.parametrize("include_norm", [True, False], ids=["with-norm", "without-norm"])


def make(act_fn: str, **config: Any) -> Dictionary:
    return filled(act_fn=act_fn, **{**CONFIG, **config})


def naive(dictionary: Dictionary, x: Tensor) -> tuple[list[list[float]], list[list[list[float]]], list[float]]:
    """(f, x_hat, N) by SPEC 1.4 and 2, one scalar at a time."""
    w = {name: tensor.tolist() for name, tensor in dictionary.state_dict().items()}
    P, D, F = len(HOOKS), dictionary.config.d_in, dictionary.config.d_sae
    b_D = w.get("b_D", [[0.0] * D] * P)
    squares = [[sum(w["W_D"][p][i][d] ** 2 for d in range(D)) for p in range(P)] for i in range(F)]
    joint = dictionary.config.crosscoder_norm == "joint"
    n = [math.sqrt(sum(each)) if joint else sum(math.sqrt(square) for square in each) for each in squares]
    all_h, all_z = [], []
    for token in x.tolist():
        h = [w["b_E"][i] + sum(token[p][d] * w["W_E"][p][d][i] for p in range(P) for d in range(D)) for i in range(F)]
        all_h.append(h)
        all_z.append([h[i] * n[i] if dictionary.config.sparsity_include_decoder_norm else h[i] for i in range(F)])
    opened = open_entries(dictionary, all_z)
    f = [[h[i] if (b, i) in opened else 0.0 for i in range(F)] for b, h in enumerate(all_h)]
    x_hat = [
        [[b_D[p][d] + sum(f[b][i] * w["W_D"][p][i][d] for i in range(F)) for d in range(D)] for p in range(P)]
        for b in range(len(f))
    ]
    return f, x_hat, n


@every_gate
@both_gating_domains
@both_norms
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_formula_scalar_by_scalar(act_fn: str, include_norm: bool, norm: str, bias: bool) -> None:
    for top_k in (1, 4):
        fields = {"sparsity_include_decoder_norm": include_norm, "use_decoder_bias": bias, "crosscoder_norm": norm}
        dictionary = make(act_fn, top_k=top_k, **fields)
        x = read_by(dictionary, 7)
        f, x_hat, n = naive(dictionary, x)
        codes, reconstruction = dictionary.run(x)
        torch.testing.assert_close(codes.f, torch.tensor(f, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(codes.norms, torch.tensor(n, dtype=torch.float64), rtol=1e-12, atol=0)
        torch.testing.assert_close(reconstruction, torch.tensor(x_hat, dtype=torch.float64), rtol=1e-11, atol=1e-11)
        assert 0 < int((codes.f != 0).sum()) < codes.f.numel()


@pytest.mark.parametrize("act_fn", ["relu", "topk", "batchtopk"])
@both_gating_domains
@both_norms
def test_gradients_equal_finite_differences(act_fn: str, include_norm: bool, norm: str) -> None:
    """The norm takes part: the loss has f * N (support fixed by a small step)."""
    dictionary = make(act_fn, sparsity_include_decoder_norm=include_norm, crosscoder_norm=norm)
    x, label = read_by(dictionary, 9), read_by(dictionary, 9, seed=1)

    def value() -> Tensor:
        codes, x_hat = dictionary.run(x)
        return (x_hat - label).square().sum() + 0.7 * (codes.f * codes.norms).sum()

    value().backward()
    step = 1e-6
    for name, parameter in dictionary.named_parameters():
        weights, gradient = parameter.detach(), parameter.grad
        assert gradient is not None
        for number in range(0, weights.numel(), max(1, weights.numel() // 11)):
            place = torch.unravel_index(torch.tensor(number), weights.shape)
            before, ends = float(weights[place]), []
            for sign in (1, -1):
                weights[place] = before + sign * step
                ends.append(float(value().detach()))
            weights[place] = before
            expected = (ends[0] - ends[1]) / (2 * step)
            assert float(gradient[place]) == pytest.approx(expected, rel=2e-5, abs=2e-5), (name, place)


@torch.no_grad()
@every_gate
@both_gating_domains
@pytest.mark.parametrize("feature_units", ["raw", "normalized"])
@pytest.mark.parametrize("norm_activation", ["dataset-wise", "dataset-rms"])
@both_norms
def test_folding_with_unequal_norms_is_exact(
    act_fn: str, include_norm: bool, feature_units: str, norm_activation: str, norm: str
) -> None:
    """With the sum too, which unequal scales of the hook points change feature by feature."""
    fields = {"sparsity_include_decoder_norm": include_norm, "norm_activation": norm_activation, "crosscoder_norm": norm}
    dictionary = make(act_fn, **fields)
    scales = [
        1 / math.sqrt(NORMS[hook]["mean_square"])
        if norm_activation == "dataset-rms"
        else math.sqrt(6) / NORMS[hook]["mean_norm"]
        for hook in HOOKS
    ]
    s = torch.tensor(scales, dtype=torch.float64)[:, None]
    normalized = read_by(dictionary, 40)
    x = normalized / s
    folded = dictionary.fold(NORMS, feature_units=feature_units)
    f, wanted = dictionary.encode(normalized), dictionary(normalized) / s
    served, found = folded.encode(x), folded(x)
    for p, hook in enumerate(HOOKS):  # each by itself: the longest would hide the others
        assert float((found - wanted)[:, p].norm() / wanted[:, p].norm()) <= 1e-9, hook
    assert torch.equal(served != 0, f != 0)
    assert 0 < int((f != 0).sum()) < f.numel()
    if feature_units == "raw":  # an activation is the length of what the feature adds to all hook points together
        added = torch.linalg.vector_norm(dictionary.W_D / s[:, :, None], dim=(0, 2)) * f
        torch.testing.assert_close(served, added, rtol=1e-9, atol=0.0)
        joint = torch.linalg.vector_norm(folded.W_D, dim=(0, 2))
        torch.testing.assert_close(joint, torch.ones(20, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("act_fn", ["topk", "batchtopk"])
@both_gating_domains
def test_the_fold_stage_serves_the_trained_l0(act_fn: str, include_norm: bool) -> None:
    dictionary = make(act_fn, d_sae=40, sparsity_include_decoder_norm=include_norm)
    s = torch.tensor([math.sqrt(6) / NORMS[hook]["mean_norm"] for hook in HOOKS], dtype=torch.float64)[:, None]
    batches = [(read_by(dictionary, 400, seed) / s, torch.arange(400) % 5 != 0) for seed in range(4)]
    report = fold_dictionary(dictionary, NORMS, calibration_batches=batches)
    assert float(report.figures["relative_error"]) <= 1e-9
    assert report.l0_after == pytest.approx(report.l0_before, rel=0.002)
    assert report.figures["calibration_tokens"] == 1280
    assert not report.dictionary.is_batch_dependent


@torch.no_grad()
def test_a_feature_of_one_model_leaves_the_others_alone() -> None:
    """A zero block of one hook point neither reads nor writes there; a zero row in all of them keeps the feature closed."""
    dictionary = make("relu")
    dictionary.W_D[2, 5] = 0
    dictionary.W_D[:, 6] = 0
    x = read_by(dictionary, 30)
    codes, _ = dictionary.run(x)
    alone = dictionary.decode_linear(torch.where(torch.arange(20) == 5, codes.f, 0.0))
    assert (alone[:, 2] == 0).all()
    assert alone[:, :2].abs().sum() > 0
    assert (codes.f[:, 6] == 0).all()
    folded = dictionary.fold(NORMS)
    assert all(tensor.isfinite().all() for tensor in folded.state_dict().values())


def test_base_draw() -> None:
    """Uniform rows at every hook point, encoder blocks their transposes times the factor, zero biases."""
    config = {**CONFIG, "d_in": 6, "d_sae": 400}
    tied = build_dictionary({**config, "decoder_uniform_bound": 0.5, "init_encoder_with_decoder_transpose_factor": 2.0}, seed=1)
    assert float(tied.W_D.detach().abs().max()) == pytest.approx(0.5, rel=1e-2)
    assert abs(float(tied.W_D.detach().mean())) < 0.02
    for p in range(3):
        assert torch.equal(tied.W_E[p], 2.0 * tied.W_D[p].T)
    assert not torch.equal(tied.W_D[0], tied.W_D[1])
    assert not any(tied.get_parameter(name).any() for name in ("b_E", "b_D"))
    own = build_dictionary({**config, "init_encoder_with_decoder_transpose": False, "encoder_uniform_bound": 0.1}, seed=1)
    assert float(own.W_E.detach().abs().max()) == pytest.approx(0.1, rel=1e-2)
    assert torch.equal(own.W_D, build_dictionary(config, seed=1).W_D)
    unit = type(own)(own.config).initialize_(1, BaseInitialization(unit_rows=True))
    torch.testing.assert_close(unit.decoder_norms(), torch.ones(400))
    summed = build_dictionary({**config, "crosscoder_norm": "sum"}, seed=1).initialize_(1, BaseInitialization(unit_rows=True))
    assert torch.equal(summed.W_D, unit.W_D)


@torch.no_grad()
def test_moving_lengths_between_encoder_and_decoder_keeps_the_function() -> None:
    """What the revival of dead features and the initialisation use."""
    dictionary = make("topk", use_decoder_bias=False)
    x = read_by(dictionary, 25)
    before, f = dictionary(x), dictionary.encode(x)
    factor = torch.linspace(0.5, 3.0, 20, dtype=torch.float64)
    dictionary.scale_encoder_(factor)
    dictionary.encoder_bias().mul_(factor)
    dictionary.scale_decoder_(1 / factor)
    torch.testing.assert_close(dictionary(x), before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dictionary.encode(x), f * factor, rtol=1e-12, atol=1e-12)


def test_what_cannot_be_is_refused_by_name() -> None:
    for config, message in (
        ({"hook_points_in": HOOKS[:1]}, "hook_points_in: kind crosscoder reads at least two"),
        ({"hook_points_in": [HOOKS[0], HOOKS[0]]}, "hook_points_in: these are there twice"),
        ({"hook_points_out": HOOKS[:2]}, "hook_points_out: a crosscoder writes the hook points that it reads"),
        ({"d_out": 7}, "d_out: 7 differs from d_in 6"),
        ({"skip": True}, "skip: unknown key"),
        ({"act_fn": "layertopk"}, "act_fn: "),
        ({"crosscoder_norm": "l1"}, "crosscoder_norm: 'l1' is none of the choices"),
    ):
        with pytest.raises(ParamsError, match=message):
            build_dictionary({**CONFIG, "d_in": 6, "d_sae": 20, **config})
    with pytest.raises(ParamsError, match=r"decoder_constraint: unit_norm is not for dictionary.kind 'crosscoder'"):
        make("relu").decoder_rows()
    with pytest.raises(DataError, match=r"norms: unknown hook point 'tuned:blocks.1.hook_resid_post'"):
        make("relu").fold({hook: NORMS[hook] for hook in HOOKS[:2]})


def test_where_a_feature_is_written_is_reported() -> None:
    """Feature 0 is exclusive to the first hook point, feature 1 the same at the first two, feature 2 opposite there."""
    made = build_dictionary({**CONFIG, "d_in": 2, "d_sae": 3, "act_fn": "relu", "dtype": "float64"})
    rows = torch.zeros(3, 3, 2, dtype=torch.float64)
    rows[0, 0] = torch.tensor([3.0, 4.0])
    rows[:2, 1] = torch.tensor([1.0, 1.0])
    rows[0, 2], rows[1, 2] = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 0.0])
    with torch.no_grad():
        made.get_parameter("W_D").copy_(rows)
    found = decoder_metrics(made)
    first, second, third = HOOKS
    assert [found[f"exclusive_fraction.{hook}"] for hook in HOOKS] == pytest.approx([1 / 3, 0.0, 0.0])
    assert found["shared_fraction"] == pytest.approx(2 / 3)
    assert found[f"written_norm_q50.{first}"] == pytest.approx(2.0)
    assert found[f"written_norm_q95.{third}"] == 0.0
    assert found[f"written_cosine_q50.{first}.{second}"] == pytest.approx(0.0)
    assert found[f"written_cosine_q95.{first}.{second}"] == pytest.approx(0.9)
    assert f"written_cosine_q50.{second}.{third}" not in found


def test_a_configuration_without_the_norm_is_joint() -> None:
    """config.json of dictionaries that were saved before there was a choice."""
    config = make("topk").config.to_dict()
    assert config.pop("crosscoder_norm") == "joint"
    assert build_dictionary(config).config.crosscoder_norm == "joint"
