"""Small dictionaries with every tensor filled, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.seeding import generator

ACT_FNS = ("relu", "topk", "batchtopk", "jumprelu")
LAYER_ACT_FNS = ("layertopk", "batchlayertopk")
LAYERS_IN, LAYERS_OUT = [f"blocks.{i}.ln2.hook_out" for i in range(3)], [f"blocks.{i}.hook_mlp_out" for i in range(3)]


def filled(seed: int = 0, **config: Any) -> Dictionary:
    """A dictionary whose biases, thresholds, gates, skip and decoder norms all differ from their initial values."""
    defaults: dict[str, Any] = {"kind": "sae", "d_in": 6, "d_sae": 20, "act_fn": "relu", "top_k": 4, "dtype": "float64"}
    dictionary = build_dictionary({**defaults, **config}, seed=seed)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator(seed, name), dtype=torch.float64)
            parameter.add_(noise * (0.3 if name.startswith(("b_", "log")) else 0.5))
        sizes = torch.rand(dictionary.feature_shape, generator=generator(seed, "sizes"), dtype=torch.float64) * 3 + 0.1
        dictionary.scale_decoder_(sizes)
    return dictionary


def read_by(dictionary: Dictionary, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gaussian input of n tokens as the dictionary takes it: [n, d_in], or [n, L, d_in] of several hook points.

    Of a dictionary that reads contexts [2, n / 2, d_in].
    """
    hooks, width = len(dictionary.hooks_in), dictionary.config.d_in
    tokens = (2, n // 2) if dictionary.reads_sequences else (n,)
    return inputs(n * hooks, width, seed, dtype).reshape(*tokens, *((hooks,) if hooks > 1 else ()), width)


def inputs(n: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gaussian rows [n, width]."""
    return torch.randn(n, width, generator=generator(seed, "inputs"), dtype=dtype)
