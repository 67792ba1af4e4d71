"""The acceptance of SPEC 4: the folded dictionary on raw activations equals the unfolded one on normalised ones.

Every activation function x include-norm x GLU x skip x apply_b_dec x feature_units x kind, unequal norms, unequal widths:
1e-9 relative in float64 and identical support.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError, ParamsError
from tests.dictionaries.make import ACT_FNS, LAYER_ACT_FNS, LAYERS_IN, LAYERS_OUT, filled, inputs, read_by

HOOKS = {"hook_point_in": "in", "hook_point_out": "out"}
KINDS: dict[str, dict[str, Any]] = {
    "sae": {},
    "sae-apply-b-dec": {"apply_b_dec_to_input": True},
    "sae-without-bias": {"use_decoder_bias": False},
    "transcoder": {"kind": "transcoder", "d_out": 9, **HOOKS},
    "transcoder-skip": {"kind": "transcoder", "d_out": 9, "skip": True, **HOOKS},
    "transcoder-skip-without-bias": {"kind": "transcoder", "d_out": 6, "skip": True, "use_decoder_bias": False, **HOOKS},
    "sae-to-another-hook": {"d_out": 4, "skip": True, **HOOKS},
}
NORMS = {
    "input": {"mean_norm": 37.0, "mean_square": 1500.0, "d": 6},
    "in": {"mean_norm": 0.08, "mean_square": 0.0081, "d": 6},
    "out": {"mean_norm": 210.0, "mean_square": 50000.0, "d": 0},
}


def factor(dictionary: Dictionary, hook: str, width: int) -> float:
    """SPEC 3, written out again."""
    norm = NORMS[hook]
    if dictionary.config.norm_activation == "dataset-rms":
        return 1 / math.sqrt(norm["mean_square"])
    return math.sqrt(width) / norm["mean_norm"]


def factors(dictionary: Dictionary) -> tuple[float, float]:
    config = dictionary.config
    return factor(dictionary, dictionary.hooks_in[0], config.d_in), factor(dictionary, dictionary.hooks_out[0], config.d_out)


def norms_of(dictionary: Dictionary) -> dict[str, dict[str, float]]:
    config = dictionary.config
    widths = {dictionary.hooks_in[0]: config.d_in, dictionary.hooks_out[0]: config.d_out}
    return {hook: {**NORMS[hook], "d": width} for hook, width in widths.items()}


def raw_inputs(dictionary: Dictionary) -> Tensor:
    return inputs(40, dictionary.config.d_in) / factors(dictionary)[0]


@torch.no_grad()
@pytest.mark.parametrize("feature_units", ["raw", "normalized"])
@pytest.mark.parametrize("glu", [False, True], ids=["linear", "glu"])
@pytest.mark.parametrize("include_norm", [True, False], ids=["with-norm", "without-norm"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act_fn", ACT_FNS)
def test_folding_is_exact(act_fn: str, kind: str, include_norm: bool, glu: bool, feature_units: str) -> None:
    for norm_activation in ("dataset-wise", "dataset-rms"):
        dictionary = filled(
            act_fn=act_fn,
            sparsity_include_decoder_norm=include_norm,
            use_glu_encoder=glu,
            norm_activation=norm_activation,
            **KINDS[kind],
        )
        a, b = factors(dictionary)
        x = raw_inputs(dictionary)
        folded = dictionary.fold(norms_of(dictionary), feature_units=feature_units)
        f, wanted = dictionary.encode(a * x), dictionary(a * x) / b
        served, found = folded.encode(x), folded(x)
        assert float((found - wanted).norm() / wanted.norm()) <= 1e-9
        assert torch.equal(served != 0, f != 0)
        assert 0 < int((f != 0).sum()) < f.numel()
        assert float((folded.run(x)[1] - wanted).norm() / wanted.norm()) <= 1e-9
        needs_gate = act_fn in ("topk", "batchtopk") and not include_norm
        assert ("gate_scale" in folded.state_dict()) == needs_gate
        unit = dictionary.decoder_norms() * f / (b if feature_units == "raw" else 1.0)
        torch.testing.assert_close(served, unit, rtol=1e-9, atol=0.0)
        if feature_units == "raw":
            torch.testing.assert_close(folded.decoder_norms(), torch.ones(20, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("act_fn", ACT_FNS)
@pytest.mark.parametrize("include_norm", [True, False])
def test_a_zero_decoder_row_folds_exactly(act_fn: str, include_norm: bool) -> None:
    dictionary = filled(act_fn=act_fn, sparsity_include_decoder_norm=include_norm, top_k=8)
    with torch.no_grad():
        dictionary.W_D[3] = 0
        dictionary.b_E[3] = 5.0
    a, b = factors(dictionary)
    x = raw_inputs(dictionary)
    folded = dictionary.fold(norms_of(dictionary))
    wanted = dictionary(a * x) / b
    assert float((folded(x) - wanted).norm() / wanted.norm()) <= 1e-9
    assert torch.equal(folded.encode(x) != 0, dictionary.encode(a * x) != 0)
    assert all(tensor.isfinite().all() for tensor in folded.state_dict().values())


def test_a_bare_number_is_the_mean_norm() -> None:
    dictionary = filled()
    by_dict = dictionary.fold(norms_of(dictionary))
    for norms in (37.0, {"input": 37.0}):
        assert torch.equal(dictionary.fold(norms).W_E, by_dict.W_E)


def test_the_result_is_float32_unless_the_dictionary_is_float64() -> None:
    assert filled(dtype="float64").fold(2.0).W_E.dtype == torch.float64
    folded = filled(dtype="float32").fold(2.0)
    assert folded.W_E.dtype == torch.float32
    assert folded.config.dtype == "float32"


def test_folding_leaves_the_dictionary_as_it_was() -> None:
    dictionary = filled(apply_b_dec_to_input=True, use_glu_encoder=True)
    before = {name: tensor.clone() for name, tensor in dictionary.state_dict().items()}
    dictionary.fold(2.0)
    assert all(torch.equal(dictionary.state_dict()[name], tensor) for name, tensor in before.items())
    assert not dictionary.config.folded


def test_float32_folding_rounds_once() -> None:
    """Computed in float64: the float32 weights are the float64 fold's, rounded."""
    single = filled(dtype="float32", sparsity_include_decoder_norm=False, act_fn="jumprelu")
    double = single.rebuilt({name: tensor.double() for name, tensor in single.state_dict().items()})
    wide = double.fold(37.0)
    for name, tensor in single.fold(37.0).state_dict().items():
        assert torch.equal(tensor, wide.state_dict()[name].float()), name


