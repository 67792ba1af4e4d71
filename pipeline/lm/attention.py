"""A model's own attention as plain tensors, whatever the family: fused or separate projections, biases, grouped queries."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError


@dataclasses.dataclass(frozen=True)
class AttentionWeights:
    """Of one layer, float64; H heads of width d. Keys and values that several heads share are repeated.

    Attributes:
        W_Q, W_K, W_V: [H, D, d], applied as x W to what the attention reads (`ln1.hook_out`).
        b_Q, b_K, b_V: [H, d].
        W_O: [H, d, D]; b_O: [D].
        q_gain, k_gain: [H, d] of an RMS norm of queries and keys (Qwen3), or None.
        eps: of that norm.
        rotary_dim: dimensions of a head that are rotated, in halves; 0: no rotary embedding.
        rotary_base: of the rotary frequencies.
        rope_type: "default", or the name of a scaling of the frequencies.
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
    rotary_dim: int
    rotary_base: float
    rope_type: str

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
    gains = [_gain(parts.get(name), n_heads) for name in ("q_norm", "k_norm")]
    W_O = _weight(out, transposed="c_proj" in parts).T.reshape(n_heads, d_head, d_model)
    rope = dict(getattr(config, "rope_parameters", None) or {})
    rotated = round(d_head * float(rope.get("partial_rotary_factor", 1.0))) if rope else 0
    W_Q, W_K, W_V = (weight.transpose(1, 2).contiguous() for weight in qkv)
    b_Q, b_K, b_V = offsets
    return AttentionWeights(
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        b_Q=b_Q,
        b_K=b_K,
        b_V=b_V,
        W_O=W_O,
        b_O=_bias(out, d_model),
        q_gain=gains[0],
        k_gain=gains[1],
        eps=float(getattr(config, "rms_norm_eps", 1e-6)),
        rotary_dim=rotated,
        rotary_base=float(rope.get("rope_theta", 10000.0)),
        rope_type=str(rope.get("rope_type", "default")),
    )


def _weight(linear: nn.Module, transposed: bool = False) -> Tensor:
    """[out, in] of a Linear, or (transposed) of a Conv1D, float64 on the CPU."""
    weight = linear.get_parameter("weight").detach().double().cpu()
    return weight.T if transposed else weight


def _bias(linear: nn.Module, width: int) -> Tensor:
    bias = dict(linear.named_parameters()).get("bias")
    return torch.zeros(width, dtype=torch.float64) if bias is None else bias.detach().double().cpu()


def _gain(norm: nn.Module | None, n_heads: int) -> Tensor | None:
    return None if norm is None else norm.get_parameter("weight").detach().double().cpu().expand(n_heads, -1).clone()
