"""Settings of the reference become parameters of ours that are valid, and no key of theirs is dropped without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.errors import ParamsError
from pipeline.params.lm_saes.declared import Config, Required
from pipeline.params.lm_saes.overlay import settings_overlay
from pipeline.params.lm_saes.table import GENERATE as GENERATE_CLASS
from pipeline.params.lm_saes.table import TRAIN
from pipeline.params.loader import load_params
from pipeline.params.presets import laid_over
from pipeline.params.reading import read_mapping
from pipeline.params.schema import Params, flatten
from stages.preset import main
from tests.closure import ROOT
from tests.messages import says
from tests.params.lm_saes_settings import (
    CLT,
    CROSSCODER,
    FORMS,
    GENERATE,
    KINDS,
    LN2,
    LORSA,
    MLP,
    RESID,
    SAE,
    TRANSCODER,
    having,
    write,
)

PARAMS = ROOT / "params.yaml"
# The keys of the reference's classes, read off its source at commit 95281ac.
OF_EVERY_DICTIONARY = (
    "sae_type d_model expansion_factor use_decoder_bias act_fn norm_activation sparsity_include_decoder_norm top_k "
    "sae_pretrained_name_or_path strict_loading use_triton_kernel sparsity_threshold_for_triton_spmm_kernel "
    "jumprelu_threshold_window device dtype pretrained_name_or_path fold_activation_scale "
)
CLASSES = {
    "SAEConfig": OF_EVERY_DICTIONARY + "hook_point_in hook_point_out use_glu_encoder",
    "CLTConfig": OF_EVERY_DICTIONARY
    + "init_cross_layer_decoder_all_zero hook_points_in hook_points_out decode_with_csr sparsity_threshold_for_csr",
    "LorsaConfig": OF_EVERY_DICTIONARY
    + "hook_point_in hook_point_out n_qk_heads d_qk_head positional_embedding_type rotary_dim rotary_base "
    "rotary_adjacent_pairs rotary_scale use_NTK_by_parts_rope NTK_by_parts_factor NTK_by_parts_low_freq_factor "
    "NTK_by_parts_high_freq_factor old_context_len n_ctx attn_scale use_post_qk_ln normalization_type eps",
    "CrosscoderConfig": OF_EVERY_DICTIONARY + "hook_points",
    "TrainSAESettings": "sae sae_name sae_series initializer trainer activation_factory wandb eval data_parallel_size "
    "model_parallel_size mongo model model_name datasets device_type fold_activation_scale",
    "TrainCLTSettings": "sae sae_name sae_series initializer trainer activation_factory wandb eval data_parallel_size "
    "model_parallel_size mongo model model_name datasets device_type fold_activation_scale",
    "TrainLorsaSettings": "sae sae_name sae_series initializer trainer activation_factory wandb eval data_parallel_size "
    "model_parallel_size mongo model model_name datasets device_type fold_activation_scale",
    "TrainCrosscoderSettings": "sae sae_name sae_series initializer trainer activation_factories wandb eval data_parallel_size "
    "model_parallel_size mongo model model_name datasets device_type fold_activation_scale",
    "GenerateActivationsSettings": "model model_name dataset dataset_name hook_points output_dir target model_batch_size "
    "batch_size buffer_size buffer_shuffle total_tokens context_size n_samples_per_chunk num_workers format n_shards "
    "start_shard mongo ignore_token_ids device_type override_dtype",
    "InitializerConfig": "bias_init_method decoder_uniform_bound encoder_uniform_bound init_encoder_with_decoder_transpose "
    "init_encoder_with_decoder_transpose_factor init_log_jumprelu_threshold_value grid_search_init_norm "
    "initialize_W_D_with_active_subspace d_active_subspace initialize_lorsa_with_mhsa initialize_tc_with_mlp model_layer "
    "init_encoder_bias_with_mean_hidden_pre",
    "TrainerConfig": "l1_coefficient l1_coefficient_warmup_steps lp_coefficient auxk_coefficient amp_dtype sparsity_loss_type "
    "tanh_stretch_coefficient frequency_scale p initial_k k_warmup_steps k_cold_booting_steps k_schedule_type "
    "k_exponential_factor k_aux dead_threshold skip_metrics_calculation gradient_accumulation_steps lr betas optimizer_class "
    "optimizer_foreach lr_scheduler_name lr_end_ratio lr_warm_up_steps lr_cool_down_steps jumprelu_lr_factor clip_grad_norm "
    "feature_sampling_window total_training_tokens log_frequency eval_frequency n_checkpoints check_point_save_mode "
    "from_pretrained_path exp_result_path",
    "ActivationFactoryConfig": "sources target hook_points batch_size num_workers context_size model_batch_size override_dtype "
    "buffer_size buffer_shuffle ignore_token_ids",
    "ActivationFactoryDatasetSource, ActivationFactoryActivationsSource": "type name sample_weights is_dataset_tokenized "
    "prepend_bos path device dtype num_workers prefetch",
    "BufferShuffleConfig": "perm_seed generator_device",
    "LanguageModelConfig": "model_name model_from_pretrained_path cache_dir local_files_only max_length backend prepend_bos "
    "bos_token_id eos_token_id pad_token_id device dtype",
    "DatasetConfig": "dataset_name_or_path cache_dir is_dataset_on_disk",
    "WandbConfig": "wandb_project exp_name wandb_entity wandb_run_id wandb_resume",
    "MongoDBConfig": "mongo_uri mongo_db",
}
FORMER = (
    "use_flash_attn",
    "d_model",
    "load_ckpt",
    "tokenizer_only",
    "prefetch_factor",
    "use_batch_norm_mse",
    "skip_bos",
    "circuit_tracing_mode",
    "promote_act_fn_dtype",
)


def classes() -> dict[str, Config]:
    found: dict[str, Config] = {}
    waiting = [*TRAIN.values(), GENERATE_CLASS]
    while waiting:
        config = waiting.pop()
        found[config.name] = config
        waiting += [key.nested for key in config.keys if key.nested is not None]
    return found


def overlaid(tmp_path: Path, settings: dict[str, Any]) -> tuple[Params, dict[str, str]]:
    """The parameters that settings come to over the embedded default's, and what is said of each key."""
    file = write(tmp_path, settings)
    values, notes = settings_overlay(file, PARAMS)
    said: dict[str, str] = {}
    for note in notes:
        assert "\n" not in note
        assert note.startswith(f"{file}: ")
        key, _, text = note.removeprefix(f"{file}: ").partition(": ")
        said[key.split(" ")[0]] = f"{said.get(key.split(' ')[0], '')}{key.partition(' ')[2]}: {text}"
    return laid_over(values, PARAMS, str(file)), said


