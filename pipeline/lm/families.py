"""The supported language-model families: one declaration per `model_type` of config.json.

Another package declares further ones by entry points (pipeline/registry.py); of a family that transformers does not know
itself, the module with the declaration registers the configuration and the model with AutoConfig and AutoModelForCausalLM.
docs/families.md is the table of what holds for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import DataError, ParamsError
from pipeline.lm.architectures import GROUPED, Architecture
from pipeline.lm.unsupported import what_it_is
from pipeline.registry import Declarations

Config = Mapping[str, Any]

_PRE_NORMS: dict[str, Any] = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
_POST_NORMS = {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"}
_FOUR_NORMS = {"ln1": "input_layernorm", "ln2": "pre_feedforward_layernorm", **_POST_NORMS}
_ONLY_POST_NORMS = {"ln1": None, "ln2": None, **_POST_NORMS}
_HEADS = {"qkv": tuple(f"self_attn.{name}_proj" for name in "qkv"), "attention_out": "self_attn.o_proj"}
_GATED_MLP = {"mlp_in": ("mlp.gate_proj", "mlp.up_proj"), "mlp_out": "mlp.down_proj"}
_NO_PARTS = {"mlp_in": (), "mlp_out": None}  # of a mixture of experts: what it gives is the sum over them
_LINEAR_ATTENTION = {
    "attention": "linear_attn",
    "qkv": (),
    "attention_out": None,
    "unlike_lorsa": "it is a linear attention, a recurrence without scores",
    "bridge_names": {"hook_attn_out": "linear_attn.hook_out"},
}
_HYBRID: dict[str, Any] = {"gain_offset": 1.0, "gated": True, "unlike_lorsa": "its heads are gated"}
_ALIBI = "its scores have a bias by distance (alibi)"
_ALIBI_TWICE = "it adds alibi to the scores twice"
_SET_HUGGINGFACE = "set model.backend to huggingface"


def _llama(name: str, **fields: Any) -> Architecture:
    """A family whose modules are called as Llama's."""
    named = {"attention": "self_attn", "mlp": "mlp", **_PRE_NORMS, **_HEADS, **_GATED_MLP}
    return Architecture(name, "model.layers", "model.norm", **{**named, **fields})


def _gemma3(name: str, **fields: Any) -> Architecture:
    return _llama(name, gain_offset=1.0, **_FOUR_NORMS, **fields)


def _neox(config: Config) -> dict[str, Any]:
    return {"parallel": config.get("use_parallel_residual", True)}


def _stablelm(config: Config) -> dict[str, Any]:
    return {"parallel": True, "ln2": None} if config.get("use_parallel_residual", False) else {}


def _experts_block(config: Config, layer: int) -> dict[str, Any]:
    """Blocks that have experts, and those that have one MLP (qwen3_moe, qwen3_next)."""
    dense = layer in (config.get("mlp_only_layers") or ())
    return {} if dense or (layer + 1) % config.get("decoder_sparse_step", 1) else _NO_PARTS


def _qwen3_5_block(config: Config, layer: int) -> dict[str, Any]:
    """Blocks of full and of linear attention."""
    types = config.get("layer_types")
    every = config.get("full_attention_interval", 4)
    linear = types[layer] == "linear_attention" if types else bool((layer + 1) % every)
    return _LINEAR_ATTENTION if linear else {}


def _qwen3_next_block(config: Config, layer: int) -> dict[str, Any]:
    return {**_experts_block(config, layer), **_qwen3_5_block(config, layer)}


def _falcon(config: Config) -> dict[str, Any]:
    """One norm for both (7b), two in parallel (40b), or one after the other (rw)."""
    own: dict[str, Any] = {"unlike_lorsa": _ALIBI, "not_eager": _ALIBI_TWICE} if config.get("alibi") else {}
    if config.get("new_decoder_architecture"):
        two = (config.get("num_ln_in_parallel_attn") or 2) == 2
        norms = {"ln1": "ln_attn", "ln2": "ln_mlp"} if two else {"ln1": "input_layernorm", "ln2": None}
        return {**own, "parallel": True, "key_heads": config.get("num_kv_heads"), **norms}
    own["key_heads"] = 1 if config.get("multi_query", True) else None
    return {**own, "parallel": True, "ln2": None} if config.get("parallel_attn", True) else own


