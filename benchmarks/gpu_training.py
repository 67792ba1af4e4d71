"""Steps of the trainer itself on the device: by its graph and without, from resident batches and from a store; and a peer's."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.norms.exclusion import NormLimits
from pipeline.params.sections.trainer import TrainerParams
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.training.source import TrainingBatch, on_device
from pipeline.training.step import Trainer


def refusing(work: Callable[[], Any]) -> Any:
    """A capture that never succeeds, for steps without a graph."""
    raise RuntimeError("steps without a graph are wanted")


def trainer(
    device: torch.device,
    dictionary: dict[str, Any],
    fields: dict[str, Any],
    steps: int,
    tokens: int,
    reductions: Reductions = ONE_PROCESS,
) -> Trainer:
    """A trainer of a drawn dictionary."""
    made: Dictionary = build_dictionary({"kind": "sae", **dictionary}, seed=0).to(device)
    params = TrainerParams(**{"total_training_tokens": steps * tokens, "lr": 1e-4, "log_frequency": 10**6, **fields})
    norm = float(made.config.d_in) ** 0.5
    norms = dict.fromkeys((*made.hooks_in, *made.hooks_out), norm)
    return Trainer(made, params, total_steps=steps, norms=norms, reductions=reductions)


def resident(rows: Tensor, tokens: int) -> Iterator[TrainingBatch]:
    """Batches of rows [N, D] that are there already, for ever."""
    parts: Sequence[Tensor] = rows.split(tokens)
    index = 0
    while True:
        x = parts[index % len(parts)]
        yield TrainingBatch(index, x, x)
        index += 1


def step_ms(run: Trainer, batches: Iterator[TrainingBatch], steps: int, warm: int = 8) -> float:
    """Milliseconds of a step: the time of `steps` of them after `warm`, over their number, so that launches may run ahead."""
    for _ in range(warm):
        run.step(next(batches))
    wait(run.device)
    start = time.perf_counter()
    for _ in range(steps):
        run.step(next(batches))
    wait(run.device)
    return (time.perf_counter() - start) * 1e3 / steps


def wait(device: torch.device) -> None:
    """Until everything on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def from_store(run: Trainer, rows: Tensor, tokens: int, steps: int) -> tuple[float, float]:
    """Milliseconds of a step, and the share of them spent waiting for data, from a store of these rows in the page cache.

    Raises:
        ImportError: zarr or numcodecs is not installed.
    """
    from benchmarks.store import HOOK_POINT, write_store
    from pipeline.training.source import StoreSource

    with tempfile.TemporaryDirectory() as place:
        store, _ = write_store(Path(place) / "store", rows.cpu(), "bfloat16")
        device = run.device if run.device.type == "cuda" else None
        hooks = (HOOK_POINT,)
        source = StoreSource(
            store, hooks, hooks, tokens, (0, len(rows)), NormLimits({}), len(rows), 0, dtype=None, device=device
        )
        batches = on_device(source.batches(0), run.device, run.dtype)
        for _ in range(8):
            run.step(next(batches))
        wait(run.device)
        waited, start = 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            run.step(batch)
        wait(run.device)
        total = time.perf_counter() - start
        return total * 1e3 / steps, waited / total


def sparsify_ms(rows: Tensor, features: int, k: int, tokens: int, steps: int) -> float:
    """Milliseconds of a step of eai-sparsify: its SparseCoder and its default optimiser, its autocast and kernels.

    Raises:
        ImportError: it is not installed.
    """
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    coder = SparseCoder(rows.shape[1], SparseCoderConfig(num_latents=features, k=k), device=rows.device)
    optimizer = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=5e-3 / (features / 2**14) ** 0.5), momentum=0.95)
    optimizer.train()
    times = []
    for step in range(steps + 8):
        x = rows[step % (len(rows) // tokens) * tokens :][:tokens]
        wait(rows.device)
        start = time.perf_counter()
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        wait(rows.device)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[8:])
