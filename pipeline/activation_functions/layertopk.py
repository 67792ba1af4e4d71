"""LayerTopK (SPEC 2): the k L largest positive z of each token over all its L layers jointly; k is the mean per layer.

Source: the per-layer TopK of Gao et al. 2024 with one budget for a token, as cross-layer transcoders are trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.activation_functions.interface import BudgetedActivation, GateSettings, Selection
from pipeline.activation_functions.topk import TopK


class LayerTopK(BudgetedActivation):
    """Keeps the k L largest positive z [..., L, F] of each token."""

    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        joint = settings._replace(k=settings.k * z.shape[-2], layered=False)
        return TopK().selection(z.flatten(-2), joint)

    def threshold(self, z: Tensor, support: Tensor, settings: GateSettings) -> Tensor:
        """The smallest active z of each token."""
        return torch.where(support, z, torch.inf).amin((-2, -1), keepdim=True)