def _opt(config: Config) -> dict[str, Any]:
    """opt-350m norms the residual stream itself, after each addition, and has embeddings of another width."""
    own: dict[str, Any] = {} if config.get("do_layer_norm_before", True) else {"ln1": None, "ln2": None, "final_norm": None}
    if config.get("_remove_final_layer_norm"):
        own["final_norm"] = None
    if config.get("word_embed_proj_dim", config.get("hidden_size")) != config.get("hidden_size"):
        own |= {"embedding": "model.decoder.project_in", "final_projection": "model.decoder.project_out"}
    return own


def _bloom_refused(config: Config) -> str | None:
    if config.get("apply_residual_connection_post_layernorm"):
        what = "its blocks add to what their norms give, so that there is no one residual stream"
        return f"apply_residual_connection_post_layernorm is true: {what}"
    if config.get("slow_but_exact") and config.get("pretraining_tp", 1) > 1:
        return "slow_but_exact is true: its output projections are computed in slices, so that what is added occurs nowhere"
    return None


def _gpt2_bridge_refused(config: Config) -> str | None:
    return None if config.get("scale_attn_weights", True) else "its scale_attn_weights is false, which TransformerLens ignores"


def _falcon_bridge_refused(config: Config) -> str | None:
    if config.get("new_decoder_architecture"):
        return "TransformerLens cannot take its queries and keys apart (new_decoder_architecture)"
    return "TransformerLens computes another alibi" if config.get("alibi") else None


def _opt_bridge_refused(config: Config) -> str | None:
    before = config.get("do_layer_norm_before", True)
    return None if before else "TransformerLens cannot run blocks with do_layer_norm_before false"


