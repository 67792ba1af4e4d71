"""Resume points of several processes, by torch.distributed.checkpoint (DCP): each writes its shards and reads what it needs.

DCP plans which process writes which part of which tensor, hands errors of one process to all, and cuts what was written for
other shards. Files and record are those of point_files.py; the plans travel between the processes, nothing of them is stored.

A tensor that is sharded is a DTensor; its part is written by the first of the processes that hold it. Any other tensor is
whole in every process and is written by process 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor

from pipeline.errors import CheckpointError, PipelineError
from pipeline.foreign import reading
from pipeline.training.point_files import damaged, file_of, write_tensors

Files = dict[str, dict[str, Any]]  # {file: its size and digest}
Being = Callable[[], AbstractContextManager[tuple[Path, Files]]]


class Writing:
    """A point that is being written.

    Args:
        future: of torch.distributed.checkpoint.
        writer: of this process.
    """

    def __init__(self, future: Future[Any], writer: _Writer) -> None:
        self._future, self._writer = future, writer

    def done(self) -> bool:
        """Whether all processes have written, or one could not."""
        return self._future.done()

    def exception(self) -> BaseException | None:
        """Wait until it is done; None, or why it could not be: the fault of the first such process, with its number."""
        error = self._future.exception()
        if error is None:
            return None
        self._writer.close(error)
        return fault_of(error)


def save(tensors: Mapping[str, Tensor], group: dist.ProcessGroup, being_written: Being) -> Writing:
    """Copy what this process writes, and write it beside the training; every process calls this.

    Args:
        tensors: {name: tensor or DTensor}, the same names in every process.
        group: of all processes, on CPUs (gloo); nothing else may use it until this is done.
        being_written: of process 0: what holds the directory and takes down the files (:meth:`Checkpoints._being_written`).
    """
    rank = dist.get_rank(group)
    own = {name: copied(tensor) for name, tensor in tensors.items() if _owned(tensor, rank)}
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)
    writer = _Writer(own, being_written)
    found = dcp.async_save(dict(tensors), storage_writer=writer, planner=planner, process_group=group, async_stager=_Staged())
    assert isinstance(found, Future)
    return Writing(found, writer)


def copied(tensor: Tensor) -> Tensor:
    """A copy of a tensor, or of this process's shard of one, on the CPU."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _owned(tensor: Tensor, rank: int) -> bool:
    """Whether this process writes its part: it is the first of those that hold it."""
    if not isinstance(tensor, DTensor):
        return rank == 0
    place = tensor.device_mesh.get_coordinate()
    return place is not None and all(
        at == 0 for at, placement in zip(place, tensor.placements, strict=True) if placement.is_replicate()
    )


class _Staged(AsyncStager):
    """The copies have been made already."""

    _synchronize_after_execute = False

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return state_dict

    def synchronize_staging(self) -> None:
        return None

    def close(self) -> None:
        """Nothing."""


class _Writer(StorageWriter):
    """Writes one file a process; process 0 holds the directory meanwhile."""

    def __init__(self, own: Mapping[str, Tensor], being_written: Being) -> None:
        self._own, self._being_written = own, being_written
        self._stack = contextlib.ExitStack()
        self._files: Files = {}
        self._file = ""

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        directory, self._files = self._stack.enter_context(self._being_written())
        return [dataclasses.replace(plan, storage_data=str(directory / file_of(i))) for i, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        offsets = {item.index.fqn: item.tensor_data.chunk.offsets for item in plan.items if item.tensor_data is not None}
        results = []
        if offsets:
            place = Path(plan.storage_data)
            about = write_tensors(place, {name: self._own[name] for name in offsets}, offsets)
            results = [WriteResult(plan.items[0].index, about["size"], (place.name, about))]
        self._own = {}
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._files.update(result.storage_data for own in results for result in own)
        self._stack.close()

    def close(self, error: BaseException) -> None:
        """Leave the directory, which is removed: a process could not write."""
        with contextlib.suppress(BaseException):
            self._stack.__exit__(type(error), error, error.__traceback__)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


def fault_of(error: BaseException) -> BaseException:
    """The fault of the first process that could not write, as it raised it, with its number."""
    if not isinstance(error, CheckpointException) or not error.failures:
        return error
    rank, (first, _) = min(error.failures.items())
    if isinstance(first, PipelineError):
        return type(first)([f"process {rank}: {fault}" for fault in first.faults])
    return first


def load(place: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a point, each placed as the one of its name in `like`.

    Args:
        place: directory of a point whose files are as its record says.
        like: {name: tensor or DTensor}; what it does not have, or has in another shape, is read whole. Nothing is changed.

    Returns: {name: whole tensor on the CPU, or new DTensor}.

    Raises:
        CheckpointError: a file is no file of tensors.
    """
    reader = dcp.HuggingFaceStorageReader(str(place))
    with damaged(place), reading(f"{place}: damaged", kind=CheckpointError):
        found: dict[str, Any] = {}
        for name, about in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(about, TensorStorageMetadata)
            if sum(math.prod(chunk.sizes) for chunk in about.chunks) != math.prod(about.size):
                raise CheckpointError(f"{place}: tensor '{name}' is not whole, parts of it are in none of the files")
            wanted = like.get(name)
            if isinstance(wanted, DTensor) and wanted.shape == about.size:
                found[name] = torch.empty_like(wanted, dtype=about.properties.dtype)
            else:
                found[name] = torch.empty(about.size, dtype=about.properties.dtype)
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            try:
                dcp.load(found, storage_reader=reader, planner=planner, no_dist=True)
            except CheckpointException as error:
                raise CheckpointError(f"{place}: damaged ({fault_of(error)})") from None
    return found
