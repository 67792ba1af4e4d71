"""The embedded default's recipe: what `fit()` takes where nothing is given.

The same values as in params.yaml (a test compares them); fields that are not here have the dataclass default, which for
logging and checkpoints may be another one than params.yaml's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.params.sections.dictionary import TOPK_FAMILY

DICTIONARY: dict[str, Any] = {"act_fn": "topk", "top_k": 24, "expansion_factor": 16.0}
INITIALIZER: dict[str, Any] = {"initialize_W_D_with_activations": True}
TRAINER: dict[str, Any] = {
    "lr": "auto",
    "betas": (0.9, 0.99),
    "lr_warm_up_steps": 0.05,
    "lr_cool_down_steps": 0.3,
    "total_training_tokens": 2_000_000,
    "auxk_coefficient": 0.03125,
    "k_aux": 64,
    "dead_threshold": 40960,
    "log_frequency": 50,
    "n_checkpoints": 0,
}
CALIBRATION_TOKENS = 16384
# Of each pair, a given field makes the recipe's one for the same purpose give way.
_DECODER_ROWS = ("initialize_W_D_with_activations", "initialize_W_D_with_active_subspace", "initialize_tc_with_mlp")


def dictionary_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` completed; a stated d_sae takes the place of expansion_factor."""
    recipe = {key: value for key, value in DICTIONARY.items() if not (key == "expansion_factor" and "d_sae" in given)}
    return {**recipe, **given}


def initializer_fields(given: Mapping[str, Any], act_fn: str) -> dict[str, Any]:
    """`given` completed; another choice of decoder rows takes the place of the recipe's, jumprelu starts at log 0.1."""
    recipe = dict(INITIALIZER)
    if any(given.get(name) for name in _DECODER_ROWS):
        recipe = {key: value for key, value in recipe.items() if key not in _DECODER_ROWS}
    if act_fn == "jumprelu":
        recipe["init_log_jumprelu_threshold_value"] = -2.302585
    return {**recipe, **given}


def trainer_fields(given: Mapping[str, Any], act_fn: str) -> dict[str, Any]:
    """`given` completed; AuxK is for the topk family."""
    recipe = dict(TRAINER)
    if act_fn not in TOPK_FAMILY:
        del recipe["auxk_coefficient"]
    return {**recipe, **given}
