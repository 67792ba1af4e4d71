"""decoder_constraint: unit_norm (SPEC 5): decoder rows of unit length, their gradient without its part along the row.

Source: Bricken et al. 2023; Lieberum et al. 2024 (Gemma Scope).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.dictionaries.fold import EPS_NORM


@torch.no_grad()
def normalize_rows_(rows: Tensor) -> None:
    """Unit length for every row of [..., D], in place."""
    rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(EPS_NORM))


@torch.no_grad()
def remove_parallel_gradient_(rows: nn.Parameter) -> None:
    """g <- g - (g . w) w / ||w||^2 for every row w of [..., D], in place; nothing without a gradient."""
    if rows.grad is None:
        return
    square = rows.square().sum(-1, keepdim=True).clamp_min(EPS_NORM**2)
    rows.grad.sub_(rows * ((rows.grad * rows).sum(-1, keepdim=True) / square))
