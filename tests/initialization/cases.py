"""Small samples and dictionaries for the tests of the strategies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.initialization.compose import build_base, initialize_
from pipeline.initialization.sample import Sample, make_sample
from pipeline.norms.normalizer import Normalizer
from pipeline.params.schema import InitializerParams
from pipeline.seeding import generator

D, F, N = 6, 16, 200


def rows(n: int = N, d: int = D, seed: int = 0) -> Tensor:
    """Normal activations with a mean and unequal spread."""
    draw = generator(seed, "tests", "initialization")
    return torch.randn(n, d, generator=draw) * torch.linspace(0.5, 2, d) + 3 * torch.randn(d, generator=draw)


def config(**fields: Any) -> dict[str, Any]:
    """An SAE's, TopK unless said otherwise."""
    return {"kind": "sae", "d_in": D, "d_sae": F, "act_fn": "topk", "top_k": 3, **fields}


def sample(made: Dictionary, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None, norm: float = 4.0) -> Sample:
    """A sample of raw activations."""
    norms = dict.fromkeys((*made.hooks_in, *made.hooks_out), norm)
    return make_sample(made, Normalizer(made.config, norms), x, x if y is None else y, mask)


def initialized(
    fields: dict[str, Any], x: Tensor | None = None, y: Tensor | None = None, mlp: Any = None, **options: Any
) -> tuple[Dictionary, Sample, dict[str, float]]:
    """A dictionary after the options' strategies, its sample and the findings."""
    params = InitializerParams(**options)
    made = build_base(config(**fields), params, seed=0)
    taken = sample(made, rows() if x is None else x, y)
    return made, taken, initialize_(made, taken, params, batch_rows=64, seed=0, mlps=() if mlp is None else [mlp])
