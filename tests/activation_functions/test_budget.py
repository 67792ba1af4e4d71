"""What several processes choose with one budget is what one process chooses of all, whatever is equal to what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.activation_functions.interface import GateSettings, activation_function
from pipeline.seeding import generator
from tests.dictionaries.make import filled
from tests.training.threads import Place, in_mesh

B, L, F, K = 12, 3, 8, 3
MESHES = ((1, 2), (1, 4), (2, 2), (3, 1), (3, 4))


def few_values(kind: str, *shape: int) -> Tensor:
    """Gating values of which many are equal; of one kind some are no numbers."""
    draw = generator(0, "tests", kind)
    z = torch.randint(-1, {"all equal": 0}.get(kind, 3), shape, generator=draw).double()
    if kind == "all equal":
        return torch.ones(shape, dtype=torch.float64)
    if kind == "none positive":
        return -z.abs()
    if kind == "not numbers":
        z[torch.rand(shape, generator=draw) < 0.1] = torch.nan
        z[torch.rand(shape, generator=draw) < 0.1] = torch.inf
    if kind == "all different":
        z = torch.randn(shape, generator=draw, dtype=torch.float64)
    return z


KINDS = ("many equal", "all equal", "none positive", "not numbers", "all different")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("values", KINDS)
@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("act_fn", ["topk", "batchtopk", "layertopk", "batchlayertopk"])
def test_selections_are_those_of_one_process(act_fn: str, layered: bool, values: str, masked: bool) -> None:
    gate = activation_function(act_fn)
    if gate.joint_layers and not layered:
        return
    z = few_values(values, B, L, F) if layered else few_values(values, B, F)
    mask = torch.rand(B, generator=generator(0, "tests", "mask")) > 0.3 if masked else None
    for k in (1, K, F + 2):
        wanted = gate.support(z, GateSettings(k, mask, layered=layered))

        def own(place: Place, k: int = k) -> Tensor:
            rows, features = place
            part = z.tensor_split(rows.size)[rows.rank].tensor_split(features.size, -1)[features.rank]
            kept = None if mask is None else mask.tensor_split(rows.size)[rows.rank]
            settings = GateSettings(k, kept, layered=layered, reductions=rows, feature_group=features)
            return gate.support(part.contiguous(), settings)

        for data, model in MESHES:
            parts = in_mesh(data, model, own)
            found = torch.cat([torch.cat(parts[row * model : (row + 1) * model], -1) for row in range(data)])
            assert torch.equal(found, wanted), (data, model, k)


@pytest.mark.parametrize("values", KINDS)
def test_the_largest_dead_ones_are_those_of_one_process(values: str) -> None:
    """AuxK: of equal ones the first, whichever process holds them."""
    z = few_values(values, B, 20)
    for k in (1, 4, 7, 25):
        wanted = torch.zeros_like(z, dtype=torch.bool)
        for row, chosen in zip(torch.where(z.isnan(), torch.inf, z).tolist(), wanted, strict=True):
            chosen[sorted(range(20), key=lambda i, row=row: (-row[i], i))[:k]] = True

        def own(place: Place, k: int = k) -> Tensor:
            made: Any = filled()
            made.feature_group = place.features
            return made._largest(z.tensor_split(place.features.size, -1)[place.features.rank].contiguous(), k)

        for model in (1, 2, 4):
            assert torch.equal(torch.cat(in_mesh(1, model, own), -1), wanted)
