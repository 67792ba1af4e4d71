"""BatchLayerTopK (SPEC 2): the k B L largest positive z of the batch over all layers jointly; k is the mean per layer.

With `top_k_of: token` it is the k B largest. As BatchTopK a training form only; the fold stage turns it into JumpReLU with
one threshold (SPEC 2.2).
Source: Bussmann et al. 2024 (BatchTopK), with one budget for all layers.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.activation_functions.batchtopk import BatchTopK
from pipeline.activation_functions.interface import BudgetedActivation, GateSettings, Selection


class BatchLayerTopK(BudgetedActivation):
    """Keeps the k B L largest positive z [..., L, F] over all tokens, layers and features."""

    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        return BatchTopK().selection(z.flatten(-2), settings.joint(z.shape[-2]))

    def threshold(self, smallest: Tensor, settings: GateSettings) -> Tensor:
        """The smallest active z of the batch."""
        return BatchTopK().threshold(smallest, settings._replace(layered=False))
