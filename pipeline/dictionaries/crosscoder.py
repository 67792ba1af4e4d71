"""Crosscoder (SPEC 1.4): one feature vector that several hook points are read into and written from.

    h = sum_p x_p W_E[p] + b_E
    N_i = sqrt( sum_p ||W_D[p, i]||^2 )      crosscoder_norm sum: sum_p ||W_D[p, i]||
    x_hat_p = f W_D[p] + b_D[p]

The hook points are layers of a model, or the same place in several checkpoints of one.
Source: Lindsey et al. 2024 (sparse crosscoders), whose loss has the sum; the joint norm is the length of all that a feature
adds, as of a cross-layer transcoder's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.dictionaries.base import Dictionary, LinearBranch
from pipeline.dictionaries.fold import divisible
from pipeline.dictionaries.initial import BaseInitialization, uniform_
from pipeline.dictionaries.parts import LinearPart
from pipeline.kernels.entries import Places
from pipeline.kernels.selected import selected_decode


class Crosscoder(Dictionary):
    """Parameters W_E [P, D, F], b_E [F], W_D [P, F, D], b_D [P, D]. Input and output are [..., P, D], features [..., F]."""

    drawn_as_transpose: ClassVar[bool] = True
    MEMORY_ORDER: ClassVar[Mapping[str, Sequence[int]]] = {"W_E": (2, 0, 1)}
    FEATURE_DIMS: ClassVar[Mapping[str, int] | None] = {"W_E": 2, "b_E": 0, "W_D": 1}
    W_E: nn.Parameter
    b_E: nn.Parameter
    W_D: nn.Parameter
    b_D: nn.Parameter

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (self.n_features,)

    def _parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        n_hooks, d_model, d_sae = len(self.hooks_in), self.config.d_in, self.config.d_sae
        shapes: dict[str, tuple[int, ...]] = {
            "W_E": (n_hooks, d_model, d_sae),
            "b_E": (d_sae,),
            "W_D": (n_hooks, d_sae, d_model),
        }
        if self.config.use_decoder_bias:
            shapes["b_D"] = (n_hooks, d_model)
        return shapes

    def _draw(self, seed: int, initialization: BaseInitialization) -> None:
        """W_D ~ U(+-decoder_uniform_bound), W_E[p] = factor W_D[p]^T (or U(+-encoder_uniform_bound)); biases are zero."""
        for parameter in self.parameters():
            if all(parameter is not threshold for threshold in self.threshold_parameters()):
                parameter.zero_()
        uniform_(self.W_D, initialization.decoder_uniform_bound, seed, "W_D")
        if initialization.unit_rows:
            self.W_D.div_(divisible(self.decoder_lengths())[:, None])
        if initialization.init_encoder_with_decoder_transpose:
            self.W_E.copy_(self.W_D.transpose(1, 2) * initialization.init_encoder_with_decoder_transpose_factor)
        else:
            uniform_(self.W_E, initialization.encoder_uniform_bound, seed, "W_E")

    def pre_activations(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x.flatten(-2), self.W_E.flatten(0, 1).T, self.b_E)

    def linear_branches(self, x: Tensor) -> list[LinearBranch]:
        return [LinearBranch(x.reshape(-1, x.shape[-2] * x.shape[-1]), self.W_E.flatten(0, 1), self.b_E)]

    def encoder_norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.W_E, dim=(0, 1))

    def decoder_norms(self) -> Tensor:
        if self.config.crosscoder_norm == "sum":
            return torch.linalg.vector_norm(self.W_D, dim=-1).sum(0)
        return self.decoder_lengths()

    def decoder_lengths(self) -> Tensor:
        return torch.linalg.vector_norm(self.W_D, dim=(0, 2))

    def decode_linear(self, f: Tensor) -> Tensor:
        return torch.stack([f @ rows for rows in self.W_D], dim=-2)

    def decode_chosen(self, values: Tensor, places: Places) -> Tensor:
        return torch.stack([selected_decode(values, rows, places) for rows in self.W_D.unbind(0)], dim=1)

    def written_rows(self, hook: int) -> Tensor:
        return self.W_D[hook]

    def parts(self) -> list[LinearPart]:
        def set_rows(rows: Tensor) -> None:
            self.W_D.copy_(rows.unflatten(1, (len(self.hooks_out), -1)).transpose(0, 1))

        return [
            LinearPart(
                W_E=self.W_E.flatten(0, 1),
                b_E=self.b_E,
                rows=lambda: self.W_D.transpose(0, 1).flatten(1),
                set_rows=set_rows,
                b_D=self.b_D.flatten() if self.config.use_decoder_bias else None,
                inputs=lambda x: x.flatten(-2),
                labels=lambda y: y.flatten(-2),
            )
        ]

    def scale_activations_(self, a: Sequence[float], b: Sequence[float]) -> None:
        for p, (factor_in, factor_out) in enumerate(zip(a, b, strict=True)):
            self.W_E[p].mul_(factor_in)
            self.W_D[p].div_(factor_out)
            if self.config.use_decoder_bias:
                self.b_D[p].div_(factor_out)
