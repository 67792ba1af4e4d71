"""Settings of the reference as its users write them, one of each kind, and the three forms of a file."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FORMS = (".toml", ".json", ".yaml")
RESID, LN1, ATTENTION = "blocks.6.hook_resid_post", "blocks.6.ln1.hook_normalized", "blocks.6.hook_attn_out"
LN2 = [f"blocks.{layer}.ln2.hook_normalized" for layer in range(3)]
MLP = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]


def _training(sae: dict[str, Any], hook_points: list[str], **more: Any) -> dict[str, Any]:
    return {
        "sae_name": "my-sae",
        "sae_series": "my-series",
        "sae": {"d_model": 768, "expansion_factor": 8, "dtype": "torch.float32", "device": "cuda", **sae},
        "trainer": {"lr": 1e-4, "amp_dtype": "torch.float32", "total_training_tokens": 800_000_000, "initial_k": 200},
        "model": {"model_name": "EleutherAI/pythia-160m", "device": "cuda", "dtype": "torch.float16"},
        "model_name": "pythia-160m",
        "datasets": {"SlimPajama-3B": {"dataset_name_or_path": "Hzfinfdu/SlimPajama-3B"}},
        "activation_factory": {
            "target": "activations-1d",
            "hook_points": hook_points,
            "batch_size": 4096,
            "buffer_size": 16384,
            "context_size": 1024,
            "sources": [{"type": "dataset", "name": "SlimPajama-3B", "sample_weights": 1.0}],
            "buffer_shuffle": {"perm_seed": 7, "generator_device": "cuda"},
        },
        **more,
    }


SAE = _training(
    {"sae_type": "sae", "hook_point_in": RESID, "hook_point_out": RESID, "act_fn": "batchtopk", "top_k": 50},
    [RESID],
    initializer={"grid_search_init_norm": True},
)
TRANSCODER = _training(
    {"sae_type": "sae", "hook_point_in": LN2[0], "hook_point_out": MLP[0], "act_fn": "topk", "top_k": 64},
    [LN2[0], MLP[0]],
    initializer={"initialize_tc_with_mlp": True, "model_layer": 0},
)
CLT = _training(
    {"sae_type": "clt", "hook_points_in": LN2, "hook_points_out": MLP, "act_fn": "layertopk", "top_k": 96},
    LN2 + MLP,
    initializer={"init_encoder_with_decoder_transpose": False},
)
LORSA = _training(
    {
        "sae_type": "lorsa", "hook_point_in": LN1, "hook_point_out": ATTENTION, "act_fn": "topk", "top_k": 64,
        "n_qk_heads": 48, "d_qk_head": 64, "rotary_dim": 16, "rotary_adjacent_pairs": False, "n_ctx": 1024, "skip_bos": True,
    },
    [LN1, ATTENTION],
    initializer={"init_encoder_with_decoder_transpose": False, "decoder_uniform_bound": 0.036, "encoder_uniform_bound": 0.0128},
)  # fmt: skip
LORSA["activation_factory"] |= {"target": "activations-2d", "batch_size": 4}
CROSSCODER = _training(
    {"sae_type": "crosscoder", "hook_points": ["blocks.5.hook_resid_post", RESID], "act_fn": "jumprelu"},
    [],
    initializer={"init_log_jumprelu_threshold_value": -2.302585},
)
CROSSCODER["trainer"] |= {"sparsity_loss_type": "tanh-quad", "l1_coefficient": 0.3}
CROSSCODER["activation_factories"] = [
    CROSSCODER["activation_factory"] | {"hook_points": [hook]} for hook in CROSSCODER["sae"]["hook_points"]
]
del CROSSCODER["activation_factory"]
GENERATE = {
    "model_name": "pythia-160m",
    "dataset_name": "SlimPajama-3B",
    "hook_points": [RESID],
    "output_dir": "activations",
    "total_tokens": 800_000_000,
    "context_size": 1024,
    "target": "activations-1d",
    "model_batch_size": 32,
    "batch_size": 131072,
    "buffer_size": 409600,
    "device_type": "cuda",
    "model": {"model_name": "EleutherAI/pythia-160m", "device": "cuda", "dtype": "torch.float16"},
    "dataset": {"dataset_name_or_path": "Hzfinfdu/SlimPajama-3B"},
    "buffer_shuffle": {"perm_seed": 7},
}
KINDS = {
    "sae": SAE, "transcoder": TRANSCODER, "clt": CLT, "lorsa": LORSA, "crosscoder": CROSSCODER, "generate": GENERATE,
}  # fmt: skip


def having(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys set; sections that are not there are made, "0" is the first of a list."""
    found = copy.deepcopy(dict(settings))
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        place: Any = found
        for section in sections:
            place = place[int(section)] if isinstance(place, list) else place.setdefault(section, {})
        place[key] = value
    return found


def write(folder: Path, settings: Mapping[str, Any], form: str = ".json") -> Path:
    """A settings file of one of FORMS."""
    file = folder / f"settings{form}"
    text = {".json": json.dumps, ".yaml": yaml.safe_dump, ".toml": toml}[form](settings)
    file.write_text(text)
    return file


def toml(values: Mapping[str, Any], place: str = "") -> str:
    """Settings as TOML: tables, and arrays of tables."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    arrays = {
        key: value
        for key, value in values.items()
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    }
    plain = {key: value for key, value in values.items() if key not in tables and key not in arrays and value is not None}
    lines = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        inside = f"{place}.{json.dumps(key)}".lstrip(".")
        lines += [f"[{inside}]", toml(value, inside)]
    for key, items in arrays.items():
        inside = f"{place}.{json.dumps(key)}".lstrip(".")
        for item in items:
            lines += [f"[[{inside}]]", toml(item, inside)]
    return "\n".join(lines)
