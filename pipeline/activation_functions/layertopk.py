"""LayerTopK (SPEC 2): the k L largest positive z of each token over all its L layers jointly; k is the mean per layer.

With `top_k_of: token` k is the budget itself.

Source: the per-layer TopK of Gao et al. 2024 with one budget for a token, as cross-layer transcoders are trained with.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.activation_functions.interface import BudgetedActivation, GateSettings, Selection
from pipeline.activation_functions.topk import TopK


class LayerTopK(BudgetedActivation):
    """Keeps the k L largest positive z [..., L, F] of each token."""

    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        return TopK().selection(z.flatten(-2), settings.joint(z.shape[-2]))

    def threshold(self, smallest: Tensor, settings: GateSettings) -> Tensor:
        """The smallest active z of each token."""
        return smallest.amin(-2, keepdim=True)
