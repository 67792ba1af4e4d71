"""ReLU: every positive gating value is kept. Source: Cunningham et al. 2023; Bricken et al. 2023."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.activation_functions.interface import ActivationFunction, GateSettings, mask_features


class ReLU(ActivationFunction):
    """Keeps z > 0."""

    def support(self, z: Tensor, settings: GateSettings) -> Tensor:
        return mask_features(~(z <= 0), settings.mask)

    def threshold(self, z: Tensor, support: Tensor, settings: GateSettings) -> Tensor:
        return torch.zeros((), dtype=z.dtype, device=z.device)
