"""The part of `python -m benchmarks.gpu` on a group of one rank, with gloo: what it says is right, and a wrong group is found."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import gpu_group
from pipeline.distributed.group import Group
from pipeline.processes import ONE_PROCESS

CPU = torch.device("cpu")


def found(**changes: Any) -> tuple[float, float, float]:
    rows = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)) + 1.0
    dictionary = {"d_in": 12, "d_sae": 48, "act_fn": "batchtopk", "top_k": 3, **changes}
    return gpu_group.beside_none(CPU, rows, dictionary, 16, 4)


def test_a_group_of_one_is_entered_and_left() -> None:
    before = dict(os.environ)
    with gpu_group.one_rank() as group:
        assert dist.is_initialized()
        assert isinstance(group, Group)
        assert (group.size, group.rank) == (1, 0)
        gpu_group.check_reductions(group, CPU)
    assert not dist.is_initialized()
    assert dict(os.environ) == before


@pytest.mark.parametrize("gate", ["topk", "batchtopk"])
def test_the_same_weights_at_a_cost(gate: str) -> None:
    together, alone, off = found(act_fn=gate)
    assert min(together, alone) > 0
    assert off == 0.0


def test_a_group_that_changes_gradients_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(self: Group, values: Any, flags: Any) -> Any:
        return [-value if isinstance(value, Tensor) and value.is_floating_point() else value for value in values], flags

    monkeypatch.setattr(Group, "together", turned)
    with pytest.raises(RuntimeError, match="a group of one rank on cpu changed"):
        found()
    monkeypatch.setattr(gpu_group, "check_reductions", lambda group, device: None)
    with pytest.raises(RuntimeError, match="other weights than no group"):
        found()


def test_no_group_changes_nothing() -> None:
    gpu_group.check_reductions(ONE_PROCESS, CPU)
