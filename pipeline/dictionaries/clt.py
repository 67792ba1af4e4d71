"""Cross-layer transcoder (SPEC 1.2): features read at each layer write to that layer and to all later ones.

    h[l] = x[l] W_E[l] + b_E[l]
    N[l, i] = sqrt( sum_{j >= l} ||W_D[j][l, i]||^2 )
    x_hat[j] = sum_{l <= j} f[l] W_D[j][l] + b_D[j]

Source: Lindsey et al. 2025 (Anthropic, circuit tracing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.dictionaries.base import Dictionary, LinearBranch
from pipeline.dictionaries.initial import BaseInitialization, uniform_
from pipeline.dictionaries.parts import LinearPart
from pipeline.kernels.entries import Places
from pipeline.kernels.grouped import grouped_decode
from pipeline.kernels.selected import selected_decode
from pipeline.params.dictionary_config import DictionaryConfig


class CrossLayerTranscoder(Dictionary):
    """Parameters W_E [L, D, F], b_E [L, F], b_D [L, D] and, for each target layer j, W_D.j [j + 1, F, D].

    Input and output are [..., L, D], features [..., L, F].
    """

    MEMORY_ORDER: ClassVar[Mapping[str, Sequence[int]]] = {"W_E": (0, 2, 1)}
    FEATURE_DIMS: ClassVar[Mapping[str, int] | None] = {"W_E": 2, "b_E": 1, "W_D": 1}
    W_E: nn.Parameter
    b_E: nn.Parameter
    b_D: nn.Parameter

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        dtype = getattr(torch, config.dtype)
        self.W_D = nn.ParameterList([nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in self._listed_shapes()])

    @property
    def n_layers(self) -> int:
        """L."""
        return len(self.hooks_in)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (self.n_layers, self.n_features)

    def _listed_shapes(self) -> list[tuple[int, ...]]:
        return [(j + 1, self.config.d_sae, self.config.d_in) for j in range(self.n_layers)]

    def _parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        n_layers, d_model, d_sae = self.n_layers, self.config.d_in, self.config.d_sae
        shapes: dict[str, tuple[int, ...]] = {"W_E": (n_layers, d_model, d_sae), "b_E": (n_layers, d_sae)}
        if self.config.use_decoder_bias:
            shapes["b_D"] = (n_layers, d_model)
        return shapes

    def _draw(self, seed: int, initialization: BaseInitialization) -> None:
        """W_E ~ U(+-F^-1/2), W_D ~ U(+-(L D)^-1/2), each target's divided by the root of its number of sources if asked;
        biases, and cross-layer blocks if asked, are zero."""
        for parameter in self.parameters():
            if all(parameter is not threshold for threshold in self.threshold_parameters()):
                parameter.zero_()
        uniform_(self.W_E, self.config.d_sae**-0.5, seed, "W_E")
        for j, block in enumerate(self.W_D):
            uniform_(block, (self.n_layers * self.config.d_in) ** -0.5, seed, f"W_D.{j}")
            if initialization.cross_layer_decoders == "by_sources":
                block.div_((j + 1) ** 0.5)
            elif initialization.cross_layer_decoders == "zero":
                block[:j].zero_()

    def pre_activations(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return torch.einsum("...ld,ldf->...lf", x, self.W_E) + self.b_E

    def linear_branches(self, x: Tensor) -> list[LinearBranch]:
        return [LinearBranch(x.reshape(-1, x.shape[-1]), self.W_E.transpose(1, 2).flatten(0, 1).T, self.b_E.flatten())]

    def branch_product(self, branch: LinearBranch, scale: Tensor | None) -> Tensor:
        x_BLD = branch.x.unflatten(0, (-1, self.n_layers))
        out: Tensor | None = None
        for layer in range(self.n_layers):
            own_W, own_b = self.W_E[layer], self.b_E[layer]
            if scale is not None:
                own_W, own_b = own_W * scale[layer], own_b * scale[layer]
            product = nn.functional.linear(x_BLD[:, layer], own_W.T, own_b)
            if out is None:
                out = product.new_empty(len(x_BLD), *self.feature_shape)
            out[:, layer] = product
        assert out is not None
        return out

    def decoder_norms(self) -> Tensor:
        return _concatenated_norms(list(self.W_D))

    def decode_linear(self, f: Tensor) -> Tensor:
        return grouped_decode(f, list(self.W_D))

    def decode_chosen(self, values: Tensor, places: Places) -> Tensor:
        """Each target layer from the entries of its own layer and the earlier ones."""
        targets = []
        for j, block in enumerate(self.W_D):
            end = (j + 1) * self.n_features
            own, part = values, places
            if j + 1 < self.n_layers:
                kept, part = places.only(places.columns < end, end)
                own = values[kept]
            targets.append(selected_decode(own, block.flatten(0, 1), part))
        return torch.stack(targets, dim=1)

    @torch.no_grad()
    def scale_decoder_(self, factor: Tensor) -> None:
        for j, block in enumerate(self.W_D):
            block.mul_(factor[: j + 1, :, None])

    def written_rows(self, hook: int) -> Tensor:
        block = self.W_D[hook]
        later = block.new_zeros(self.n_layers - hook - 1, *block.shape[1:])
        return torch.cat([block, later])

    def parts(self) -> list[LinearPart]:
        """One for each layer, with the decoder block that writes the same layer; other_rows: earlier layers' blocks."""
        return [self._part(layer) for layer in range(self.n_layers)]

    def _part(self, layer: int) -> LinearPart:
        return LinearPart(
            W_E=self.W_E[layer],
            b_E=self.b_E[layer],
            rows=lambda: self.W_D[layer][layer],
            set_rows=lambda rows: self.W_D[layer][layer].copy_(rows),
            b_D=self.b_D[layer] if self.config.use_decoder_bias else None,
            inputs=lambda x: x[..., layer, :],
            labels=lambda y: y[..., layer, :],
            other_rows=self.W_D[layer][:layer] if layer else None,
        )

    def scale_activations_(self, a: Sequence[float], b: Sequence[float]) -> None:
        for layer, (factor_in, factor_out) in enumerate(zip(a, b, strict=True)):
            self.W_E[layer].mul_(factor_in)
            self.W_D[layer].div_(factor_out)
            if self.config.use_decoder_bias:
                self.b_D[layer].div_(factor_out)


def _concatenated_norms(blocks: list[Tensor]) -> Tensor:
    """N [L, F] of decoder blocks W_D[j] [j + 1, F, D]; the gradient of a zero row is 0."""
    squares = [torch.linalg.vector_norm(block, dim=-1) for block in blocks]
    return torch.stack(
        [
            torch.linalg.vector_norm(torch.stack([part[layer] for part in squares[layer:]]), dim=0)
            for layer in range(len(blocks))
        ]
    )
