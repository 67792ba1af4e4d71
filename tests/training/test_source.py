"""Sources of batches: every row once an epoch, and the same batches from any start."""

from __future__ import annotations

import itertools

import pytest
import torch

from pipeline.errors import ParamsError
from pipeline.training.source import TensorSource, on_device, stacked


def test_an_epoch_has_every_row_once_in_another_order() -> None:
    x = torch.arange(24.0)[:, None]
    source = TensorSource(x, batch_size=8, seed=0)
    taken = [batch.inputs.squeeze(1) for batch in itertools.islice(source.batches(0), 6)]
    first, second = torch.cat(taken[:3]), torch.cat(taken[3:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(24))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(24.0))


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_any_start_gives_the_same_batches(start: int) -> None:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    source = TensorSource(x, x + 1, batch_size=6, seed=4)
    whole = list(itertools.islice(source.batches(0), 9))
    for wanted, got in zip(whole[start:], source.batches(start), strict=False):
        assert wanted.index == got.index
        assert torch.equal(wanted.inputs, got.inputs)
        assert torch.equal(got.labels, got.inputs + 1)


def test_positions_and_devices() -> None:
    source = TensorSource(torch.zeros(20, 7, 3, dtype=torch.float64), batch_size=6, seed=0, token_dims=2)
    assert source.batch_tokens == 42
    assert source.position(4) == "epoch 1, batch 1 of 3, tokens 168 to 209 of the run's order"
    batch = next(on_device(source.batches(0), torch.device("cpu"), torch.float32))
    assert batch.inputs.dtype == torch.float32
    assert batch.labels is batch.inputs
    with pytest.raises(ParamsError, match=r"batch_size: 21.*20 rows"):
        TensorSource(torch.zeros(20, 3), batch_size=21, seed=0)


def test_several_hook_points_are_stacked_before_the_width() -> None:
    acts = {"a": torch.zeros(2, 5, 3), "b": torch.ones(2, 5, 3)}
    assert stacked(acts, ["a", "b"]).shape == (2, 5, 2, 3)
    assert stacked(acts, ["b"]) is acts["b"]
