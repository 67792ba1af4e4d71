"""GGUF files of tiny models, written with the package gguf from what save_pretrained wrote.

What llama.cpp's converter does to a Llama's weights is done here by hand: the rows of a head's query and key, two halves in
transformers, are put in pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INNER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """`model.layers.0.mlp.up_proj.weight` -> `blk.0.ffn_up.weight`."""
    module, _, last = name.rpartition(".")
    if module in _OUTER:
        return f"{_OUTER[module]}.{last}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{_INNER[inner]}.{last}"


def in_pairs(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """The rows of each head in the order 0, h/2, 1, h/2 + 1, ..."""
    rows = []
    for head in np.split(weight, n_heads):
        half = len(head) // 2
        for i in range(half):
            rows += [head[i], head[half + i]]
    return np.stack(rows)


def stored(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of a Llama-like directory as a file has them, float32, by their names there."""
    from safetensors.numpy import load_file

    config = json.loads((directory / "config.json").read_text())
    found = {}
    for name, weight in load_file(directory / "model.safetensors").items():
        if config["model_type"] in ("llama", "mistral"):
            if ".q_proj." in name:
                weight = in_pairs(weight, config["num_attention_heads"])
            if ".k_proj." in name:
                weight = in_pairs(weight, config["num_key_value_heads"])
        found[gguf_name(name)] = weight
    return found


def write_gguf(
    directory: Path,
    file: Path,
    *,
    quantized: str | None = None,
    tokenizer: bool = True,
    metadata: Mapping[str, Any] | None = None,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
    architecture: str | None = None,
) -> Path:
    """Write a model as one file.

    Args:
        directory: of save_pretrained: a Llama, Mistral, Qwen 2 or Qwen 3, with its tokenizer.
        file: to write.
        quantized: how tensors are stored whose rows are whole blocks, as Q8_0; None: float32.
        tokenizer: whether the vocabulary goes in.
        metadata: further keys, or others' values; None: the key is left out.
        change: of the tensors.
        architecture: that the file says it is; None: the directory's.
    """
    import gguf

    config = json.loads((directory / "config.json").read_text())
    own = architecture or {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    heads = config["num_attention_heads"]
    values: dict[str, Any] = {
        f"{own}.context_length": config["max_position_embeddings"],
        f"{own}.block_count": config["num_hidden_layers"],
        f"{own}.embedding_length": config["hidden_size"],
        f"{own}.feed_forward_length": config["intermediate_size"],
        f"{own}.attention.head_count": heads,
        f"{own}.attention.head_count_kv": config["num_key_value_heads"],
        f"{own}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{own}.rope.freq_base": config["rope_parameters"]["rope_theta"],
        f"{own}.rope.dimension_count": config.get("head_dim") or config["hidden_size"] // heads,
        f"{own}.vocab_size": config["vocab_size"],
        **(vocabulary(directory) if tokenizer else {}),
        **(metadata or {}),
    }
    writer = gguf.GGUFWriter(str(file), own)
    for key, value in values.items():
        put(writer, key, value)
    tensors = stored(directory)
    change(tensors)
    for name, weight in tensors.items():
        if quantized is not None and weight.ndim == 2 and weight.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType[quantized]
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def put(writer: Any, key: str, value: Any) -> None:
    """A key of the metadata, of the type that llama.cpp gives such a value."""
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def vocabulary(directory: Path, add_bos: bool = False) -> dict[str, Any]:
    """The keys of a byte-level tokenizer."""
    from transformers import AutoTokenizer

    about = json.loads((directory / "tokenizer.json").read_text())["model"]
    loaded = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    tokens = [token for token, _ in sorted(loaded.get_vocab().items(), key=lambda item: item[1])]
    special = set(loaded.all_special_tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in about["merges"]],
        "tokenizer.ggml.bos_token_id": loaded.bos_token_id,
        "tokenizer.ggml.eos_token_id": loaded.eos_token_id,
        "tokenizer.ggml.add_bos_token": add_bos,
    }
