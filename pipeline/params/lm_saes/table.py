"""Every key of the reference's train and generate settings, and what it becomes here: the one place that says it.

The classes are those of github.com/OpenMOSS/Language-Model-SAEs at commit 95281ac (May 2026); FORMER are keys that settings of
its earlier versions have. docs/settings.md is written from this table.
"""

from __future__ import annotations

from pipeline.params.lm_saes import conversions as convert
from pipeline.params.lm_saes.conversions import DTYPES
from pipeline.params.lm_saes.declared import Config, Key, Named, Required, Several, to, together, without
from pipeline.params.sections.trainer import SCHEDULERS

ACT_FNS = ("relu", "jumprelu", "topk", "batchtopk", "batchlayertopk", "layertopk")
TARGETS = ("tokens", "activations-2d", "activations-1d")
HF_HOME = "the hub's own settings: HF_HOME (where its files are kept), HF_HUB_OFFLINE=1 (nothing is fetched)"
OF_THE_TOKENIZER = "the tokenizer's; nearest: activations.ignore_token_ids names tokens to leave out"
NOT_ITS_FILES = (
    "activations that the reference has written cannot be read; nearest: generate them here (activations.source store), or "
    "write_activations of pipeline.api and activations.path"
)
FROM_DICTIONARY = "initializer.from_dictionary, of a dictionary that lies in a directory"
RESUMED = "a resumed training goes on with its run by itself: the id is kept beside its checkpoints"
EVALUATION = "the evaluation is a stage of its own: python -m stages.evaluate, or dvc repro"
WHOLE_STORE = "the processes of `distributed` write one store"
NO_DATABASE = "there is no database: parameters are in params.yaml, dictionaries in data/, runs in MLflow or W&B"
LABEL = "a label in its database; the section itself says what is read"
LOADING = "how activations are read ahead is chosen here"
FORMER_KEY = "of an earlier version of the reference, without effect there today"

LANGUAGE_MODEL = Config(
    "LanguageModelConfig",
    (
        to("model_name", str, "gpt2", "model.model_name"),
        together("model_from_pretrained_path", str | None, None, "model.model_name, in the place of the name"),
        without("cache_dir", str | None, None, HF_HOME),
        without("local_files_only", bool, False, HF_HOME),
        together("max_length", int, 2048, "activations.context_size, where no context size is stated", at_least=1),
        to(
            "backend",
            str,
            "auto",
            "model.backend",
            convert.backend,
            choices=("huggingface", "transformer_lens", "tokenizer_only", "auto"),
        ),
        to("prepend_bos", bool, True, "model.prepend_bos"),
        without("bos_token_id", int | None, None, OF_THE_TOKENIZER),
        without("eos_token_id", int | None, None, OF_THE_TOKENIZER),
        without("pad_token_id", int | None, None, "contexts are packed and hold no padding"),
        to("device", str, "cpu", "model.device", only_stated=True),
        to("dtype", str, "torch.float32", "model.dtype", convert.model_dtype, choices=DTYPES),
        without("use_flash_attn", bool, False, f"{FORMER_KEY}; nearest: model.attention flash_attention_2"),
        without("d_model", int, 768, f"{FORMER_KEY}; widths are read from the model"),
        without("load_ckpt", bool, True, f"{FORMER_KEY}; the model is always loaded"),
        without("tokenizer_only", bool, False, f"{FORMER_KEY}; the model is always loaded"),
    ),
)

DATASET = Config(
    "DatasetConfig",
    (
        together("dataset_name_or_path", str, "openwebtext", "dataset.dataset_name_or_path; of several, dataset.sources"),
        without("cache_dir", str | None, None, HF_HOME),
        together(
            "is_dataset_on_disk",
            bool,
            False,
            "dataset.dataset_name_or_path: a directory of save_to_disk is recognised, whether this is true or false",
        ),
    ),
)

