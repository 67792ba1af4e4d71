"""A model's own attention as plain tensors, whatever the family: fused or separate projections, biases, grouped queries.

What a family's attention has beside queries, keys and values (sinks, gates, biases of the scores by position, norms over all
heads at once, a norm of what it gives) is not in these tensors: such an attention is refused with the reason.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.lm.architectures import GROUPED, Architecture
from pipeline.lm.placement import weights_there


@dataclasses.dataclass(frozen=True)
class ByParts:
    """Rotary frequencies scaled by parts (Llama 3.1): see `pipeline.dictionaries.rotary`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    old_context_len: int


@dataclasses.dataclass(frozen=True)
class AttentionWeights:
    """Of one layer, float64; H heads of width d. Keys and values that several heads share are repeated.

    Attributes:
        W_Q, W_K, W_V: [H, D, d], applied as x W to what the attention reads (`ln1.hook_out`).
        b_Q, b_K, b_V: [H, d].
        W_O: [H, d, D]; b_O: [D].
        q_gain, k_gain: [H, d] of a norm of queries and keys, head by head (Qwen3, Gemma 3), or None.
        eps: of that norm.
        normalization: "RMS" or "LN", what that norm is.
        attn_scale: scores are divided by it.
        sliding_window: a token reads so many, itself included; None: all before it.
        softcap: scores are squashed into (-softcap, softcap); None: they are not.
        rotary_dim: dimensions of a head that are rotated; 0: no rotary embedding.
        adjacent_pairs: pairs 2i, 2i + 1 are rotated (GPT-J), not halves.
        rotary_base: of the rotary frequencies.
        rope_type: "default", or the name of a scaling of the frequencies.
        rotary_scale: positions are divided by it (rope_type linear).
        by_parts: of rope_type llama3, or None.
    """

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    b_Q: Tensor
    b_K: Tensor
    b_V: Tensor
    W_O: Tensor
    b_O: Tensor
    q_gain: Tensor | None
    k_gain: Tensor | None
    eps: float
    attn_scale: float
    sliding_window: int | None
    softcap: float | None
    rotary_dim: int
    rotary_base: float
    rope_type: str
    rotary_scale: float = 1.0
    by_parts: ByParts | None = None
    adjacent_pairs: bool = False
    normalization: str = "RMS"

    @property
    def n_heads(self) -> int:
        """H."""
        return len(self.W_Q)

    @property
    def d_head(self) -> int:
        """d."""
        return self.W_Q.shape[-1]

    def from_normalized(self, gain: Tensor | None, bias: Tensor | None) -> AttentionWeights:
        """The same function of `ln1.hook_normalized`: W <- diag(g) W, b <- b + c W."""
        c = torch.zeros(self.W_Q.shape[1], dtype=torch.float64) if bias is None else bias.double().cpu()
        g = torch.ones_like(c) if gain is None else gain.double().cpu()

        def offset(b: Tensor, W: Tensor) -> Tensor:
            return b + torch.einsum("d,hde->he", c, W)

        return dataclasses.replace(
            self,
            b_Q=offset(self.b_Q, self.W_Q),
            b_K=offset(self.b_K, self.W_K),
            b_V=offset(self.b_V, self.W_V),
            W_Q=self.W_Q * g[:, None],
            W_K=self.W_K * g[:, None],
            W_V=self.W_V * g[:, None],
        )


