"""The embedded default's recipe: what `fit()` takes where nothing is given.

The same values as in params.yaml (a test compares them); fields that are not here have the dataclass default, which for
logging and checkpoints may be another one than params.yaml's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.params.dictionary_kinds import kind_fields
from pipeline.params.gates import GATES

DICTIONARY: dict[str, Any] = {"act_fn": "topk", "top_k": 24, "expansion_factor": 16.0, "apply_b_dec_to_input": True}
INITIALIZER: dict[str, Any] = {"initialize_W_D_with_activations": True, "bias_init_method": "mean"}
TRAINER: dict[str, Any] = {
    "lr": "auto",
    "betas": (0.5, 0.99),
    "lr_warm_up_steps": 0.05,
    "lr_cool_down_steps": 0.3,
    "total_training_tokens": 2_000_000,
    "dead_threshold": 0.005,
    "revive_dead_features": True,
    "log_frequency": 50,
    "n_checkpoints": 0,
}
CALIBRATION_TOKENS = 16384
# Of each pair, a given field makes the recipe's one for the same purpose give way.
_DECIDES_L0 = ("sparsity_loss_type", "target_l0")
_DECODER_ROWS = ("initialize_W_D_with_activations", "initialize_W_D_with_active_subspace", "initialize_tc_with_mlp")


def dictionary_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with its kind, completed; a stated d_sae takes the place of expansion_factor.

    Only a kind that writes what it reads, with a decoder bias, can subtract that from its input.
    """
    recipe = dict(DICTIONARY)
    if "d_sae" in given:
        del recipe["expansion_factor"]
    writes_another = given.get("hook_point_out") not in (None, given.get("hook_point_in", "input"))
    kind = kind_fields(given["kind"])
    subtracts = "apply_b_dec_to_input" in kind.__dataclass_fields__ and not (kind.WRITES_ELSEWHERE or writes_another)
    if not subtracts or not given.get("use_decoder_bias", True):
        del recipe["apply_b_dec_to_input"]
    return {**recipe, **given}


def initializer_fields(given: Mapping[str, Any], dictionary: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    """`given` completed, for completed `dictionary` and `trainer`; another choice of decoder rows takes the recipe's place.

    JumpReLU starts at log 0.1 where its thresholds are not set by target_l0. An input that b_D is not subtracted from is
    centred by the encoder's bias. Without decoder bias there is none to start. What starts from a dictionary draws nothing.
    """
    if given.get("from_dictionary") is not None:
        return dict(given)
    recipe = dict(INITIALIZER)
    if any(given.get(name) for name in _DECODER_ROWS):
        recipe = {key: value for key, value in recipe.items() if key not in _DECODER_ROWS}
    by_target = trainer.get("target_l0") is not None and trainer.get("target_l0_mode", "threshold") == "threshold"
    if _has_thresholds(dictionary) and not by_target:
        recipe["init_log_jumprelu_threshold_value"] = -2.302585
    if not dictionary.get("apply_b_dec_to_input"):
        recipe["init_encoder_bias_with_mean_hidden_pre"] = True
    if not dictionary.get("use_decoder_bias", True):
        del recipe["bias_init_method"]
    return {**recipe, **given}


def trainer_fields(given: Mapping[str, Any], dictionary: Mapping[str, Any]) -> dict[str, Any]:
    """`given` completed, for a completed `dictionary`: JumpReLU's L0 is steered to top_k where no given loss decides it."""
    recipe = dict(TRAINER)
    if _has_thresholds(dictionary) and not any(given.get(name) for name in _DECIDES_L0):
        recipe["target_l0"] = dictionary["top_k"]
    return {**recipe, **given}


def _has_thresholds(dictionary: Mapping[str, Any]) -> bool:
    return dictionary["act_fn"] in GATES and GATES.get(dictionary["act_fn"]).has_threshold
