"""Small configurations of the families that are not built like Llama or GPT-2: name -> (model_type, configuration).

A name after an underscore is a variant: what a family's configuration can change in its blocks. Epsilons differ from every
library's default, so that a wrong one would show; windows are shorter than the contexts of the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.lm.quiet import quiet
from pipeline.seeding import generator

D, LAYERS, VOCAB, CONTEXT, WINDOW = 32, 3, 300, 24, 8
GQA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
_RMS = {**GQA, "rms_norm_eps": 1e-3}
_HEADS = {**_RMS, "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
_CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 200.0},
}
_GEMMA = {**_HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 12}
_GEMMA3 = {**_GEMMA, "layer_types": _SLIDING, "rope_parameters": _ROPES, "pad_token_id": 0}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_LN = {"num_attention_heads": 4, "layer_norm_epsilon": 1e-3}
_OPT = {"num_attention_heads": 4, "ffn_dim": 48, "pad_token_id": 1}
_VISION = {"hidden_size": 16, "intermediate_size": 16}
_SIGLIP = {**_VISION, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
_IMAGE_TOKENS = {"image_token_index": 299, "boi_token_index": 298, "eoi_token_index": 297, "mm_tokens_per_image": 4}
_QWEN_VISION = {**_VISION, "depth": 1, "num_heads": 2, "out_hidden_size": D, "num_position_embeddings": 16}
_STABLELM = {**GQA, "layer_norm_eps": 1e-3}

# What TransformerLens does not run as transformers does, with a part of what is said of it.
NOT_BRIDGED = {"falcon_grouped": "new_decoder_architecture", "falcon_alibi": "alibi", "opt_projected": "do_layer_norm_before"}

FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {**_GEMMA, **_CAPPED}),
    "gemma3": ("gemma3_text", _GEMMA3),
    "gemma3_multimodal": ("gemma3", {"text_config": _GEMMA3, "vision_config": _SIGLIP, **_IMAGE_TOKENS}),
    "qwen3_moe": ("qwen3_moe", {**_HEADS, **_EXPERTS, "mlp_only_layers": [2], "norm_topk_prob": True}),
    "qwen3_5": ("qwen3_5_text", {**_HEADS, **_LINEAR}),
    "qwen3_5_multimodal": ("qwen3_5", {"text_config": {**_HEADS, **_LINEAR}, "vision_config": _QWEN_VISION}),
    "qwen3_next": ("qwen3_next", {**_HEADS, **_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 24}),
    "mixtral": ("mixtral", {**_RMS, **_LOCAL_EXPERTS}),
    "olmo2": ("olmo2", {**_RMS, "pad_token_id": 0}),
    "olmo3": ("olmo3", {**_RMS, "pad_token_id": 0, "sliding_window": WINDOW, "layer_types": _SLIDING}),
    "phi3": ("phi3", {**_RMS, "pad_token_id": 0}),
    "gpt_oss": ("gpt_oss", {**_HEADS, **_LOCAL_EXPERTS, "sliding_window": WINDOW, "pad_token_id": 0}),
    "gptj": ("gptj", {**_LN, "rotary_dim": 4}),
    "opt": ("opt", {**_OPT, "word_embed_proj_dim": D}),
    "opt_projected": ("opt", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "bloom": ("bloom", {**_LN, "pad_token_id": 3}),
    "falcon": ("falcon", _LN),
    "falcon_grouped": ("falcon", {**_LN, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": ("falcon", {**_LN, "parallel_attn": False, "multi_query": False, "alibi": True, "bias": True}),
    "stablelm": ("stablelm", _STABLELM),
    "stablelm_parallel": ("stablelm", {**_STABLELM, "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
}


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the log"] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def write_model(directory: Path, model_type: str, options: dict[str, Any]) -> None:
    """A tiny random model and its tokenizer, as save_pretrained writes them."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    sizes = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": LAYERS, "max_position_embeddings": CONTEXT}
    own = {**sizes, "bos_token_id": 0, "eos_token_id": 0}
    nested = "text_config" in options
    options = {**options, "text_config": {**own, **options["text_config"]}} if nested else {**own, **options}
    with quiet():
        config = AutoConfig.for_model(model_type, **options)
        model = (AutoModelForImageTextToText if nested else AutoModelForCausalLM).from_config(config)
        draw = generator(0, "tests", model_type)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = 0.15 * torch.randn(parameter.shape, generator=draw)
                parameter.copy_(parameter + noise if "norm" in name or ".ln_" in name else noise)  # norms begin as the identity
        model.save_pretrained(directory)
        _tokenizer().save_pretrained(directory)
