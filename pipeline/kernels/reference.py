"""What every kernel computes, in plain torch: the truth that the others are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def selected_linear(x_BD: Tensor, W_DF: Tensor, b_F: Tensor, flat: Tensor) -> Tensor:
    """The entries `flat` (int64 [N], places in the flattened [B, F]) of x W + b."""
    return (x_BD @ W_DF + b_F).reshape(-1)[flat]


def selected_decode(values: Tensor, flat: Tensor, n_tokens: int, W_FD: Tensor) -> Tensor:
    """f W [n_tokens, D], where f [n_tokens, F] is `values` [N] at the places `flat` and 0 elsewhere."""
    n_features = W_FD.shape[0]
    f = torch.zeros(n_tokens * n_features, dtype=values.dtype, device=values.device).scatter(0, flat, values)
    return f.reshape(n_tokens, n_features) @ W_FD
