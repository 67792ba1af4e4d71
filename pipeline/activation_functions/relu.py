"""ReLU: every positive gating value is kept. Source: Cunningham et al. 2023; Bricken et al. 2023."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.activation_functions.interface import (
    ActivationFunction,
    GateSettings,
    Selection,
    mask_features,
    selection_above,
)


class ReLU(ActivationFunction):
    """Keeps z > 0."""

    def support(self, z: Tensor, settings: GateSettings) -> Tensor:
        return mask_features(~(z <= 0), settings.mask)

    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        n_features = z.shape[-2:].numel() if settings.layered else z.shape[-1]
        return selection_above(z, torch.zeros(n_features, dtype=z.dtype, device=z.device), settings)

    def threshold(self, smallest: Tensor, settings: GateSettings) -> Tensor:
        return torch.zeros((), dtype=smallest.dtype, device=smallest.device)
