"""Which kernel serves a shape: by measured crossover (benchmarks/dictionary_step.py and .md). Each choice is logged once."""

from __future__ import annotations

import functools
import logging

import torch

# Chosen share of features up to which the entry-wise kernels win on the CPU, forward and backward together.
CPU_CROSSOVER = 1 / 12


@functools.cache
def entries_pay(device_type: str, dtype: torch.dtype, k: int, n_features: int) -> bool:
    """Whether to decode from the k chosen of n_features entries per token instead of from the dense matrix."""
    fits = device_type == "cpu" and dtype in (torch.float32, torch.float64)
    pays = fits and k <= CPU_CROSSOVER * n_features
    way = "the chosen entries" if pays else "dense products"
    logging.getLogger(__name__).info("k %d of %d features on %s, %s: by %s", k, n_features, device_type, dtype, way)
    return pays
