"""The processes of one stage and what they reduce over one another, on torch.distributed (gloo on CPUs, NCCL on GPUs)."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.distributed.agreement import check_alike, described
from pipeline.distributed.roll_call import RollCall
from pipeline.distributed.world import Several, World
from pipeline.errors import DataError, ParamsError
from pipeline.params.sections.distributed import DistributedParams
from pipeline.processes import ONE_PROCESS, Reductions, T

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

KEY = "distributed.data_parallel_size"
DIMS = ("data", "model")  # of the mesh: the first changes slower with the rank
BACKENDS = "cpu:gloo,cuda:nccl"
MANY = 8192  # numbers from which another width costs more than a journey of their own
AWAKE = 0.05  # seconds in which a process on CPUs looks again and again whether the others' numbers are there
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
    if size != params.n_processes:
        stated = str(params.data_parallel_size)
        if params.model_parallel_size > 1:
            stated += f", times distributed.model_parallel_size {params.model_parallel_size} is {params.n_processes}"
        raise ParamsError(f"{KEY}: {stated}, and {size} processes were started; give both the same number")
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


class Mesh(NamedTuple):
    """Processes in rows and columns: `rows` those with the same features as this one, `features` those with the same rows."""

    rows: Reductions
    features: Reductions


def mesh(processes: Reductions, params: DistributedParams) -> Mesh:
    """The processes, data_parallel_size x model_parallel_size, as torch.distributed's device mesh (data, model)."""
    if processes.size == 1 or params.model_parallel_size == 1:
        return Mesh(processes, ONE_PROCESS)
    from torch.distributed.device_mesh import init_device_mesh

    sizes = (params.data_parallel_size, params.model_parallel_size)
    made = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", sizes, mesh_dim_names=DIMS)
    timeout = datetime.timedelta(minutes=params.timeout_minutes)
    groups = [Group(made, name) if size > 1 else ONE_PROCESS for name, size in zip(DIMS, sizes, strict=True)]
    for group in groups:
        if isinstance(group, Group):
            group.wait_for(timeout)
    return Mesh(*groups)


class Group(Reductions):
    """Over processes of torch.distributed. All are given the same bits.

    Args:
        mesh: of all processes; None: over its default group.
        name: of the mesh's dimension that the group extends over.
    """

    def __init__(self, mesh: DeviceMesh | None = None, name: str = DIMS[0]) -> None:
        self._mesh, self._group = mesh, None if mesh is None else mesh.get_group(name)
        self.size, self.rank = dist.get_world_size(self._group), dist.get_rank(self._group)
        # Of GPUs a group of the mesh takes tensors that are there only; the default one takes others by gloo.
        gpus = mesh is not None and mesh.device_type == "cuda"
        self._device = torch.device("cuda", torch.cuda.current_device()) if gpus else None

    def _there(self, tensor: Tensor) -> Tensor:
        return tensor if self._device is None else tensor.to(self._device)

    def wait_for(self, timeout: datetime.timedelta) -> None:
        """So long at most, which a group of a mesh does not take over from the default one."""
        dist.distributed_c10d._set_pg_timeout(timeout, self._group)

    def placed(self, part: Tensor, dim: int) -> Tensor:
        from torch.distributed.tensor import DTensor, Replicate, Shard

        assert self._mesh is not None
        return DTensor.from_local(part, self._mesh, [Replicate(), Shard(dim)], run_check=False)

    def sum(self, values: Sequence[T]) -> list[T]:
        return self.together(values, [])[0]

    def together(self, values: Sequence[T], flags: Sequence[Tensor]) -> tuple[list[T], list[Tensor]]:
        """Many numbers of one dtype travel as they are; all others, and flags as counts, together in float64, which holds
        integers below 2^53 exactly.
        """
        tensors = [torch.as_tensor(value).detach() for value in (*values, *flags)]
        journeys: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for (device, dtype), places in _by_kind(tensors).items():
            many = dtype.is_floating_point and sum(tensors[place].numel() for place in places) >= MANY
            journeys.setdefault((device, dtype if many else torch.float64), []).extend(places)
        sent = [
            self._there(torch.cat([tensors[place].reshape(-1).to(dtype) for place in places]))
            for (_, dtype), places in journeys.items()
        ]
        with _named(self.rank, self.size):
            for flat in sent:
                _end(dist.all_reduce(flat, group=self._group, async_op=True), flat)
        found = list(tensors)
        for flat, places in zip(sent, journeys.values(), strict=True):
            for place, part in zip(places, flat.split([tensors[place].numel() for place in places]), strict=True):
                own = tensors[place]
                part = part.reshape(own.shape).to(own.device)
                found[place] = part > 0 if place >= len(values) else part.to(own.dtype)
        sums = zip(values, found[: len(values)], strict=True)
        whole = [cast(T, tensor if isinstance(value, Tensor) else int(tensor)) for value, tensor in sums]
        return whole, found[len(values) :]

    def any(self, flags: Tensor) -> Tensor:
        return self.together([], [flags])[1][0]

    def gathered(self, values: Tensor, *, alike: bool = False) -> list[Tensor]:
        values = values.detach()
        own = values.to(torch.uint8) if values.dtype == torch.bool else values
        own = self._there(own.contiguous() if own.ndim else own.reshape(1))
        with _named(self.rank, self.size):
            lengths = [len(own)] * self.size if alike else self._lengths(own)
            longest = max(lengths)
            padded = own if len(own) == longest else torch.cat([own, own.new_zeros(longest - len(own), *own.shape[1:])])
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            _end(dist.all_gather(parts, padded, group=self._group, async_op=True), padded)
        found = [part[:n] for part, n in zip(parts, lengths, strict=True)]
        return [part.reshape((len(part), *values.shape[1:]) if values.ndim else ()).to(values) for part in found]

    def _lengths(self, own: Tensor) -> list[int]:
        """The first dimension of `own` in each process."""
        length = torch.tensor([len(own)], device=own.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        _end(dist.all_gather(lengths, length, group=self._group, async_op=True), length)
        return [int(each) for each in lengths]


def _end(work: dist.Work, sent: Tensor) -> None:
    """Wait for an exchange of `sent`, on CPUs awake at first: a core that sleeps is woken late, in a virtual machine by
    milliseconds, which each exchange of each step would pay.

    Raises:
        RuntimeError: it failed.
    """
    until = time.monotonic() + AWAKE
    while not sent.is_cuda and not work.is_completed() and time.monotonic() < until:
        os.sched_yield()
    work.wait()


def _by_kind(tensors: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[int]]:
    """{(device, dtype): places of the tensors}."""
    found: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        found.setdefault((tensor.device, tensor.dtype), []).append(place)
    return found


def _named(rank: int, size: int) -> contextlib.AbstractContextManager[None]:
    """Around what waits for other processes: where they do not answer, say who; see :meth:`RollCall.answered`."""
    assert _roll_call is not None, f"process {rank} of {size} has not joined the others"
    return _roll_call.answered()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
