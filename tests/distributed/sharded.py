"""What processes with sharded states do: `python -m tests.distributed.sharded DIRECTORY`, for test_sharded_points.py.

Saved at 2 x 2 (data x model), read at 2 x 2, at one process, which saves, at 4 x 1, which saves, at 1 x 2 and at 1 x 3, whose
parts are of other sizes. Every process compares what it reads with the whole tensors, bit by bit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from pipeline.distributed.group import joined, world
from pipeline.errors import CheckpointError, DataError
from pipeline.params.sections.distributed import DistributedParams
from pipeline.training.checkpoints import Checkpoints
from tests.distributed.forked import group

ABOUT = {"seed": 0}
SHARDED = {"dictionary/W_E": 0, "dictionary/W_D": 1, "dead/fired": 0, "optimizer/m/W_E": 0}


def whole(step: int) -> dict[str, Tensor]:
    """The state after so many steps."""
    draw = torch.Generator().manual_seed(step)
    return {
        "dictionary/W_E": torch.randn(12, 5, generator=draw, dtype=torch.float64),
        "dictionary/W_D": torch.randn(5, 12, generator=draw),
        "dead/fired": torch.randn(12, generator=draw) > 0,
        "optimizer/m/W_E": torch.randn(12, 5, generator=draw).bfloat16(),
        "dictionary/b_D": torch.randn(5, generator=draw),
        "tokens": torch.tensor(step, dtype=torch.int64),
    }


def dealt(state: dict[str, Tensor], mesh: Any) -> dict[str, Tensor]:
    """The state as a process of the mesh has it."""
    rank, size = mesh.get_local_rank("model"), mesh.size(1)
    return {
        name: DTensor.from_local(
            tensor.chunk(size, SHARDED[name])[rank].clone(), mesh, [Replicate(), Shard(SHARDED[name])], run_check=False
        )
        if name in SHARDED
        else tensor.clone()
        for name, tensor in state.items()
    }


def check(found: dict[str, Tensor], step: int, like: dict[str, Tensor] | None = None) -> None:
    wanted = whole(step)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        if like is not None and name in SHARDED:
            mine = like[name]
            assert isinstance(tensor, DTensor)
            assert isinstance(mine, DTensor)
            assert tensor.placements == mine.placements
            (part,) = (tensor.to_local(),)
            start = mine.device_mesh.get_local_rank("model")
            expected = wanted[name].chunk(mine.device_mesh.size(1), SHARDED[name])[start]
        else:
            assert not isinstance(tensor, DTensor)
            part, expected = tensor, wanted[name]
        assert part.dtype == expected.dtype
        assert torch.equal(part, expected), name


def at(directory: Path, data: int, model: int, work: Any) -> None:
    """Do `work(checkpoints, mesh)` in data x model processes."""

    def process(rank: int) -> None:
        with joined(DistributedParams(data_parallel_size=data * model, timeout_minutes=2.0)):
            mesh = init_device_mesh("cpu", (data, model), mesh_dim_names=("data", "model"))
            with Checkpoints(directory, ABOUT, world()).opened() as checkpoints:
                work(checkpoints, mesh)

    codes = group(data * model, process)
    assert codes == [0] * (data * model), codes


def save(*steps: int) -> Any:
    def work(checkpoints: Checkpoints, mesh: Any) -> None:
        for step in steps:
            state = dealt(whole(step), mesh)
            checkpoints.save(step, state, {"last": {"step": step}})
            for tensor in state.values():  # the training goes on while the state is written
                (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()

    return work


def read(step: int, n_faults: int = 0) -> Any:
    def work(checkpoints: Checkpoints, mesh: Any) -> None:
        like = dealt(whole(99), mesh)
        point, faults = checkpoints.latest(like)
        assert point is not None
        assert (point.step, point.extra, len(faults)) == (step, {"last": {"step": step}}, n_faults), faults
        check(point.tensors, step, like)

    return work


def alter(place: Path) -> None:
    content = place.read_bytes()
    place.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def unwritable(checkpoints: Checkpoints, mesh: Any) -> None:
    """A process that cannot write is told by all, and nothing of the point stays."""
    import pipeline.training.sharded_points as module

    if checkpoints.world.rank == 1:

        def full(*args: Any) -> Any:
            raise DataError("the disk is full")

        module.write_tensors = full
    before = checkpoints.points()
    checkpoints.save(50, dealt(whole(50), mesh), {})
    with pytest.raises(DataError, match=r"^process 1: the disk is full$"):
        checkpoints.wait()
    checkpoints.world.gathered(None)
    assert checkpoints.points() == before
    assert not [path for path in checkpoints.directory.iterdir() if "partial" in path.name]


def nothing_is_whole(checkpoints: Checkpoints, mesh: Any) -> None:
    with pytest.raises(CheckpointError, match="every checkpoint of this run is damaged"):
        checkpoints.latest(dealt(whole(99), mesh))


def main(directory: Path) -> None:
    at(directory, 2, 2, save(4, 7, 10))
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    names = ("state-00001.safetensors", "state.json", "state.safetensors")
    assert files == ["about.json", "lock", *(f"step-{n:09d}/{name}" for n in (7, 10) for name in names)], files
    at(directory, 2, 2, read(10))
    with Checkpoints(directory, ABOUT).opened() as checkpoints:  # one process, to which a point of four is whole tensors
        point, faults = checkpoints.latest()
        assert point is not None
        assert (point.step, faults) == (10, [])
        check(point.tensors, 10)
        checkpoints.save(20, whole(20), {"last": {"step": 20}})
    at(directory, 4, 1, read(20))
    at(directory, 4, 1, save(30))
    at(directory, 1, 2, read(30))
    at(directory, 1, 3, read(30))
    at(directory, 1, 2, save(40))
    at(directory, 2, 2, unwritable)
    alter(directory / "step-000000040" / "state-00001.safetensors")
    at(directory, 2, 2, read(30, n_faults=1))
    (directory / "step-000000030" / "state.safetensors").unlink()
    at(directory, 1, 2, nothing_is_whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
