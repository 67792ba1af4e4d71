"""What every registered kind with every registered activation function must do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pipeline.activation_functions.interface import activation_function, activation_function_names
from pipeline.dictionaries.base import Dictionary, Gate
from pipeline.dictionaries.build import build_dictionary, config_from_dict, kind_names
from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import ParamsError
from pipeline.params.dictionary_kinds import kind_fields
from tests.dictionaries.make import ACT_FNS, LAYER_ACT_FNS, LAYERS_IN, LAYERS_OUT, filled, read_by

KIND_CONFIGS: dict[str, dict[str, Any]] = {
    "sae": {},
    "transcoder": {"d_out": 5, "hook_point_in": "a", "hook_point_out": "b", "skip": True},
    "clt": {"hook_points_in": LAYERS_IN, "hook_points_out": LAYERS_OUT},
    "crosscoder": {"hook_points_in": LAYERS_IN},
    "lorsa": {
        "hook_point_in": "a",
        "hook_point_out": "b",
        "n_qk_heads": 4,
        "d_qk_head": 4,
        "n_ctx": 64,
        "rotary_dim": 2,
        "use_post_qk_ln": True,
        "normalization_type": "RMS",
    },
}
CASES = [
    (kind, act_fn)
    for kind in kind_names()
    for act_fn in activation_function_names()
    if kind_fields(kind).HAS_LAYERS or not activation_function(act_fn).joint_layers
]
every_case = pytest.mark.parametrize(("kind", "act_fn"), CASES)


def make(kind: str, act_fn: str, **config: Any) -> Dictionary:
    return filled(kind=kind, act_fn=act_fn, **{**KIND_CONFIGS[kind], **config})


def test_every_registered_kind_and_activation_function_is_covered() -> None:
    assert set(kind_names()) == set(KIND_CONFIGS)
    assert {*ACT_FNS, *LAYER_ACT_FNS} == set(activation_function_names())


@every_case
def test_shapes_for_one_and_two_token_dimensions(kind: str, act_fn: str) -> None:
    dictionary = make(kind, act_fn)
    x = read_by(dictionary, 12)
    written = (3,) if len(dictionary.hooks_out) > 1 else ()
    trailing = x.shape[2:] if dictionary.reads_sequences else x.shape[1:]
    for tokens in ((2, 6),) if dictionary.reads_sequences else ((12,), (3, 4)):
        codes, x_hat = dictionary.run(x.reshape(*tokens, *trailing))
        assert codes.h.shape == codes.z.shape == codes.f.shape == (*tokens, *dictionary.feature_shape)
        assert codes.norms.shape == dictionary.feature_shape
        assert dictionary.config.layers * dictionary.config.d_sae == math.prod(dictionary.feature_shape)
        assert x_hat.shape == (*tokens, *written, dictionary.config.d_out)
        torch.testing.assert_close(
            dictionary(x.reshape(*tokens, *trailing)).flatten(0, -x.ndim), dictionary(x), rtol=1e-12, atol=1e-12
        )


@every_case
def test_call_is_decode_of_encode_and_run_agrees(kind: str, act_fn: str) -> None:
    dictionary = make(kind, act_fn, top_k=1)
    x = read_by(dictionary, 30)
    f = dictionary.encode(x)
    codes, x_hat = dictionary.run(x)
    assert torch.equal(dictionary(x), dictionary.reconstruct(f, x))
    torch.testing.assert_close(x_hat, dictionary.reconstruct(f, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(codes.f, f, rtol=1e-12, atol=1e-12)


@every_case
def test_gradients_are_finite_and_reach_every_parameter(kind: str, act_fn: str) -> None:
    dictionary = make(kind, act_fn)
    x = read_by(dictionary, 40)
    codes, x_hat = dictionary.run(x)
    ((x_hat - x[..., : x_hat.shape[-1]]).square().sum() + (codes.f * codes.norms).sum()).backward()
    for name, parameter in dictionary.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@every_case
def test_masked_tokens_neither_compete_nor_activate(kind: str, act_fn: str) -> None:
    dictionary = make(kind, act_fn, top_k=1)
    x = read_by(dictionary, 16)
    tokens = x.shape[:2] if dictionary.reads_sequences else x.shape[:1]
    mask = (torch.arange(16) % 3 != 0).reshape(tokens)
    louder = torch.where(mask.reshape(*tokens, *(1,) * (x.ndim - len(tokens))), x, 1000 * x)
    codes = dictionary.codes(louder, mask)
    assert (codes.f[~mask] == 0).all()
    # A masked token is a token: other tokens read it as if it were kept, the gate of the kept ones alone leaves it out.
    assert torch.equal(codes.h, dictionary.pre_activations(louder))
    if not dictionary.reads_sequences:
        # Equal but for the order in which a matrix product of another height adds up.
        torch.testing.assert_close(codes.f[mask], dictionary.encode(x[mask]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dictionary.run(louder, mask)[0].f, codes.f, rtol=1e-12, atol=1e-12)


@every_case
@pytest.mark.parametrize("masked", [False, True])
def test_what_stands_at_padded_positions_changes_nothing(kind: str, act_fn: str, masked: bool) -> None:
    dictionary = make(kind, act_fn, top_k=1)
    x = read_by(dictionary, 16)
    tokens = x.shape[:2] if dictionary.reads_sequences else x.shape[:1]
    padding = (torch.arange(16) % 3 == 0).reshape(tokens)
    mask = (torch.arange(16) % 4 != 1).reshape(tokens) if masked else None
    kept = ~padding if mask is None else mask & ~padding
    louder = torch.where(padding.reshape(*tokens, *(1,) * (x.ndim - len(tokens))), 1000 * x, x)
    codes, x_hat = dictionary.run(louder, mask, padding=padding)
    assert (codes.f[~kept] == 0).all()
    assert (codes.f[kept] != 0).any()
    quiet = dictionary.codes(x, mask, padding=padding)
    torch.testing.assert_close(codes.f, quiet.f, rtol=1e-12, atol=1e-12)
    assert torch.equal(dictionary.encode(louder, mask, padding=padding), dictionary.codes(louder, mask, padding=padding).f)
    torch.testing.assert_close(dictionary(louder, mask, padding=padding), x_hat, rtol=1e-12, atol=1e-12)
    if dictionary.reads_sequences:
        unpadded = dictionary.pre_activations(louder)[~padding]
        assert not torch.allclose(codes.h[~padding], unpadded)


@every_case
def test_a_scheduled_k_overrides_the_configured_one(kind: str, act_fn: str) -> None:
    dictionary = make(kind, act_fn, top_k=2)
    x = read_by(dictionary, 50)
    counts = [(dictionary.encode(x, gate=Gate(top_k=k)) != 0).sum() for k in (None, 2, 5)]
    assert counts[0] == counts[1]
    assert (counts[2] > counts[1]) == dictionary.activation.budgeted


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_save_and_load_give_the_same_dictionary(kind: str, act_fn: str, dtype: str, tmp_path: Any) -> None:
    dictionary = make(kind, act_fn, dtype=dtype)
    dictionary.save(tmp_path / "d")
    loaded = load_dictionary(tmp_path / "d")
    assert loaded.config == dictionary.config
    assert type(loaded) is type(dictionary)
    for name, tensor in dictionary.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    x = read_by(dictionary, 8, dtype=getattr(torch, dtype))
    assert torch.equal(loaded(x), dictionary(x))


@every_case
def test_the_seed_fixes_the_weights(kind: str, act_fn: str) -> None:
    config = {"kind": kind, "d_in": 6, "d_sae": 20, "act_fn": act_fn, **KIND_CONFIGS[kind]}
    one, same, other = (build_dictionary(config, seed=s) for s in (3, 3, 4))
    assert all(torch.equal(one.state_dict()[n], t) for n, t in same.state_dict().items())
    assert not any(torch.equal(one.state_dict()[n], t) for n, t in other.state_dict().items() if n.startswith("W_D"))


@every_case
def test_configuration_survives_json(kind: str, act_fn: str) -> None:
    config = make(kind, act_fn).config
    assert config_from_dict(config.to_dict()) == config
    assert config.hooks_in == config_from_dict(config.to_dict()).hooks_in


@every_case
def test_folding_a_folded_dictionary_is_refused(kind: str, act_fn: str) -> None:
    folded = make(kind, act_fn).fold(2.0)
    assert folded.config.folded
    assert folded.config.norm_activation == "inference"
    with pytest.raises(ParamsError, match="folded already"):
        folded.fold(2.0)


@every_case
@pytest.mark.parametrize("norm", ["token-wise", "batch-wise"])
def test_norms_that_depend_on_the_data_are_not_folded(kind: str, act_fn: str, norm: str) -> None:
    with pytest.raises(ParamsError, match=f"{norm}.*fold.mode: keep"):
        make(kind, act_fn, norm_activation=norm).fold(2.0)


@every_case
def test_run_is_deterministic(kind: str, act_fn: str) -> None:
    gradients = []
    for _ in range(2):
        dictionary = make(kind, act_fn, dtype="float32", top_k=1)
        x = read_by(dictionary, 64, dtype=torch.float32)
        dictionary.run(x)[1].square().sum().backward()
        gradients.append([p.grad for p in dictionary.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None)