SOURCE = Config(
    "ActivationFactoryDatasetSource, ActivationFactoryActivationsSource",
    (
        together("type", str, "dataset", "dataset: activations.source live", choices=("dataset", "activations")),
        together("name", str, Required, "which of `datasets`; of several sources, its name in dataset.sources"),
        together("sample_weights", float, 1.0, "weight in dataset.sources: a share of the training tokens", more_than=0),
        without(
            "is_dataset_tokenized",
            bool,
            False,
            "text is tokenized here, so that a token leads back to its characters; give the text",
        ),
        without("prepend_bos", bool, True, "the reference reads model.prepend_bos in its place, and so does this"),
        without(
            "path",
            str | dict | None,
            None,
            NOT_ITS_FILES,
        ),
        without("device", str, "cpu", LOADING),
        without("dtype", str | None, None, "nearest: activations.dtype", choices=DTYPES),
        without("num_workers", int, 4, LOADING),
        without("prefetch", int | None, 8, LOADING),
        without("prefetch_factor", int | None, None, f"{FORMER_KEY}; {LOADING}"),
    ),
)

BUFFER_SHUFFLE = Config(
    "BufferShuffleConfig",
    (
        to("perm_seed", int, 42, "activations.buffer_shuffle.perm_seed"),
        without("generator_device", str | None, None, "the order is drawn on the CPU, the same on every machine"),
    ),
)

ACTIVATION_FACTORY = Config(
    "ActivationFactoryConfig",
    (
        together("sources", Several(SOURCE), Required, "dataset, and activations.source"),
        to("target", str, Required, "activations.target", choices=TARGETS),
        together(
            "hook_points", tuple[str, ...], Required, "activations.hook_points; null where they are those of the dictionary"
        ),
        to("batch_size", int, Required, "activations.batch_size"),
        without("num_workers", int, 4, LOADING),
        together("context_size", int | None, None, "activations.context_size; null: n_ctx of lorsa, else model.max_length"),
        to("model_batch_size", int, 1, "activations.model_batch_size", only_stated=True),
        together("override_dtype", str | None, None, "activations.dtype", choices=DTYPES),
        together("buffer_size", int | None, None, "activations.buffer_size; null: rows are mixed all the same"),
        together("buffer_shuffle", BUFFER_SHUFFLE, None, "activations.buffer_shuffle"),
        to("ignore_token_ids", tuple[int, ...] | None, None, "activations.ignore_token_ids"),
    ),
)

INITIALIZER = Config(
    "InitializerConfig",
    (
        to(
            "bias_init_method",
            str,
            "all_zero",
            "initializer.bias_init_method",
            choices=("all_zero", "geometric_median"),
        ),
        to("decoder_uniform_bound", float, 1.0, "initializer.decoder_uniform_bound"),
        to("encoder_uniform_bound", float, 1.0, "initializer.encoder_uniform_bound"),
        to("init_encoder_with_decoder_transpose", bool, True, "initializer.init_encoder_with_decoder_transpose"),
        to("init_encoder_with_decoder_transpose_factor", float, 1.0, "initializer.init_encoder_with_decoder_transpose_factor"),
        to("init_log_jumprelu_threshold_value", float | None, None, "initializer.init_log_jumprelu_threshold_value"),
        to("grid_search_init_norm", bool, False, "initializer.grid_search_init_norm"),
        to("initialize_W_D_with_active_subspace", bool, False, "initializer.initialize_W_D_with_active_subspace"),
        to("d_active_subspace", int | None, None, "initializer.d_active_subspace"),
        to("initialize_lorsa_with_mhsa", bool | None, None, "initializer.initialize_lorsa_with_mhsa", convert.switch),
        to("initialize_tc_with_mlp", bool | None, None, "initializer.initialize_tc_with_mlp", convert.switch),
        to("model_layer", int | None, None, "initializer.model_layer"),
        to("init_encoder_bias_with_mean_hidden_pre", bool, False, "initializer.init_encoder_bias_with_mean_hidden_pre"),
    ),
)

