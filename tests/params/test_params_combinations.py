"""What sections of the parameters refuse in each other: the key and what its message must tell."""

from __future__ import annotations

from typing import Any

import pytest

from tests.params.changes import CLT, TRANSCODER, one_fault
from tests.params.test_params_crosscoder import CHECKPOINTS
from tests.params.test_params_fault_table import (
    BATCHTOPK,
    COOL_DOWN,
    DEAD,
    FROM_ACTIVATIONS,
    LAYER,
    LOSS,
    MLP,
    MODE,
    POWER,
    START,
    STEERED,
    SUBSPACE,
    TARGET,
    THRESHOLD,
    THRESHOLDS,
    TOPK,
    TRANSPOSE,
    WARM_UP,
    WIDTHS,
)

MODEL_LOSS, MODEL_STEPS = "trainer.model_loss", "trainer.model_loss_steps"
PROCESSES = "distributed.data_parallel_size"
SPLICED = {"activations.source": "live", MODEL_LOSS: "kl"}
ONE_FAULT: list[tuple[dict[Any, Any], str, tuple[str, ...]]] = [
    ({MODEL_LOSS: "kl"}, MODEL_LOSS, ("kl", "activations.source", "store", "live", "null")),
    ({MODEL_LOSS: "ce", "activations.path": "stores/a"}, MODEL_LOSS, ("ce", "activations.source", "store", "live", "null")),
    ({**SPLICED, "activations.path": "stores/a"}, "activations.path", ("stores/a", "live", "null")),
    ({**SPLICED, **CLT, "dictionary.act_fn": "topk"}, MODEL_LOSS, ("clt", "2", "blocks.1.hook_mlp_out", "transcoder", "null")),
    ({**SPLICED, **CHECKPOINTS}, MODEL_LOSS, ("crosscoder", "2", "tuned:blocks.1.hook_resid_post", "sae", "null")),
    ({**SPLICED, MODEL_STEPS: 0}, MODEL_STEPS, ("0", "146484", "kl", "null")),
    ({**SPLICED, MODEL_STEPS: 1e-9}, MODEL_STEPS, ("1e-09", "146484", "kl")),
    ({**SPLICED, MODEL_STEPS: 200_000}, MODEL_STEPS, ("200000", "146484", "kl")),
    (
        {**SPLICED, "trainer.gradient_accumulation_steps": 2},
        "trainer.gradient_accumulation_steps",
        ("2", "1", "model_loss kl", "model_loss_batches"),
    ),
    (
        {**SPLICED, "activations.batch_size": 256, "trainer.model_loss_batches": 2, PROCESSES: 5},
        "trainer.model_loss_batches",
        ("2", "5 processes", "4 whole contexts", "kl", "write 3 or more"),
    ),
    (
        {"activations.hook_points": ["blocks.1.hook_resid_post"]},
        "activations.hook_points",
        ("blocks.2.hook_resid_post", "null"),
    ),
    ({"dictionary.act_fn": "jumprelu"}, THRESHOLD, ("jumprelu", "-2.302585", TARGET, "null")),
    ({**TOPK, THRESHOLD: -2.3}, THRESHOLD, ("-2.3", "jumprelu", "topk", "null")),
    ({MLP: True}, MLP, ("transcoder", "sae")),
    (
        {**TRANSCODER, "dictionary.hook_point_out": "blocks.3.hook_mlp_out", MLP: True},
        LAYER,
        ("null", "blocks.2.ln2.hook_out", "blocks.3.hook_mlp_out"),
    ),
    ({**TRANSCODER, MLP: True, LAYER: 1}, LAYER, ("1", "blocks.2.ln2.hook_out", "null", "2")),
    (
        {**TRANSCODER, MLP: True, "dictionary.hook_point_in": "blocks.2.hook_resid_pre"},
        LAYER,
        ("blocks.2.hook_resid_pre", "blocks.2.ln2.hook_out", "initialize_tc_with_mlp"),
    ),
    (
        {SUBSPACE: True, "initializer.d_active_subspace": 65, "dictionary.d_model": 64},
        "initializer.d_active_subspace",
        ("65", "dictionary.d_model", "64"),
    ),
    ({**TOPK, "trainer.initial_k": 20}, "trainer.initial_k", ("20", "dictionary.top_k", "50")),
    ({"trainer.initial_k": 100}, "trainer.initial_k", ("dictionary.act_fn", "relu", "null")),
    ({**TOPK, "trainer.initial_k": 100, "dictionary.d_model": 4}, "trainer.initial_k", ("100", "64")),
    ({"trainer.auxk_coefficient": 0.03}, "trainer.auxk_coefficient", ("topk", "relu", "null")),
    (
        {"trainer.auxk_coefficient": 0.03, "dictionary.act_fn": "jumprelu", THRESHOLD: -2.3},
        "trainer.auxk_coefficient",
        ("topk", "jumprelu", "null"),
    ),
    ({LOSS: "l0"}, LOSS, ("l0", "relu", "jumprelu")),
    ({**TOPK, LOSS: "l0"}, LOSS, ("l0", "topk", "jumprelu")),
    ({"trainer.lp_coefficient": 3e-6}, "trainer.lp_coefficient", ("pre-act", "relu", "null")),
    ({**BATCHTOPK, "trainer.lp_coefficient": 3e-6}, "trainer.lp_coefficient", ("pre-act", "batchtopk", "null")),
    ({**TOPK, TARGET: 32}, TARGET, ("topk", "dictionary.top_k", "50", "null")),
    ({**BATCHTOPK, **POWER, TARGET: 32, MODE: "coefficient"}, TARGET, ("batchtopk", "dictionary.top_k", "50", "null")),
    ({**STEERED, "dictionary.d_model": 4, TARGET: 64.5}, TARGET, ("64.5", "64")),
    ({TARGET: 32}, MODE, ("threshold", "relu", "coefficient", "power", "jumprelu")),
    ({**THRESHOLDS, TARGET: 32}, THRESHOLD, ("-2.3", TARGET, "32.0", "null")),
    ({**STEERED, **POWER, MODE: "coefficient"}, THRESHOLD, ("jumprelu", "-2.302585")),
    ({**STEERED, "fold.calibration_tokens": 2047}, "fold.calibration_tokens", ("2047", "2048")),
    ({START: 0.9}, START, ("batchtopk", "jumprelu", "relu", "0")),
    ({**TOPK, START: 5}, START, ("batchtopk", "jumprelu", "topk", "0")),
    ({**THRESHOLDS, START: 0.9}, START, (TARGET, "target_l0_mode", "threshold", "0")),
    (
        {**THRESHOLDS, **POWER, START: 0.9, TARGET: 32} | {MODE: "coefficient"},
        START,
        (TARGET, "target_l0_mode", "threshold", "0"),
    ),
    (
        {**TOPK, "trainer.initial_k": 100, "trainer.k_warmup_steps": 200_000},
        "trainer.k_warmup_steps",
        ("0", "200000", "146484", "50"),
    ),
    (
        {**TOPK, "trainer.initial_k": 100, "trainer.k_cold_booting_steps": 1.0},
        "trainer.k_warmup_steps",
        ("146484", "14648", "50"),
    ),
    (
        {**POWER, "trainer.l1_coefficient_warmup_steps": 200_000},
        "trainer.l1_coefficient_warmup_steps",
        ("l1_coefficient", "200000", "146484"),
    ),
    ({**THRESHOLDS, LOSS: "l0", "trainer.jumprelu_lr_factor": 0.0}, "trainer.jumprelu_lr_factor", ("0", "l0")),
    ({"trainer.revive_dead_features": True, DEAD: 300_000_000}, DEAD, ("300000000", "revive_dead_features", "0.0075")),
    ({**TOPK, "trainer.auxk_coefficient": 0.03, DEAD: 1.0}, DEAD, ("300000000", "auxk_coefficient", "0.0075")),
    ({WARM_UP: 1.0}, WARM_UP, ("146484", "constantwithwarmup")),
    ({WARM_UP: 0, COOL_DOWN: 150_000}, COOL_DOWN, ("0", "150000", "146484")),
    ({WARM_UP: 0.6, COOL_DOWN: 0.6}, COOL_DOWN, ("87890", "146484")),
    ({WARM_UP: 1, COOL_DOWN: 1.0}, COOL_DOWN, ("1", "146484")),
    ({"dictionary.dtype": "float64", "trainer.amp_dtype": "float16"}, "trainer.amp_dtype", ("float16", "float64", "float32")),
    (
        {**FROM_ACTIVATIONS, "initializer.decoder_uniform_bound": 0.5},
        "initializer.decoder_uniform_bound",
        ("0.5", "initialize_W_D_with_activations", "1.0"),
    ),
    (
        {"initializer.encoder_uniform_bound": 0.5},
        "initializer.encoder_uniform_bound",
        ("0.5", "init_encoder_with_decoder_transpose", "1.0"),
    ),
    (
        {**TRANSCODER, **FROM_ACTIVATIONS, "initializer.encoder_uniform_bound": 0.5},
        "initializer.encoder_uniform_bound",
        ("0.5", "init_encoder_with_decoder_transpose", "1.0"),
    ),
    (
        {TRANSPOSE: False, "initializer.init_encoder_with_decoder_transpose_factor": 0.5},
        "initializer.init_encoder_with_decoder_transpose_factor",
        ("0.5", "init_encoder_with_decoder_transpose", "false", "1.0"),
    ),
    (
        {"trainer.lr_scheduler_name": "exponentialwarmup", "trainer.lr_end_ratio": 0.0},
        "trainer.lr_end_ratio",
        ("0", "exponentialwarmup"),
    ),
    ({**THRESHOLDS, LOSS: "l0", TARGET: 32, MODE: "coefficient"}, MODE, ("coefficient", "l0", "quadratic", "threshold")),
    (
        {"dictionary.use_decoder_bias": False, "initializer.bias_init_method": "mean"},
        "initializer.bias_init_method",
        ("mean", "dictionary.use_decoder_bias", "false", "all_zero"),
    ),
    (
        {**TRANSCODER, "dictionary.hook_point_out": "blocks.2.hook_resid_post", MLP: True},
        MLP,
        ("blocks.2.hook_resid_post", "blocks.L.hook_mlp_out"),
    ),
    ({**BATCHTOPK, START: 1.0}, START, ("146484", "batchtopk")),
    (
        {"trainer.decoder_constraint": "unit_norm", "initializer.grid_search_init_norm": True},
        "trainer.decoder_constraint",
        ("unit_norm", "initializer.grid_search_init_norm"),
    ),
    ({WIDTHS: [2, 63], "dictionary.d_model": 4}, WIDTHS, ("64", "63")),
    ({WIDTHS: [2, 65], "dictionary.d_model": 4}, WIDTHS, ("64", "65")),
    ({WIDTHS: [0.001, 0.01, 0.5, 1.0], "dictionary.d_model": 4}, WIDTHS, ("[0.001, 0.01, 0.5, 1.0]", "64", "[1, 1, 32, 64]")),
    ({"trainer.total_training_tokens": 2047}, "trainer.total_training_tokens", ("2047", "2048", "activations.batch_size")),
    ({"trainer.lr_scheduler_name": "cosineannealingwarmup", WARM_UP: 1.0}, WARM_UP, ("146484", "cosineannealingwarmup")),
    (
        {"trainer.gradient_accumulation_steps": 3},
        "trainer.gradient_accumulation_steps",
        ("activations.batch_size", "2048", "3"),
    ),
    ({"dictionary.norm_activation": "token-wise"}, "fold.mode", ("token-wise", "keep", "dataset-wise")),
    ({"dictionary.norm_activation": "batch-wise"}, "fold.mode", ("batch-wise", "keep", "dataset-wise")),
    ({"fold.convert_topk_to_jumprelu": True}, "fold.convert_topk_to_jumprelu", ("dictionary.act_fn", "relu")),
    (
        {"fold.calibration_tokens": 999_999},
        "fold.calibration_tokens",
        ("999999", "activations.total_tokens", "1000000", "1", "2048"),
    ),
    (
        {"fold.calibration_tokens": 2_000_000},
        "fold.calibration_tokens",
        ("2000000", "activations.total_tokens", "1000000", "0", "2048"),
    ),
    ({"dictionary.act_fn": "batchtopk", "fold.calibration_tokens": 100}, "fold.calibration_tokens", ("100", "2048")),
    ({"evaluation.pca_rank": 65, "dictionary.d_model": 64}, "evaluation.pca_rank", ("65", "dictionary.d_model", "64")),
]


@pytest.mark.parametrize(("changes", "key", "parts"), ONE_FAULT, ids=[key for _, key, _ in ONE_FAULT])
def test_one_fault_between_sections(changes: dict[str, Any], key: str, parts: tuple[str, ...]) -> None:
    one_fault(changes, key, *parts)
