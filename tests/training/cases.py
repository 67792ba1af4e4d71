"""Small dictionaries, data and trainers that the tests of training share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.params.schema import TrainerParams
from pipeline.seeding import generator
from pipeline.training.step import Trainer

D, F = 8, 24
NORMS = {"input": 2.0}


def rows(n: int, d: int = D, seed: int = 0) -> Tensor:
    """Normal activations with a mean."""
    draw = generator(seed, "tests", "rows")
    return torch.randn(n, d, generator=draw) + torch.randn(d, generator=draw)


def dictionary(seed: int = 0, **fields: Any) -> Dictionary:
    """A small SAE, TopK unless said otherwise."""
    config = {"kind": "sae", "d_in": D, "d_sae": F, "act_fn": "topk", "top_k": 3, "decoder_uniform_bound": 0.3}
    return build_dictionary({**config, **fields}, seed=seed)


def params(**fields: Any) -> TrainerParams:
    """Trainer's parameters for short runs."""
    short = {"lr": 1e-2, "lr_warm_up_steps": 2, "lr_cool_down_steps": 3, "log_frequency": 4, "n_checkpoints": 0}
    return TrainerParams(**{**short, **fields})


def trainer(made: Dictionary, total_steps: int = 20, **fields: Any) -> Trainer:
    """A trainer of it."""
    norms = dict.fromkeys((*made.hooks_in, *made.hooks_out), 2.0)
    return Trainer(made, params(**fields), total_steps=total_steps, norms=norms)


def weights(made: Dictionary) -> dict[str, Tensor]:
    """A copy of the weights."""
    return {name: tensor.detach().clone() for name, tensor in made.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
