"""Every refusal of the strict loader with the message that it gives, and what must not be refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.params.changes import ABSENT, TRANSCODER, faults

TOPK = {"dictionary.act_fn": "topk"}
BATCHTOPK = {"dictionary.act_fn": "batchtopk"}
THRESHOLDS = {"dictionary.act_fn": "jumprelu", "initializer.init_log_jumprelu_threshold_value": -2.3}
STEERED = {"dictionary.act_fn": "jumprelu", "trainer.target_l0": 32}
POWER = {"trainer.sparsity_loss_type": "power"}
FROM_ACTIVATIONS = {"initializer.initialize_W_D_with_activations": True}
WIDTHS = "trainer.matryoshka_widths"

ONE_FAULT: list[tuple[dict[Any, Any], str]] = [
    # names
    ({"trainer.warmup_step": 5}, "trainer.warmup_step: unknown key; did you mean 'lr_warm_up_steps'?"),
    ({"trainer.learning_rate": 1e-3}, "trainer.learning_rate: unknown key; did you mean 'lr'?"),
    ({"dictionary.topk": 3}, "dictionary.topk: unknown key; did you mean 'top_k'?"),
    ({"trainer.top_k": 3}, "trainer.top_k: unknown key; did you mean 'dictionary.top_k'?"),
    ({"lr": 1e-3}, "lr: unknown key; did you mean 'trainer.lr'?"),
    ({"perm_seed": 1}, "perm_seed: unknown key; did you mean 'activations.buffer_shuffle.perm_seed'?"),
    ({"trainner": {}}, "trainner: unknown key; did you mean 'trainer'?"),
    ({"norm.zzzz": 1}, "norm.zzzz: unknown key (known: tokens)"),
    ({"activations.buffer_shuffle.seed": 1}, "activations.buffer_shuffle.seed: unknown key; did you mean 'seed'?"),
    ({3: 1}, "params.yaml: 3: unknown key"),
    ({"trainer.lr": ABSENT}, "trainer.lr: missing key; every key must be stated"),
    ({"activations.buffer_shuffle.perm_seed": ABSENT}, "activations.buffer_shuffle.perm_seed: missing key"),
    ({"fold": ABSENT}, "fold: missing section"),
    ({"seed": ABSENT}, "seed: missing key"),
    ({"dictionary.skip": ABSENT}, "dictionary.skip: missing key"),
    # types
    ({"seed": True}, "seed: expected an integer, got true"),
    ({"seed": 1.0}, "seed: expected an integer, got the number 1.0; write 1"),
    ({"trainer.total_training_tokens": 8e8}, "expected an integer, got the number 800000000.0; write 800000000"),
    ({"activations.total_tokens": "1_000_000"}, "got the string '1_000_000'; write 1000000, without quotes"),
    ({"trainer.eps": "1e-3"}, "trainer.eps: expected a number, got the string '1e-3'; write 1e-3, without quotes"),
    ({"trainer.eps": True}, "trainer.eps: expected a number, got true"),
    ({"trainer.eps": float("nan")}, "trainer.eps: must be finite, got nan"),
    ({"trainer.eps": float("inf")}, "trainer.eps: must be finite, got inf"),
    ({"trainer.eps": None}, "trainer.eps: expected a number, got null"),
    ({"trainer.eps": [1]}, "trainer.eps: expected a number, got a list"),
    ({"trainer.eps": {"a": 1}}, "trainer.eps: expected a number, got a mapping"),
    ({"determinism": "yes"}, "determinism: expected true or false, got the string 'yes'; write true, without quotes"),
    ({"determinism": 1}, "determinism: expected true or false, got the integer 1; write true"),
    ({"model.revision": 12345}, "model.revision: expected a string or null, got the integer 12345; put it in quotes"),
    ({"model.revision": "None"}, "model.revision: expected a string or null, got the string 'None'; write null"),
    ({"norm.tokens": "None"}, "norm.tokens: expected an integer or null, got the string 'None'; write null"),
    ({"trainer.betas": [0.9]}, "trainer.betas: expected a list of 2 numbers, got 1 items"),
    ({"trainer.betas": 0.9}, "trainer.betas: expected a list of 2 numbers, got the number 0.9"),
    ({"trainer.betas": [0.9, "0.99"]}, "trainer.betas: item 1: expected a number, got the string '0.99'; write 0.99"),
    ({"trainer.betas": [0.9, 1]}, "trainer.betas: item 1: must be at least 0 and less than 1, got 1.0"),
    ({"activations.ignore_token_ids": [0, -1]}, "activations.ignore_token_ids: item 1: must be at least 0, got -1"),
    ({"activations.ignore_token_ids": "0"}, "expected a list of integers or null, got the string '0'"),
    ({"activations.ignore_positions": 1.5}, "activations.ignore_positions: expected an integer, got the number 1.5"),
    ({"model.prepend_bos": "atuo"}, "model.prepend_bos: expected true or false or 'auto', got the string 'atuo'; did you mean"),
    ({"model.prepend_bos": 1}, "model.prepend_bos: expected true or false or 'auto', got the integer 1"),
    ({"model.prepend_bos": None}, "model.prepend_bos: expected true or false or 'auto', got null"),
    ({"demo.text_packages": "numpy"}, "demo.text_packages: expected a list of strings, got the string 'numpy'"),
    ({"trainer": None}, "trainer: expected a mapping of keys to values, got null"),
    ({"trainer": []}, "trainer: expected a mapping of keys to values, got a list"),
    ({"activations.buffer_shuffle": 42}, "activations.buffer_shuffle: expected a mapping of keys to values, got the int"),
    # ranges and choices
    ({"dataset.eval_fraction": 0}, "dataset.eval_fraction: must be greater than 0 and less than 1, got 0.0"),
    ({"dataset.eval_fraction": 1.0}, "dataset.eval_fraction: must be greater than 0 and less than 1, got 1.0"),
    ({"seed": -1}, "seed: must be at least 0, got -1"),
    ({"activations.ignore_positions": -1}, "activations.ignore_positions: must be at least 0, got -1"),
    ({"activations.max_norm_factor": 1}, "activations.max_norm_factor: must be greater than 1, got 1.0"),
    ({"trainer.lr": 0}, "trainer.lr: must be greater than 0, got 0.0"),
    ({"trainer.lr": "atuo"}, "trainer.lr: expected a number or 'auto', got the string 'atuo'; did you mean 'auto'?"),
    ({"trainer.lr": "1e-3"}, "trainer.lr: expected a number or 'auto', got the string '1e-3'; write 1e-3, without"),
    (
        {"dictionary.kind": "saee"},
        "dictionary.kind: unknown kind 'saee'; did you mean 'sae'? (known: clt, crosscoder, lorsa, sae, transcoder)",
    ),
    ({"dictionary.kind": 3}, "dictionary.kind: expected a string, got the integer 3"),
    ({"dictionary.act_fn": "batch_topk"}, "'batch_topk' is none of the choices; did you mean 'batchtopk'? (choices: "),
    (
        {"dictionary.act_fn": "layertopk"},
        "dictionary.act_fn: layertopk lets the layers of a token compete, and kind sae has one; take topk",
    ),
    (
        {"dictionary.use_triton_kernel": True},
        "dictionary.use_triton_kernel: does nothing (older files state false); take it out, got true",
    ),
    ({"trainer.sparsity_loss_type": "tanhquad"}, "'tanhquad' is none of the choices; did you mean 'tanh-quad'? (choices: "),
    ({"trainer.sparsity_loss_type": "x"}, "'x' is none of the choices; (choices: l0, power, tanh, tanh-quad, null)"),
    ({"trainer.tanh_stretch_coefficient": 0}, "trainer.tanh_stretch_coefficient: must be greater than 0, got 0.0"),
    ({"trainer.frequency_scale": -0.01}, "trainer.frequency_scale: must be greater than 0, got -0.01"),
    ({"trainer.l0_bandwidth": 0}, "trainer.l0_bandwidth: must be greater than 0, got 0.0"),
    ({"trainer.target_l0_gain": 0}, "trainer.target_l0_gain: must be greater than 0 and at most 2, got 0.0"),
    ({**THRESHOLDS, "trainer.lp_coefficient": 0}, "trainer.lp_coefficient: must be greater than 0, got 0.0"),
    ({"dictionary.act_fn": "jumprelu", "trainer.target_l0": 0}, "trainer.target_l0: must be at least 1, got 0.0"),
    ({"trainer.target_l0_mode": "treshold"}, "'treshold' is none of the choices; did you mean 'threshold'? (choices: thre"),
    ({"trainer.decoder_constraint": "unit-norm"}, "'unit-norm' is none of the choices; did you mean 'unit_norm'? (choices:"),
    ({"trainer.decoder_constraint": None}, "trainer.decoder_constraint: expected a string, got null"),
    (
        {"activations.source": "live"},
        "activations.source: does nothing (older files state store); take it out, got the string 'live'",
    ),
    ({"model.device": "gpu"}, "model.device: expected a device (cpu, mps, cuda or cuda:N), got 'gpu'"),
    ({"trainer.p": 0.5}, "trainer.p: must be at least 1, got 0.5"),
    ({"dictionary.name": "a/b"}, "dictionary.name: expected letters, digits, '.', '_' and '-', got 'a/b'"),
    ({"dictionary.name": ".."}, "dictionary.name: expected letters"),
    ({"dictionary.expansion_factor": 0}, "dictionary.expansion_factor: must be greater than 0, got 0.0"),
    ({"dictionary.hook_point_in": "block.2.x"}, "expected a hook point (blocks.L.name, as blocks.2.hook_resid_post)"),
    ({"dictionary.hook_point_in": "blocks.2.ln2.hook_out\n"}, "dictionary.hook_point_in: expected a hook point"),
    ({"activations.hook_points": ["resid"]}, "activations.hook_points: item 0: expected a hook point"),
    # step counts
    ({"trainer.lr_warm_up_steps": -1}, "trainer.lr_warm_up_steps: a number of steps must be at least 0, got -1"),
    ({"trainer.lr_warm_up_steps": 1.5}, "a fraction of the run must be between 0.0 and 1.0, got 1.5"),
    ({"trainer.lr_warm_up_steps": 500.0}, "between 0.0 and 1.0, got 500.0; write 500 for a number of steps"),
    ({"trainer.k_warmup_steps": -0.1}, "trainer.k_warmup_steps: a fraction of the run must be between"),
    ({"trainer.k_warmup_steps": "0.1"}, "expected steps (an integer) or a fraction of the run (a number between"),
    ({"trainer.k_warmup_steps": None}, "trainer.k_warmup_steps: expected steps (an integer) or a fraction"),
    ({"trainer.topk_start_steps": 50.0}, "trainer.topk_start_steps: a fraction of the run must be between 0.0 and 1.0"),
    # numbers of things, or shares of a whole
    ({"trainer.dead_threshold": 0}, "trainer.dead_threshold: a number of tokens must be at least 1, got 0"),
    ({"trainer.dead_threshold": 0.0}, "a share of the run must be greater than 0.0 and at most 1.0, got 0.0"),
    ({"trainer.dead_threshold": -0.5}, "a share of the run must be greater than 0.0 and at most 1.0, got -0.5"),
    ({"trainer.dead_threshold": 1e7}, "at most 1.0, got 10000000.0; write 10000000 for a number of tokens"),
    ({"trainer.dead_threshold": float("nan")}, "trainer.dead_threshold: must be finite, got nan"),
    (
        {"trainer.dead_threshold": "0.03"},
        "trainer.dead_threshold: expected tokens (an integer) or a share of the run (a number above 0.0, at most 1.0), "
        "got the string '0.03'; write 0.03",
    ),
    ({"trainer.dead_threshold": None}, "trainer.dead_threshold: expected tokens (an integer) or a share of the run"),
    ({"trainer.dead_threshold": True}, "trainer.dead_threshold: expected tokens (an integer) or a share of the run"),
    ({WIDTHS: 2048}, "expected a list of features (integers) or shares of the dictionary (numbers above 0.0, at most 1.0)"),
    ({WIDTHS: "None"}, "(numbers above 0.0, at most 1.0) or null, got the string 'None'; write null"),
    ({WIDTHS: [0, 32]}, "trainer.matryoshka_widths: item 0: a number of features must be at least 1, got 0"),
    ({WIDTHS: [0.5, 2.0]}, "item 1: a share of the dictionary must be greater than 0.0 and at most 1.0, got 2.0; write 2"),
    ({WIDTHS: [True]}, "item 0: expected features (an integer) or a share of the dictionary (a number above 0.0, at most"),
    ({WIDTHS: ["1"]}, "trainer.matryoshka_widths: item 0: expected features (an integer) or a share"),
    ({WIDTHS: [0.5, None]}, "trainer.matryoshka_widths: item 1: expected features (an integer) or a share"),
    # combinations within a section
    ({"dictionary.skip": True}, "dictionary.skip: a skip term on an SAE would learn the identity; only a transcoder"),
    ({**TRANSCODER, "dictionary.apply_b_dec_to_input": True}, "dictionary.apply_b_dec_to_input: a transcoder's decoder"),
    (
        {"dictionary.apply_b_dec_to_input": True, "dictionary.use_decoder_bias": False},
        "dictionary.apply_b_dec_to_input: there is no decoder bias to subtract",
    ),
    ({"dictionary.kind": "transcoder"}, "dictionary.hook_point_out: a transcoder must write another hook point"),
    ({**TOPK, "dictionary.d_model": 2, "dictionary.top_k": 33}, "dictionary.top_k: 33 is more than the dictionary's 32"),
    ({"dictionary.d_model": 1, "dictionary.expansion_factor": 0.5}, "dictionary.expansion_factor: 0.5 times d_model 1"),
    ({"initializer.d_active_subspace": 3}, "initializer.d_active_subspace: is used by initialize_W_D_with_active_sub"),
    (
        {"initializer.model_layer": 3},
        "initializer.model_layer: is used by initialize_tc_with_mlp and initialize_lorsa_with_mhsa only",
    ),
    (
        {
            "initializer.initialize_W_D_with_activations": True,
            "initializer.initialize_W_D_with_active_subspace": True,
        },
        "only one of these may set the decoder: initialize_W_D_with_activations, initialize_W_D_with_active_subspace",
    ),
    (
        {"trainer.sparsity_loss_type": "power", "trainer.l1_coefficient": 0},
        "trainer.l1_coefficient: is 0, so that the power sparsity loss does nothing",
    ),
    (
        {**THRESHOLDS, "trainer.sparsity_loss_type": "l0", "trainer.l1_coefficient": 0, "trainer.target_l0": 32}
        | {"trainer.target_l0_mode": "quadratic"},
        "trainer.l1_coefficient: is 0, so that the l0 sparsity loss does nothing",
    ),
    (
        {**POWER, "trainer.l1_coefficient": 0, "trainer.target_l0": 32, "trainer.target_l0_mode": "coefficient"},
        "trainer.l1_coefficient: is 0, so that the power sparsity loss does nothing",
    ),
    (
        {**THRESHOLDS, "trainer.target_l0": 32, "trainer.target_l0_mode": "quadratic"},
        "trainer.target_l0_mode: quadratic is the form lambda * (L0 / target_l0 - 1)^2 of the l0 loss; "
        "trainer.sparsity_loss_type is null; set it to l0",
    ),
    (
        {**THRESHOLDS, **POWER, "trainer.target_l0": 32, "trainer.target_l0_mode": "quadratic"},
        "of the l0 loss; trainer.sparsity_loss_type is power; set it to l0",
    ),
    (
        {"trainer.target_l0": 32, "trainer.target_l0_mode": "coefficient"},
        "trainer.target_l0_mode: coefficient steers the weight of the sparsity loss, and trainer.sparsity_loss_type is null",
    ),
    (
        {"trainer.k_warmup_steps": 0.5},
        "trainer.initial_k: is null, so that k_warmup_steps 0.5 has no effect; write k_warmup_steps: 0.1, or state the k at",
    ),
    (
        {"trainer.k_cold_booting_steps": 5, "trainer.k_schedule_type": "exponential", "trainer.k_exponential_factor": 2.0},
        "write k_cold_booting_steps: 0, k_schedule_type: linear, k_exponential_factor: 3.0, or state the k at the start",
    ),
    ({WIDTHS: []}, "trainer.matryoshka_widths: the list is empty; write null"),
    ({WIDTHS: [0.25, 1]}, "features (integers) and shares (as 1.0, not 1) cannot be mixed, got [0.25, 1]"),
    ({WIDTHS: [512, 128]}, "trainer.matryoshka_widths: must ascend, got [512, 128]"),
    ({WIDTHS: [0.5, 0.5, 1.0]}, "trainer.matryoshka_widths: must ascend, got [0.5, 0.5, 1.0]"),
    ({WIDTHS: [0.25, 0.5]}, "trainer.matryoshka_widths: the last width is the whole dictionary, 1.0, got 0.5"),
    (
        {"activations.batch_size": 2_000_000, "trainer.lr_warm_up_steps": 0.1},
        "activations.batch_size: a batch (2000000) is larger than",
    ),
    (
        {"activations.ignore_positions": 128},
        "activations.ignore_positions: 128 leaves no token of contexts of 128 (activations.context_size)",
    ),
    ({"activations.hook_points": []}, "activations.hook_points: the list is empty; write null"),
    (
        {"activations.hook_points": ["blocks.2.hook_resid_post"] * 2},
        "activations.hook_points: listed twice: blocks.2.hook_resid_post",
    ),
    ({"demo.n_heads": 3}, "demo.n_heads: d_model 128 is not divisible by 3 heads"),
    ({"demo.total_tokens": 100}, "demo.total_tokens: less than one batch of 4096 tokens"),
    ({"demo.text_packages": []}, "demo.text_packages: the list is empty"),
]


@pytest.mark.parametrize(("changes", "message"), ONE_FAULT, ids=[f"{i}" for i in range(len(ONE_FAULT))])
def test_one_fault(changes: dict[str, Any], message: str) -> None:
    found = faults(changes)
    assert len(found) == 1, found
    assert message in found[0]
    assert found[0].startswith("params.yaml: ")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        TRANSCODER,
        {**TRANSCODER, "dictionary.skip": True},
        {**TRANSCODER, "dictionary.kind": "sae", "dictionary.skip": True},
        {**TRANSCODER, "initializer.initialize_tc_with_mlp": True},
        {**TRANSCODER, "initializer.initialize_tc_with_mlp": True, "initializer.model_layer": 2},
        {"dictionary.apply_b_dec_to_input": True},
        {"dictionary.hook_point_out": "blocks.2.hook_resid_post"},
        {"dictionary.norm_activation": "token-wise", "fold.mode": "keep"},
        {**TOPK, "trainer.initial_k": 50, "trainer.auxk_coefficient": 0.03125, "fold.convert_topk_to_jumprelu": True},
        {"dictionary.act_fn": "jumprelu", "initializer.init_log_jumprelu_threshold_value": -2},
        {"activations.hook_points": ["blocks.0.hook_resid_pre", "blocks.2.hook_resid_post"]},
        {"trainer.lr": "auto", "trainer.betas": [0, 0.999], "trainer.clip_grad_norm": 1},
        {"trainer.lr_warm_up_steps": 0, "trainer.lr_cool_down_steps": 0.0, "trainer.k_warmup_steps": 0.1},
        {"trainer.sparsity_loss_type": "power", "trainer.p": 2},
        {**TOPK, **POWER},
        {"trainer.sparsity_loss_type": "tanh-quad", "trainer.frequency_scale": 0.1, "trainer.tanh_stretch_coefficient": 2},
        {**THRESHOLDS, "trainer.sparsity_loss_type": "l0", "trainer.lp_coefficient": 3e-6},
        {**THRESHOLDS, "trainer.sparsity_loss_type": "l0", "trainer.target_l0": 32, "trainer.target_l0_mode": "quadratic"},
        {**THRESHOLDS, **POWER, "trainer.target_l0": 32, "trainer.target_l0_mode": "coefficient"},
        {**POWER, "trainer.target_l0": 32, "trainer.target_l0_mode": "coefficient", "fold.calibration_tokens": 0},
        {**STEERED, "trainer.topk_start_steps": 0.9, "dictionary.d_model": 2, "fold.calibration_tokens": 2048},
        {**BATCHTOPK, "trainer.topk_start_steps": 146_483},
        {**TOPK, "trainer.topk_start_steps": 0.0},
        {"trainer.target_l0_mode": "coefficient", "trainer.target_l0_gain": 1},
        {"trainer.dead_threshold": 1, "trainer.revive_dead_features": True, "trainer.decoder_constraint": "unit_norm"},
        {"trainer.dead_threshold": 1.0, "initializer.grid_search_init_norm": True},
        {WIDTHS: [2, 16, 64], "dictionary.d_model": 4},
        {WIDTHS: [0.0625, 0.25, 1.0], "dictionary.d_model": 4},
        {WIDTHS: [2, 16, 63]},
        {WIDTHS: [1.0], **TRANSCODER},
        {"activations.target": "activations-2d", "activations.batch_size": 16},
        {"activations.ignore_positions": 127},
        {"activations.max_norm_factor": None},
        {"activations.max_norm_factor": 1.5},
        {"model.prepend_bos": True},
        {"model.prepend_bos": False},
        {"norm.tokens": None, "model.device": "cuda:1", "fold.calibration_tokens": 0},
        {"initializer.initialize_W_D_with_active_subspace": True, "initializer.d_active_subspace": 8},
        {"trainer.lr_warm_up_steps": 0.5, "trainer.lr_cool_down_steps": 0.5},
        {"trainer.lr_warm_up_steps": 0, "trainer.lr_cool_down_steps": 1.0},
        {"trainer.lr_scheduler_name": "linearwarmupdecay", "trainer.lr_cool_down_steps": 1.0},
        {**TOPK, "trainer.initial_k": 100, "trainer.k_warmup_steps": 0.5, "trainer.k_schedule_type": "exponential"},
        {"dictionary.dtype": "float64"},
        {"initializer.decoder_uniform_bound": 0.5, "initializer.init_encoder_with_decoder_transpose_factor": 0.5},
        {"initializer.encoder_uniform_bound": 0.5, "initializer.init_encoder_with_decoder_transpose": False},
        {**TRANSCODER, "initializer.encoder_uniform_bound": 0.5},
        {**FROM_ACTIVATIONS, "initializer.init_encoder_with_decoder_transpose_factor": 0.5},
    ],
)
def test_what_makes_sense_is_accepted(changes: dict[str, Any]) -> None:
    assert faults(changes) == []