def test_every_key_of_the_reference_is_declared() -> None:
    declared = {name: [key.name for key in config.keys if key.name not in FORMER] for name, config in classes().items()}
    wanted = {name: keys.split() for name, keys in CLASSES.items()}
    for keys in (wanted, declared):  # d_model is a key of dictionaries, and a former one of models
        for name in keys:
            keys[name] = sorted(key for key in keys[name] if key != "d_model")
    assert declared == wanted


def test_every_key_becomes_one_of_ours_or_says_why_not() -> None:
    ours = {key for key, _ in flatten(read_mapping(PARAMS))}
    for config in classes().values():
        for key in config.keys:
            assert key.to in ours if key.to else key.why, f"{config.name}.{key.name}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_each_kind_and_form_are_valid_parameters(tmp_path: Path, kind: str, form: str) -> None:
    file = write(tmp_path, KINDS[kind], form)
    printed = CliRunner().invoke(main, ["--from-settings", str(file), "--yaml", "--params", str(PARAMS)])
    assert printed.exit_code == 0, printed.stderr
    (tmp_path / "params.yaml").write_text(printed.stdout)
    loaded = load_params(tmp_path / "params.yaml")
    (tmp_path / "json").mkdir()
    assert loaded == overlaid(tmp_path / "json", KINDS[kind])[0]
    assert loaded.model.model_name == "EleutherAI/pythia-160m"
    assert loaded.activations.buffer_shuffle.perm_seed == 7
    assert all(line.startswith(f"note: {file}: ") for line in printed.stderr.splitlines())


