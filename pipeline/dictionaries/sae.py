"""Sparse autoencoder and per-layer transcoder (SPEC 1.1): one class, one or two hook points.

    h = x W_E + b_E                      GLU: h <- h * sigmoid(x W_G + b_G)
    x_hat = f W_D + b_D                  skip: + x W_skip
    n_i = ||W_D[i]||_2

With apply_b_dec_to_input, x - b_D is encoded instead of x (linear branch and GLU gate).
Sources: Cunningham et al. 2023; Bricken et al. 2023; Dunefsky et al. 2024 and Ge et al. 2024 (transcoder); Paulo et al.
2025 (skip).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from pipeline.dictionaries.base import CONFIGURED, Codes, Dictionary, Entries, Gate
from pipeline.dictionaries.fold import divisible
from pipeline.dictionaries.initial import BaseInitialization, uniform_
from pipeline.dictionaries.masks import kept_tokens
from pipeline.dictionaries.parts import LinearPart
from pipeline.kernels.dispatch import entries_pay
from pipeline.kernels.selected import selected_decode, selected_linear


class SparseAutoencoder(Dictionary):
    """Parameters W_E [D, F], b_E [F], W_D [F, D_out], b_D [D_out]; GLU: W_G [D, F], b_G [F]; W_skip [D, D_out]."""

    drawn_as_transpose: ClassVar[bool] = True
    W_E: nn.Parameter
    b_E: nn.Parameter
    W_D: nn.Parameter
    b_D: nn.Parameter
    W_G: nn.Parameter
    b_G: nn.Parameter
    W_skip: nn.Parameter

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (self.config.d_sae,)

    def _parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        d_in, d_sae, d_out = self.config.d_in, self.config.d_sae, self.config.d_out
        shapes: dict[str, tuple[int, ...]] = {"W_E": (d_in, d_sae), "b_E": (d_sae,), "W_D": (d_sae, d_out)}
        if self.config.use_decoder_bias:
            shapes["b_D"] = (d_out,)
        if self.config.use_glu_encoder:
            shapes |= {"W_G": (d_in, d_sae), "b_G": (d_sae,)}
        if self.config.skip:
            shapes["W_skip"] = (d_in, d_out)
        return shapes

    def _draw(self, seed: int, initialization: BaseInitialization) -> None:
        """W_D ~ U(+-decoder_uniform_bound), at unit length if asked; W_E = factor W_D^T (or U(+-encoder_uniform_bound)).

        W_G ~ U(+-sqrt(6/D)), the bound of He et al. 2015 for D inputs; biases and W_skip are zero.
        """

        for parameter in self.parameters():
            if all(parameter is not threshold for threshold in self.threshold_parameters()):
                parameter.zero_()
        uniform_(self.W_D, initialization.decoder_uniform_bound, seed, "W_D")
        if initialization.unit_rows:
            self.W_D.div_(divisible(torch.linalg.vector_norm(self.W_D, dim=-1))[:, None])
        if initialization.init_encoder_with_decoder_transpose and self.config.d_in == self.config.d_out:
            self.W_E.copy_(self.W_D.T * initialization.init_encoder_with_decoder_transpose_factor)
        else:
            uniform_(self.W_E, initialization.encoder_uniform_bound, seed, "W_E")
        if self.config.use_glu_encoder:
            uniform_(self.W_G, math.sqrt(6.0 / self.config.d_in), seed, "W_G")

    def pre_activations(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self._combine(*(out for _, _, _, out in self._branches(x)))

    def _branches(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(input, weight, bias, input @ weight + bias) of the linear branch and, with GLU, of the gate."""
        if self.config.apply_b_dec_to_input:
            x = x - self.b_D
        pairs = [(self.W_E, self.b_E)]
        if self.config.use_glu_encoder:
            pairs.append((self.W_G, self.b_G))
        return [(x, weight, bias, nn.functional.linear(x, weight.T, bias)) for weight, bias in pairs]

    @staticmethod
    def _combine(linear: Tensor, gate: Tensor | None = None) -> Tensor:
        return linear if gate is None else linear * torch.sigmoid(gate)

    def encoder_gate(self, x: Tensor) -> Tensor | None:
        return torch.sigmoid(self._branches(x)[1][-1]) if self.config.use_glu_encoder else None

    def decoder_norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.W_D, dim=-1)

    def decode_linear(self, f: Tensor) -> Tensor:
        return f @ self.W_D

    def reconstruct(self, f: Tensor, x: Tensor) -> Tensor:
        return self._with_skip(self.decode(f), x)

    def nested_reconstructions(self, f: Tensor, x: Tensor, widths: Sequence[int]) -> list[Tensor]:
        """As in the base class, each feature decoded once: every prefix adds its own features to the one before."""
        found: list[Tensor] = []
        start, x_hat = 0, self._with_skip(torch.zeros((), dtype=f.dtype, device=f.device), x)
        if self.config.use_decoder_bias:
            x_hat = x_hat + self.b_D
        for width in widths:
            x_hat = x_hat + f[..., start:width] @ self.W_D[start:width]
            start = width
            found.append(x_hat)
        return found

    def decoder_rows(self) -> nn.Parameter:
        return self.W_D

    def parts(self) -> list[LinearPart]:
        bias = self.b_D if self.config.use_decoder_bias else None
        gated = self.config.use_glu_encoder
        return [LinearPart(self.W_E, self.b_E, lambda: self.W_D, self.W_D.copy_, bias, gated=gated)]

    def run(
        self, x: Tensor, mask: Tensor | None = None, gate: Gate = CONFIGURED, padding: Tensor | None = None
    ) -> tuple[Codes, Tensor]:
        activation = gate.activation or self.activation
        settings = self.gate_settings(kept_tokens(mask, padding), gate)
        pays = entries_pay(x.device.type, self.W_D.dtype, settings.k, self.config.d_sae)
        if not (activation.budgeted and pays):
            return super().run(x, mask, gate, padding)
        x_ND = x.reshape(-1, x.shape[-1])
        branches = self._branches(x_ND)
        h, norms = self._combine(*(out for _, _, _, out in branches)), self.decoder_norms()
        scale = self.gating_scale(norms)
        z = h if scale is None else h * scale
        tokens = x.shape[:-1]
        chosen = activation.selection(z.detach().reshape(*tokens, -1), settings)
        assert chosen is not None  # budgeted
        values = self._combine(*(selected_linear(*branch, chosen.flat, chosen.offsets) for branch in branches))
        entries = Entries(torch.where(chosen.active, values, 0.0), chosen.flat, chosen.offsets)
        x_hat = selected_decode(*entries, self.W_D)
        if self.config.use_decoder_bias:
            x_hat = x_hat + self.b_D
        codes = Codes(h.reshape(*tokens, -1), z.reshape(*tokens, -1), entries, norms)
        return codes, self._with_skip(x_hat.reshape(*tokens, -1), x)

    def _with_skip(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return x_hat + x @ self.W_skip if self.config.skip else x_hat

    def absorbed(self) -> Self:
        """x - b_D as what is encoded becomes part of the encoder's biases."""
        if not self.config.apply_b_dec_to_input:
            return self
        weights = {name: tensor.double() for name, tensor in self.state_dict().items()}
        weights["b_E"] = weights["b_E"] - weights["b_D"] @ weights["W_E"]
        if self.config.use_glu_encoder:
            weights["b_G"] = weights["b_G"] - weights["b_D"] @ weights["W_G"]
        return self.rebuilt(weights, apply_b_dec_to_input=False)

    def scale_activations_(self, a: Sequence[float], b: Sequence[float]) -> None:
        for name in {"W_E", "W_G"} & set(self._parameters):
            self.get_parameter(name).mul_(a[0])
        for name in {"W_D", "b_D"} & set(self._parameters):
            self.get_parameter(name).div_(b[0])
        if self.config.skip:
            self.W_skip.mul_(a[0] / b[0])
