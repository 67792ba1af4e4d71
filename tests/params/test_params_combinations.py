"""What sections of the parameters refuse in each other, with the message that it gives."""

from __future__ import annotations

from typing import Any

import pytest

from tests.params.changes import TRANSCODER, faults
from tests.params.test_params_fault_table import BATCHTOPK, FROM_ACTIVATIONS, POWER, STEERED, THRESHOLDS, TOPK, WIDTHS

ONE_FAULT: list[tuple[dict[Any, Any], str]] = [
    (
        {"activations.hook_points": ["blocks.1.hook_resid_post"]},
        "activations.hook_points: the dictionary needs blocks.2.hook_resid_post too",
    ),
    (
        {"dictionary.act_fn": "jumprelu"},
        "initializer.init_log_jumprelu_threshold_value: is required by dictionary.act_fn jumprelu; usual: -2.302585",
    ),
    (
        {**TOPK, "initializer.init_log_jumprelu_threshold_value": -2.3},
        "initializer.init_log_jumprelu_threshold_value: -2.3 is for jumprelu only; dictionary.act_fn is topk; write null",
    ),
    ({"initializer.initialize_tc_with_mlp": True}, "initializer.initialize_tc_with_mlp: needs a transcoder"),
    (
        {**TRANSCODER, "dictionary.hook_point_out": "blocks.3.hook_mlp_out", "initializer.initialize_tc_with_mlp": True},
        "initializer.model_layer: is null and cannot be derived: blocks.2.ln2.hook_out and blocks.3.hook_mlp_out",
    ),
    (
        {**TRANSCODER, "initializer.initialize_tc_with_mlp": True, "initializer.model_layer": 1},
        "initializer.model_layer: the MLP of layer 1 is no function of 'blocks.2.ln2.hook_out'; write null or 2",
    ),
    (
        {
            **TRANSCODER,
            "initializer.initialize_tc_with_mlp": True,
            "dictionary.hook_point_in": "blocks.2.hook_resid_pre",
        },
        "initializer.model_layer: no MLP is a function of 'blocks.2.hook_resid_pre'; read blocks.2.ln2.hook_out",
    ),
    (
        {
            "initializer.initialize_W_D_with_active_subspace": True,
            "initializer.d_active_subspace": 65,
            "dictionary.d_model": 64,
        },
        "initializer.d_active_subspace: 65 directions do not fit in dictionary.d_model 64",
    ),
    ({**TOPK, "trainer.initial_k": 20}, "trainer.initial_k: 20 is below dictionary.top_k 50"),
    ({"trainer.initial_k": 100}, "trainer.initial_k: only the topk family has a k to schedule"),
    ({**TOPK, "trainer.initial_k": 100, "dictionary.d_model": 4}, "trainer.initial_k: 100 is more than the dictionary's"),
    ({"trainer.auxk_coefficient": 0.03}, "trainer.auxk_coefficient: the AuxK loss is for the topk family; dictionary"),
    (
        {
            "trainer.auxk_coefficient": 0.03,
            "dictionary.act_fn": "jumprelu",
            "initializer.init_log_jumprelu_threshold_value": -2.3,
        },
        "trainer.auxk_coefficient: the AuxK loss is for the topk family; dictionary.act_fn is jumprelu",
    ),
    (
        {"trainer.sparsity_loss_type": "l0"},
        "trainer.sparsity_loss_type: the l0 loss trains JumpReLU's thresholds; dictionary.act_fn is relu; set it to jumprelu",
    ),
    ({**TOPK, "trainer.sparsity_loss_type": "l0"}, "l0 loss trains JumpReLU's thresholds; dictionary.act_fn is topk"),
    (
        {"trainer.lp_coefficient": 3e-6},
        "trainer.lp_coefficient: the pre-act loss needs JumpReLU's thresholds; dictionary.act_fn is relu; write null",
    ),
    ({**BATCHTOPK, "trainer.lp_coefficient": 3e-6}, "needs JumpReLU's thresholds; dictionary.act_fn is batchtopk; write null"),
    (
        {**TOPK, "trainer.target_l0": 32},
        "trainer.target_l0: the L0 of topk is dictionary.top_k (50); write null, and set top_k",
    ),
    (
        {**BATCHTOPK, **POWER, "trainer.target_l0": 32, "trainer.target_l0_mode": "coefficient"},
        "trainer.target_l0: the L0 of batchtopk is dictionary.top_k (50); write null",
    ),
    (
        {**STEERED, "dictionary.d_model": 4, "trainer.target_l0": 64.5},
        "trainer.target_l0: 64.5 is more than the dictionary's 64 features",
    ),
    (
        {"trainer.target_l0": 32},
        "trainer.target_l0_mode: threshold steers JumpReLU's thresholds; dictionary.act_fn is relu; set the mode to coeff",
    ),
    (
        {**THRESHOLDS, "trainer.target_l0": 32},
        "initializer.init_log_jumprelu_threshold_value: -2.3 is not used: thresholds start where they give "
        "trainer.target_l0 32.0 on the data (target_l0_mode threshold); write null",
    ),
    (
        {**STEERED, **POWER, "trainer.target_l0_mode": "coefficient"},
        "initializer.init_log_jumprelu_threshold_value: is required by dictionary.act_fn jumprelu",
    ),
    (
        {**STEERED, "fold.calibration_tokens": 2047},
        "fold.calibration_tokens: the threshold of the inference form is measured on whole batches: 2047 is less than one",
    ),
    (
        {"trainer.topk_start_steps": 0.9},
        "trainer.topk_start_steps: a TopK start is for batchtopk and jumprelu; dictionary.act_fn is relu; write 0",
    ),
    ({**TOPK, "trainer.topk_start_steps": 5}, "a TopK start is for batchtopk and jumprelu; dictionary.act_fn is topk; write 0"),
    (
        {**THRESHOLDS, "trainer.topk_start_steps": 0.9},
        "trainer.topk_start_steps: with jumprelu a TopK start takes its k from trainer.target_l0 in target_l0_mode threshold",
    ),
    (
        {**THRESHOLDS, **POWER, "trainer.topk_start_steps": 0.9, "trainer.target_l0": 32}
        | {"trainer.target_l0_mode": "coefficient"},
        "trainer.topk_start_steps: with jumprelu a TopK start takes its k from trainer.target_l0 in target_l0_mode threshold",
    ),
    (
        {**TOPK, "trainer.initial_k": 100, "trainer.k_warmup_steps": 200_000},
        "trainer.k_warmup_steps: k stays for 0 steps (k_cold_booting_steps) and falls for 200000, which leaves none of the 146484",
    ),
    ({**TOPK, "trainer.initial_k": 100, "trainer.k_cold_booting_steps": 1.0}, "k stays for 146484 steps"),
    (
        {**POWER, "trainer.l1_coefficient_warmup_steps": 200_000},
        "trainer.l1_coefficient_warmup_steps: l1_coefficient would rise for 200000 steps, and the run has 146484; shorten it",
    ),
    (
        {**THRESHOLDS, "trainer.sparsity_loss_type": "l0", "trainer.jumprelu_lr_factor": 0.0},
        "trainer.jumprelu_lr_factor: is 0, so that the l0 loss, which trains nothing but thresholds, does nothing",
    ),
    (
        {"trainer.revive_dead_features": True, "trainer.dead_threshold": 300_000_000},
        "trainer.dead_threshold: no feature can be silent for 300000000 of the run's 300000000 tokens before it ends, so that "
        "revive_dead_features does nothing",
    ),
    (
        {**TOPK, "trainer.auxk_coefficient": 0.03, "trainer.dead_threshold": 1.0},
        "trainer.dead_threshold: no feature can be silent for 300000000 of the run's 300000000 tokens before it ends, so that "
        "auxk_coefficient does nothing",
    ),
    (
        {"trainer.lr_warm_up_steps": 1.0},
        "trainer.lr_warm_up_steps: a warm-up of 146484 steps leaves none of the 146484 to constantwithwarmup; shorten it",
    ),
    (
        {"trainer.lr_warm_up_steps": 0, "trainer.lr_cool_down_steps": 150_000},
        "trainer.lr_cool_down_steps: a warm-up of 0 steps (lr_warm_up_steps) and a cool-down of 150000 do not fit in the 146484",
    ),
    (
        {"trainer.lr_warm_up_steps": 0.6, "trainer.lr_cool_down_steps": 0.6},
        "trainer.lr_cool_down_steps: a warm-up of 87890 steps (lr_warm_up_steps) and a cool-down of 87890 do not fit in the",
    ),
    (
        {"trainer.lr_warm_up_steps": 1, "trainer.lr_cool_down_steps": 1.0},
        "trainer.lr would not be reached; shorten one of them",
    ),
    (
        {"dictionary.dtype": "float64", "trainer.amp_dtype": "float16"},
        "trainer.amp_dtype: float16 has no effect on weights of dictionary.dtype float64",
    ),
    (
        {**FROM_ACTIVATIONS, "initializer.decoder_uniform_bound": 0.5},
        "initializer.decoder_uniform_bound: 0.5 has no effect: decoder rows are activations (initialize_W_D_with_activations)",
    ),
    (
        {"initializer.encoder_uniform_bound": 0.5},
        "initializer.encoder_uniform_bound: 0.5 has no effect: init_encoder_with_decoder_transpose makes the encoder; write",
    ),
    (
        {**TRANSCODER, **FROM_ACTIVATIONS, "initializer.encoder_uniform_bound": 0.5},
        "initializer.encoder_uniform_bound: 0.5 has no effect: init_encoder_with_decoder_transpose makes the encoder; write",
    ),
    (
        {
            "initializer.init_encoder_with_decoder_transpose": False,
            "initializer.init_encoder_with_decoder_transpose_factor": 0.5,
        },
        "initializer.init_encoder_with_decoder_transpose_factor: 0.5 is the factor of init_encoder_with_decoder_transpose, which",
    ),
    (
        {"trainer.lr_scheduler_name": "exponentialwarmup", "trainer.lr_end_ratio": 0.0},
        "trainer.lr_end_ratio: is 0, so that exponentialwarmup",
    ),
    (
        {**THRESHOLDS, "trainer.sparsity_loss_type": "l0", "trainer.target_l0": 32, "trainer.target_l0_mode": "coefficient"},
        "trainer.target_l0_mode: coefficient winds up with the l0 loss; take quadratic, or threshold without a sparsity loss",
    ),
    (
        {"dictionary.use_decoder_bias": False, "initializer.bias_init_method": "mean"},
        "initializer.bias_init_method: mean sets the decoder bias, and dictionary.use_decoder_bias is false; write all_zero",
    ),
    (
        {**TRANSCODER, "dictionary.hook_point_out": "blocks.2.hook_resid_post", "initializer.initialize_tc_with_mlp": True},
        "initializer.initialize_tc_with_mlp: the MLP's responses are no rows for 'blocks.2.hook_resid_post'",
    ),
    (
        {**BATCHTOPK, "trainer.topk_start_steps": 1.0},
        "trainer.topk_start_steps: a TopK start of 146484 steps leaves none of the 146484 to batchtopk; shorten it",
    ),
    (
        {"trainer.decoder_constraint": "unit_norm", "initializer.grid_search_init_norm": True},
        "trainer.decoder_constraint: unit_norm fixes the decoder norm that initializer.grid_search_init_norm searches",
    ),
    (
        {WIDTHS: [2, 63], "dictionary.d_model": 4},
        "trainer.matryoshka_widths: the last width is the whole dictionary, 64 features, got 63",
    ),
    (
        {WIDTHS: [2, 65], "dictionary.d_model": 4},
        "trainer.matryoshka_widths: the last width is the whole dictionary, 64 features, got 65",
    ),
    (
        {WIDTHS: [0.001, 0.01, 0.5, 1.0], "dictionary.d_model": 4},
        "[0.001, 0.01, 0.5, 1.0] of 64 features are the widths [1, 1, 32, 64]: no two may be the same",
    ),
    ({"trainer.total_training_tokens": 2047}, "trainer.total_training_tokens: 2047 tokens are less than one batch of"),
    (
        {"trainer.lr_scheduler_name": "cosineannealingwarmup", "trainer.lr_warm_up_steps": 1.0},
        "trainer.lr_warm_up_steps: a warm-up of 146484 steps leaves none of the 146484 to cosineannealingwarmup",
    ),
    ({"trainer.gradient_accumulation_steps": 3}, "gradient_accumulation_steps: activations.batch_size 2048 does not split"),
    ({"dictionary.norm_activation": "token-wise"}, "fold.mode: norm_activation token-wise cannot be folded into weights"),
    ({"dictionary.norm_activation": "batch-wise"}, "set fold.mode to keep"),
    ({"fold.convert_topk_to_jumprelu": True}, "fold.convert_topk_to_jumprelu: there is no top-k gate to convert"),
    ({"fold.calibration_tokens": 999_999}, "fold.calibration_tokens: 999999 of activations.total_tokens 1000000 leave 1"),
    ({"fold.calibration_tokens": 2_000_000}, "leave 0 tokens to train on, less than a batch of 2048"),
    (
        {"dictionary.act_fn": "batchtopk", "fold.calibration_tokens": 100},
        "fold.calibration_tokens: the threshold of the inference form is measured on whole batches",
    ),
    ({"evaluation.pca_rank": 65, "dictionary.d_model": 64}, "evaluation.pca_rank: 65 is more than dictionary.d_model 64"),
]


@pytest.mark.parametrize(("changes", "message"), ONE_FAULT, ids=[f"{i}" for i in range(len(ONE_FAULT))])
def test_one_fault_between_sections(changes: dict[str, Any], message: str) -> None:
    found = faults(changes)
    assert len(found) == 1, found
    assert message in found[0]
    assert found[0].startswith("params.yaml: ")