def test_an_sae(tmp_path: Path) -> None:
    params, said = overlaid(tmp_path, SAE)
    model, acts, dictionary, trainer = params.model, params.activations, params.dictionary, params.trainer
    assert (model.dtype, model.device, model.backend, model.prepend_bos) == ("float16", "cuda", "huggingface", True)
    assert (params.dataset.dataset_name_or_path, params.dataset.sources) == ("Hzfinfdu/SlimPajama-3B", None)
    assert (acts.source, acts.target, acts.batch_size, acts.buffer_size) == ("live", "activations-1d", 4096, 16384)
    assert (acts.context_size, acts.total_tokens, acts.hook_points) == (1024, 800_000_000, None)
    assert (acts.max_norm_factor, acts.device) == (None, "cuda")
    assert (dictionary.kind, dictionary.hooks_in, dictionary.hooks_out) == ("sae", (RESID,), (RESID,))
    assert (dictionary.d_model, dictionary.expansion_factor, dictionary.act_fn, dictionary.top_k) == (768, 8.0, "batchtopk", 50)
    assert (dictionary.sae_name, dictionary.sae_series) == ("my-sae", "my-series")
    assert (trainer.lr, trainer.amp_dtype, trainer.initial_k, trainer.total_training_tokens) == (
        1e-4, "float32", 200, 800_000_000,
    )  # fmt: skip
    # what is not stated is the reference's default, where the embedded default has another value
    assert (trainer.betas, trainer.lr_warm_up_steps, trainer.lr_cool_down_steps) == ((0.9, 0.999), 5000, 0.2)
    assert (trainer.jumprelu_lr_factor, trainer.dead_threshold, trainer.revive_dead_features) == (1.0, 10_000_000, False)
    assert (trainer.n_checkpoints, trainer.checkpoint_schedule) == (10, "log")
    start = params.initializer
    assert (start.grid_search_init_norm, start.bias_init_method, start.initialize_W_D_with_activations) == (
        True, "all_zero", False,
    )  # fmt: skip
    assert params.fold.mode == "fold"
    assert set(said) == {"activation_factory.buffer_shuffle.generator_device", "model_name"}


def test_the_other_kinds(tmp_path: Path) -> None:
    transcoder, _ = overlaid(tmp_path, TRANSCODER)
    assert transcoder.dictionary.kind == "transcoder"
    assert (transcoder.dictionary.hooks_in, transcoder.dictionary.hooks_out) == ((LN2[0],), (MLP[0],))
    assert (transcoder.initializer.initialize_tc_with_mlp, transcoder.initializer.model_layer) == (True, 0)
    clt, _ = overlaid(tmp_path, CLT)
    assert (clt.dictionary.kind, clt.dictionary.hooks_in, clt.dictionary.hooks_out) == ("clt", tuple(LN2), tuple(MLP))
    assert clt.dictionary.to_dict()["top_k_of"] == "token"  # its layertopk has a k of all layers
    by_layer, _ = overlaid(tmp_path, having(CLT, {"sae.act_fn": "batchtopk", "sae.init_cross_layer_decoder_all_zero": True}))
    assert by_layer.dictionary.to_dict()["top_k_of"] == "layer"
    assert by_layer.initializer.cross_layer_decoders == "zero"
    lorsa, said = overlaid(tmp_path, LORSA)
    own = lorsa.dictionary.to_dict()
    assert (own["kind"], own["n_qk_heads"], own["d_qk_head"], own["rotary_dim"], own["n_ctx"]) == ("lorsa", 48, 64, 16, 1024)
    assert (lorsa.activations.target, lorsa.activations.batch_size) == ("activations-2d", 4)
    assert lorsa.initializer.decoder_uniform_bound == 1.0
    for key in ("sae.skip_bos", "initializer.decoder_uniform_bound", "initializer.encoder_uniform_bound"):
        assert key in said
    crosscoder, said = overlaid(tmp_path, CROSSCODER)
    assert crosscoder.dictionary.hooks_in == tuple(CROSSCODER["sae"]["hook_points"])
    assert (crosscoder.trainer.sparsity_loss_type, crosscoder.trainer.l1_coefficient) == ("tanh-quad", 0.3)
    assert crosscoder.activations.hook_points is None
    says(said["sae.hook_points"], "crosscoder_norm")
    says(said["trainer.initial_k"], "jumprelu")


