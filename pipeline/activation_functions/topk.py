"""TopK: the k largest positive gating values of each token. Source: Gao et al. 2024."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.activation_functions.interface import (
    BudgetedActivation,
    GateSettings,
    Selection,
    mask_features,
)


class TopK(BudgetedActivation):
    """Keeps the k largest positive z along the last dimension (of each layer too, where z is [..., L, F])."""

    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        n_features = z.shape[-1]
        k = min(settings.k, n_features)
        values, index = torch.topk(z, k, dim=-1, sorted=False)
        open_ = mask_features(~(values <= 0), settings.mask)
        n_rows = z.numel() // n_features
        row_starts = torch.arange(n_rows, device=z.device) * n_features
        flat = index.reshape(n_rows, k) + row_starts[:, None]
        return Selection(flat.reshape(-1), open_.reshape(-1), torch.arange(n_rows, device=z.device) * k)
