"""Running sums."""

from __future__ import annotations

import torch
from torch import Tensor


def running(counts: Tensor) -> Tensor:
    """Sums of int32 [n] before each entry and after the last, int32 [n + 1]."""
    sums = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=sums[1:])
    return sums
