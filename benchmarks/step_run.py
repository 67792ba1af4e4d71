"""Train by fit() on rows from a file: the part of step.py that runs in the checkout that PYTHONPATH names.

    PYTHONPATH=CHECKOUT python benchmarks/step_run.py FOLDER '{"act_fn": "topk", "features": 2048, "k": 32, ...}'

FOLDER holds training.npy [N, D] and held_out.npy [M, D], float32. For each of `steps` one line of JSON on standard output:
steps, the seconds that fit() took and the FVU of the held-out rows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.api import fit


def main(folder: str, job: str) -> None:
    """Run all lengths of `job`."""
    asked = json.loads(job)
    torch.set_num_threads(asked["threads"])
    training, held_out = (torch.from_numpy(np.load(Path(folder) / f"{name}.npy")) for name in ("training", "held_out"))
    for steps in asked["steps"]:
        began = time.perf_counter()
        result = fit(
            training,
            dictionary={"act_fn": asked["act_fn"], "d_sae": asked["features"], "top_k": asked["k"]},
            trainer={"total_training_tokens": steps * asked["batch"]},
            batch_size=asked["batch"],
            device="cpu",
        )
        seconds = time.perf_counter() - began
        with torch.no_grad():
            missed = sum(float((part - result.inference(part)).double().square().sum()) for part in held_out.split(2048))
        spread = float((held_out.double() - held_out.double().mean(0)).square().sum())
        sys.stdout.write(json.dumps({"steps": steps, "seconds": seconds, "fvu": missed / spread}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