def test_a_generation_changes_model_text_and_activations_alone(tmp_path: Path) -> None:
    values, _ = settings_overlay(write(tmp_path, GENERATE), PARAMS)
    assert set(values) == {"model", "dataset", "activations", "dictionary"}
    params, said = overlaid(tmp_path, GENERATE)
    acts = params.activations
    assert (acts.source, acts.hook_points, acts.context_size, acts.total_tokens) == ("store", (RESID,), 1024, 800_000_000)
    assert (acts.storage_dtype, acts.model_batch_size, acts.buffer_size) == ("float16", 32, 409600)
    assert params.dictionary.hooks_in == (RESID,)
    assert params.trainer == load_params(PARAMS).trainer
    for key in ("output_dir", "batch_size", "dataset_name", "model_name", "device_type", "hook_points"):
        assert key in said
    two = having(GENERATE, {"target": "activations-2d", "hook_points": ["blocks.2.hook_resid_post", RESID]})
    two |= {"override_dtype": "torch.bfloat16"}
    params, said = overlaid(tmp_path, two)
    assert (params.activations.target, params.activations.storage_dtype) == ("activations-2d", "bfloat16")
    assert params.dictionary == load_params(PARAMS).dictionary
    assert "target" in said


def test_activations_from_files_leave_what_made_them_as_it_is(tmp_path: Path) -> None:
    source = {
        "type": "activations",
        "name": "cached",
        "path": "/acts",
        "device": "cuda",
        "dtype": "torch.float32",
        "prefetch": 4,
    }
    cached = having(SAE, {"activation_factory.sources": [source]})
    for key in ("model", "datasets", "model_name"):
        del cached[key]
    del cached["activation_factory"]["context_size"]
    params, said = overlaid(tmp_path, cached)
    default = load_params(PARAMS)
    assert (params.model, params.dataset) == (default.model, default.dataset)
    assert (params.activations.source, params.activations.context_size) == ("store", default.activations.context_size)
    assert params.activations.batch_size == 4096
    for key in ("type", "path", "device", "dtype", "prefetch"):
        assert f"activation_factory.sources[0].{key}" in said
    says(said["activation_factory.sources[0].path"], "write_activations", "activations.path")


def test_several_sources_are_a_mixture(tmp_path: Path) -> None:
    mixed = having(
        SAE,
        {
            "datasets": {name: {"dataset_name_or_path": f"lab/{name}"} for name in ("web text", "2nd.code", "unread")},
            "activation_factory.sources": [
                {"name": "web text", "sample_weights": 3.0, "prepend_bos": False},
                {"name": "2nd.code"},
            ],
        },
    )
    params, said = overlaid(tmp_path, mixed)
    sources = params.dataset.sources
    assert {name: (each.dataset_name_or_path, each.weight) for name, each in sources.items()} == {
        "web-text": ("lab/web text", 3.0),
        "nd-code": ("lab/2nd.code", 1.0),
    }
    assert "datasets.unread.dataset_name_or_path" in said
    assert "activation_factory.sources[0].prepend_bos" in said


STATED: dict[str, Any] = {
    "mongo.mongo_uri": "mongodb://x", "mongo.mongo_db": "y", "eval": True,
    "device_type": "cpu", "wandb.wandb_run_id": "abc", "wandb.wandb_resume": "must", "sae.strict_loading": False,
    "sae.circuit_tracing_mode": True, "sae.promote_act_fn_dtype": "torch.float32", "sae.fold_activation_scale": False,
    "trainer.skip_metrics_calculation": True, "trainer.optimizer_foreach": False, "trainer.feature_sampling_window": 10,
    "trainer.eval_frequency": 10, "trainer.from_pretrained_path": "results/checkpoints/step_1", "trainer.exp_result_path": "out",
    "trainer.use_batch_norm_mse": True, "model.cache_dir": "c", "model.local_files_only": True, "model.bos_token_id": 1,
    "model.eos_token_id": 2, "model.pad_token_id": 3, "model.use_flash_attn": True, "model.d_model": 768, "model.load_ckpt": False,
    "model.tokenizer_only": True, "datasets.SlimPajama-3B.cache_dir": "c", "activation_factory.num_workers": 1,
    "activation_factory.sources.0.is_dataset_tokenized": True, "activation_factory.sources.0.prepend_bos": False,
    "activation_factory.sources.0.num_workers": 2, "activation_factory.sources.0.prefetch": 1,
}  # fmt: skip


