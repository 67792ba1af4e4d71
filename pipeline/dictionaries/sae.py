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

from pipeline.dictionaries.base import Dictionary, LinearBranch
from pipeline.dictionaries.fold import divisible
from pipeline.dictionaries.initial import BaseInitialization, uniform_
from pipeline.dictionaries.parts import LinearPart
from pipeline.kernels.entries import Places
from pipeline.kernels.selected import selected_decode


class SparseAutoencoder(Dictionary):
    """Parameters W_E [D, F], b_E [F], W_D [F, D_out], b_D [D_out]; GLU: W_G [D, F], b_G [F]; W_skip [D, D_out]."""

    drawn_as_transpose: ClassVar[bool] = True
    MEMORY_ORDER: ClassVar[Mapping[str, Sequence[int]]] = {"W_E": (1, 0), "W_G": (1, 0)}
    FEATURE_DIMS: ClassVar[Mapping[str, int] | None] = {"W_E": 1, "b_E": 0, "W_D": 0, "W_G": 1, "b_G": 0}
    W_E: nn.Parameter
    b_E: nn.Parameter
    W_D: nn.Parameter
    b_D: nn.Parameter
    W_G: nn.Parameter
    b_G: nn.Parameter
    W_skip: nn.Parameter

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (self.n_features,)

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
        return self.combined([branch.output() for branch in self.linear_branches(x)]).reshape(*x.shape[:-1], -1)

    def linear_branches(self, x: Tensor) -> list[LinearBranch]:
        x_ND = x.reshape(-1, x.shape[-1])
        centre: Tensor | None = self.b_D if self.config.apply_b_dec_to_input else None
        if centre is not None:
            x_ND, centre = x_ND - centre.detach(), self.feature_group.shared(centre)
        maps = [(self.W_E, self.b_E)]
        if self.config.use_glu_encoder:
            maps.append((self.W_G, self.b_G))
        return [LinearBranch(x_ND, W, b, centre) for W, b in maps]

    def combined(self, branches: Sequence[Tensor]) -> Tensor:
        linear, *gate = branches
        return linear * torch.sigmoid(gate[0]) if gate else linear

    def encoder_gate(self, x: Tensor) -> Tensor | None:
        if not self.config.use_glu_encoder:
            return None
        return torch.sigmoid(self.linear_branches(x)[1].output()).reshape(*x.shape[:-1], -1)

    def decoder_norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.W_D, dim=-1)

    def decode_linear(self, f: Tensor) -> Tensor:
        return f @ self.W_D

    def decode_between(self, f: Tensor, first: int, end: int) -> Tensor:
        return f[..., first:end] @ self.W_D[first:end]

    def decode_chosen(self, values: Tensor, places: Places) -> Tensor:
        return selected_decode(values, self.W_D, places)

    def finished(self, x_hat: Tensor, x: Tensor) -> Tensor:
        x_hat = super().finished(x_hat, x)
        return x_hat + x @ self.W_skip if self.config.skip else x_hat

    def decoder_matrix(self) -> Tensor:
        return self.W_D

    def decoder_rows(self) -> nn.Parameter:
        return self.W_D

    def parts(self) -> list[LinearPart]:
        bias = self.b_D if self.config.use_decoder_bias else None
        gated = self.config.use_glu_encoder
        return [LinearPart(self.W_E, self.b_E, lambda: self.W_D, self.W_D.copy_, bias, gated=gated)]

    def absorbed(self) -> Self:
        """x - b_D as what is encoded becomes part of the encoder's biases."""
        if not self.config.apply_b_dec_to_input:
            return self
        weights = {name: tensor.double() for name, tensor in self.state_dict().items()}
        weights["b_E"] = weights["b_E"] - weights["b_D"] @ weights["W_E"]
        if self.config.use_glu_encoder:
            weights["b_G"] = weights["b_G"] - weights["b_D"] @ weights["W_G"]
        return self.rebuilt(weights, apply_b_dec_to_input=False)

    @torch.no_grad()
    def release_(self) -> None:
        """The encoder's biases become those of x - b_D."""
        if not self.config.apply_b_dec_to_input:
            return
        self.b_E.add_(self.b_D @ self.W_E)
        if self.config.use_glu_encoder:
            self.b_G.add_(self.b_D @ self.W_G)

    def scale_activations_(self, a: Sequence[float], b: Sequence[float]) -> None:
        for name in {"W_E", "W_G"} & set(self._parameters):
            self.get_parameter(name).mul_(a[0])
        for name in {"W_D", "b_D"} & set(self._parameters):
            self.get_parameter(name).div_(b[0])
        if self.config.skip:
            self.W_skip.mul_(a[0] / b[0])
