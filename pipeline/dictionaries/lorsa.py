"""Low-rank sparse attention (SPEC 1.3): sparse rank-1 output-value heads on shared query-key heads.

    A = causal softmax( q k^T / attn_scale )         Q query-key heads, rotary embedding, optional q and k norm
    v_i = x . w_V,i + b_V,i;   h_i[q] = sum_k A^{g(i)}[q, k] v_i[k];   n_i = ||w_O,i||;   x_hat = f w_O + b_D

Reads an attention's input and writes its output, on whole contexts [b, S, D]. Head i uses query-key head i // (F / Q).
Source: He et al. 2025 (arXiv 2504.20938).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.dictionaries.base import Dictionary, TokenSources
from pipeline.dictionaries.initial import BaseInitialization, normal_, uniform_
from pipeline.dictionaries.parts import LinearPart
from pipeline.dictionaries.rotary import Rotary
from pipeline.errors import DataError, ParamsError
from pipeline.kernels.entries import Places
from pipeline.kernels.selected import selected_decode
from pipeline.params.dictionary_config import DictionaryConfig

ALL = slice(None)
SOURCE_VALUES = 2**24  # of keys that token_sources gathers at a time: 64 MiB


class LowRankSparseAttention(Dictionary):
    """Parameters W_Q, W_K [Q, D, d]; b_Q, b_K [Q, d]; w_V [F, D], b_V [F]; w_O [F, D]; b_D [D]; q_gain, k_gain [Q, d]."""

    # Query-key heads are dealt with their features, so that each is whole.
    HEADS: ClassVar[tuple[str, ...]] = ("W_Q", "W_K", "b_Q", "b_K", "q_gain", "k_gain")
    FEATURE_DIMS: ClassVar[Mapping[str, int] | None] = dict.fromkeys((*HEADS, "w_V", "b_V", "w_O"), 0)
    W_Q: nn.Parameter
    W_K: nn.Parameter
    b_Q: nn.Parameter
    b_K: nn.Parameter
    w_V: nn.Parameter
    b_V: nn.Parameter
    w_O: nn.Parameter
    b_D: nn.Parameter
    q_gain: nn.Parameter
    k_gain: nn.Parameter

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        self.rotary = None
        if config.positional_embedding_type == "rotary":
            assert config.rotary_dim is not None  # or the configuration would have been refused
            self.rotary = Rotary(
                config.rotary_dim,
                config.rotary_base,
                config.rotary_adjacent_pairs,
                config.rotary_scale,
                config.use_NTK_by_parts_rope,
                config.NTK_by_parts_factor,
                config.NTK_by_parts_low_freq_factor,
                config.NTK_by_parts_high_freq_factor,
                config.old_context_len,
            )

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (self.n_features,)

    @property
    def per_group(self) -> int:
        """F / Q: features that share a query-key head."""
        return self.config.d_sae // self.config.n_qk_heads

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return 1.0 / (self.config.attn_scale or math.sqrt(self.config.d_qk_head))

    def _parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        c = self.config
        heads: dict[str, tuple[int, ...]] = {
            "W_Q": (c.n_qk_heads, c.d_in, c.d_qk_head),
            "W_K": (c.n_qk_heads, c.d_in, c.d_qk_head),
            "b_Q": (c.n_qk_heads, c.d_qk_head),
            "b_K": (c.n_qk_heads, c.d_qk_head),
            "w_V": (c.d_sae, c.d_in),
            "b_V": (c.d_sae,),
            "w_O": (c.d_sae, c.d_out),
        }
        if c.use_decoder_bias:
            heads["b_D"] = (c.d_out,)
        if c.use_post_qk_ln:
            heads |= {"q_gain": (c.n_qk_heads, c.d_qk_head), "k_gain": (c.n_qk_heads, c.d_qk_head)}
        return heads

    def _draw(self, seed: int, initialization: BaseInitialization) -> None:
        """W_Q, W_K Xavier-uniform, w_V of deviation F^-1/2, w_O of deviation D^-1/2; gains 1, biases 0."""
        for name, parameter in self.named_parameters():
            if all(parameter is not threshold for threshold in self.threshold_parameters()):
                parameter.fill_(1.0 if name.endswith("_gain") else 0.0)
        bound = math.sqrt(6.0 / (self.config.d_in + self.config.d_qk_head))
        uniform_(self.W_Q, bound, seed, "W_Q")
        uniform_(self.W_K, bound, seed, "W_K")
        normal_(self.w_V, self.config.d_sae**-0.5, seed, "w_V")
        normal_(self.w_O, self.config.d_out**-0.5, seed, "w_O")

    def queries_and_keys(self, x: Tensor, heads: slice = ALL) -> tuple[Tensor, Tensor]:
        """Normed and rotated q and k [b, Q, S, d] of x [b, S, D], of all or some heads."""
        self._check_contexts(x)
        q = torch.einsum("bsd,qde->bqse", x, self.W_Q[heads]) + self.b_Q[heads, None]
        k = torch.einsum("bsd,qde->bqse", x, self.W_K[heads]) + self.b_K[heads, None]
        if self.config.use_post_qk_ln:
            q, k = self._normed(q) * self.q_gain[heads, None], self._normed(k) * self.k_gain[heads, None]
        if self.rotary is not None:
            q, k = self.rotary.rotate(q), self.rotary.rotate(k)
        return q, k

    def _check_contexts(self, x: Tensor) -> None:
        """Refuse what is not contexts [b, S, D] of at most n_ctx tokens."""
        if x.ndim != 3:
            raise DataError(f"kind lorsa reads contexts: activations should be [n, T, D], got shape {list(x.shape)}")
        if x.shape[1] > self.config.n_ctx:
            raise ParamsError(f"dictionary.n_ctx: {self.config.n_ctx} is less than the context of {x.shape[1]} tokens")

    def _normed(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        if self.config.normalization_type == "LN":
            wide = wide - wide.mean(-1, keepdim=True)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.eps)).to(x.dtype)

    def attend(self, x: Tensor, values: Tensor, padding: Tensor | None = None, heads: slice = ALL) -> Tensor:
        """sum_k A^g[q, k] values^g[k]: [b, Q, S, W] of x [b, S, D] and values [b, Q, S, W], of all or some heads.

        Padded keys (padding [b, S] True) are left out; a query always sees its own key, so that every row has one. The kernel
        holds no [b, Q, S, S]: on the CPU that takes queries and values of one width, so the narrower ones are widened.
        """
        q, k = self.queries_and_keys(x, heads)
        width = max(q.shape[-1], values.shape[-1])
        q, k, wide = (nn.functional.pad(t, (0, width - t.shape[-1])) for t in (q, k, values))
        allowed = None
        if padding is not None:
            n = x.shape[-2]
            order = torch.arange(n, device=x.device)
            causal = order[:, None] >= order
            allowed = causal & (~padding[:, None, None, :] | torch.eye(n, dtype=torch.bool, device=x.device))
        mixed = nn.functional.scaled_dot_product_attention(
            q, k, wide.to(q.dtype), attn_mask=allowed, is_causal=allowed is None, scale=self.scale
        )
        return mixed[..., : values.shape[-1]]

    def pre_activations(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        self._check_contexts(x)
        v = nn.functional.linear(x, self.w_V, self.b_V)
        grouped = v.unflatten(-1, (-1, self.per_group)).transpose(1, 2)
        return self.attend(x, grouped, padding).transpose(1, 2).flatten(-2)

    def attention(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """A [b, Q, S, S] itself, for analysis only."""
        eye = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
        return self.attend(x, eye.expand(len(x), self.config.n_qk_heads, -1, -1), padding)

    def z_pattern(self, x: Tensor, features: Tensor, padding: Tensor | None = None) -> Tensor:
        """Z_i[q, k] = A[q, k] v_i[k] of chosen features: which earlier tokens a feature reads; its sum over k is h_i[q].

        Args:
            x: [b, S, D].
            features: int64 [n], which.
            padding: bool [b, S], True where there is no token; None: nowhere.

        Returns: [b, n, S, S].
        """
        v = nn.functional.linear(x, self.w_V[features], self.b_V[features])
        return self.attention(x, padding)[:, features // self.per_group] * v.transpose(1, 2)[:, :, None]

    @torch.no_grad()
    def token_sources(self, x: Tensor, padding: Tensor | None = None) -> TokenSources:
        """The rows Z_i[q] of :meth:`z_pattern`, one at a time and so without [S, S]."""
        q, k = self.queries_and_keys(x)
        v = nn.functional.linear(x, self.w_V, self.b_V)
        order = torch.arange(x.shape[-2], device=x.device)

        n_rows = max(1, SOURCE_VALUES // (x.shape[-2] * self.config.d_qk_head))

        def sources(context: Tensor, token: Tensor, feature: Tensor) -> Tensor:
            parts = zip(context.split(n_rows), token.split(n_rows), feature.split(n_rows), strict=True)
            return torch.cat([some_sources(*part) for part in parts])

        def some_sources(context: Tensor, token: Tensor, feature: Tensor) -> Tensor:
            head = feature // self.per_group
            scores = torch.einsum("ne,nke->nk", q[context, head, token], k[context, head]) * self.scale
            allowed = order <= token[:, None]
            if padding is not None:
                allowed &= ~padding[context] | (order == token[:, None])
            return scores.masked_fill(~allowed, -torch.inf).softmax(-1) * v[context, :, feature]

        return sources

    def decoder_norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.w_O, dim=-1)

    def decode_linear(self, f: Tensor) -> Tensor:
        return f @ self.w_O

    def decode_chosen(self, values: Tensor, places: Places) -> Tensor:
        return selected_decode(values, self.w_O, places)

    def encoder_bias(self) -> nn.Parameter:
        return self.b_V

    @property
    def W_enc(self) -> Tensor:
        """The values' weights [d_in, d_sae]: a pre-activation is their mean over the tokens that its head attends to."""
        return self.w_V.T

    @property
    def W_dec(self) -> Tensor:
        """What each head writes, [d_sae, d_out]."""
        return self.w_O

    def encoder_norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.w_V, dim=-1)

    @torch.no_grad()
    def scale_encoder_(self, factor: Tensor) -> None:
        self.w_V.mul_(factor[:, None])

    @torch.no_grad()
    def scale_decoder_(self, factor: Tensor) -> None:
        self.w_O.mul_(factor[:, None])

    def written_rows(self, hook: int) -> Tensor:
        return self.w_O

    def parts(self) -> list[LinearPart]:
        """One for each query-key head: its features read what the head attends to, sum_k A[q, k] x[k]."""
        return [self._part(group) for group in range(self.config.n_qk_heads)]

    def _part(self, group: int) -> LinearPart:
        own = slice(group * self.per_group, (group + 1) * self.per_group)

        def attended(x: Tensor) -> Tensor:
            return torch.cat([self._attended(block, group) for block in x.split(64)])

        return LinearPart(
            W_E=self.w_V[own].T,
            b_E=self.b_V[own],
            rows=lambda: self.w_O[own],
            set_rows=lambda rows: self.w_O[own].copy_(rows),
            b_D=self.b_D if self.config.use_decoder_bias else None,
            inputs=attended,
        )

    @torch.no_grad()
    def _attended(self, x: Tensor, group: int) -> Tensor:
        return self.attend(x, x[:, None], heads=slice(group, group + 1))[:, 0]

    def scale_activations_(self, a: Sequence[float], b: Sequence[float]) -> None:
        for weight in (self.W_Q, self.W_K, self.w_V):
            weight.mul_(a[0])
        self.w_O.div_(b[0])
        if self.config.use_decoder_bias:
            self.b_D.div_(b[0])
