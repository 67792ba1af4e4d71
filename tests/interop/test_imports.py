"""Files as each tool writes them, read here: features and reconstructions are those of a naive pass of that tool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.api import import_dictionary, load_dictionary
from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError
from tests.interop import cases
from tests.interop.cases import D, F, N, rows
from tests.messages import says

EXACT = 1e-5
# name: (directory, maker and its arguments, hook points read and written)
READ: dict[str, tuple[str, Callable[..., Any], dict[str, Any], tuple[str, str]]] = {
    **{
        f"saelens {name}": ("a", cases.saelens, {"architecture": name}, ("blocks.0.hook_resid_post",) * 2)
        for name in ("standard", "topk", "jumprelu", "gated")
    },
    **{
        f"saelens {name}": ("a", cases.saelens, {"architecture": name}, ("blocks.0.ln2.hook_out", "blocks.0.hook_mlp_out"))
        for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
    },
    "saelens, bias not subtracted": ("a", cases.saelens, {"apply_b_dec_to_input": False}, ("blocks.0.hook_resid_post",) * 2),
    "saelens topk by decoder norm": (
        "a", cases.saelens, {"architecture": "topk", "rescale_acts_by_decoder_norm": True}, ("blocks.0.hook_resid_post",) * 2,
    ),
    "saelens before 6": (
        "a",
        cases.saelens,
        {"architecture": "topk", "metadata": {}, "k": None, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": cases.K},
         "hook_point": "blocks.3.hook_resid_pre", "normalize_activations": False},
        ("blocks.3.hook_resid_pre",) * 2,
    ),
    "sparsify": ("layers.5", cases.sparsify, {}, ("blocks.5.hook_resid_post",) * 2),
    "sparsify gpt2": ("h.5.mlp", cases.sparsify, {}, ("blocks.5.hook_mlp_out",) * 2),
    "sparsify seed": ("layers.5.mlp/seed1", cases.sparsify, {}, ("blocks.5.hook_mlp_out",) * 2),
    "sparsify transcoder": ("layers.5.mlp", cases.sparsify, {"transcode": True}, ("blocks.5.ln2.hook_out", "blocks.5.hook_mlp_out")),
    "sparsify skip": (
        "gpt_neox.layers.5.attention", cases.sparsify, {"transcode": True, "skip": True}, ("blocks.5.ln1.hook_out", "blocks.5.hook_attn_out"),
    ),
    **{
        f"dictionary_learning {name}": ("a", cases.dictionary_learning, {"dict_class": name}, ("blocks.1.hook_resid_post",) * 2)
        for name in (
            "AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder",
            "GatedAutoEncoder",
        )
    },
    **{
        f"dictionary_learning resumed {name}": ("a", cases.dictionary_learning, {"dict_class": name, "resume": 3.0}, ("blocks.1.hook_resid_post",) * 2)
        for name in ("AutoEncoder", "BatchTopKSAE", "JumpReluAutoEncoder", "GatedAutoEncoder")
    },
    "gemma_scope residual": ("gemma-scope-2b-pt-res/layer_7/width_16k/average_l0_5", cases.gemma_scope, {}, ("blocks.7.hook_resid_post",) * 2),
    "gemma_scope mlp": ("gemma-scope-9b-it-mlp/layer_7/width_16k/average_l0_5", cases.gemma_scope, {}, ("blocks.7.hook_mlp_out",) * 2),
    "gemma_scope transcoder": (
        "gemma-scope-2b-pt-transcoders/layer_7/width_16k/average_l0_5", cases.gemma_scope, {}, ("blocks.7.ln2.hook_normalized", "blocks.7.hook_mlp_out"),
    ),
    "gemma_scope 2": ("a", cases.gemma_scope_2, {}, ("blocks.1.hook_resid_post",) * 2),
    "gemma_scope 2 affine": ("a", cases.gemma_scope_2, {"affine": True}, ("blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out")),
    "llama_scope": ("a", cases.llama_scope, {}, ("blocks.1.hook_mlp_out",) * 2),
    **{
        f"openmoss {gate} {by_norm} {norm}": ("a", cases.openmoss, {"gate": gate, "by_norm": by_norm, "norm": norm}, ("blocks.1.hook_resid_post",) * 2)
        for gate in ("relu", "jumprelu", "topk") for by_norm in (True, False) for norm in ("dataset-wise", "inference")
    },
    **{
        f"openmoss glu {gate} {by_norm}": ("a", cases.openmoss, {"gate": gate, "by_norm": by_norm, "glu": True}, ("blocks.1.hook_resid_post",) * 2)
        for gate in ("relu", "jumprelu", "topk") for by_norm in (True, False)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_features_and_reconstructions_are_the_tools(name: str, tmp_path: Path) -> None:
    place, make, arguments, hooks = READ[name]
    forward = make(tmp_path / place, **arguments)
    dictionary = load_dictionary(tmp_path / place)
    same(dictionary, forward)
    assert (dictionary.hooks_in, dictionary.hooks_out) == ((hooks[0],), (hooks[1],))
    assert dictionary.config.folded
    assert dictionary.config.kind == ("sae" if hooks[0] == hooks[1] else "transcoder")
    assert dictionary.config.provenance["imported"]["format"] == name.split(",")[0].split()[0]


def same(dictionary: Dictionary, forward: cases.Forward, x: torch.Tensor | None = None) -> None:
    """Some features are active, some are not, and all are the tool's."""
    x = rows() if x is None else x
    f, y = forward(x)
    assert 0 < int((f != 0).sum()) < f.numel()
    with torch.no_grad():
        found = dictionary.encode(x.float())
        assert float((found.double() - f).norm() / f.norm()) <= EXACT
        assert float((dictionary(x.float()).double() - y).norm() / y.norm()) <= EXACT


