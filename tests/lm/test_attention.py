"""The model's attention as plain tensors: low-rank heads set to the model's heads, without the gate, are the model's attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.lm.attention import AttentionWeights
from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_attention_form
from pipeline.models_fit import attention_fields, check_attention_fits
from tests.lm.conftest import CONFIGURATIONS, OLDEST
from tests.lm.families import CONTEXT, WINDOW, D
from tests.messages import saying

LAYER = 1
# Families whose attention low-rank sparse attention cannot be, with a part of what is said of it.
_NORMED = "a norm stands between what its heads give and what is added to the residual stream"
UNLIKE = {
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_multimodal"), _NORMED),
    **dict.fromkeys(("olmo2", "olmo3", "opt_projected"), "no norm before it"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_multimodal", "qwen3_next"), "its heads are gated"),
    "gpt_oss": "sinks",
    "bloom": "alibi",
    "falcon_alibi": "alibi",
}


def low_rank(weights: AttentionWeights, reads: str, n_ctx: int = CONTEXT) -> Any:
    """F = heads x head width, Q = heads: feature i of a head is the i-th dimension of its values."""
    config: dict[str, Any] = {
        "kind": "lorsa",
        "hook_point_in": reads,
        "hook_point_out": f"blocks.{LAYER}.hook_attn_out",
        "d_in": D,
        "d_sae": weights.n_heads * weights.d_head,
        "act_fn": "relu",
        "n_qk_heads": weights.n_heads,
        "n_ctx": n_ctx,
        **attention_fields(weights),
    }
    made = build_dictionary(config)
    check_attention_fits(made.config.to_dict(), weights)
    tensors = {
        "W_Q": weights.W_Q,
        "W_K": weights.W_K,
        "b_Q": weights.b_Q,
        "b_K": weights.b_K,
        "w_V": weights.W_V.transpose(1, 2).flatten(0, 1),
        "b_V": weights.b_V.flatten(),
        "w_O": weights.W_O.flatten(0, 1),
        "b_D": weights.b_O,
    }
    if weights.q_gain is not None and weights.k_gain is not None:
        tensors |= {"q_gain": weights.q_gain, "k_gain": weights.k_gain}
    made.load_weights_({name: tensor.float() for name, tensor in tensors.items()})
    return made


@torch.no_grad()
@pytest.mark.parametrize("site", ["hook_out", "hook_normalized"])
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "huggingface") for name in CONFIGURATIONS if name not in UNLIKE]
    + [(name, "transformer_lens") for name in (*OLDEST, "phi3", "gptj", "opt", "falcon", "stablelm_parallel")],
)
def test_rank_one_heads_set_to_the_models_heads_are_its_attention(
    name: str, backend: str, site: str, language_model: Callable[[str, str], LanguageModel], token_ids: torch.Tensor
) -> None:
    model = language_model(name, backend)
    reads, writes = f"blocks.{LAYER}.ln1.{site}", f"blocks.{LAYER}.hook_attn_out"
    made = low_rank(model.layer_attention(LAYER, reads), reads)
    captured = model.activations(token_ids, [reads, writes])
    found = made.decode(made.pre_activations(captured[reads]))
    wanted = captured[writes]
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "backend", "field", "value"),
    [
        ("gpt2_unscaled", "huggingface", "attn_scale", 1.0),
        ("gpt2_by_layer", "huggingface", "attn_scale", 8**0.5 * (LAYER + 1)),
        ("gpt2_by_layer", "transformer_lens", "attn_scale", 8**0.5 * (LAYER + 1)),
        ("llama_linear", "huggingface", "rotary_scale", 4.0),
        ("llama_by_parts", "huggingface", "old_context_len", 64),
    ],
)
def test_settings_of_a_models_attention_are_taken_over(
    name: str,
    backend: str,
    field: str,
    value: float,
    language_model: Callable[[str, str], LanguageModel],
    token_ids: torch.Tensor,
) -> None:
    model = language_model(name, backend)
    reads, writes = f"blocks.{LAYER}.ln1.hook_out", f"blocks.{LAYER}.hook_attn_out"
    weights = model.layer_attention(LAYER, reads)
    assert attention_fields(weights)[field] == pytest.approx(value)
    made = low_rank(weights, reads)
    captured = model.activations(token_ids, [reads, writes])
    found, wanted = made.decode(made.pre_activations(captured[reads])), captured[writes]
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral_window", "qwen2_window"])
def test_a_sliding_window_is_attention_to_everything_on_short_contexts_only(
    name: str, language_model: Callable[[str, str], LanguageModel], token_ids: torch.Tensor
) -> None:
    model = language_model(name, "huggingface")
    reads, writes = f"blocks.{LAYER}.ln1.hook_out", f"blocks.{LAYER}.hook_attn_out"
    weights = model.layer_attention(LAYER, reads)
    with pytest.raises(ParamsError, match=f"n_ctx: the model's sliding_window is {WINDOW}, got {CONTEXT}"):
        low_rank(weights, reads)
    made = low_rank(weights, reads, WINDOW)
    captured = model.activations(token_ids[:, :WINDOW], [reads, writes])
    found, wanted = made.decode(made.pre_activations(captured[reads])), captured[writes]
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-5
    # On longer ones it is not: the window is real.
    longer = model.activations(token_ids, [reads, writes])
    found = low_rank(dataclasses.replace(weights, sliding_window=None), reads)
    found, wanted = found.decode(found.pre_activations(longer[reads])), longer[writes]
    assert float((found - wanted).norm() / wanted.norm()) > 1e-3


@pytest.mark.parametrize(("name", "reason"), UNLIKE.items())
def test_an_attention_that_is_more_than_heads_is_refused_by_name(
    name: str, reason: str, language_model: Callable[[str, str], LanguageModel], model_directory: Callable[[str], Path]
) -> None:
    where, said = (
        f"blocks.{LAYER}.ln1.hook_out",
        saying(name, CONFIGURATIONS[name][0], reason, "initializer.initialize_lorsa_with_mhsa off"),
    )
    with pytest.raises(DataError, match=said):
        language_model(name, "huggingface").layer_attention(LAYER, where)
    with pytest.raises(DataError, match=said):  # known from the configuration, before any weight is read
        load_attention_form(model_directory(name), None, LAYER)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["huggingface", "transformer_lens"])
@pytest.mark.parametrize("layer", [0, 1])
def test_before_the_norm_that_follows_it_attention_is_its_heads(
    layer: int, backend: str, language_model: Callable[[str, str], LanguageModel], token_ids: torch.Tensor
) -> None:
    """Gemma 3: gains 1 + w of queries and keys, a scale of its own, other rotary frequencies in each kind of layer."""
    model = language_model("gemma3", backend)
    reads, writes = f"blocks.{layer}.ln1.hook_normalized", f"blocks.{layer}.attn.hook_out"
    weights = model.layer_attention(layer, reads, writes)
    assert (weights.rotary_base, weights.rotary_scale) == ((50.0, 1.0), (200.0, 4.0))[layer]
    assert weights.sliding_window == (WINDOW, None)[layer]
    short = token_ids[:, :WINDOW]
    made = low_rank(weights, reads, WINDOW)
    captured = model.activations(short, [reads, writes])
    found, wanted = made.decode(made.pre_activations(captured[reads])), captured[writes]
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-5


def test_scores_that_are_squashed_are_refused(language_model: Callable[[str, str], LanguageModel]) -> None:
    weights = language_model("gemma2", "huggingface").layer_attention(1, "blocks.1.ln1.hook_out", "blocks.1.attn.hook_out")
    with pytest.raises(ParamsError, match=saying("initializer.initialize_lorsa_with_mhsa", "attn_logit_softcapping is 2.0")):
        low_rank(weights, "blocks.1.ln1.hook_out")


def test_linear_attention_is_refused_as_such(language_model: Callable[[str, str], LanguageModel]) -> None:
    with pytest.raises(DataError, match=saying("qwen3_5_text", "a recurrence without scores")):
        language_model("qwen3_5", "huggingface").layer_attention(0, "blocks.0.ln1.hook_out")


def test_a_scale_that_transformer_lens_ignores_is_refused(language_model: Callable[[str, str], LanguageModel]) -> None:
    with pytest.raises(DataError, match=r"scale_attn_weights is false.*set model\.backend to huggingface"):
        language_model("gpt2_unscaled", "transformer_lens")


def test_layers_without_the_window_have_none(language_model: Callable[[str, str], LanguageModel]) -> None:
    model = language_model("qwen2_window", "huggingface")
    assert model.layer_attention(0, "blocks.0.ln1.hook_out").sliding_window is None
    assert language_model("llama", "huggingface").layer_attention(0, "blocks.0.ln1.hook_out").sliding_window is None


@pytest.mark.parametrize(("name", "rope_type"), [("llama_yarn", "yarn"), ("llama_dynamic", "dynamic")])
def test_rotary_embeddings_of_other_forms_are_refused_by_name(
    name: str, rope_type: str, language_model: Callable[[str, str], LanguageModel]
) -> None:
    reads = f"blocks.{LAYER}.ln1.hook_out"
    weights = language_model(name, "huggingface").layer_attention(LAYER, reads)
    with pytest.raises(ParamsError, match=f"positional_embedding_type: the model's rope_type is {rope_type}"):
        low_rank(weights, reads)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt_neox", "llama"])
def test_tokens_that_are_not_trained_on_are_read_as_the_model_reads_them(
    name: str, language_model: Callable[[str, str], LanguageModel], token_ids: torch.Tensor
) -> None:
    """A beginning-of-text token and an end-of-text token inside: the mask leaves out their features, not their keys."""
    model = language_model(name, "huggingface")
    reads, writes = f"blocks.{LAYER}.ln1.hook_out", f"blocks.{LAYER}.hook_attn_out"
    tokens = token_ids.clamp_min(1)
    tokens[:, 0] = tokens[:, 7] = 0  # bos and eos of these models
    mask = tokens != 0
    made = low_rank(model.layer_attention(LAYER, reads), reads)
    fields: dict[str, Any] = {"norm_activation": "inference", "folded": True, "sparsity_include_decoder_norm": False}
    raw = RawDictionary(made.rebuilt(made.state_dict(), **fields))
    captured = model.activations(tokens, [reads, writes])
    codes = raw.dictionary.codes(*raw.encoder_input({reads: captured[reads]}, mask))
    found, wanted = raw.dictionary.decode(codes.h)[mask], captured[writes][mask]
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-5
    assert (codes.f[~mask] == 0).all()


def test_what_attention_is_no_function_of_is_refused(language_model: Callable[[str, str], LanguageModel]) -> None:
    model = language_model("gpt_neox", "huggingface")
    with pytest.raises(DataError, match="no function of the activation"):
        model.layer_attention(LAYER, f"blocks.{LAYER}.hook_resid_pre")
    with pytest.raises(DataError, match="layer 9 does not exist"):
        model.layer_attention(9, "blocks.9.ln1.hook_out")
