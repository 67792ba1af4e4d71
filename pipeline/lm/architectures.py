"""What is declared of a language-model family (families.py has the declarations): the modules that its blocks have.

A declaration so says which hook points exist: a family without a norm before attention has no ln1, one with a norm after it
has an ln1_post. What is added to the residual stream is the output of the last of them. What a configuration changes in the
blocks, `by_layer` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline.hook_keys import SITES

if TYPE_CHECKING:
    from torch import nn

STACKED, GROUPED = "stacked", "grouped"


@dataclass(frozen=True)
class Architecture:
    """Module names of one family; names inside a block are paths from it, None is what its blocks do not have.

    Attributes:
        name: `model_type` of config.json.
        blocks: path of the list of blocks from the model with its head.
        final_norm: path of the norm before the unembedding; None: there is none.
        attention, mlp: the modules that compute what is added to the residual stream; mlp None: the MLP's projections lie
            in the block itself.
        ln1, ln2: the norms of what attention and the MLP read.
        gain_offset: the norms multiply by (gain_offset + weight).
        ln1_post, ln2_post: the norms of what attention and the MLP give, before it is added.
        parallel: attention and MLP read the same residual stream, so that there is none between them.
        qkv: the projections to queries, keys and values: three modules, or one that gives all of them.
        qkv_layout: how one module gives them: stacked (all queries, all keys, all values) or grouped (of each group of
            heads that share a key: its queries, its key, its value).
        key_heads: how many heads keys and values have; None: the configuration's num_key_value_heads, or as many as queries.
        gated: of each head, the projection to queries gives a gate of its output too, behind the query.
        attention_out: attention's output projection; it reads the heads' outputs.
        mlp_in: the MLP's input projections: one, or of a gated MLP the gate's and the other, or one that gives both
            (`mlp_fused`).
        mlp_fused: the one input projection gives the gate's half and the other half.
        mlp_out: the MLP's output projection.
        embedding: path of what gives hook_embed from the model with its head; None: the model's input embeddings.
        by_layer: (configuration, block) -> the fields that differ there; None: all blocks of all models are as declared.
        by_model: configuration -> the fields that differ in a model; None: none do.
        adds_residual: attention and MLP are given the residual stream and give the sum with it: what they add is the output
            of their output projections.
        overwrites: the block goes on to write into what its parts give (`mlp_output += attention_output`).
        activation: the MLP's activation function in the block, where mlp is None.
        final_projection: path of a projection between the final norm and the unembedding.
        logit_scale: the key of the configuration by which logits are multiplied; None: they are not.
        text_config: the key under which a multimodal configuration has the text model's, which is then all that is loaded.
        renamed: {pattern of tensor names in the files: what they begin with in the text model}.
        unlike_lorsa: what its attention has that low-rank sparse attention has not, for the refusal to start from it.
        refused: configuration -> what keeps its hook points from meaning what they say; None: nothing.
        not_eager: what transformers computes wrongly in eager attention; None: nothing.
        bridge_refused: configuration -> what TransformerLens does not compute as the model does; None: nothing.
        bridge_names: {site: its name in TransformerLens's block}, where that is another.
    """

    name: str
    blocks: str
    final_norm: str | None
    attention: str
    mlp: str | None
    ln1: str | None
    ln2: str | None
    gain_offset: float = 0.0
    ln1_post: str | None = None
    ln2_post: str | None = None
    parallel: bool = False
    qkv: tuple[str, ...] = ()
    qkv_layout: str = STACKED
    key_heads: int | None = None
    gated: bool = False
    attention_out: str | None = None
    mlp_in: tuple[str, ...] = ()
    mlp_fused: bool = False
    mlp_out: str | None = None
    embedding: str | None = None
    by_layer: Callable[[Mapping[str, Any], int], Mapping[str, Any]] | None = None
    by_model: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    adds_residual: bool = False
    overwrites: bool = False
    activation: str | None = None
    final_projection: str | None = None
    logit_scale: str | None = None
    text_config: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    unlike_lorsa: str | None = None
    refused: Callable[[Mapping[str, Any]], str | None] | None = None
    not_eager: str | None = None
    bridge_refused: Callable[[Mapping[str, Any]], str | None] | None = None
    bridge_names: Mapping[str, str] = field(default_factory=dict)

    def block_list(self, model: nn.Module) -> list[nn.Module]:
        """The blocks of a loaded model."""
        return list(model.get_submodule(self.blocks).children())

    def of_model(self, config: Mapping[str, Any]) -> Architecture:
        """The declaration of a model with this configuration."""
        return self if self.by_model is None else replace(self, **self.by_model(config))

    def of_block(self, config: Mapping[str, Any], layer: int) -> Architecture:
        """The declaration of one block of a model with this configuration."""
        return self if self.by_layer is None else replace(self, **self.by_layer(config, layer))

    @property
    def adds_attention(self) -> str:
        """The module whose output is what attention adds to the residual stream."""
        return self.ln1_post or self.attention_gives

    @property
    def adds_mlp(self) -> str:
        """The module whose output is what the MLP adds to the residual stream."""
        return self.ln2_post or self.mlp_gives

    @property
    def attention_gives(self) -> str:
        """The module whose output is attention's own, before a norm that follows it."""
        return (self.attention_out if self.adds_residual else None) or self.attention

    @property
    def mlp_gives(self) -> str:
        """The module whose output is the MLP's own, before a norm that follows it."""
        gives = self.mlp_out if self.adds_residual or self.mlp is None else self.mlp
        assert gives is not None
        return gives

    @property
    def mlp_reads(self) -> str:
        """The module that is given what the MLP reads."""
        return self.mlp or self.mlp_in[0]

    @property
    def mlp_norm(self) -> str | None:
        """The norm that the MLP reads, "ln2", or "ln1" where one norm is for both; None: it reads the residual stream."""
        return "ln2" if self.ln2 is not None else "ln1" if self.parallel and self.ln1 is not None else None

    @property
    def reads_middle(self) -> str | None:
        """The module that reads the residual stream between attention and MLP; None where there is none."""
        return None if self.parallel else self.ln2 or self.mlp_reads

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that a block has, in the order of a run."""
        return tuple(site for site in SITES if site in _HAS and _HAS[site](self))


# Site -> whether a block that is so declared has it.
_HAS: Mapping[str, Callable[[Architecture], object]] = {
    "hook_resid_pre": lambda block: True,
    "ln1.hook_normalized": lambda block: block.ln1,
    "ln1.hook_out": lambda block: block.ln1,
    "attn.hook_q": lambda block: block.qkv,
    "attn.hook_k": lambda block: block.qkv,
    "attn.hook_v": lambda block: block.qkv,
    "attn.hook_z": lambda block: block.attention_out,
    "attn.hook_out": lambda block: block.ln1_post,
    "ln1_post.hook_normalized": lambda block: block.ln1_post,
    "ln1_post.hook_out": lambda block: block.ln1_post,
    "hook_attn_out": lambda block: True,
    "hook_resid_mid": lambda block: block.reads_middle,
    "ln2.hook_normalized": lambda block: block.ln2,
    "ln2.hook_out": lambda block: block.ln2,
    "mlp.hook_in": lambda block: True,
    "mlp.hook_pre": lambda block: block.mlp_in,
    "mlp.hook_pre_linear": lambda block: len(block.mlp_in) > 1 or block.mlp_fused,
    "mlp.hook_post": lambda block: block.mlp_out,
    "mlp.hook_out": lambda block: block.ln2_post,
    "ln2_post.hook_normalized": lambda block: block.ln2_post,
    "ln2_post.hook_out": lambda block: block.ln2_post,
    "hook_mlp_out": lambda block: True,
    "hook_resid_post": lambda block: True,
}