@pytest.mark.parametrize("key", STATED)
def test_what_has_no_counterpart_is_named_and_changes_nothing_else(tmp_path: Path, key: str) -> None:
    without = having(SAE, {"wandb.exp_name": "x"}) if key.startswith("wandb.") else SAE
    before, said_before = overlaid(tmp_path, without)
    after, said = overlaid(tmp_path, having(without, {key: STATED[key]}))
    place = key.replace(".0.", "[0].")
    assert set(said) - set(said_before) == {place}
    assert after == before
    value = str(STATED[key])
    written = value.lower() if isinstance(STATED[key], bool) else value
    assert said[place].startswith(f"{written}: no counterpart: ")


MAPPED: dict[str, tuple[Any, str, Any]] = {
    "model.model_name": ("gpt2", "model.model_name", "gpt2"),
    "model.model_from_pretrained_path": ("/models/mine", "model.model_name", "/models/mine"),
    "model.backend": ("transformer_lens", "model.backend", "transformer_lens"),
    "model.dtype": ("bf16", "model.dtype", "bfloat16"),
    "model.device": ("cpu", "model.device", "cpu"),
    "model.prepend_bos": (False, "model.prepend_bos", False),
    "sae.device": ("cuda:1", "activations.device", "cuda:1"),
    "sae.dtype": ("torch.float64", "dictionary.dtype", "float64"),
    "sae.norm_activation": ("token-wise", "fold.mode", "keep"),
    "sae.use_glu_encoder": (True, "dictionary.use_glu_encoder", True),
    "sae.use_triton_kernel": (False, "dictionary.use_triton_kernel", False),
    "sae.sparsity_threshold_for_triton_spmm_kernel": (0.9, "dictionary.sparsity_threshold_for_triton_spmm_kernel", 0.9),
    "sae.use_decoder_bias": (False, "dictionary.use_decoder_bias", False),
    "sae.sparsity_include_decoder_norm": (False, "dictionary.sparsity_include_decoder_norm", False),
    "sae.sae_pretrained_name_or_path": ("dictionaries/base", "initializer.from_dictionary", "dictionaries/base"),
    "fold_activation_scale": (False, "fold.mode", "keep"),
    "data_parallel_size": (2, "distributed.data_parallel_size", 2),
    "model_parallel_size": (4, "distributed.model_parallel_size", 4),
    "wandb.wandb_project": ("sparse", "tracking.wandb.project", "sparse"),
    "wandb.wandb_entity": ("lab", "tracking.wandb.entity", "lab"),
    "wandb.exp_name": ("my run", "tracking.run_name", "my run"),
    "initializer.bias_init_method": ("geometric_median", "initializer.bias_init_method", "geometric_median"),
    "initializer.init_encoder_bias_with_mean_hidden_pre": (True, "initializer.init_encoder_bias_with_mean_hidden_pre", True),
    "initializer.decoder_uniform_bound": (0.5, "initializer.decoder_uniform_bound", 0.5),
    "trainer.betas": ([0.5, 0.9], "trainer.betas", (0.5, 0.9)),
    "trainer.optimizer_class": ("sparseadam", "trainer.optimizer", "sparseadam"),
    "trainer.amp_dtype": (None, "trainer.amp_dtype", "float32"),
    "trainer.initial_k": (300.0, "trainer.initial_k", 300),
    "trainer.k_schedule_type": ("exponential", "trainer.k_schedule_type", "exponential"),
    "trainer.dead_threshold": (5e6, "trainer.dead_threshold", 5_000_000),
    "trainer.auxk_coefficient": (0.03125, "trainer.auxk_coefficient", 0.03125),
    "trainer.k_aux": (64, "trainer.k_aux", 64),
    "trainer.lr_scheduler_name": ("cosineannealingwarmup", "trainer.lr_scheduler_name", "cosineannealingwarmup"),
    "trainer.gradient_accumulation_steps": (4, "trainer.gradient_accumulation_steps", 4),
    "trainer.clip_grad_norm": (1, "trainer.clip_grad_norm", 1.0),
    "trainer.check_point_save_mode": ("linear", "trainer.checkpoint_schedule", "linear"),
    "trainer.l1_coefficient": (None, "trainer.l1_coefficient", 1.0),
    "activation_factory.ignore_token_ids": ([0, 3], "activations.ignore_token_ids", (0, 3)),
    "activation_factory.override_dtype": ("torch.float32", "activations.dtype", "float32"),
    "activation_factory.model_batch_size": (8, "activations.model_batch_size", 8),
    "activation_factory.hook_points": ([RESID, "blocks.7.hook_resid_post"], "activations.hook_points", (RESID, "blocks.7.hook_resid_post")),
}  # fmt: skip


