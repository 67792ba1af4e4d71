"""A process group of one rank on the device (NCCL; gloo on a CPU), entered as a stage enters it, beside none.

What is sent comes back as it was, so that the weights are the same; what remains is what the calls cost.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu_training import refusing, resident, step_ms, trainer
from pipeline.distributed.group import joined
from pipeline.params.sections.distributed import DistributedParams
from pipeline.processes import ONE_PROCESS, Reductions

EQUAL = 1e-6  # relative distance of weights: a GPU may add in another order from run to run


@contextlib.contextmanager
def one_rank() -> Iterator[Reductions]:
    """Within the block this process is the only one of a group, as if torchrun had started it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    about = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with patch.dict(os.environ, about), joined(DistributedParams()) as group:
        yield group


def check_reductions(group: Reductions, device: torch.device) -> None:
    """Each reduction over one rank gives what it is given, bit for bit.

    Raises:
        RuntimeError: it does not.
    """
    draw = torch.Generator().manual_seed(0)
    values = [torch.randn(96, 96, generator=draw), torch.arange(4), torch.randn((), generator=draw, dtype=torch.float64)]
    sent: list[Any] = [*(value.to(device) for value in values), 7]
    flags = (torch.rand(2, 9, generator=draw) < 0.5).to(device)
    found = [*group.sum(sent), group.any(flags), *(group.gathered(x)[0] for x in (sent[0], sent[2], flags))]
    for wanted, got in zip([*sent, flags, sent[0], sent[2], flags], found, strict=True):
        if not (torch.equal(wanted, got) if isinstance(wanted, Tensor) else wanted == got):
            raise RuntimeError(f"a group of one rank on {device.type} changed {wanted} to {got}")


def trained(
    device: torch.device, rows: Tensor, dictionary: dict[str, Any], tokens: int, steps: int, reductions: Reductions
) -> tuple[float, dict[str, Tensor]]:
    """Milliseconds of a step without a graph, and the weights after 8 + `steps` of them."""
    run = trainer(
        device, dictionary, {"amp_dtype": "bfloat16" if device.type == "cuda" else "float32"}, 10**6, tokens, reductions
    )
    if device.type == "cuda":
        run.capture(refusing)
    ms = step_ms(run, resident(rows, tokens), steps)
    return ms, {name: parameter.detach().clone() for name, parameter in run.dictionary.named_parameters()}


def beside_none(
    device: torch.device, rows: Tensor, dictionary: dict[str, Any], tokens: int, steps: int
) -> tuple[float, float, float]:
    """Milliseconds of a step in a group of one and without one, and how far apart the weights are, relative.

    Raises:
        RuntimeError: further than EQUAL, or a reduction changes what it is given.
    """
    alone, wanted = trained(device, rows, dictionary, tokens, steps, ONE_PROCESS)
    with one_rank() as group:
        check_reductions(group, device)
        together, found = trained(device, rows, dictionary, tokens, steps, group)
    off = max(float((found[name] - x).norm() / x.norm().clamp_min(1e-30)) for name, x in wanted.items())
    if not off <= EQUAL:
        raise RuntimeError(f"a group of one rank ends with other weights than no group: {off:.2g} apart, relative")
    return together, alone, off
