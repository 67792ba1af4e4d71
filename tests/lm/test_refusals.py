"""What is said of a model that cannot be used: a table of the messages, each with what is wrong, where, and what to do.

A row makes a tiny model that is refused, asks for it as a stage does, and wants one line with these parts; the last part is
what the user is told to do. What else tests hold of refusals: tests/lm/test_loading.py (names, files, the hub),
tests/lm/test_gguf.py (GGUF files), tests/test_models_fit.py (attention), tests/planning/test_refusals.py (by stage).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.errors import PipelineError
from pipeline.lm.loading import load_attention_form, load_language_model, model_widths
from pipeline.models_fit import check_attention_fits
from tests.messages import says

OTHER = ("give a model of one of these",)
BRIDGE = {"backend": "transformer_lens", "device": "cpu"}


class Refusal(NamedTuple):
    """A row.

    Attributes:
        title: of the fault.
        base: the tiny model that it is made from.
        changes: of its config.json; ... takes a key out.
        ask: what is asked of the directory.
        parts: of the message; "own" is the model's name. The last one is what to do.
    """

    title: str
    base: str
    changes: dict[str, Any]
    ask: Callable[[Path], object]
    parts: tuple[str, ...]


def found(path: Path) -> object:
    """As every stage does first, before weights are read."""
    return model_widths(path)


def bridged(path: Path) -> object:
    """The same, to be run behind TransformerLens."""
    return model_widths(path, backend="transformer_lens").hook_points()


def loaded(path: Path) -> object:
    """With its weights."""
    return load_language_model(path, device="cpu")


def pickled(path: Path) -> object:
    """The same, of weights in another form."""
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    return loaded(path)


def adapter(path: Path) -> object:
    """A directory of peft."""
    (path / "config.json").rename(path / "adapter_config.json")
    return found(path)


def width(hook_point: str) -> Callable[[Path], object]:
    """At a hook point."""
    return lambda path: model_widths(path).hook_width(hook_point)


def with_attention(attention: str) -> Callable[[Path], object]:
    """Computed so."""
    return lambda path: load_language_model(path, device="cpu", dtype="bfloat16", attention=attention)


def attention_of(hook_point_out: str | None = None, **fields: Any) -> Callable[[Path], object]:
    """Of layer 1, for a dictionary that starts from it."""

    def ask(path: Path) -> None:
        form = load_attention_form(path, None, 1, hook_point_out)
        check_attention_fits({**LORSA, **fields}, form)

    return ask


LORSA: dict[str, Any] = {
    "d_qk_head": 8,
    "use_post_qk_ln": False,
    "attn_scale": None,
    "n_qk_heads": 4,
    "n_ctx": 24,
    "positional_embedding_type": "rotary",
    "rotary_dim": 8,
    "rotary_adjacent_pairs": False,
    "rotary_base": 100.0,
    "rotary_scale": 1.0,
    "use_NTK_by_parts_rope": False,
}
OFF = "switch initializer.initialize_lorsa_with_mhsa off"
QUANTISED = {"quant_method": "gptq", "bits": 4}
INNER = {"text_config": {"model_type": "llama"}, "vision_config": {}}

REFUSALS = (
    # Families.
    Refusal("a family that nobody knows", "gpt_neox", {"model_type": "lama", "architectures": ...}, found,
            ("own", "unknown model_type 'lama'", "did you mean 'llama'", "declare its family")),
    Refusal("no family at all", "gpt_neox", {"model_type": ...}, found, ("own", "unknown model_type 'none'", *OTHER)),
    Refusal("an encoder-decoder", "gpt_neox", {"model_type": "t5", "is_encoder_decoder": True}, found,
            ("own", "unknown model_type 't5'", "encoder-decoder", *OTHER)),
    Refusal("an encoder", "gpt_neox", {"model_type": "bert", "architectures": ["BertForMaskedLM"]}, found,
            ("own", "unknown model_type 'bert'", "BertForMaskedLM", "no next token", *OTHER)),
    Refusal("a vision-language model whose text model is known", "gpt_neox", {"model_type": "llava", **INNER}, found,
            ("own", "unknown model_type 'llava'", "more than text", "family llama", "save_pretrained")),
    Refusal("one whose text model is not", "gpt_neox", {"model_type": "llava", "text_config": {"model_type": "lama"}}, found,
            ("own", "more than text", "family lama", "none of them either", *OTHER)),
    Refusal("a model that brings its own code", "gpt_neox", {"model_type": "mine", "auto_map": {"AutoModel": "m.M"}}, found,
            ("own", "unknown model_type 'mine'", "auto_map", "ever run", *OTHER)),
    Refusal("a family of several residual streams", "gpt_neox", {"model_type": "gemma3n"}, found,
            ("own", "gemma3n", "four residual streams", "give a gemma3 model")),
    Refusal("a setting with which there is no residual stream", "bloom", {"apply_residual_connection_post_layernorm": True}, found,
            ("own", "family bloom", "no one residual stream", "give another model")),
    Refusal("a multimodal model without its text model", "gemma3_multimodal", {"text_config": "x"}, found,
            ("config.json", "text_config", "an object", "'x'", "save_pretrained")),
    Refusal("a width that is none", "llama", {"hidden_size": "wide"}, found,
            ("config.json", "hidden_size", "positive integer", "'wide'", "save_pretrained")),
    Refusal("an encoder-decoder behind the bridge", "gpt_neox", {"model_type": "t5", "is_encoder_decoder": True}, bridged,
            ("own", "family t5", "encoder-decoder", "another model")),
    Refusal("an encoder behind the bridge", "gpt_neox", {"model_type": "bert", "architectures": ["BertForMaskedLM"]}, bridged,
            ("own", "family bert", "BertForMaskedLM", "no next token", "another model")),
    Refusal("a family that transformers has not either", "gpt_neox", {"model_type": "mine"}, bridged,
            ("own", "mine", "another model")),
    Refusal("a family that the bridge takes for another", "gpt_neox", {"model_type": "mamba"}, bridged,
            ("own", "TransformerLens", "family mamba", "a model of a declared family")),
    # Weights.
    Refusal("weights that are quantised", "llama", {"quantization_config": QUANTISED}, found,
            ("own", "gptq", "float32", "a GGUF file of it")),
    Refusal("weights that are quantised nobody knows how", "llama", {"quantization_config": "x"}, found,
            ("own", "'x'", "a GGUF file of it")),
    Refusal("rotary frequencies of an unknown kind", "llama", {"rope_parameters": {"rope_type": "mine", "rope_theta": 9.0}}, loaded,
            ("own", "config.json", "rope_type 'mine'", "llama3", "another model")),
    Refusal("rotary frequencies that lack a number", "llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 9.0}}, loaded,
            ("own", "rope_parameters", "factor", "another model")),
    Refusal("an unknown activation function", "llama", {"hidden_act": "mine"}, loaded,
            ("own", "config.json", "hidden_act 'mine'", "gelu", "another model")),
    Refusal("pickled weights", "llama", {}, pickled, ("own", "pytorch_model.bin", "may run code", "save_pretrained")),
    Refusal("an adapter", "llama", {}, adapter, ("own", "adapter_config.json", "merge_and_unload")),
    # Hook points.
    Refusal("no norm before attention", "olmo2", {}, width("blocks.1.ln1.hook_out"),
            ("own", "family olmo2", "no ln1.hook_out", "it has")),
    Refusal("no stream between attention and MLP", "gptj", {}, width("blocks.1.hook_resid_mid"),
            ("own", "family gptj", "no hook_resid_mid", "parallel", "it has")),
    Refusal("no neurons of a mixture of experts", "mixtral", {}, width("blocks.1.mlp.hook_pre"),
            ("own", "family mixtral", "no mlp.hook_pre", "it has")),
    Refusal("no queries of a linear attention", "qwen3_5", {}, width("blocks.0.attn.hook_q"),
            ("own", "no attn.hook_q", "it has")),
    Refusal("a layer that there is not", "llama", {}, width("blocks.9.hook_resid_post"),
            ("own", "layer 9", "3 layers", "did you mean")),
    Refusal("a module that there is not", "llama", {}, width("module:model.layers.1.mlp.dwn_proj:output"),
            ("own", "model.layers.1.mlp.dwn_proj", "did you mean 'module:model.layers.1.mlp.down_proj:output'")),
    Refusal("a module that gives no activation", "llama", {}, width("module:model.rotary_emb:output"),
            ("module:model.rotary_emb:output", "name another")),
    # Back ends and ways to compute attention.
    Refusal("a model that the bridge computes otherwise", "falcon_grouped", {}, lambda path: load_language_model(path, **BRIDGE),
            ("own", "TransformerLens", "new_decoder_architecture", "set model.backend to huggingface")),
    Refusal("an attention that transformers computes wrongly", "falcon_alibi", {}, with_attention("eager"),
            ("model.attention", "own", "alibi", "write auto")),
    Refusal("an attention that the family has not", "gpt_oss", {}, with_attention("sdpa"),
            ("model.attention", "own", "gpt_oss", "sdpa", "write auto")),
    Refusal("an attention that the machine has not", "llama", {}, with_attention("flash_attention_2"),
            ("model.attention", "CUDA", "cpu", "write auto")),
    # A start from the model's attention.
    Refusal("a norm after attention", "gemma3", {}, attention_of(), ("own", "gemma3_text", "blocks.L.attn.hook_out", OFF)),
    Refusal("a soft cap", "gemma2", {}, attention_of("blocks.1.attn.hook_out"), ("attn_logit_softcapping", "2.0", OFF)),
    Refusal("sinks", "gpt_oss", {}, attention_of(), ("own", "gpt_oss", "sinks", OFF)),
    Refusal("alibi", "bloom", {}, attention_of(), ("own", "bloom", "alibi", OFF)),
    Refusal("gated heads", "qwen3_5", {}, attention_of(), ("own", "qwen3_5_text", "gated", OFF)),
    Refusal("attention without a norm before it", "olmo2", {}, attention_of(), ("own", "olmo2", "no norm before", OFF)),
    Refusal("frequencies that lorsa cannot have", "llama_yarn", {}, attention_of(), ("yarn", "default, linear, llama3", OFF)),
    Refusal("a window shorter than the contexts", "mistral", {"sliding_window": 8}, attention_of(),
            ("dictionary.n_ctx", "8", "24", "activations.context_size", OFF)),
)  # fmt: skip


def model_of(row: Refusal, base: Path, path: Path) -> Path:
    """The model that is refused."""
    shutil.copytree(base, path)
    config = json.loads((path / "config.json").read_text())
    changed = {key: value for key, value in {**config, **row.changes}.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(changed))
    return path


@pytest.mark.parametrize("row", REFUSALS, ids=[row.title for row in REFUSALS])
def test_a_refusal_says_what_is_missing_and_what_to_do(
    row: Refusal, model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(PipelineError) as caught:
        row.ask(model_of(row, model_directory(row.base), tmp_path / "own"))
    message = "; ".join(caught.value.faults)
    assert "\n" not in message
    says(message, *row.parts)