@pytest.mark.parametrize("key", MAPPED)
def test_what_has_a_counterpart_becomes_it(tmp_path: Path, key: str) -> None:
    value, ours, wanted = MAPPED[key]
    params, _ = overlaid(tmp_path, having(SAE, {key: value}))
    found = dict(flatten(params.to_dict()))[ours]
    assert (tuple(found) if isinstance(found, list) else found) == wanted


IDLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (SAE, {"initializer.init_log_jumprelu_threshold_value": -2.3}, "initializer.init_log_jumprelu_threshold_value"),
    (SAE, {"initializer.encoder_uniform_bound": 0.5}, "initializer.encoder_uniform_bound"),
    (SAE, {"initializer.model_layer": 6}, "initializer.model_layer"),
    (SAE, {"initializer.d_active_subspace": 64}, "initializer.d_active_subspace"),
    (SAE, {"initializer.initialize_tc_with_mlp": True}, "initializer.initialize_tc_with_mlp"),
    (SAE, {"initializer.initialize_lorsa_with_mhsa": True}, "initializer.initialize_lorsa_with_mhsa"),
    (SAE, {"trainer.lp_coefficient": 3e-6}, "trainer.lp_coefficient"),
    (SAE, {"trainer.initial_k": None, "trainer.k_warmup_steps": 0.5}, "trainer.k_warmup_steps"),
    (SAE, {"trainer.k_warmup_steps": 0}, "trainer.initial_k"),
    (SAE, {"sae.act_fn": "relu", "trainer.auxk_coefficient": 0.03}, "trainer.auxk_coefficient"),
    (SAE, {"trainer.total_training_tokens": 4_096_000, "trainer.auxk_coefficient": 0.03}, "trainer.auxk_coefficient"),
    (SAE, {"trainer.sparsity_loss_type": "tanh", "trainer.l1_coefficient": 0.0}, "trainer.l1_coefficient"),
    (SAE, {"sae.dtype": "float64", "trainer.amp_dtype": "torch.bfloat16"}, "trainer.amp_dtype"),
    (SAE, {"sae.norm_activation": "inference"}, "sae.norm_activation"),
    (SAE, {"sae.norm_activation": "batch-wise", "fold_activation_scale": True}, "fold_activation_scale"),
    (SAE, {"sae.dtype": "torch.bfloat16"}, "sae.dtype"),
    (SAE, {"model.backend": "tokenizer_only"}, "model.backend"),
    (SAE, {"model.dtype": "torch.int8"}, "model.dtype"),
    (SAE, {"trainer.lr": {"encoder": 1e-4}}, "trainer.lr"),
    (SAE, {"activation_factory.override_dtype": "torch.float64"}, "activation_factory.override_dtype"),
    (SAE, {"activation_factory.buffer_size": None}, "activation_factory.buffer_size"),
    (SAE, {"activation_factory.target": "tokens"}, "activation_factory.target"),
    (SAE, {"trainer.lr_scheduler_name": "cosineannealing"}, "trainer.lr_scheduler_name"),
    (CLT, {"initializer.init_encoder_with_decoder_transpose_factor": 2.0}, "initializer.init_encoder_with_decoder_transpose_factor"),
    (LORSA, {"sae.NTK_by_parts_factor": 32.0}, "sae.NTK_by_parts_factor"),
    (LORSA, {"sae.normalization_type": "RMS"}, "sae.normalization_type"),
    (LORSA, {"sae.positional_embedding_type": "none"}, "sae.rotary_dim"),
    (CROSSCODER, {"activation_factories.1.batch_size": 2048}, "activation_factories[1].batch_size"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "changes", "key"), IDLE, ids=lambda value: value if isinstance(value, str) else "")
def test_what_acts_not_or_otherwise_is_said_and_the_parameters_stay_valid(tmp_path, settings, changes, key) -> None:
    _, said = overlaid(tmp_path, having(settings, changes))
    assert key in said


