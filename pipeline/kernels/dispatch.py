"""Which kernel serves a shape: by measured crossover (benchmarks/dictionary_step.py and .md). Each choice is logged once."""

from __future__ import annotations

import functools
import logging

import torch

# Chosen share of features up to which the entry-wise kernels win on the CPU, forward and backward together.
CPU_CROSSOVER = 1 / 12


@functools.cache
def entries_pay(device_type: str, dtype: torch.dtype, share: float) -> bool:
    """Whether to work on the chosen entries, this share of the features, instead of on dense matrices."""
    fits = device_type == "cpu" and dtype in (torch.float32, torch.float64)
    pays = fits and share <= CPU_CROSSOVER
    way = "the chosen entries" if pays else "dense products"
    logging.getLogger(__name__).info("%.3g of the features on %s, %s: by %s", share, device_type, dtype, way)
    return pays
