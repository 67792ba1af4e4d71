"""Where each supported model type keeps its blocks: one line per `model_type` of config.json.

A declaration names the modules that a block has, and so says which hook points exist: a family without a norm before
attention has no ln1, one with a norm after it has an ln1_post. What is added to the residual stream is the output of the
last of them. Another package declares further families by entry points (pipeline/registry.py); of a family that
transformers does not know itself, the module with the declaration registers the configuration and the model with AutoConfig
and AutoModelForCausalLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, ParamsError
from pipeline.hook_keys import SITES
from pipeline.registry import Declarations

if TYPE_CHECKING:
    from torch import nn

STACKED, GROUPED = "stacked", "grouped"


@dataclass(frozen=True)
class Architecture:
    """Module names of one family; names inside a block are paths from it, None is what its blocks do not have.

    Attributes:
        name: `model_type` of config.json.
        blocks: path of the list of blocks from the model with its head.
        final_norm: path of the norm before the unembedding.
        attention, mlp: the modules that compute what is added to the residual stream.
        ln1, ln2: the norms of what attention and the MLP read.
        gain_offset: the norms multiply by (gain_offset + weight).
        ln1_post, ln2_post: the norms of what attention and the MLP give, before it is added.
        parallel: attention and MLP read the same residual stream, so that there is none between them.
        qkv: the projections to queries, keys and values: three modules, or one that gives all of them.
        qkv_layout: how one module gives them: stacked (all queries, all keys, all values) or grouped (of each group of
            heads that share a key: its queries, its key, its value).
        attention_out: attention's output projection; it reads the heads' outputs.
        mlp_in: the MLP's input projections: one, or of a gated MLP the gate's and the other, or one that gives both
            (`mlp_fused`).
        mlp_fused: the one input projection gives the gate's half and the other half.
        mlp_out: the MLP's output projection.
        embedding: path of what gives hook_embed from the model with its head; None: the model's input embeddings.
        by_layer: (configuration, block) -> the fields that differ there; None: all blocks of all models are as declared.
    """

    name: str
    blocks: str
    final_norm: str
    attention: str
    mlp: str
    ln1: str | None
    ln2: str | None
    gain_offset: float = 0.0
    ln1_post: str | None = None
    ln2_post: str | None = None
    parallel: bool = False
    qkv: tuple[str, ...] = ()
    qkv_layout: str = STACKED
    attention_out: str | None = None
    mlp_in: tuple[str, ...] = ()
    mlp_fused: bool = False
    mlp_out: str | None = None
    embedding: str | None = None
    by_layer: Callable[[Mapping[str, Any], int], Mapping[str, Any]] | None = None

    def block_list(self, model: nn.Module) -> list[nn.Module]:
        """The blocks of a loaded model."""
        return list(model.get_submodule(self.blocks).children())

    def of_block(self, config: Mapping[str, Any], layer: int) -> Architecture:
        """The declaration of one block of a model with this configuration."""
        return self if self.by_layer is None else replace(self, **self.by_layer(config, layer))

    @property
    def adds_attention(self) -> str:
        """The module whose output is what attention adds to the residual stream."""
        return self.ln1_post or self.attention

    @property
    def adds_mlp(self) -> str:
        """The module whose output is what the MLP adds to the residual stream."""
        return self.ln2_post or self.mlp

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that a block has, in the order of a run."""
        return tuple(site for site in SITES if site in _HAS and _HAS[site](self))


# Site -> whether a block that is so declared has it.
_HAS: Mapping[str, Callable[[Architecture], object]] = {
    "hook_resid_pre": lambda block: True,
    "ln1.hook_normalized": lambda block: block.ln1,
    "ln1.hook_out": lambda block: block.ln1,
    "ln1_post.hook_normalized": lambda block: block.ln1_post,
    "ln1_post.hook_out": lambda block: block.ln1_post,
    "hook_attn_out": lambda block: True,
    "ln2.hook_normalized": lambda block: block.ln2,
    "ln2.hook_out": lambda block: block.ln2,
    "ln2_post.hook_normalized": lambda block: block.ln2_post,
    "ln2_post.hook_out": lambda block: block.ln2_post,
    "hook_mlp_out": lambda block: True,
    "hook_resid_post": lambda block: True,
}


def _projections(attention: str, mlp: str = "mlp") -> dict[str, Any]:
    """Separate projections and a gated MLP, as Llama has them."""
    return {
        "qkv": tuple(f"{attention}.{name}_proj" for name in "qkv"),
        "attention_out": f"{attention}.o_proj",
        "mlp_in": (f"{mlp}.gate_proj", f"{mlp}.up_proj"),
        "mlp_out": f"{mlp}.down_proj",
    }


def _llama(name: str, gain_offset: float = 0.0) -> Architecture:
    norms = ("input_layernorm", "post_attention_layernorm")
    names = (name, "model.layers", "model.norm", "self_attn", "mlp", *norms, gain_offset)
    return Architecture(*names, **_projections("self_attn"))


def _parallel_unless_false(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    return {"parallel": config.get("use_parallel_residual", True)}


_NEOX = ("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "mlp", "input_layernorm", "post_attention_layernorm")
MODEL_FAMILIES: Declarations[Architecture] = Declarations(
    "model_type",
    "scopeline.model_families",
    (
        Architecture(
            "gpt_neox",
            *_NEOX,
            qkv=("attention.query_key_value",),
            qkv_layout=GROUPED,
            attention_out="attention.dense",
            mlp_in=("mlp.dense_h_to_4h",),
            mlp_out="mlp.dense_4h_to_h",
            by_layer=_parallel_unless_false,
        ),
        Architecture(
            "gpt2",
            *("transformer.h", "transformer.ln_f", "attn", "mlp", "ln_1", "ln_2"),
            qkv=("attn.c_attn",),
            attention_out="attn.c_proj",
            mlp_in=("mlp.c_fc",),
            mlp_out="mlp.c_proj",
        ),
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