TRAINER = Config(
    "TrainerConfig",
    (
        together("l1_coefficient", float | None, 8e-5, "trainer.l1_coefficient; null: 1.0 from the start; 0: no sparsity loss"),
        to("l1_coefficient_warmup_steps", int | float, 0.1, "trainer.l1_coefficient_warmup_steps", steps=True),
        to("lp_coefficient", float | None, None, "trainer.lp_coefficient", convert.above_zero),
        to("auxk_coefficient", float | None, None, "trainer.auxk_coefficient", convert.above_zero),
        to("amp_dtype", str | None, "torch.bfloat16", "trainer.amp_dtype", convert.amp_dtype, choices=DTYPES),
        to("sparsity_loss_type", str | None, None, "trainer.sparsity_loss_type", choices=("power", "tanh", "tanh-quad")),
        to("tanh_stretch_coefficient", float, 4.0, "trainer.tanh_stretch_coefficient"),
        to("frequency_scale", float, 0.01, "trainer.frequency_scale"),
        to("p", int, 1, "trainer.p", convert.number),
        to("initial_k", int | float | None, None, "trainer.initial_k", convert.count),
        to("k_warmup_steps", int | float, 0.1, "trainer.k_warmup_steps", steps=True),
        to("k_cold_booting_steps", int | float, 0, "trainer.k_cold_booting_steps", steps=True),
        to("k_schedule_type", str, "linear", "trainer.k_schedule_type", choices=("linear", "exponential")),
        to("k_exponential_factor", float, 3.0, "trainer.k_exponential_factor"),
        to("k_aux", int, 512, "trainer.k_aux"),
        to("dead_threshold", float, 10_000_000.0, "trainer.dead_threshold", convert.count),
        without("skip_metrics_calculation", bool, False, "metrics cost little here; nearest: trainer.log_frequency"),
        to("gradient_accumulation_steps", int, 1, "trainer.gradient_accumulation_steps"),
        to("lr", float | dict, 4e-4, "trainer.lr", convert.learning_rate),
        to("betas", tuple[float, float], (0.9, 0.999), "trainer.betas", list),
        to("optimizer_class", str, "adam", "trainer.optimizer", choices=("adam", "sparseadam")),
        without("optimizer_foreach", bool, True, "how the optimiser's kernels are launched is chosen here"),
        to("lr_scheduler_name", str, "constantwithwarmup", "trainer.lr_scheduler_name", choices=SCHEDULERS),
        to("lr_end_ratio", float, 1 / 32, "trainer.lr_end_ratio"),
        to("lr_warm_up_steps", int | float, 5000, "trainer.lr_warm_up_steps", steps=True),
        to("lr_cool_down_steps", int | float, 0.2, "trainer.lr_cool_down_steps", steps=True),
        to("jumprelu_lr_factor", float, 1.0, "trainer.jumprelu_lr_factor"),
        to("clip_grad_norm", float, 0.0, "trainer.clip_grad_norm"),
        without("feature_sampling_window", int, 1000, "feature densities are those of the evaluation, over all its tokens"),
        to("total_training_tokens", int, 300_000_000, "trainer.total_training_tokens"),
        to("log_frequency", int, 1000, "trainer.log_frequency"),
        without("eval_frequency", int, 1000, EVALUATION),
        to("n_checkpoints", int, 10, "trainer.n_checkpoints"),
        to("check_point_save_mode", str, "log", "trainer.checkpoint_schedule", choices=("log", "linear")),
        without(
            "from_pretrained_path",
            str | None,
            None,
            "a killed training goes on from its own checkpoints by the same command; from those of the reference none does "
            "(nearest: initializer.from_dictionary starts from the weights)",
        ),
        without("exp_result_path", str, "results", "results are in data/trained and data/inference, by dictionary.name"),
        without("use_batch_norm_mse", bool, False, f"{FORMER_KEY}; the error is that of normalised activations"),
    ),
)

PRETRAINED: tuple[Key, ...] = (
    together("pretrained_name_or_path", str | None, None, FROM_DICTIONARY),
    together("sae_pretrained_name_or_path", str | None, None, FROM_DICTIONARY),
    without("strict_loading", bool, True, "weights are always loaded whole, or refused by name"),
    without(
        "fold_activation_scale",
        bool,
        True,
        "initializer.from_dictionary keeps its function, whatever the norm",
    ),
)


