"""What a group reduces, in three real processes, beside the same worked out of all that went in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.distributed import group
from pipeline.distributed.group import MANY, joined, mesh
from pipeline.errors import ParamsError
from pipeline.params.sections.distributed import DistributedParams
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.training.dealt_state import own_tensor
from tests.project import REPOSITORY

SIZE = 3


def values(rank: int) -> list[Tensor | int]:
    draw = torch.Generator().manual_seed(rank)
    return [
        torch.randn(3, 2, generator=draw),
        rank + 1,
        torch.randn((), generator=draw, dtype=torch.float64),
        torch.arange(4) * rank,
        torch.randn(5, generator=draw),
    ]


def flags(rank: int) -> Tensor:
    return torch.arange(6).reshape(2, 3) % SIZE == rank


def rows(rank: int) -> list[Tensor]:
    """Of other lengths in each process, one of them empty; a scalar; flags."""
    draw = torch.Generator().manual_seed(10 + rank)
    return [torch.randn(rank * 2, 3, generator=draw), torch.tensor(float(rank)), flags(rank), torch.arange(rank + 1)]


def main() -> None:
    """One process: everything that it is given is compared with what it should be."""
    with joined(DistributedParams(data_parallel_size=SIZE, timeout_minutes=1.0)) as group:
        assert (group.size, group.rank) == (SIZE, int(os.environ["RANK"]))
        found = group.sum(values(group.rank))
        all_values = [values(rank) for rank in range(SIZE)]
        assert isinstance(found[1], int)
        for place, value in enumerate(found):
            wanted = sum(torch.as_tensor(each[place]).double() for each in all_values)
            torch.testing.assert_close(torch.as_tensor(value).double(), wanted, rtol=1e-6, atol=1e-6)
            assert torch.as_tensor(value).shape == torch.as_tensor(all_values[0][place]).shape
        bits = [each.double().sum() for each in group.gathered(torch.as_tensor(found[0])[None])]
        assert all(torch.equal(bits[0], each) for each in bits)  # the same bits in every process
        assert bool(group.any(flags(group.rank)).all())
        assert not bool(group.any(torch.zeros(2, dtype=torch.bool)).any())
        _together(group)
        for place in range(len(rows(0))):
            parts = group.gathered(rows(group.rank)[place])
            for rank, part in enumerate(parts):
                assert part.dtype == rows(rank)[place].dtype
                assert torch.equal(part, rows(rank)[place])
        alike = group.gathered(flags(group.rank), alike=True)
        assert all(torch.equal(part, flags(rank)) for rank, part in enumerate(alike))
        _features(group)


def many(rank: int) -> list[Tensor | int]:
    """So many numbers that they travel as they are, beside large integers that float32 does not hold."""
    draw = torch.Generator().manual_seed(20 + rank)
    return [torch.randn(MANY, generator=draw), torch.tensor(2**40 + rank), 2**30 + rank, torch.randn(2, generator=draw)]


def _together(group: Reductions) -> None:
    """Sums and flags of one journey: the sums, and where a flag is set in any process."""
    found, (anywhere, nowhere) = group.together(many(group.rank), [flags(group.rank), torch.zeros(3, dtype=torch.bool)])
    every = [many(rank) for rank in range(SIZE)]
    for place, value in enumerate(found):
        wanted = sum(torch.as_tensor(each[place]).double() for each in every)
        tensor = torch.as_tensor(value)
        assert tensor.dtype == torch.as_tensor(every[0][place]).dtype
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6 if tensor.is_floating_point() else 0.0, atol=1e-6)
    assert isinstance(found[2], int)
    assert (anywhere.dtype, anywhere.shape, nowhere.dtype) == (torch.bool, (2, 3), torch.bool)
    assert bool(anywhere.all())
    assert not bool(nowhere.any())


def _features(group: Reductions) -> None:
    """A tensor whose middle dimension is dealt, put together and taken apart; sums with their gradients."""
    alone, features = mesh(group, DistributedParams(model_parallel_size=SIZE))
    assert (alone.size, features.size, features.rank) == (1, SIZE, group.rank)
    whole = torch.arange(4.0 * 2 * SIZE * 5).reshape(4, 2 * SIZE, 5)
    part = own_tensor(whole, 1, features)
    assert part.shape == (4, 2, 5)
    placed = features.placed(part.transpose(0, 1).contiguous().transpose(0, 1), 1)  # in another order in memory
    assert placed.shape == whole.shape
    assert torch.equal(placed.full_tensor(), whole)
    assert torch.equal(own_tensor(placed, 1, features), part)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    factor = group.rank + 1.0
    total = features.summed(factor * features.shared(x))
    assert torch.equal(total, 6 * x)
    (total.square() / 2).sum().backward()
    assert torch.equal(x.grad, 36 * x.detach())  # d/dx of (6 x)^2 / 2, its parts summed over the processes


def test_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    wanted = "distributed.data_parallel_size: 2, times distributed.model_parallel_size 2 is 4, and 3 processes were started"
    with pytest.raises(ParamsError, match=wanted), joined(DistributedParams(data_parallel_size=2, model_parallel_size=2)):
        pass


def test_three_processes() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "WORLD_SIZE": str(SIZE), "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.test_group"],
            env={**environment, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(SIZE)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * SIZE, said


@pytest.mark.parametrize("value", [3, torch.randn(2, 3)])
def test_one_process_keeps_what_it_has(value: Tensor | int) -> None:
    assert ONE_PROCESS.sum([value])[0] is value
    assert ONE_PROCESS.gathered(torch.as_tensor(value))[0] is not None


if __name__ == "__main__":
    main()


class Exchange(dist.Work):
    """Is there when it has been looked for so often, and fails if an error is given."""

    def __init__(self, looks: float, error: str = "") -> None:
        super().__init__()
        self.looks, self.error, self.looked, self.waited = looks, error, 0, 0

    def is_completed(self) -> bool:
        self.looked += 1
        return self.looked > self.looks

    def wait(self, *_: object) -> bool:
        self.waited += 1
        if self.error:
            raise RuntimeError(self.error)
        return True


def test_a_process_waits_awake_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    soon, later = Exchange(3), Exchange(float("inf"))
    group._end(soon, torch.ones(1))
    assert (soon.looked, soon.waited) == (4, 1)
    monkeypatch.setattr(group, "AWAKE", 0.001)
    group._end(later, torch.ones(1))
    assert later.looked >= 1
    assert later.waited == 1
    with pytest.raises(RuntimeError, match="connection closed"):
        group._end(Exchange(0, "connection closed"), torch.ones(1))
