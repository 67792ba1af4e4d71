"""Where each supported model type keeps its blocks: one line per `model_type` of config.json.

A model type belongs here if its blocks read through two norms and add attention and MLP outputs to the residual stream
directly (no norm after them), one after the other or in parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import DataError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """Module names of one family.

    Attributes:
        blocks: path of the list of blocks from the model with its head.
        final_norm: path of the norm before the unembedding.
        attention, mlp, ln1, ln2: names inside a block.
        gain_offset: the norm multiplies by (gain_offset + weight).
    """

    blocks: str
    final_norm: str
    attention: str
    mlp: str
    ln1: str
    ln2: str
    gain_offset: float = 0.0

    def block_list(self, model: nn.Module) -> list[nn.Module]:
        """The blocks of a loaded model."""
        return list(model.get_submodule(self.blocks).children())


_LLAMA = Architecture("model.layers", "model.norm", "self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
ARCHITECTURES: dict[str, Architecture] = {
    "gpt_neox": Architecture(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "mlp", "input_layernorm", "post_attention_layernorm"
    ),
    "gpt2": Architecture("transformer.h", "transformer.ln_f", "attn", "mlp", "ln_1", "ln_2"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": Architecture("model.layers", "model.norm", "self_attn", "mlp", "input_layernorm", "post_attention_layernorm", 1.0),
}


def architecture_of(model_type: str, model: str) -> Architecture:
    """The architecture of a `model_type`.

    Raises:
        DataError: it is not supported; the message lists those that are.
    """
    if model_type not in ARCHITECTURES:
        raise DataError(f"model '{model}': model_type '{model_type}' is not supported; supported: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model_type]