@pytest.mark.parametrize(
    ("changes", "key", "ours", "wanted"),
    [
        # 244 steps of 4,096 tokens: the cool-down has 48, the warm-up of 5,000 what is left
        ({"trainer.total_training_tokens": 10**6}, "trainer.lr_warm_up_steps", "lr_warm_up_steps", 244 - 48),
        ({"trainer.lr_cool_down_steps": 10**6}, "trainer.lr_cool_down_steps", "lr_cool_down_steps", 195312),
        ({"trainer.k_warmup_steps": 1.0}, "trainer.k_warmup_steps", "k_warmup_steps", 195311),
        (
            {"trainer.sparsity_loss_type": "tanh", "trainer.l1_coefficient_warmup_steps": 10**6},
            "trainer.l1_coefficient_warmup_steps", "l1_coefficient_warmup_steps", 1.0,
        ),
    ],
)  # fmt: skip
def test_lengths_that_the_run_is_too_short_for_are_shortened(tmp_path, changes, key, ours, wanted) -> None:
    params, said = overlaid(tmp_path, having(SAE, changes))
    assert getattr(params.trainer, ours) == wanted
    assert key in said


@pytest.mark.parametrize("tokens", [20_000, 4096 * 5, 10**6])
@pytest.mark.parametrize("act_fn", ["batchtopk", "topk", "relu"])
def test_a_short_run_has_rows_for_its_threshold(tmp_path: Path, act_fn: str, tokens: int) -> None:
    params, _ = overlaid(tmp_path, having(SAE, {"sae.act_fn": act_fn, "trainer.total_training_tokens": tokens}))
    kept = params.fold.calibration_tokens
    assert (kept > 0) == (act_fn == "batchtopk")
    assert params.trainer.total_training_tokens == tokens


def test_a_context_size_that_is_null_is_that_of_the_attention_or_the_models(tmp_path: Path) -> None:
    for settings, changes, wanted in (
        (LORSA, {}, 1024),
        (SAE, {"model.max_length": 512}, 512),
        (SAE, {}, 2048),
    ):
        params, said = overlaid(tmp_path, having(settings, {**changes, "activation_factory.context_size": None}))
        assert params.activations.context_size == wanted
        says(said["activation_factory.context_size"], wanted)


def test_a_pretrained_dictionary(tmp_path: Path) -> None:
    pretrained = {**SAE, "sae": {"pretrained_name_or_path": "dictionaries/base", "strict_loading": True}}
    params, said = overlaid(tmp_path, pretrained)
    assert params.initializer.from_dictionary == "dictionaries/base"
    assert params.dictionary.hooks_in == (RESID,)
    says(said["sae.pretrained_name_or_path"], "expansion_factor", "act_fn")
    assert "sae.strict_loading" in said


