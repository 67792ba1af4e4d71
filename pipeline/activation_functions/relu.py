"""ReLU: every positive gating value is kept. Source: Cunningham et al. 2023; Bricken et al. 2023."""

from __future__ import annotations

from torch import Tensor

from pipeline.activation_functions.registry import ActivationFunction, GateSettings, mask_features, register


@register("relu")
class ReLU(ActivationFunction):
    """Keeps z > 0."""

    def support(self, z: Tensor, settings: GateSettings) -> Tensor:
        return mask_features(~(z <= 0), settings.mask)
