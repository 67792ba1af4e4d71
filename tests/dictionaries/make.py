"""Small dictionaries with every tensor filled, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.registry import build_dictionary
from pipeline.seeding import generator

ACT_FNS = ("relu", "topk", "batchtopk", "jumprelu")


def filled(seed: int = 0, **config: Any) -> Dictionary:
    """A dictionary whose biases, thresholds, gates, skip and decoder norms all differ from their initial values."""
    defaults: dict[str, Any] = {"kind": "sae", "d_in": 6, "d_sae": 20, "act_fn": "relu", "top_k": 4, "dtype": "float64"}
    dictionary = build_dictionary({**defaults, **config}, seed=seed)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator(seed, name), dtype=torch.float64)
            parameter.add_(noise * (0.3 if name.startswith(("b_", "log")) else 0.5))
        sizes = torch.rand(dictionary.config.d_sae, generator=generator(seed, "sizes"), dtype=torch.float64) * 3 + 0.1
        dictionary.W_D.mul_(sizes[:, None])
    return dictionary


def inputs(n: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gaussian rows [n, width]."""
    return torch.randn(n, width, generator=generator(seed, "inputs"), dtype=dtype)