def test_flags_are_those_of_a_preset_and_dvc_takes_them(tmp_path: Path) -> None:
    file = write(tmp_path, having(SAE, {"wandb.exp_name": "run-1"}), ".toml")
    printed = CliRunner().invoke(main, ["--from-settings", str(file), "--params", str(PARAMS)])
    words = printed.stdout.split()
    assert set(words[::2]) == {"-S"}
    keys = {word.partition("=")[0] for word in words[1::2]}
    values, _ = settings_overlay(file, PARAMS)
    stated = dict(flatten(read_mapping(PARAMS)))
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(values)}
    assert keys == {key for key, value in plain.items() if key in stated and stated[key] != value}
    assert "trainer.lr=0.0001" in words
    (tmp_path / "params.yaml").write_text(PARAMS.read_text())
    code = """
import sys
from dvc.cli import parse_args
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
for path, values in to_path_overrides(parse_args(["exp", "run", *sys.argv[1:]]).set_param).items():
    apply_overrides(path, values)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *words], cwd=tmp_path, check=True)
    assert load_params(tmp_path / "params.yaml") == laid_over(values, PARAMS, "settings")


FAULTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"sae.top_k": "many"}, ("sae.top_k:", "'many'", "integer")),
    ({"sae.topk": 3}, ("sae.topk:", "unknown key", "'top_k'")),
    ({"trainer.betas": [0.9]}, ("trainer.betas:", "2 numbers")),
    ({"trainer.lr_warm_up_steps": 1.5}, ("trainer.lr_warm_up_steps:", "1.5")),
    ({"trainer.lr": "fast"}, ("trainer.lr:", "'fast'")),
    ({"trainer.amp_dtype": "torch.float8"}, ("trainer.amp_dtype:", "torch.float8")),
    ({"trainer.sparsity_loss_type": "l1"}, ("trainer.sparsity_loss_type:", "tanh-quad")),
    ({"trainer": 3}, ("trainer:", "mapping")),
    ({"trainer": None}, ("trainer:", "null")),
    ({"sae.hook_point_in": None}, ("sae.hook_point_in:", "null")),
    ({"sae.hook_point_in": "layer 6"}, ("dictionary.hook_point_in:", "layer 6")),
    ({"sae.sae_type": "molt"}, ("sae.sae_type:", "molt", "transcoder")),
    ({"sae.sae_type": "clts"}, ("sae.sae_type:", "'clts'", "'clt'")),
    ({"sae.sae_type": 3}, ("sae.sae_type:", "3")),
    ({"sae": []}, ("sae:", "a list")),
    ({"activation_factory.sources": []}, ("activation_factory.sources:", "empty")),
    ({"activation_factory.sources": [3]}, ("activation_factory.sources[0]:", "3")),
    ({"activation_factory.sources": [{"name": "web"}]}, ("activation_factory.sources[0].name:", "'web'", "datasets")),
    ({"activation_factory.hook_points": []}, ("activation_factory.hook_points:", "empty")),
    ({"datasets.SlimPajama-3B": None}, ("datasets.SlimPajama-3B:", "null")),
    ({"datasets": {}}, ("datasets:", "empty")),
    ({"exp_name": "x"}, ("exp_name:", "TrainSAESettings")),
    ({"sae.act_fn": "jumprelu", "trainer.initial_k": None}, ("initializer.init_log_jumprelu_threshold_value:", "jumprelu")),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "parts"), FAULTS)
def test_a_wrong_setting_is_one_line(tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    settings = having(SAE, changes)
    one_line(write(tmp_path, settings), *parts)


def one_line(file: Path, *parts: str) -> None:
    """The stage ends with one error line that has the parts, exit code 2, and a flag that dvc refuses."""
    failed = CliRunner().invoke(main, ["--from-settings", str(file), "--params", str(PARAMS)])
    assert failed.exit_code == 2, failed.stdout
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"error: {file}")
    for part in parts:
        assert part in line
    assert failed.stdout.startswith("--no-such-preset=")


@pytest.mark.parametrize("key", [key.name for key in TRAIN["sae"].keys if key.default is Required])
def test_a_key_that_is_missing(tmp_path: Path, key: str) -> None:
    settings = {name: value for name, value in SAE.items() if name != key}
    one_line(write(tmp_path, settings), "neither settings" if key == "sae" else f"{key}: missing key")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.toml", b"[sae\n", "not valid TOML"),
        ("a.json", b'{"sae": {', "not valid JSON"),
        ("a.yaml", b"sae: [\n", "not valid YAML"),
        ("a.yaml", b"", "empty"),
        ("a.yaml", b"- 1\n", "list"),
        ("a.json", b'{"sae": {}, "sae": {}}', "duplicate"),
        ("a.yaml", b"\xff\xfe", "UTF-8"),
        ("a.py", b"config = {}", "settings file"),
        ("a.toml", b"x = 1", "neither settings"),
        ("a.json", b'{"items": []}', "sweep"),
        ("a.json", b" " * (2**20 + 1), "bytes"),
    ],
)
def test_a_damaged_file(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    one_line(tmp_path / name, part)


def test_a_file_that_is_not_there_and_a_directory(tmp_path: Path) -> None:
    one_line(tmp_path / "none.toml", "missing")
    (tmp_path / "dir.toml").mkdir()
    one_line(tmp_path / "dir.toml", "directory")


def test_all_faults_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, having(SAE, {"sae.top_k": "many", "trainer.p": 1.5, "model.name": "x"}))
    with pytest.raises(ParamsError) as refused:
        settings_overlay(file, PARAMS)
    assert [fault.removeprefix(f"{file}: ").partition(":")[0] for fault in refused.value.faults] == [
        "sae.top_k", "trainer.p", "model.name",
    ]  # fmt: skip


def test_a_preset_and_settings_are_not_both(tmp_path: Path) -> None:
    file = write(tmp_path, SAE)
    failed = CliRunner().invoke(main, ["pythia-160m", "--from-settings", str(file), "--params", str(PARAMS)])
    assert failed.exit_code == 2
    says(failed.stderr, "--from-settings")
