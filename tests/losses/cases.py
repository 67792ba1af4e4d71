"""Inputs of sparsity losses, and the same as plain numbers for references that loop."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.losses.sparsity_losses import SparsityInputs
from pipeline.seeding import generator

# Shape of f, and of a token's features: tokens, sequences, tokens with layers, sequences with layers.
SHAPES = {
    "tokens": ((7, 5), (5,)),
    "sequences": ((2, 4, 5), (5,)),
    "layers": ((6, 3, 5), (3, 5)),
    "sequences-layers": ((2, 3, 3, 4), (3, 4)),
}
CASES = [(shape, masked) for shape in SHAPES for masked in (False, True)]
GARBAGE = 1e3  # what masked tokens hold


class Entry(NamedTuple):
    """One feature of one token, in plain numbers."""

    f: float
    z: float
    n: float
    theta: float


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "losses", str(shape)), dtype=torch.float64)


def make_inputs(shape: str, masked: bool) -> SparsityInputs:
    """Float64 inputs of a named shape: f >= 0 (about half 0), norms and thresholds positive."""
    full, entry = SHAPES[shape]
    lead = full[: len(full) - len(entry)]
    z = randn(*full)
    f = (randn(*full, seed=1) * 0.4).relu()
    mask = None
    if masked:
        mask = (torch.arange(math.prod(lead)) % 3 != 1).reshape(lead)
        f[~mask], z[~mask] = GARBAGE, GARBAGE
    return SparsityInputs(f, z, randn(*entry, seed=2).abs() + 0.2, randn(*entry, seed=3).abs() + 0.05, mask)


def tokens(inputs: SparsityInputs) -> list[list[list[Entry]]]:
    """The kept tokens; each is a list of layers, each a list of its features."""
    lead = inputs.f.shape[: inputs.f.ndim - inputs.norms.ndim]
    width = inputs.f.shape[-1]
    norms = inputs.norms.reshape(-1, width).tolist()
    theta = norms if inputs.thresholds is None else inputs.thresholds.reshape(-1, width).tolist()
    kept = []
    for place in itertools.product(*(range(size) for size in lead)):
        if inputs.mask is None or bool(inputs.mask[place]):
            f, z = inputs.f[place].reshape(-1, width).tolist(), inputs.z[place].reshape(-1, width).tolist()
            kept.append(
                [[Entry(f[l][i], z[l][i], norms[l][i], theta[l][i]) for i in range(width)] for l in range(len(norms))]  # noqa: E741
            )
    return kept


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