@torch.no_grad()
def attention_weights(module: nn.Module, config: Any, block: Architecture, model: str, own: bool = False) -> AttentionWeights:
    """Read an attention module of transformers.

    Args:
        module: of one block.
        config: the model's.
        block: the names of the block's modules.
        model: its name, for errors.
        own: what attention gives is wanted, before a norm that may follow it.

    Raises:
        DataError: this attention is more than the tensors here say, or of none of the forms that can be read.
    """
    n_heads, d_model = int(config.num_attention_heads), int(config.hidden_size)
    d_head = int(getattr(config, "head_dim", None) or d_model // n_heads)
    layer_type = _layer_type(module, config)
    try:
        _check_readable(block, own)
        with weights_there(module):
            (W_Q, W_K, W_V), (b_Q, b_K, b_V), out = _projections(module, block, n_heads, d_head)
            W_O, b_O = _weight(out), _bias(out, d_model)
            q_norm, k_norm = (_query_key_norm(module, block, name, n_heads, d_head) for name in "qk")
    except _Unreadable as reason:
        raise DataError(
            f"model '{model}': the attention of its family, {block.name}, cannot be taken over as weights: {reason}; "
            "switch initializer.initialize_lorsa_with_mhsa off"
        ) from None
    return AttentionWeights(
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        b_Q=b_Q,
        b_K=b_K,
        b_V=b_V,
        W_O=W_O.T.reshape(n_heads, d_head, d_model),
        b_O=b_O,
        q_gain=q_norm[0],
        k_gain=k_norm[0],
        eps=q_norm[1],
        normalization=q_norm[2],
        attn_scale=_attn_scale(module, config, d_head),
        sliding_window=_sliding_window(module, config),
        softcap=getattr(config, "attn_logit_softcapping", None),
        **_rotary(config, d_head, layer_type),
    )


class _Unreadable(Exception):
    """Why an attention cannot be taken over."""


def _check_readable(block: Architecture, own: bool) -> None:
    if block.unlike_lorsa is not None:
        raise _Unreadable(block.unlike_lorsa)
    if block.ln1 is None:
        raise _Unreadable("there is no norm before it that a dictionary could read")
    if block.ln1_post is not None and not own:
        before = "what is before it is dictionary.hook_point_out blocks.L.attn.hook_out"
        raise _Unreadable(f"a norm stands between what its heads give and what is added to the residual stream ({before})")


def _projections(
    module: nn.Module, block: Architecture, n_heads: int, d_head: int
) -> tuple[list[Tensor], list[Tensor], nn.Module]:
    """Weights [H, D, d] and biases [H, d] of queries, keys and values, and the module of the output."""
    if not block.qkv or block.attention_out is None:
        raise _Unreadable("its family declares no projections to queries, keys and values")
    parts = [_inside(module, block, path) for path in block.qkv]
    weights = [_weight(part) for part in parts]
    biases = [_bias(part, len(weight)) for part, weight in zip(parts, weights, strict=True)]
    if len(parts) == 1:
        weights, biases = (_taken_apart(rows[0], n_heads, d_head, block.qkv_layout) for rows in (weights, biases))
    if len(weights[0]) != n_heads * d_head:
        raise _Unreadable(f"its queries have {len(weights[0])} rows, not {d_head} for each of {n_heads} heads")
    by_head = [weight.unflatten(0, (-1, d_head)).transpose(1, 2).contiguous() for weight in weights]
    offsets = [bias.unflatten(0, (-1, d_head)) for bias in biases]
    return *([_repeated(t, n_heads) for t in per_head] for per_head in (by_head, offsets)), _inside(  # type: ignore[return-value]
        module, block, block.attention_out
    )


def _inside(module: nn.Module, block: Architecture, path: str) -> nn.Module:
    """A part of the attention module, whose path is from the block."""
    return module.get_submodule(path.removeprefix(f"{block.attention}."))


def _taken_apart(rows: Tensor, n_heads: int, d_head: int, layout: str) -> list[Tensor]:
    """Queries, keys and values of the rows of one projection, [(H + 2 K) d, ...] -> three [n d, ...] of whole heads."""
    n_shared = (len(rows) // d_head - n_heads) // 2
    if layout == GROUPED:
        groups = rows.unflatten(0, (n_shared, -1, d_head))
        return [part.flatten(0, 2) for part in (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])]
    return list(rows.split([n * d_head for n in (n_heads, n_shared, n_shared)]))


def _repeated(by_head: Tensor, n_heads: int) -> Tensor:
    """[K, ...] of keys or values that several heads share -> [H, ...]."""
    return by_head.repeat_interleave(n_heads // len(by_head), dim=0)


def _query_key_norm(
    module: nn.Module, block: Architecture, of: str, n_heads: int, d_head: int
) -> tuple[Tensor | None, float, str]:
    """Gain [H, d], epsilon and kind of the norm of queries ("q") or keys ("k")."""
    parts = dict(module.named_children())
    norm = parts.get(f"{of}_norm") or parts.get(f"{of}_layernorm")
    if norm is None:
        return None, 1e-6, "RMS"
    each: Any = getattr(norm, "norms", [norm])  # one for each head, or one for all of them
    norms: list[Any] = list(each)
    gains = torch.stack([_plain(one.get_parameter("weight")) + block.gain_offset for one in norms])
    if gains.shape[-1] != d_head:
        raise _Unreadable("its queries and keys are normed over all heads at once")
    eps = getattr(norms[0], "variance_epsilon", None)
    kind = "LN" if isinstance(norms[0], nn.LayerNorm) else "RMS"
    return _repeated(gains, n_heads).clone(), float(norms[0].eps if eps is None else eps), kind


def _attn_scale(module: nn.Module, config: Any, d_head: int) -> float:
    """What scores are divided by: the root of d_head, unless the configuration says otherwise."""
    if hasattr(config, "scale_attn_by_inverse_layer_idx"):  # gpt2
        scale = math.sqrt(d_head) if config.scale_attn_weights else 1.0
        return scale * (int(module.layer_idx) + 1) if config.scale_attn_by_inverse_layer_idx else scale  # type: ignore[arg-type]
    scaling = getattr(module, "scaling", None)
    return math.sqrt(d_head) if scaling is None else 1.0 / float(scaling)  # type: ignore[arg-type]


def _layer_type(module: nn.Module, config: Any) -> str | None:
    """What kind of attention this layer has, in a family that lists one for each."""
    types, layer = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    return None if types is None or layer is None else str(types[int(layer)])  # type: ignore[arg-type]


def _sliding_window(module: nn.Module, config: Any) -> int | None:
    """Of this layer: where only some layers have one, the module knows; else (mistral) all have the configuration's."""
    owner: Any = module if hasattr(module, "sliding_window") else config
    found = getattr(owner, "sliding_window", None)
    return None if found is None else int(found)


def _rotary(config: Any, d_head: int, layer_type: str | None) -> dict[str, Any]:
    """The rotary fields of AttentionWeights."""
    if getattr(config, "rotary_dim", None):  # gptj
        return {"rotary_dim": int(config.rotary_dim), "rotary_base": 10000.0, "rope_type": "default", "adjacent_pairs": True}
    rope = dict(getattr(config, "rope_parameters", None) or {})
    rope = dict(rope.get(layer_type, rope) or {})  # gemma3: one for each kind of layer
    if not rope:
        return {"rotary_dim": 0, "rotary_base": 10000.0, "rope_type": "default"}
    rope_type = str(rope.get("rope_type", "default"))
    fields: dict[str, Any] = {
        "rotary_dim": int(d_head * float(rope.get("partial_rotary_factor", 1.0))),
        "rotary_base": float(rope.get("rope_theta", 10000.0)),
        "rope_type": rope_type,
    }
    if rope_type == "linear":
        fields["rotary_scale"] = float(rope["factor"])
    elif rope_type == "llama3":
        low, high, old = (rope[name] for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
        fields["by_parts"] = ByParts(float(rope["factor"]), float(low), float(high), int(old))
    return fields


def _weight(linear: nn.Module) -> Tensor:
    """[out, in] of a Linear, or of a Conv1D, which keeps the transpose; float64 on the CPU."""
    stored = linear.get_parameter("weight")
    if not stored.is_floating_point():
        raise _Unreadable("its weights are quantised (model.quantization); load the model without")
    weight = _plain(stored)
    return weight.T if hasattr(linear, "nf") else weight


def _bias(linear: nn.Module, width: int) -> Tensor:
    bias: Tensor | None = getattr(linear, "bias", None)  # of a module that TransformerLens has wrapped too
    return torch.zeros(width, dtype=torch.float64) if bias is None else _plain(bias)


def _plain(parameter: Tensor) -> Tensor:
    """In float64, on the CPU unless it has a shape only (the meta device)."""
    wide = parameter.detach().double()
    return wide if wide.is_meta else wide.cpu()