def _dictionary(name: str, *own: Key) -> Config:
    """The settings that every dictionary has, and those of a kind."""
    return Config(
        name,
        (
            together("sae_type", str, "", "dictionary.kind: sae with two hook points is a transcoder; molt has none"),
            to("d_model", int, Required, "dictionary.d_model"),
            to("expansion_factor", float, Required, "dictionary.expansion_factor"),
            to("use_decoder_bias", bool, True, "dictionary.use_decoder_bias"),
            to("act_fn", str, "relu", "dictionary.act_fn", choices=ACT_FNS),
            to(
                "norm_activation",
                str,
                "dataset-wise",
                "dictionary.norm_activation",
                convert.norm_activation,
                choices=("token-wise", "batch-wise", "dataset-wise", "inference"),
            ),
            to("sparsity_include_decoder_norm", bool, True, "dictionary.sparsity_include_decoder_norm"),
            to("top_k", int, 50, "dictionary.top_k"),
            to("use_triton_kernel", bool, False, "dictionary.use_triton_kernel", only_stated=True),
            to(
                "sparsity_threshold_for_triton_spmm_kernel",
                float,
                0.996,
                "dictionary.sparsity_threshold_for_triton_spmm_kernel",
            ),
            to("jumprelu_threshold_window", float, 2.0, "dictionary.jumprelu_threshold_window"),
            to("device", str, "cpu", "activations.device", only_stated=True),
            to("dtype", str, "torch.float32", "dictionary.dtype", convert.weight_dtype, choices=DTYPES),
            *PRETRAINED,
            *own,
            without("circuit_tracing_mode", bool, False, FORMER_KEY),
            without("promote_act_fn_dtype", str | None, None, f"{FORMER_KEY}; gates compute in float32"),
        ),
    )


SAE = _dictionary(
    "SAEConfig",
    to("hook_point_in", str, Required, "dictionary.hook_point_in"),
    together("hook_point_out", str, Required, "dictionary.hook_point_out; null where it is hook_point_in"),
    to("use_glu_encoder", bool, False, "dictionary.use_glu_encoder"),
)

CLT = _dictionary(
    "CLTConfig",
    to("hook_points_in", tuple[str, ...], Required, "dictionary.hook_points_in", list),
    to("hook_points_out", tuple[str, ...], Required, "dictionary.hook_points_out", list),
    to(
        "init_cross_layer_decoder_all_zero",
        bool,
        False,
        "initializer.cross_layer_decoders",
        convert.cross_layer_decoders,
    ),
    without(
        "decode_with_csr", bool, False, "how active entries are decoded is chosen here (dictionary.use_triton_kernel on CUDA)"
    ),
    without("sparsity_threshold_for_csr", float, 0.05, "nearest: dictionary.sparsity_threshold_for_triton_spmm_kernel"),
)

LORSA = _dictionary(
    "LorsaConfig",
    to("hook_point_in", str, Required, "dictionary.hook_point_in"),
    to("hook_point_out", str, Required, "dictionary.hook_point_out"),
    to("n_qk_heads", int, Required, "dictionary.n_qk_heads"),
    to("d_qk_head", int, Required, "dictionary.d_qk_head"),
    to("positional_embedding_type", str, "rotary", "dictionary.positional_embedding_type", choices=("rotary", "none")),
    to("rotary_dim", int, Required, "dictionary.rotary_dim"),
    to("rotary_base", float, 10000.0, "dictionary.rotary_base"),
    to("rotary_adjacent_pairs", bool, True, "dictionary.rotary_adjacent_pairs"),
    to("rotary_scale", float, 1.0, "dictionary.rotary_scale"),
    to("use_NTK_by_parts_rope", bool, False, "dictionary.use_NTK_by_parts_rope"),
    to("NTK_by_parts_factor", float, 1.0, "dictionary.NTK_by_parts_factor"),
    to("NTK_by_parts_low_freq_factor", float, 1.0, "dictionary.NTK_by_parts_low_freq_factor"),
    to("NTK_by_parts_high_freq_factor", float, 1.0, "dictionary.NTK_by_parts_high_freq_factor"),
    to("old_context_len", int, 2048, "dictionary.old_context_len"),
    to("n_ctx", int, Required, "dictionary.n_ctx"),
    to("attn_scale", float | None, None, "dictionary.attn_scale"),
    to("use_post_qk_ln", bool, False, "dictionary.use_post_qk_ln"),
    to("normalization_type", str | None, None, "dictionary.normalization_type", choices=("LN", "RMS")),
    to("eps", float, 1e-6, "dictionary.eps"),
    without("skip_bos", bool, False, f"{FORMER_KEY}; nearest: activations.ignore_token_ids, or ignore_positions: 1"),
)

CROSSCODER = _dictionary("CrosscoderConfig", to("hook_points", tuple[str, ...], Required, "dictionary.hook_points_in", list))

