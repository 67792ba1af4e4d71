"""The processes of one stage and what they reduce over one another, on torch.distributed (gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.distributed.agreement import check_alike, described
from pipeline.distributed.roll_call import RollCall
from pipeline.distributed.world import Several, World
from pipeline.errors import DataError, ParamsError
from pipeline.params.sections.distributed import DistributedParams
from pipeline.processes import ONE_PROCESS, Reductions, T

KEY = "distributed.data_parallel_size"
BACKENDS = "cpu:gloo,cuda:nccl"
_roll_call: RollCall | None = None  # of the group that this process is in


def started_as_one() -> bool:
    """Whether a launcher (this project's, torchrun, or one like it) has started this process as one of several."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


@contextlib.contextmanager
def joined(
    params: DistributedParams, stage: str | None = None, values: Mapping[str, Any] | None = None
) -> Iterator[Reductions]:
    """Within the block this process is one of the group that a launcher has started; alone it is the only one.

    Args:
        params: how many there are, and how long they wait for one another.
        stage: of dvc.yaml, whose code must be the same in all of them; None: nothing is compared.
        values: all parameters, which must be too.

    Raises:
        ParamsError: the launcher has started another number of processes, there are fewer GPUs than processes here, or a
            process runs other code or has other parameters; it is named.
        DataError: the others did not come.
    """
    global _roll_call
    if not started_as_one():
        yield ONE_PROCESS
        return
    size = int(os.environ["WORLD_SIZE"])
    if size != params.data_parallel_size:
        raise ParamsError(f"{KEY}: {params.data_parallel_size}, and {size} processes were started; give both the same number")
    device = _own_gpu()
    minutes, rank = params.timeout_minutes, int(os.environ["RANK"])
    timeout = datetime.timedelta(minutes=minutes)
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", rank, size, timeout=timeout)))
        store.set_timeout(timeout)
        if stage is not None:
            check_alike(store, rank, size, described(stage, values or {}), minutes)
        dist.init_process_group(
            BACKENDS if device is not None else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=device,
        )
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"process {rank} of {size}: the others could not be reached at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({_first_line(error)}); look at what they say"
        ) from None
    _roll_call = RollCall(store, rank, size, minutes)
    try:
        yield Group()
    finally:
        _roll_call = None
        dist.destroy_process_group()


def world() -> World:
    """All processes of the group that this one has :func:`joined`; every one of them calls this, in the same order."""
    return World() if _roll_call is None else Several(_roll_call)


def _own_gpu() -> torch.device | None:
    """The GPU of this process, made the current one; None: there is none on this machine.

    Raises:
        ParamsError: there are fewer than processes.
    """
    if not torch.cuda.is_available():
        return None
    local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= there:
        raise ParamsError(f"{KEY}: process {local} of this machine has no GPU: there are {there}; start at most so many here")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


class Group(Reductions):
    """Over torch.distributed's default group. All processes are given the same bits."""

    def __init__(self) -> None:
        self.size, self.rank = dist.get_world_size(), dist.get_rank()

    def sum(self, values: Sequence[T]) -> list[T]:
        """Tensors of one device and dtype travel as one."""
        tensors = [torch.as_tensor(value).detach() for value in values]
        together: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for place, tensor in enumerate(tensors):
            together.setdefault((tensor.device, tensor.dtype), []).append(place)
        found: list[Tensor] = list(tensors)
        for places in together.values():
            flat = torch.cat([tensors[place].reshape(-1) for place in places])
            with _named(self.rank, self.size):
                dist.all_reduce(flat)
            for place, part in zip(places, flat.split([tensors[place].numel() for place in places]), strict=True):
                found[place] = part.reshape(tensors[place].shape)
        both = zip(values, found, strict=True)
        return [cast(T, tensor if isinstance(value, Tensor) else int(tensor)) for value, tensor in both]

    def any(self, flags: Tensor) -> Tensor:
        counts = flags.to(torch.uint8)
        with _named(self.rank, self.size):
            dist.all_reduce(counts, op=dist.ReduceOp.MAX)
        return counts.bool()

    def gathered(self, values: Tensor) -> list[Tensor]:
        values = values.detach()
        own = values.to(torch.uint8) if values.dtype == torch.bool else values
        own = own.contiguous() if own.ndim else own.reshape(1)
        length = torch.tensor([len(own)], device=own.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        with _named(self.rank, self.size):
            dist.all_gather(lengths, length)
            longest = max(int(each) for each in lengths)
            padded = own if len(own) == longest else torch.cat([own, own.new_zeros(longest - len(own), *own.shape[1:])])
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(parts, padded)
        found = [part[: int(n)] for part, n in zip(parts, lengths, strict=True)]
        return [part.reshape((len(part), *values.shape[1:]) if values.ndim else ()).to(values.dtype) for part in found]


def _named(rank: int, size: int) -> contextlib.AbstractContextManager[None]:
    """Around what waits for other processes: where they do not answer, say who; see :meth:`RollCall.answered`."""
    assert _roll_call is not None, f"process {rank} of {size} has not joined the others"
    return _roll_call.answered()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
