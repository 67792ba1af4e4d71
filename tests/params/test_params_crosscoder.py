"""Crosscoders and hook points of several models: what is accepted, and what each refusal says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ParamsError
from pipeline.params.loader import load_params, params_from_dict
from pipeline.params.schema import ModelParams, NamedModelParams, Params
from tests.params.changes import changed, faults

FIRST, SECOND = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
OTHER = f"tuned:{FIRST}"
HOOKS = "dictionary.hook_points_in"
LAYERS: dict[str, Any] = {
    "dictionary.kind": "crosscoder",
    "dictionary.hook_point_in": None,
    HOOKS: [FIRST, SECOND],
    "dictionary.hook_points_out": None,
    "dictionary.crosscoder_norm": "joint",
}
MODELS = {"tuned": {"model_name": "me/tuned", "revision": "step3"}}
CHECKPOINTS: dict[str, Any] = {**LAYERS, HOOKS: [FIRST, OTHER], "models": MODELS}

ONE_FAULT: list[tuple[dict[str, Any], str]] = [
    # hook points
    ({**LAYERS, HOOKS: [FIRST]}, f"{HOOKS}: kind crosscoder reads at least two hook points, got ['{FIRST}']"),
    ({**LAYERS, HOOKS: None}, f"{HOOKS}: kind crosscoder reads at least two hook points, got null"),
    ({**LAYERS, HOOKS: [FIRST, FIRST]}, f"{HOOKS}: these are there twice: {FIRST}"),
    ({**LAYERS, HOOKS: [FIRST, "resid"]}, f"{HOOKS}: item 1: expected a hook point"),
    ({**LAYERS, HOOKS: [FIRST, f"a b:{FIRST}"]}, "or alias:blocks.L.name with an alias of models), got 'a b:"),
    ({**LAYERS, HOOKS: [FIRST, f"a:b:{FIRST}"]}, f"{HOOKS}: item 1: expected a hook point"),
    ({**LAYERS, "dictionary.hook_points_out": [SECOND, FIRST]}, "a crosscoder writes the hook points that it reads; write null"),
    ({**LAYERS, "dictionary.hook_point_in": FIRST}, f"not of crosscoder, where it must be null; got '{FIRST}'"),
    ({"dictionary.hook_point_in": OTHER}, "dictionary.hook_point_in: expected a hook point (blocks.L.name"),
    ({"dictionary.kind": "clt", "dictionary.top_k_of": "layer", "dictionary.hook_point_in": None, HOOKS: [FIRST, OTHER], "dictionary.hook_points_out": ["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"]}, f"{HOOKS}: item 1: expected a hook point"),
    # models
    ({**CHECKPOINTS, "models": None}, f"models: hook point '{OTHER}': unknown model 'tuned' (known: none); state its name: tuned: {{model_name: ...}}"),
    ({**CHECKPOINTS, "models": {"tunde": MODELS["tuned"]}}, "unknown model 'tuned'; did you mean 'tunde'? (known: tunde)"),
    ({**CHECKPOINTS, "activations.hook_points": [FIRST, OTHER, f"x:{FIRST}"]}, f"models: hook point 'x:{FIRST}': unknown model 'x'"),
    ({**CHECKPOINTS, "activations.hook_points": [FIRST]}, f"activations.hook_points: the dictionary needs {OTHER} too"),
    ({**CHECKPOINTS, "activations.path": "store"}, "activations.path: names the store of one model, but hook points of tuned are wanted"),
    ({"models": {"tuned": {"model_nam": "x", "revision": None, "model_name": "x"}}}, "models.tuned.model_nam: unknown key; did you mean 'model_name'?"),
    ({"models": {"tuned": {"revision": None}}}, "models.tuned.model_name: missing key"),
    ({"models": {"tuned": {"model_name": "x", "revision": 3}}}, "models.tuned.revision: expected a string or null, got the integer 3"),
    ({"models": {"tuned": {"model_name": " "}}}, "models.tuned.model_name: expected a hub id, a local directory or demo"),
    ({"models": {"tuned": "me/tuned"}}, "models.tuned: expected a mapping of keys to values, got the string 'me/tuned'"),
    ({"models": {"a:b": MODELS["tuned"]}}, "models: expected letters, digits, '_' and '-', beginning with a letter as a name"),
    ({"models": {3: MODELS["tuned"]}}, "as a name, got '3'"),
    ({"models": []}, "models: expected a mapping of names, or null, got a list"),
    ({"models": {}}, "models: expected a mapping of names, or null, got an empty one"),
    # what a crosscoder cannot do
    ({**LAYERS, "dictionary.skip": True}, "not of crosscoder, where it must be false"),
    ({**LAYERS, "dictionary.use_glu_encoder": True}, "dictionary.use_glu_encoder: is a field of kind"),
    ({**LAYERS, "dictionary.apply_b_dec_to_input": True}, "dictionary.apply_b_dec_to_input: is a field of kind"),
    ({**LAYERS, "dictionary.act_fn": "layertopk"}, "dictionary.act_fn: layertopk lets the layers of a token compete, and kind crosscoder has one; take topk"),
    ({"dictionary.crosscoder_norm": "sum"}, "dictionary.crosscoder_norm: is a field of kind crosscoder, not of sae, where it must be joint; got 'sum'"),
    ({**LAYERS, "trainer.decoder_constraint": "unit_norm"}, "trainer.decoder_constraint: unit_norm is for kinds with one decoder row"),
    ({**LAYERS, "trainer.matryoshka_widths": [0.5, 1.0]}, "trainer.matryoshka_widths: nested prefixes are for sae and transcoder, not for crosscoder"),
    ({**LAYERS, "initializer.initialize_tc_with_mlp": True, "initializer.model_layer": 1}, "initializer.initialize_tc_with_mlp: needs a transcoder"),
    ({**LAYERS, "initializer.cross_layer_decoders": "zero"}, "initializer.cross_layer_decoders: kind crosscoder writes no other layers; write drawn"),
    ({**LAYERS, "dictionary.norm_activation": "token-wise"}, "fold.mode: norm_activation token-wise cannot be folded"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), ONE_FAULT, ids=[f"{i}" for i in range(len(ONE_FAULT))])
def test_one_fault(changes: dict[str, Any], message: str) -> None:
    found = faults(changes)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(
    "changes",
    [
        LAYERS,
        CHECKPOINTS,
        {**LAYERS, "models": MODELS},
        {**LAYERS, "dictionary.hook_points_out": [FIRST, SECOND]},
        {**LAYERS, "dictionary.act_fn": "batchtopk", "initializer.grid_search_init_norm": True},
        {**LAYERS, "initializer.initialize_W_D_with_activations": True, "initializer.bias_init_method": "geometric_median"},
        {**LAYERS, "initializer.initialize_W_D_with_active_subspace": True, "activations.path": "store"},
        {**LAYERS, "dictionary.act_fn": "jumprelu", "trainer.target_l0": 8},
        {**CHECKPOINTS, HOOKS: [OTHER, f"tuned:{SECOND}"], "activations.target": "activations-2d", "activations.batch_size": 8},
        {**CHECKPOINTS, "activations.hook_points": [OTHER, SECOND, FIRST]},
        {"models": {"tuned": {"model_name": "x"}}},
        {**LAYERS, "dictionary.crosscoder_norm": "sum"},
        {"dictionary.crosscoder_norm": "joint"},
    ],
)
def test_what_makes_sense_is_accepted(changes: dict[str, Any]) -> None:
    assert faults(changes) == []


def test_a_further_model_is_run_like_the_main_one(tmp_path: Path) -> None:
    params = params_from_dict(
        changed({**CHECKPOINTS, "dictionary.act_fn": "topk", "model.dtype": "bfloat16", "model.device": "cpu"})
    )
    assert params.hook_points == (FIRST, OTHER)
    assert params.dictionary.hooks_in == params.dictionary.hooks_out == (FIRST, OTHER)
    main, tuned = params.language_model(""), params.language_model("tuned")
    assert main == params.model
    assert (tuned.model_name, tuned.revision) == ("me/tuned", "step3")
    assert (tuned.dtype, tuned.device, tuned.backend) == ("bfloat16", "cpu", main.backend)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.to_dict()))
    assert load_params(tmp_path / "params.yaml") == params
    assert dataclasses.replace(params, seed=3).models == params.models


def test_models_in_python() -> None:
    named = NamedModelParams(model_name="x")
    params = Params(models={"tuned": named}, model=ModelParams(dtype="float16"))
    assert params.language_model("tuned") == ModelParams(model_name="x", dtype="float16")
    assert params.to_dict()["models"] == {"tuned": {"model_name": "x", "revision": None}}
    with pytest.raises(ParamsError, match=r"models: expected letters"):
        Params(models={"a:b": NamedModelParams(model_name="x"), "c": {"model_name": "y"}})  # type: ignore[dict-item]