MODEL_FAMILIES: Declarations[Architecture] = Declarations(
    "model_type",
    "scopeline.model_families",
    (
        Architecture(
            "gpt_neox",
            *("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "mlp"),
            **_PRE_NORMS,
            qkv=("attention.query_key_value",),
            qkv_layout=GROUPED,
            attention_out="attention.dense",
            mlp_in=("mlp.dense_h_to_4h",),
            mlp_out="mlp.dense_4h_to_h",
            by_model=_neox,
        ),
        Architecture(
            "gpt2",
            *("transformer.h", "transformer.ln_f", "attn", "mlp", "ln_1", "ln_2"),
            qkv=("attn.c_attn",),
            attention_out="attn.c_proj",
            mlp_in=("mlp.c_fc",),
            mlp_out="mlp.c_proj",
            bridge_refused=_gpt2_bridge_refused,
        ),
        _llama("llama"),
        _llama("mistral"),
        _llama("qwen2"),
        _llama("qwen3"),
        _llama("gemma", gain_offset=1.0),
        _llama("gemma2", gain_offset=1.0, **_FOUR_NORMS),
        _gemma3("gemma3_text"),
        _gemma3(
            "gemma3",
            text_config="text_config",
            renamed={r"^(language_model\.model|model\.language_model)\.": "model.", r"^language_model\.lm_head\.": "lm_head."},
        ),
        _llama("qwen3_moe", by_layer=_experts_block),
        _llama("qwen3_5_text", **_HYBRID, by_layer=_qwen3_5_block),
        _llama("qwen3_5", **_HYBRID, by_layer=_qwen3_5_block, text_config="text_config"),
        _llama("qwen3_next", **_HYBRID, by_layer=_qwen3_next_block),
        _llama("mixtral", **_NO_PARTS),
        _llama("olmo2", **_ONLY_POST_NORMS),
        _llama("olmo3", **_ONLY_POST_NORMS),
        _llama("phi3", qkv=("self_attn.qkv_proj",), mlp_in=("mlp.gate_up_proj",), mlp_fused=True),
        _llama("gpt_oss", **_NO_PARTS, unlike_lorsa="its scores compete with one of each head that reads nothing (sinks)"),
        _llama("stablelm", by_model=_stablelm),
        Architecture(
            "gptj",
            *("transformer.h", "transformer.ln_f", "attn", "mlp", "ln_1", None),
            parallel=True,
            qkv=tuple(f"attn.{name}_proj" for name in "qkv"),
            attention_out="attn.out_proj",
            mlp_in=("mlp.fc_in",),
            mlp_out="mlp.fc_out",
        ),
        Architecture(
            "opt",
            *("model.decoder.layers", "model.decoder.final_layer_norm", "self_attn", None),
            *("self_attn_layer_norm", "final_layer_norm"),
            qkv=tuple(f"self_attn.{name}_proj" for name in "qkv"),
            attention_out="self_attn.out_proj",
            mlp_in=("fc1",),
            mlp_out="fc2",
            activation="activation_fn",
            by_model=_opt,
            bridge_refused=_opt_bridge_refused,
        ),
        Architecture(
            "bloom",
            *("transformer.h", "transformer.ln_f", "self_attention", "mlp"),
            **_PRE_NORMS,
            qkv=("self_attention.query_key_value",),
            qkv_layout=GROUPED,
            attention_out="self_attention.dense",
            mlp_in=("mlp.dense_h_to_4h",),
            mlp_out="mlp.dense_4h_to_h",
            embedding="transformer.word_embeddings_layernorm",
            adds_residual=True,
            unlike_lorsa=_ALIBI,
            refused=_bloom_refused,
        ),
        Architecture(
            "falcon",
            *("transformer.h", "transformer.ln_f", "self_attention", "mlp"),
            **_PRE_NORMS,
            qkv=("self_attention.query_key_value",),
            qkv_layout=GROUPED,
            attention_out="self_attention.dense",
            mlp_in=("mlp.dense_h_to_4h",),
            mlp_out="mlp.dense_4h_to_h",
            overwrites=True,
            by_model=_falcon,
            bridge_refused=_falcon_bridge_refused,
        ),
    ),
)

# Families that have been looked at and do not fit: why.
_ALTUP = (
    "its blocks carry four residual streams at once, predict and correct three of them from the fourth (AltUp), and add an "
    "embedding of the token in each block, so that there is no one residual stream to read or write; give a gemma3 model"
)
_ADVICE = (
    "; give a model of one of these, set model.backend to transformer_lens if TransformerLens has it, or declare its family "
    "(CONTRIBUTING.md)"
)
_OTHER = "; or give a model of one of these"
UNFIT: Mapping[str, str] = {"gemma3n": _ALTUP, "gemma3n_text": _ALTUP}


def is_known(model_type: str) -> bool:
    """Whether a family is declared, or is known not to fit."""
    return model_type in MODEL_FAMILIES or model_type in UNFIT


def architecture_of(model_type: str, model: str, config: Config | None = None) -> Architecture:
    """The declaration of a `model_type`.

    Args:
        model_type: of config.json.
        model: its name, for messages.
        config: of the model, which may say why its family is none of these.

    Raises:
        DataError: it is not supported (the message lists those that are, the nearest, and what to do), or another package's
            declaration of it cannot be imported.
    """
    if model_type in UNFIT and model_type not in MODEL_FAMILIES:
        raise DataError(f"model '{model}': family {model_type} does not fit: {UNFIT[model_type]}")
    try:
        return MODEL_FAMILIES.get(model_type)
    except ParamsError as error:
        known = model_type in MODEL_FAMILIES
        why = None if known else what_it_is(config or {}, MODEL_FAMILIES.names())
        advice = "" if known else f"; {why}{_OTHER}" if why else _ADVICE
        raise DataError([f"model '{model}': {fault}{advice}" for fault in error.faults]) from None


def check_configuration(declared: Architecture, config: Config, model: str) -> None:
    """Refuse a model whose hook points would not mean what they say.

    Raises:
        DataError: says which setting of its configuration that is.
    """
    reason = None if declared.refused is None else declared.refused(config)
    if reason is not None:
        raise DataError(f"model '{model}' (family {declared.name}): {reason}; give another model")


def check_bridge(declared: Architecture, config: Config, model: str) -> None:
    """Refuse a model that TransformerLens would run as another.

    Raises:
        DataError: says what differs.
    """
    reason = None if declared.bridge_refused is None else declared.bridge_refused(config)
    if reason is not None:
        raise DataError(f"model '{model}' (family {declared.name}): {reason}; {_SET_HUGGINGFACE}")
