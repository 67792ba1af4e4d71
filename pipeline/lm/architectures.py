"""Where each supported model type keeps its blocks: one line per `model_type` of config.json.

A model type belongs here if its blocks read through two norms and add attention and MLP outputs to the residual stream
directly (no norm after them), one after the other or in parallel. Another package declares further ones by entry points
(pipeline/registry.py); of a family that transformers does not know itself, the module with the declaration registers the
configuration and the model with AutoConfig and AutoModelForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import DataError, ParamsError
from pipeline.registry import Declarations

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """Module names of one family.

    Attributes:
        name: `model_type` of config.json.
        blocks: path of the list of blocks from the model with its head.
        final_norm: path of the norm before the unembedding.
        attention, mlp, ln1, ln2: names inside a block.
        gain_offset: the norm multiplies by (gain_offset + weight).
    """

    name: str
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


def _llama(name: str, gain_offset: float = 0.0) -> Architecture:
    norms = ("input_layernorm", "post_attention_layernorm")
    return Architecture(name, "model.layers", "model.norm", "self_attn", "mlp", *norms, gain_offset)


_NEOX = ("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "mlp", "input_layernorm", "post_attention_layernorm")
MODEL_FAMILIES: Declarations[Architecture] = Declarations(
    "model_type",
    "scopeline.model_families",
    (
        Architecture("gpt_neox", *_NEOX),
        Architecture("gpt2", "transformer.h", "transformer.ln_f", "attn", "mlp", "ln_1", "ln_2"),
        _llama("llama"),
        _llama("mistral"),
        _llama("qwen2"),
        _llama("qwen3"),
        _llama("gemma", gain_offset=1.0),
    ),
)


def architecture_of(model_type: str, model: str) -> Architecture:
    """The architecture of a `model_type`.

    Raises:
        DataError: it is not supported (the message lists those that are, and the nearest), or another package's declaration
            of it cannot be imported.
    """
    try:
        return MODEL_FAMILIES.get(model_type)
    except ParamsError as error:
        raise DataError([f"model '{model}': {fault}" for fault in error.faults]) from None