def test_refusals_say_what_is_wrong() -> None:
    dictionary = filled()
    with pytest.raises(DataError, match=r"unknown hook point .input..*inputs"):
        dictionary.fold({"inputs": 3.0})
    with pytest.raises(ParamsError, match=r"feature_units.*'normalised'; did you mean 'normalized'"):
        dictionary.fold(3.0, feature_units="normalised")


LAYER_NORMS = {
    hook: {"mean_norm": 3.0 * 7**i + 0.5, "mean_square": (3.0 * 7**i + 0.7) ** 2, "d": 6}
    for i, hook in enumerate((*LAYERS_IN, *LAYERS_OUT, "in", "out"))
}
NORMED = {"use_post_qk_ln": True, "normalization_type": "RMS"}
OTHER_KINDS: dict[str, dict[str, Any]] = {
    "clt": {"hook_points_in": LAYERS_IN, "hook_points_out": LAYERS_OUT},
    "crosscoder": {"hook_points_in": LAYERS_IN},
    "lorsa": {**HOOKS, "n_qk_heads": 4, "d_qk_head": 6, "n_ctx": 64, "rotary_dim": 4},
    "lorsa-normed": {**HOOKS, "n_qk_heads": 4, "d_qk_head": 6, "n_ctx": 64, "rotary_dim": 4, **NORMED},
}


def cases() -> list[tuple[str, str]]:
    layered = [("clt", act_fn) for act_fn in LAYER_ACT_FNS]
    return [(kind, act_fn) for kind in OTHER_KINDS for act_fn in ACT_FNS] + layered


@torch.no_grad()
@pytest.mark.parametrize("feature_units", ["raw", "normalized"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "without-bias"])
@pytest.mark.parametrize("include_norm", [True, False], ids=["with-norm", "without-norm"])
@pytest.mark.parametrize(("kind", "act_fn"), cases())
def test_other_kinds_fold_exactly(kind: str, act_fn: str, include_norm: bool, bias: bool, feature_units: str) -> None:
    """Norms of the hook points differ by up to 7^7."""
    dictionary = filled(
        kind=kind.removesuffix("-normed"),
        act_fn=act_fn,
        sparsity_include_decoder_norm=include_norm,
        use_decoder_bias=bias,
        **OTHER_KINDS[kind],
    )

    def per_hook(hooks: tuple[str, ...]) -> Tensor:
        found = torch.tensor([math.sqrt(6) / LAYER_NORMS[hook]["mean_norm"] for hook in hooks], dtype=torch.float64)
        return found[:, None] if len(hooks) > 1 else found

    a, b = per_hook(dictionary.hooks_in), per_hook(dictionary.hooks_out)
    x = read_by(dictionary, 40)
    raw = x / a
    folded = dictionary.fold(LAYER_NORMS, feature_units=feature_units)
    f, wanted = dictionary.encode(x), dictionary(x) / b
    served, found = folded.encode(raw), folded(raw)
    for p in range(len(dictionary.hooks_out)):  # hook by hook: the smallest must be exact too
        one, two = (found[..., p, :], wanted[..., p, :]) if len(dictionary.hooks_out) > 1 else (found, wanted)
        assert float((one - two).norm() / two.norm()) <= 1e-9
    assert torch.equal(served != 0, f != 0)
    assert 0 < int((f != 0).sum()) < f.numel()
    assert float((folded.run(raw)[1] - wanted).norm() / wanted.norm()) <= 1e-9
    if feature_units == "raw":
        torch.testing.assert_close(folded.decoder_norms(), torch.ones(dictionary.feature_shape, dtype=torch.float64))
