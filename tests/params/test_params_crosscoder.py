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
from tests.messages import saying
from tests.params.changes import changed, faults, one_fault

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

ONE_FAULT: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    # hook points
    ({**LAYERS, HOOKS: [FIRST]}, HOOKS, ("two", f"['{FIRST}']")),
    ({**LAYERS, HOOKS: None}, HOOKS, ("two", "null")),
    ({**LAYERS, HOOKS: [FIRST, FIRST]}, HOOKS, ("twice", FIRST)),
    ({**LAYERS, HOOKS: [FIRST, "resid"]}, HOOKS, ("item 1", "alias:blocks.L.name", "resid")),
    ({**LAYERS, HOOKS: [FIRST, f"a b:{FIRST}"]}, HOOKS, ("item 1", "alias:blocks.L.name", f"a b:{FIRST}")),
    ({**LAYERS, HOOKS: [FIRST, f"a:b:{FIRST}"]}, HOOKS, ("item 1", "alias:blocks.L.name", f"a:b:{FIRST}")),
    ({**LAYERS, "dictionary.hook_points_out": [SECOND, FIRST]}, "dictionary.hook_points_out", ("crosscoder", "null")),
    ({**LAYERS, "dictionary.hook_point_in": FIRST}, "dictionary.hook_point_in", ("crosscoder", "null", FIRST)),
    ({"dictionary.hook_point_in": OTHER}, "dictionary.hook_point_in", ("blocks.L.name", OTHER)),
    ({"dictionary.kind": "clt", "dictionary.top_k_of": "layer", "dictionary.hook_point_in": None, HOOKS: [FIRST, OTHER], "dictionary.hook_points_out": ["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"]}, HOOKS, ("item 1", "blocks.L.name", OTHER)),
    # models
    ({**CHECKPOINTS, "models": None}, "models", (OTHER, "'tuned'", "none", "model_name")),
    ({**CHECKPOINTS, "models": {"tunde": MODELS["tuned"]}}, "models", (OTHER, "'tuned'", "'tunde'")),
    ({**CHECKPOINTS, "activations.hook_points": [FIRST, OTHER, f"x:{FIRST}"]}, "models", (f"x:{FIRST}", "'x'", "tuned")),
    ({**CHECKPOINTS, "activations.hook_points": [FIRST]}, "activations.hook_points", (OTHER, "null")),
    ({**CHECKPOINTS, "activations.path": "store"}, "activations.path", ("tuned", "null")),
    ({"models": {"tuned": {"model_nam": "x", "revision": None, "model_name": "x"}}}, "models.tuned.model_nam", ("unknown", "model_name")),
    ({"models": {"tuned": {"revision": None}}}, "models.tuned.model_name", ("missing",)),
    ({"models": {"tuned": {"model_name": "x", "revision": 3}}}, "models.tuned.revision", ("string", "null", "3", "quotes")),
    ({"models": {"tuned": {"model_name": " "}}}, "models.tuned.model_name", ("demo", "' '")),
    ({"models": {"tuned": "me/tuned"}}, "models.tuned", ("mapping", "me/tuned")),
    ({"models": {"a:b": MODELS["tuned"]}}, "models", ("letters", "a:b")),
    ({"models": {"module": MODELS["tuned"]}}, "models", ("'module'", "another name")),
    ({**CHECKPOINTS, HOOKS: [OTHER, f"module:{FIRST}"]}, "models", (f"'module:{FIRST}'", "another name")),
    ({**CHECKPOINTS, HOOKS: [FIRST, "tune:module:m.norm:input"]}, "models", ("tune:module:m.norm:input", "'tune'", "tuned")),
    ({"models": {3: MODELS["tuned"]}}, "models", ("letters", "'3'")),
    ({"models": []}, "models", ("mapping", "null", "list")),
    ({"models": {}}, "models", ("mapping", "null", "empty")),
    # what a crosscoder cannot do
    ({**LAYERS, "dictionary.skip": True}, "dictionary.skip", ("crosscoder", "false")),
    ({**LAYERS, "dictionary.use_glu_encoder": True}, "dictionary.use_glu_encoder", ("crosscoder", "false")),
    ({**LAYERS, "dictionary.apply_b_dec_to_input": True}, "dictionary.apply_b_dec_to_input", ("crosscoder", "false")),
    ({**LAYERS, "dictionary.act_fn": "layertopk"}, "dictionary.act_fn", ("layertopk", "crosscoder", "topk")),
    ({**LAYERS, "trainer.decoder_constraint": "unit_norm"}, "trainer.decoder_constraint", ("unit_norm", "sae", "transcoder", "crosscoder")),
    ({**LAYERS, "trainer.matryoshka_widths": [0.5, 1.0]}, "trainer.matryoshka_widths", ("sae", "transcoder", "crosscoder", "null")),
    ({**LAYERS, "initializer.initialize_tc_with_mlp": True, "initializer.model_layer": 1}, "initializer.initialize_tc_with_mlp", ("transcoder", "crosscoder")),
    ({**LAYERS, "initializer.cross_layer_decoders": "zero"}, "initializer.cross_layer_decoders", ("crosscoder", "drawn")),
    ({**LAYERS, "dictionary.norm_activation": "token-wise"}, "fold.mode", ("token-wise", "keep", "dataset-wise")),
    ({"dictionary.crosscoder_norm": "sum"}, "dictionary.crosscoder_norm", ("crosscoder", "sae", "joint", "'sum'")),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "key", "parts"), ONE_FAULT, ids=[key for _, key, _ in ONE_FAULT])
def test_one_fault(changes: dict[str, Any], key: str, parts: tuple[str, ...]) -> None:
    one_fault(changes, key, *parts)


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
    assert faults(changes) == {}


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
    assert params.to_dict()["models"] == {"tuned": {"model_name": "x", "revision": None, "tokenizer_name": None}}
    with pytest.raises(ParamsError, match=saying("models:", "letters", "a:b")):
        Params(models={"a:b": NamedModelParams(model_name="x"), "c": {"model_name": "y"}})  # type: ignore[dict-item]
