"""Every refusal of the strict loader: its key and what its message must tell; and what must not be refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.params.changes import ABSENT, TRANSCODER, faults, one_fault

WIDTHS, DEAD = "trainer.matryoshka_widths", "trainer.dead_threshold"
LOSS, TARGET, MODE = "trainer.sparsity_loss_type", "trainer.target_l0", "trainer.target_l0_mode"
WARM_UP, COOL_DOWN, START = "trainer.lr_warm_up_steps", "trainer.lr_cool_down_steps", "trainer.topk_start_steps"
MLP, LAYER = "initializer.initialize_tc_with_mlp", "initializer.model_layer"
SUBSPACE, TRANSPOSE = "initializer.initialize_W_D_with_active_subspace", "initializer.init_encoder_with_decoder_transpose"
THRESHOLD = "initializer.init_log_jumprelu_threshold_value"
TOPK = {"dictionary.act_fn": "topk"}
BATCHTOPK = {"dictionary.act_fn": "batchtopk"}
THRESHOLDS = {"dictionary.act_fn": "jumprelu", THRESHOLD: -2.3}
STEERED = {"dictionary.act_fn": "jumprelu", "trainer.target_l0": 32}
POWER = {"trainer.sparsity_loss_type": "power"}
FROM_ACTIVATIONS = {"initializer.initialize_W_D_with_activations": True}

ONE_FAULT: list[tuple[dict[Any, Any], str, tuple[str, ...]]] = [
    # names
    ({"trainer.warmup_step": 5}, "trainer.warmup_step", ("unknown", "lr_warm_up_steps")),
    ({"trainer.learning_rate": 1e-3}, "trainer.learning_rate", ("unknown", "lr")),
    ({"dictionary.topk": 3}, "dictionary.topk", ("unknown", "top_k")),
    ({"trainer.top_k": 3}, "trainer.top_k", ("unknown", "dictionary.top_k")),
    ({"lr": 1e-3}, "lr", ("unknown", "trainer.lr")),
    ({"perm_seed": 1}, "perm_seed", ("unknown", "activations.buffer_shuffle.perm_seed")),
    ({"trainner": {}}, "trainner", ("unknown", "trainer")),
    ({"norm.zzzz": 1}, "norm.zzzz", ("unknown", "tokens")),
    ({"activations.buffer_shuffle.seed": 1}, "activations.buffer_shuffle.seed", ("unknown", "seed")),
    ({3: 1}, "3", ("unknown", "seed")),
    ({"trainer.lr": ABSENT}, "trainer.lr", ("missing",)),
    ({"activations.buffer_shuffle.perm_seed": ABSENT}, "activations.buffer_shuffle.perm_seed", ("missing",)),
    ({"fold": ABSENT}, "fold", ("missing",)),
    ({"seed": ABSENT}, "seed", ("missing",)),
    ({"dictionary.skip": ABSENT}, "dictionary.skip", ("missing",)),
    # types
    ({"seed": True}, "seed", ("integer", "true")),
    ({"seed": 1.0}, "seed", ("integer", "1.0", "1")),
    ({"trainer.total_training_tokens": 8e8}, "trainer.total_training_tokens", ("integer", "800000000.0", "800000000")),
    ({"activations.total_tokens": "1_000_000"}, "activations.total_tokens", ("integer", "1_000_000", "1000000")),
    ({"trainer.eps": "1e-3"}, "trainer.eps", ("number", "1e-3", "quotes")),
    ({"trainer.eps": True}, "trainer.eps", ("number", "true")),
    ({"trainer.eps": float("nan")}, "trainer.eps", ("finite", "nan")),
    ({"trainer.eps": float("inf")}, "trainer.eps", ("finite", "inf")),
    ({"trainer.eps": None}, "trainer.eps", ("number", "null")),
    ({"trainer.eps": [1]}, "trainer.eps", ("number", "list")),
    ({"trainer.eps": {"a": 1}}, "trainer.eps", ("number", "mapping")),
    ({"determinism": "yes"}, "determinism", ("true", "false", "yes", "quotes")),
    ({"determinism": 1}, "determinism", ("true", "false", "1")),
    ({"model.revision": 12345}, "model.revision", ("string", "null", "12345", "quotes")),
    ({"model.revision": "None"}, "model.revision", ("string", "null", "None")),
    ({"norm.tokens": "None"}, "norm.tokens", ("integer", "null", "None")),
    ({"trainer.betas": [0.9]}, "trainer.betas", ("list", "2", "1")),
    ({"trainer.betas": 0.9}, "trainer.betas", ("list", "2", "0.9")),
    ({"trainer.betas": [0.9, "0.99"]}, "trainer.betas", ("item 1", "number", "0.99", "quotes")),
    ({"trainer.betas": [0.9, 1]}, "trainer.betas", ("item 1", "0", "1", "1.0")),
    ({"activations.ignore_token_ids": [0, -1]}, "activations.ignore_token_ids", ("item 1", "0", "-1")),
    ({"activations.ignore_token_ids": "0"}, "activations.ignore_token_ids", ("integers", "null", "'0'")),
    ({"activations.ignore_positions": 1.5}, "activations.ignore_positions", ("integer", "1.5")),
    ({"model.prepend_bos": "atuo"}, "model.prepend_bos", ("true", "false", "auto", "atuo")),
    ({"model.prepend_bos": 1}, "model.prepend_bos", ("true", "false", "auto", "1")),
    ({"model.prepend_bos": None}, "model.prepend_bos", ("true", "false", "auto", "null")),
    ({"demo.text_packages": "numpy"}, "demo.text_packages", ("list", "strings", "numpy")),
    ({"trainer": None}, "trainer", ("mapping", "null")),
    ({"trainer": []}, "trainer", ("mapping", "list")),
    ({"activations.buffer_shuffle": 42}, "activations.buffer_shuffle", ("mapping", "42")),
    # ranges and choices
    ({"dataset.eval_fraction": 0}, "dataset.eval_fraction", ("0", "1", "0.0")),
    ({"dataset.eval_fraction": 1.0}, "dataset.eval_fraction", ("0", "1", "1.0")),
    ({"seed": -1}, "seed", ("0", "-1")),
    ({"activations.ignore_positions": -1}, "activations.ignore_positions", ("0", "-1")),
    ({"activations.max_norm_factor": 1}, "activations.max_norm_factor", ("1", "1.0")),
    ({"trainer.lr": 0}, "trainer.lr", ("0", "0.0")),
    ({"trainer.lr": "atuo"}, "trainer.lr", ("number", "auto", "atuo")),
    ({"trainer.lr": "1e-3"}, "trainer.lr", ("number", "auto", "1e-3", "quotes")),
    ({"dictionary.kind": "saee"}, "dictionary.kind", ("saee", "'sae'", "lorsa")),
    ({"dictionary.kind": 3}, "dictionary.kind", ("string", "3")),
    ({"dictionary.act_fn": "batch_topk"}, "dictionary.act_fn", ("batch_topk", "'batchtopk'", "relu")),
    ({"dictionary.act_fn": "layertopk"}, "dictionary.act_fn", ("layertopk", "sae", "topk")),
    ({"dictionary.use_triton_kernel": "yes"}, "dictionary.use_triton_kernel", ("true", "auto", "yes")),
    (
        {"dictionary.sparsity_threshold_for_triton_spmm_kernel": 2},
        "dictionary.sparsity_threshold_for_triton_spmm_kernel",
        ("1", "2.0"),
    ),
    ({LOSS: "tanhquad"}, LOSS, ("tanhquad", "'tanh-quad'", "power")),
    ({LOSS: "x"}, LOSS, ("'x'", "l0", "power", "tanh", "tanh-quad", "null")),
    ({"trainer.tanh_stretch_coefficient": 0}, "trainer.tanh_stretch_coefficient", ("0", "0.0")),
    ({"trainer.frequency_scale": -0.01}, "trainer.frequency_scale", ("0", "-0.01")),
    ({"trainer.l0_bandwidth": 0}, "trainer.l0_bandwidth", ("0", "0.0")),
    ({"trainer.target_l0_gain": 0}, "trainer.target_l0_gain", ("0", "2", "0.0")),
    ({**THRESHOLDS, "trainer.lp_coefficient": 0}, "trainer.lp_coefficient", ("0", "0.0")),
    ({"dictionary.act_fn": "jumprelu", TARGET: 0}, TARGET, ("1", "0.0")),
    ({MODE: "treshold"}, MODE, ("treshold", "'threshold'", "quadratic")),
    ({"trainer.decoder_constraint": "unit-norm"}, "trainer.decoder_constraint", ("unit-norm", "'unit_norm'", "none")),
    ({"trainer.decoder_constraint": None}, "trainer.decoder_constraint", ("string", "null")),
    ({"activations.source": "stored"}, "activations.source", ("stored", "store", "live")),
    ({"activations.source": "live", "activations.path": "data/store/x"}, "activations.path", ("data/store/x", "live", "null")),
    ({"model.device": "gpu"}, "model.device", ("cpu", "mps", "cuda:N", "gpu")),
    ({"model.attention": "flash"}, "model.attention", ("flash", "flash_attention_2", "eager")),
    ({"model.attention": "flash_attention_2"}, "model.attention", ("bfloat16", "float16", "float32", "auto")),
    ({"model.backend": "transformer_lens", "model.attention": "sdpa"}, "model.attention", ("sdpa", "auto", "huggingface")),
    ({"trainer.p": 0.5}, "trainer.p", ("1", "0.5")),
    ({"dictionary.name": "a/b"}, "dictionary.name", ("letters", "a/b")),
    ({"dictionary.name": ".."}, "dictionary.name", ("letters", "..")),
    ({"dictionary.expansion_factor": 0}, "dictionary.expansion_factor", ("0", "0.0")),
    ({"dictionary.hook_point_in": "block.2.x"}, "dictionary.hook_point_in", ("blocks.L.name", "block.2.x")),
    (
        {"dictionary.hook_point_in": "blocks.2.ln2.hook_out\n"},
        "dictionary.hook_point_in",
        ("blocks.L.name", r"blocks.2.ln2.hook_out\n"),
    ),
    ({"activations.hook_points": ["resid"]}, "activations.hook_points", ("item 0", "blocks.L.name", "resid")),
    # step counts
    ({WARM_UP: -1}, WARM_UP, ("0", "-1")),
    ({WARM_UP: 1.5}, WARM_UP, ("0.0", "1.0", "1.5")),
    ({WARM_UP: 500.0}, WARM_UP, ("0.0", "1.0", "500.0", "500")),
    ({"trainer.k_warmup_steps": -0.1}, "trainer.k_warmup_steps", ("0.0", "1.0", "-0.1")),
    ({"trainer.k_warmup_steps": "0.1"}, "trainer.k_warmup_steps", ("steps", "1.0", "0.1", "quotes")),
    ({"trainer.k_warmup_steps": None}, "trainer.k_warmup_steps", ("steps", "1.0", "null")),
    ({START: 50.0}, START, ("0.0", "1.0", "50.0", "50")),
    # numbers of things, or shares of a whole
    ({DEAD: 0}, DEAD, ("1", "0")),
    ({DEAD: 0.0}, DEAD, ("1.0", "got 0.0")),
    ({DEAD: -0.5}, DEAD, ("0.0", "1.0", "-0.5")),
    ({DEAD: 1e7}, DEAD, ("1.0", "10000000.0", "10000000")),
    ({DEAD: float("nan")}, DEAD, ("finite", "nan")),
    ({DEAD: "0.03"}, DEAD, ("tokens", "1.0", "0.03", "quotes")),
    ({DEAD: None}, DEAD, ("tokens", "1.0", "null")),
    ({DEAD: True}, DEAD, ("tokens", "1.0", "true")),
    ({WIDTHS: 2048}, WIDTHS, ("list", "features", "1.0", "2048")),
    ({WIDTHS: "None"}, WIDTHS, ("list", "features", "1.0", "None")),
    ({WIDTHS: [0, 32]}, WIDTHS, ("item 0", "1", "got 0")),
    ({WIDTHS: [0.5, 2.0]}, WIDTHS, ("item 1", "0.0", "1.0", "2.0", "2")),
    ({WIDTHS: [True]}, WIDTHS, ("item 0", "features", "1.0", "true")),
    ({WIDTHS: ["1"]}, WIDTHS, ("item 0", "features", "1.0", "'1'", "quotes")),
    ({WIDTHS: [0.5, None]}, WIDTHS, ("item 1", "features", "1.0", "null")),
    # combinations within a section
    ({"dictionary.skip": True}, "dictionary.skip", ("SAE", "transcoder")),
    ({**TRANSCODER, "dictionary.apply_b_dec_to_input": True}, "dictionary.apply_b_dec_to_input", ("SAE", "transcoder")),
    (
        {"dictionary.apply_b_dec_to_input": True, "dictionary.use_decoder_bias": False},
        "dictionary.apply_b_dec_to_input",
        ("use_decoder_bias", "false"),
    ),
    ({"dictionary.kind": "transcoder"}, "dictionary.hook_point_out", ("transcoder", "blocks.2.hook_resid_post")),
    ({**TOPK, "dictionary.d_model": 2, "dictionary.top_k": 33}, "dictionary.top_k", ("33", "32", "expansion_factor")),
    ({"dictionary.d_model": 1, "dictionary.expansion_factor": 0.5}, "dictionary.expansion_factor", ("0.5", "d_model", "1")),
    (
        {"initializer.d_active_subspace": 3},
        "initializer.d_active_subspace",
        ("initialize_W_D_with_active_subspace", "false", "null"),
    ),
    ({LAYER: 3}, LAYER, ("initialize_tc_with_mlp", "initialize_lorsa_with_mhsa", "false", "null")),
    (
        {"initializer.initialize_W_D_with_activations": True, SUBSPACE: True},
        SUBSPACE,
        ("initialize_W_D_with_activations", "initialize_W_D_with_active_subspace"),
    ),
    ({LOSS: "power", "trainer.l1_coefficient": 0}, "trainer.l1_coefficient", ("0", "power", LOSS, "null")),
    (
        {**THRESHOLDS, LOSS: "l0", "trainer.l1_coefficient": 0, TARGET: 32} | {MODE: "quadratic"},
        "trainer.l1_coefficient",
        ("0", "l0", LOSS, "null"),
    ),
    (
        {**POWER, "trainer.l1_coefficient": 0, TARGET: 32, MODE: "coefficient"},
        "trainer.l1_coefficient",
        ("0", "power", LOSS, "null"),
    ),
    ({**THRESHOLDS, TARGET: 32, MODE: "quadratic"}, MODE, ("quadratic", LOSS, "null", "l0")),
    ({**THRESHOLDS, **POWER, TARGET: 32, MODE: "quadratic"}, MODE, ("quadratic", LOSS, "power", "l0")),
    ({TARGET: 32, MODE: "coefficient"}, MODE, ("coefficient", LOSS, "null")),
    ({"trainer.k_warmup_steps": 0.5}, "trainer.initial_k", ("0.5", "k_warmup_steps: 0.1")),
    (
        {"trainer.k_cold_booting_steps": 5, "trainer.k_schedule_type": "exponential", "trainer.k_exponential_factor": 2.0},
        "trainer.initial_k",
        ("exponential", "k_cold_booting_steps: 0", "k_schedule_type: linear", "k_exponential_factor: 3.0"),
    ),
    ({WIDTHS: []}, WIDTHS, ("empty", "null")),
    ({WIDTHS: [0.25, 1]}, WIDTHS, ("integers", "1.0", "[0.25, 1]")),
    ({WIDTHS: [512, 128]}, WIDTHS, ("ascend", "[512, 128]")),
    ({WIDTHS: [0.5, 0.5, 1.0]}, WIDTHS, ("ascend", "[0.5, 0.5, 1.0]")),
    ({WIDTHS: [0.25, 0.5]}, WIDTHS, ("1.0", "got 0.5")),
    (
        {"activations.batch_size": 2_000_000, WARM_UP: 0.1},
        "activations.batch_size",
        ("2000000", "activations.total_tokens", "1000000"),
    ),
    ({"activations.ignore_positions": 128}, "activations.ignore_positions", ("128", "activations.context_size")),
    ({"activations.hook_points": []}, "activations.hook_points", ("empty", "null")),
    (
        {"activations.hook_points": ["blocks.2.hook_resid_post"] * 2},
        "activations.hook_points",
        ("twice", "blocks.2.hook_resid_post"),
    ),
    ({"demo.n_heads": 3}, "demo.n_heads", ("d_model", "128", "3")),
    ({"demo.total_tokens": 100}, "demo.total_tokens", ("4096",)),
    ({"demo.text_packages": []}, "demo.text_packages", ("empty",)),
]


@pytest.mark.parametrize(("changes", "key", "parts"), ONE_FAULT, ids=[key for _, key, _ in ONE_FAULT])
def test_one_fault(changes: dict[str, Any], key: str, parts: tuple[str, ...]) -> None:
    one_fault(changes, key, *parts)


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
        {"model.backend": "transformer_lens", "model.attention": "eager"},
        {"model.dtype": "bfloat16", "model.attention": "flash_attention_2"},
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
    assert faults(changes) == {}
