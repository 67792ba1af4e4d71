"""Which kernel serves a shape: by measured crossover (benchmarks/dictionary_step.py)."""

from __future__ import annotations

import torch

# Chosen share of features below which the entry-wise decode wins on the CPU, forward and backward together.
CPU_CROSSOVER = 0.05


def entries_pay(device: torch.device, dtype: torch.dtype, k: int, n_features: int) -> bool:
    """Whether to decode from the k chosen of n_features entries per token instead of from the dense matrix."""
    fits = device.type == "cpu" and dtype in (torch.float32, torch.float64)
    return fits and k <= CPU_CROSSOVER * n_features
