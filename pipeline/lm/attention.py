"""A model's own attention as plain tensors, whatever the family: fused or separate projections, biases, grouped queries."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError


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
        q_gain, k_gain: [H, d] of an RMS norm of queries and keys (Qwen3), or None.
        eps: of that norm.
        attn_scale: scores are divided by it.
        sliding_window: a token reads so many, itself included; None: all before it.
        softcap: scores are squashed into (-softcap, softcap); None: they are not.
        rotary_dim: dimensions of a head that are rotated, in halves; 0: no rotary embedding.
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
def attention_weights(module: nn.Module, config: Any, model: str) -> AttentionWeights:
    """Read an attention module of transformers.

    Args:
        module: with `query_key_value` and `dense` (gpt_neox), `c_attn` and `c_proj` (gpt2) or `q_proj`, `k_proj`, `v_proj`
            and `o_proj` (llama, mistral, qwen, gemma).
        config: the model's.
        model: its name, for errors.

    Raises:
        DataError: none of these forms.
    """
    n_heads, d_model = int(config.num_attention_heads), int(config.hidden_size)
    d_head = int(getattr(config, "head_dim", None) or d_model // n_heads)
    parts = dict(module.named_children())
    (W_Q, W_K, W_V), (b_Q, b_K, b_V), out = _projections(parts, n_heads, d_head, d_model, model)
    W_O = _weight(out, transposed="c_proj" in parts).T.reshape(n_heads, d_head, d_model)
    return AttentionWeights(
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        b_Q=b_Q,
        b_K=b_K,
        b_V=b_V,
        W_O=W_O,
        b_O=_bias(out, d_model),
        q_gain=_gain(parts.get("q_norm"), n_heads),
        k_gain=_gain(parts.get("k_norm"), n_heads),
        eps=float(getattr(config, "rms_norm_eps", 1e-6)),
        attn_scale=_attn_scale(module, config, d_head),
        sliding_window=_sliding_window(module, config),
        softcap=getattr(config, "attn_logit_softcapping", None),
        **_rotary(config, d_head, partly="query_key_value" in parts),
    )


def _projections(
    parts: dict[str, nn.Module], n_heads: int, d_head: int, d_model: int, model: str
) -> tuple[list[Tensor], list[Tensor], nn.Module]:
    """Weights [H, D, d] and biases [H, d] of queries, keys and values, and the module of the output."""
    if "query_key_value" in parts:
        fused = _weight(parts["query_key_value"]).reshape(n_heads, 3, d_head, d_model)
        biases = _bias(parts["query_key_value"], 3 * n_heads * d_head).reshape(n_heads, 3, d_head)
        qkv, offsets, out = list(fused.unbind(1)), list(biases.unbind(1)), parts["dense"]
    elif "c_attn" in parts:
        fused = _weight(parts["c_attn"], transposed=True).reshape(3, n_heads, d_head, d_model)
        biases = _bias(parts["c_attn"], 3 * d_model).reshape(3, n_heads, d_head)
        qkv, offsets, out = list(fused), list(biases), parts["c_proj"]
    elif {"q_proj", "k_proj", "v_proj", "o_proj"} <= parts.keys():
        qkv, offsets = [], []
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = _weight(parts[name]).unflatten(0, (-1, d_head))
            bias = _bias(parts[name], weight.shape[0] * d_head).reshape(-1, d_head)
            qkv.append(weight.repeat_interleave(n_heads // len(weight), dim=0))
            offsets.append(bias.repeat_interleave(n_heads // len(bias), dim=0))
        out = parts["o_proj"]
    else:
        raise DataError(f"model '{model}': its attention has {', '.join(sorted(parts))}, none of the forms that can be read")
    return [weight.transpose(1, 2).contiguous() for weight in qkv], offsets, out


def _attn_scale(module: nn.Module, config: Any, d_head: int) -> float:
    """What scores are divided by: the root of d_head, unless the configuration says otherwise."""
    if hasattr(config, "scale_attn_weights"):  # gpt2
        scale = math.sqrt(d_head) if config.scale_attn_weights else 1.0
        return scale * (int(module.layer_idx) + 1) if config.scale_attn_by_inverse_layer_idx else scale  # type: ignore[arg-type]
    scaling = getattr(module, "scaling", None)
    return math.sqrt(d_head) if scaling is None else 1.0 / float(scaling)  # type: ignore[arg-type]


def _sliding_window(module: nn.Module, config: Any) -> int | None:
    """Of this layer: where only some layers have one, the module knows; else (mistral) all have the configuration's."""
    owner: Any = module if hasattr(module, "layer_type") else config
    found = getattr(owner, "sliding_window", None)
    return None if found is None else int(found)


def _rotary(config: Any, d_head: int, *, partly: bool) -> dict[str, Any]:
    """The rotary fields of AttentionWeights; `partly`: a family that may rotate a part of each head only."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if not rope:
        return {"rotary_dim": 0, "rotary_base": 10000.0, "rope_type": "default"}
    rope_type = str(rope.get("rope_type", "default"))
    fields: dict[str, Any] = {
        "rotary_dim": int(d_head * float(rope.get("partial_rotary_factor", 1.0))) if partly else d_head,
        "rotary_base": float(rope.get("rope_theta", 10000.0)),
        "rope_type": rope_type,
    }
    if rope_type == "linear":
        fields["rotary_scale"] = float(rope["factor"])
    elif rope_type == "llama3":
        low, high, old = (rope[name] for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
        fields["by_parts"] = ByParts(float(rope["factor"]), float(low), float(high), int(old))
    return fields


def _weight(linear: nn.Module, transposed: bool = False) -> Tensor:
    """[out, in] of a Linear, or (transposed) of a Conv1D, float64 on the CPU."""
    weight = _plain(linear.get_parameter("weight"))
    return weight.T if transposed else weight


def _bias(linear: nn.Module, width: int) -> Tensor:
    bias: Tensor | None = getattr(linear, "bias", None)  # of a module that TransformerLens has wrapped too
    return torch.zeros(width, dtype=torch.float64) if bias is None else _plain(bias)


def _gain(norm: nn.Module | None, n_heads: int) -> Tensor | None:
    return None if norm is None else _plain(norm.get_parameter("weight")).expand(n_heads, -1).clone()


def _plain(parameter: Tensor) -> Tensor:
    """In float64, on the CPU unless it has a shape only (the meta device)."""
    wide = parameter.detach().double()
    return wide if wide.is_meta else wide.cpu()