WANDB = Config(
    "WandbConfig",
    (
        to("wandb_project", str, "gpt2-sae-training", "tracking.wandb.project"),
        to("exp_name", str | None, None, "tracking.run_name"),
        to("wandb_entity", str | None, None, "tracking.wandb.entity"),
        without("wandb_run_id", str | None, None, RESUMED),
        without("wandb_resume", str, "never", RESUMED, choices=("allow", "must", "never", "auto")),
    ),
)

MONGO = Config(
    "MongoDBConfig",
    (without("mongo_uri", str | None, None, NO_DATABASE), without("mongo_db", str | None, None, NO_DATABASE)),
)


def _train(name: str, dictionary: Config, *activations: Key) -> Config:
    """The settings of a training of one kind."""
    return Config(
        name,
        (
            together("sae", dictionary, Required, "dictionary"),
            to("sae_name", str, Required, "dictionary.sae_name"),
            to("sae_series", str, Required, "dictionary.sae_series"),
            together("initializer", INITIALIZER, None, "initializer"),
            together("trainer", TRAINER, Required, "trainer"),
            *activations,
            together("wandb", WANDB, None, "tracking.wandb, enabled: true"),
            without("eval", bool, False, EVALUATION),
            to("data_parallel_size", int, 1, "distributed.data_parallel_size"),
            to("model_parallel_size", int, 1, "distributed.model_parallel_size"),
            together("mongo", MONGO, None, NO_DATABASE),
            together("model", LANGUAGE_MODEL, None, "model"),
            without("model_name", str | None, None, LABEL),
            together("datasets", Named(DATASET), None, "dataset"),
            without("device_type", str, "cuda", "devices are those of sae (activations.device here) and of model"),
            together("fold_activation_scale", bool, True, "fold.mode: fold, or keep"),
        ),
    )


_FACTORY = together("activation_factory", ACTIVATION_FACTORY, Required, "activations and dataset")
_FACTORIES = together("activation_factories", Several(ACTIVATION_FACTORY), Required, "activations and dataset, of the first")
TRAIN = {
    "sae": _train("TrainSAESettings", SAE, _FACTORY),
    "clt": _train("TrainCLTSettings", CLT, _FACTORY),
    "lorsa": _train("TrainLorsaSettings", LORSA, _FACTORY),
    "crosscoder": _train("TrainCrosscoderSettings", CROSSCODER, _FACTORIES),
}
ONE_FACTORY_CROSSCODER = _train("TrainSAESettings", CROSSCODER, _FACTORY)

GENERATE = Config(
    "GenerateActivationsSettings",
    (
        together("model", LANGUAGE_MODEL, None, "model"),
        without("model_name", str, Required, LABEL),
        together("dataset", DATASET, None, "dataset"),
        without("dataset_name", str, Required, LABEL),
        together("hook_points", tuple[str, ...], Required, "activations.hook_points"),
        without("output_dir", str, Required, "stores are in data/store, or where SCOPELINE_STORE says"),
        to("target", str, "activations-2d", "activations.target", choices=TARGETS),
        to("model_batch_size", int, 1, "activations.model_batch_size", only_stated=True),
        without("batch_size", int, Required, "rows written at once, chosen here; activations.batch_size is of training"),
        together("buffer_size", int | None, None, "activations.buffer_size; null: rows are mixed all the same"),
        together("buffer_shuffle", BUFFER_SHUFFLE, None, "activations.buffer_shuffle"),
        together("total_tokens", int | None, None, "activations.total_tokens; null: as the parameter file has it", at_least=1),
        to("context_size", int, 128, "activations.context_size"),
        without("n_samples_per_chunk", int | None, None, "chunks of a store have 4 to 16 MiB"),
        without("num_workers", int | None, None, "chunks are written beside the model's computing"),
        without("format", str, "safetensors", "stores are Zarr", choices=("pt", "safetensors")),
        without("n_shards", int | None, None, WHOLE_STORE),
        without("start_shard", int, 0, "a generation that was stopped goes on from its whole chunks by itself"),
        together("mongo", MONGO, None, NO_DATABASE),
        to("ignore_token_ids", tuple[int, ...] | None, None, "activations.ignore_token_ids"),
        without("device_type", str, "cuda", "the device is that of model"),
        together("override_dtype", str | None, None, "activations.storage_dtype; null: model.dtype", choices=DTYPES),
    ),
)
