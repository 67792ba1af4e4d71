"""Train by fit() on rows from a file: the part of step.py that runs in the checkout that PYTHONPATH names.

    PYTHONPATH=CHECKOUT python benchmarks/step_run.py FOLDER '{"act_fn": "topk", "features": 2048, "k": 32, ...}'

FOLDER holds training.npy [N, D] and held_out.npy [M, D], float32. One line of JSON on standard output: FVU of the held-out
rows, and the median seconds between two batches, by the clock and of the process.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.api import fit
from pipeline.training.source import TensorSource

WARM_UP = 3  # steps that are not counted


def main(folder: str, job: str) -> None:
    """Run `job`."""
    asked = json.loads(job)
    torch.set_num_threads(asked["threads"])
    training, held_out = (torch.from_numpy(np.load(Path(folder) / f"{name}.npy")) for name in ("training", "held_out"))
    stamps: list[tuple[float, float]] = []
    batches = TensorSource.batches

    def stamped(source: TensorSource, start: int) -> Iterator[Any]:
        for batch in batches(source, start):
            stamps.append((time.perf_counter(), time.process_time()))
            yield batch

    TensorSource.batches = stamped  # type: ignore[method-assign]
    result = fit(
        training,
        dictionary={"act_fn": asked["act_fn"], "d_sae": asked["features"], "top_k": asked["k"]},
        trainer={"total_training_tokens": asked["steps"] * asked["batch"]},
        batch_size=asked["batch"],
        device="cpu",
    )
    wall, cpu = (
        statistics.median(after[i] - before[i] for before, after in zip(stamps[WARM_UP:], stamps[WARM_UP + 1 :], strict=False))
        for i in (0, 1)
    )
    with torch.no_grad():
        missed = sum(float((part - result.inference(part)).double().square().sum()) for part in held_out.split(2048))
    spread = float((held_out.double() - held_out.double().mean(0)).square().sum())
    sys.stdout.write(json.dumps({"step": wall, "cpu": cpu, "fvu": missed / spread}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