@pytest.mark.parametrize("arguments", [{}, {"skip": True}, {"activation": "relu"}, {"activation": "topk", "k": cases.K}])
def test_each_transcoder_of_a_circuit_tracer_set(arguments: dict[str, Any], tmp_path: Path) -> None:
    stated = {key: value for key, value in arguments.items() if key == "k"}
    stated |= {"activation": "topk"} if "k" in stated else {}
    forwards = cases.circuit_tracer(tmp_path / "set", **{key: value for key, value in arguments.items() if key != "k"})
    if stated:
        config = json.loads((tmp_path / "set" / "config.yaml").read_text())
        (tmp_path / "set" / "config.yaml").write_text(json.dumps(config | stated))
    for layer, (name, forward) in enumerate(forwards.items()):
        dictionary = load_dictionary(tmp_path / "set" / name)
        same(dictionary, forward)
        assert dictionary.hooks_in == (f"blocks.{layer}.ln2.hook_out",)
        assert dictionary.hooks_out == (f"blocks.{layer}.hook_mlp_out",)


@pytest.mark.parametrize("thresholds", [True, False])
def test_a_circuit_tracer_clt(thresholds: bool, tmp_path: Path) -> None:
    forward = cases.circuit_tracer_clt(tmp_path / "clt", thresholds=thresholds)
    dictionary = load_dictionary(tmp_path / "clt")
    same(dictionary, forward, rows(3 * 50).reshape(50, N, D))
    assert dictionary.config.act_fn == ("jumprelu" if thresholds else "relu")
    assert dictionary.hooks_in == tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(N))


@pytest.mark.parametrize("by_norm", [True, False])
def test_layers_that_compete_for_one_budget(by_norm: bool, tmp_path: Path) -> None:
    forward = cases.openmoss_clt(tmp_path / "clt", by_norm=by_norm)
    dictionary = load_dictionary(tmp_path / "clt")
    same(dictionary, forward, rows(3 * 50).reshape(50, N, D))
    assert (dictionary.config.act_fn, dictionary.config.top_k) == ("layertopk", cases.K)
    f = dictionary.encode(rows(3 * 50).reshape(50, N, D).float())
    assert int((f > 0).sum((-2, -1)).max()) == cases.K


@pytest.mark.parametrize("stated", [{}, {"hf_hook_point_in": None, "hf_hook_point_out": None}, {"list": True}])
def test_a_gemma_scope_clt(stated: dict[str, Any], tmp_path: Path) -> None:
    if stated.pop("list", False):
        sides = {"in": "pre", "out": "post"}
        stated = {
            f"hf_hook_point_{side}": [f"model.layers.{layer}.{end}_feedforward_layernorm.output" for layer in range(N)]
            for side, end in sides.items()
        }
    forward = cases.gemma_scope_2_clt(tmp_path / "clt", **stated)
    dictionary = load_dictionary(tmp_path / "clt")
    same(dictionary, forward, rows(3 * 50).reshape(50, N, D))
    assert dictionary.hooks_in == tuple(f"blocks.{layer}.ln2.hook_out" for layer in range(N))
    assert dictionary.hooks_out == tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(N))
    said = dictionary.config.provenance["imported"]["said"]
    assert ["hf_hook_point_in" in line for line in said] == ([True, False] if None in stated.values() else [])


def test_what_is_next_to_nothing_backwards_is_left_out_and_said(tmp_path: Path) -> None:
    forward = cases.gemma_scope_2_clt(tmp_path / "clt", backwards=1e-4)
    dictionary = load_dictionary(tmp_path / "clt")
    same(dictionary, forward, rows(3 * 50).reshape(50, N, D))
    (said,) = dictionary.config.provenance["imported"]["said"]
    assert "left out" in said


def test_an_unset_threshold_lets_every_positive_one_pass(tmp_path: Path) -> None:
    cases.dictionary_learning(tmp_path, "BatchTopKSAE")
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    torch.save({**state, "threshold": torch.tensor(-1.0)}, tmp_path / "ae.pt")
    dictionary = import_dictionary(tmp_path)
    assert dictionary.config.act_fn == "relu"
    x = rows().float()
    with torch.no_grad():
        z = (x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"]
        torch.testing.assert_close(dictionary.encode(x), z.relu(), rtol=1e-4, atol=1e-4)


def test_a_width_of_zero_is_the_factor_times_the_input(tmp_path: Path) -> None:
    folder = tmp_path / "layers.0"
    cases.sparsify(folder, num_latents=0, expansion_factor=4)
    with pytest.raises(DataError) as error:
        import_dictionary(folder)
    says(error.value, "sae.safetensors", f"encoder.weight is [{F}, {D}]", "num_latents 24")


def test_hook_points_are_named_where_the_files_do_not(tmp_path: Path) -> None:
    cases.gemma_scope(tmp_path / "somewhere")
    assert import_dictionary(tmp_path / "somewhere").hooks_in == ("input",)
    named = import_dictionary(tmp_path / "somewhere" / "params.npz", hook_point_in="blocks.4.hook_resid_post")
    assert (named.hooks_in, named.hooks_out) == (("blocks.4.hook_resid_post",), ("blocks.4.hook_resid_post",))
